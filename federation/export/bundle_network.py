"""A run's network as a MONAI bundle tells it: constructors of MONAI and torch, and a state dict.

Nothing in it is ours, so that it loads where Cohortium is not installed. Two things of ours are
told otherwise: weights that are standardised at each pass (arXiv 1903.10520) are written as what
the pass makes of them, and GroupNorm that stands for BatchNorm is put in by
``monai.networks.utils.replace_modules``.
"""

from typing import Any

import torch
from monai.networks import nets
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from federation.errors import FederationError
from federation.experiment import Experiment
from models.architecture import MODULE, Architecture, architecture_of

Config = dict[str, Any]


def network_config(experiment: Experiment, network: nn.Module) -> Config:
    """Return the entries ``network_def`` and what it is made from.

    Args:
        network: As ``without_parametrizations`` returns it.

    Raises:
        FederationError: A layer differs from MONAI's own in a way that a bundle cannot tell.
    """
    made = architecture_of(experiment.model, num_classes=experiment.task.num_outputs)
    replaced = _replacements(made, network)
    own = {"_target_": f"{MODULE}.{made.network}", **made.arguments}
    if not replaced:
        return {"network_def": own}
    return {
        "network_of_monai": own,
        "group_norms": [
            {
                "_target_": "monai.networks.utils.replace_modules",
                "parent": "@network_of_monai",
                "name": name,
                "new_module": _group_norm(layer),
            }
            for name, layer in replaced.items()
        ],
        # Returns the network itself, once its layers are in place.
        "network_def": {
            "_target_": "torch.nn.Module.eval",
            "_requires_": "@group_norms",
            "self": "@network_of_monai",
        },
    }


def _replacements(made: Architecture, network: nn.Module) -> dict[str, nn.GroupNorm]:
    """Return, by name, what stands where MONAI has BatchNorm."""
    with torch.random.fork_rng(devices=[]):
        monais = dict(getattr(nets, made.network)(**made.arguments).named_modules())
    found: dict[str, nn.GroupNorm] = {}
    for name, layer in network.named_modules():
        own = monais.get(name)
        if type(own) is type(layer):
            continue
        if not isinstance(own, _BatchNorm) or not isinstance(layer, nn.GroupNorm):
            raise FederationError(
                f"Layer {name!r} is {type(layer).__name__}, which MONAI's {made.network} does not "
                "have there, so that no MONAI bundle can tell this network. Use --format onnx."
            )
        found[name] = layer
    return found


def _group_norm(layer: nn.GroupNorm) -> Config:
    return {
        "_target_": "torch.nn.GroupNorm",
        "num_groups": layer.num_groups,
        "num_channels": layer.num_channels,
        "eps": layer.eps,
        "affine": layer.affine,
    }
