"""Specs to MONAI networks, and networks to named float32 arrays."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from monai.networks.nets import AttentionUnet, DenseNet, DynUNet, ResNet, SegResNet, UNet
from torch import nn

from models.architecture import architecture_of
from models.dp_safe import make_dp_safe, standardise_weights
from models.errors import ModelError
from models.specs import AnyModel

_NETWORKS = {
    network.__name__: network
    for network in (AttentionUnet, DenseNet, DynUNet, ResNet, SegResNet, UNet)
}


def build_network(spec: AnyModel, *, num_classes: int, seed: int = 0) -> nn.Module:
    """Return the network with weights drawn from ``seed``; the global generator is left alone.

    Input x_BC(D)HW float32. Output logits: on the same grid (B, classes, (D)HW), or, of
    classifiers, (B, classes).

    Raises:
        ModelError: MONAI refuses the combination of numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = _make(spec, num_classes)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"MONAI cannot build this {spec.kind}: {error}") from error
    return standardise_weights(network) if spec.weight_standardisation else network


def _make(spec: AnyModel, num_classes: int) -> nn.Module:
    architecture = architecture_of(spec, num_classes=num_classes)
    network: nn.Module = _NETWORKS[architecture.network](**architecture.arguments)
    return make_dp_safe(network)[0] if architecture.repaired else network


def weights_of(network: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """Return every floating state entry (parameters and buffers) as float32, in model order.

    A tensor that has several names (``DynUNet`` lists its blocks twice) comes under the first.
    """
    return {
        name: value.cpu().numpy().astype(np.float32, copy=True)
        for name, value in _state(network).items()
        if value.is_floating_point()
    }


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return each tensor of the network once, sharing its memory."""
    first: dict[int, str] = {}
    entries = network.state_dict(keep_vars=True)
    for name, value in entries.items():
        first.setdefault(id(value), name)
    return {name: entries[name].detach() for name in first.values()}


def load_weights(network: nn.Module, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Copy ``weights`` into ``network``.

    Raises:
        ModelError: Names or shapes differ from the network's.
    """
    state = _state(network)
    expected = {n: tuple(value.shape) for n, value in state.items() if value.is_floating_point()}
    given = {name: array.shape for name, array in weights.items()}
    if expected != given:
        wrong = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
        raise ModelError(
            f"{len(wrong)} weights do not fit this network (first: {wrong[0]!r}, "
            f"expected {expected.get(wrong[0])}, got {given.get(wrong[0])})."
        )
    for name, array in weights.items():
        state[name].copy_(torch.from_numpy(np.array(array, dtype=np.float32)))


def num_parameters(network: nn.Module) -> int:
    """Return how many trainable numbers the network has."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
