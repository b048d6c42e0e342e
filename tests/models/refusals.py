"""What is refused under subject-level privacy, in its own words: a table of docs/models.md.

MONAI's networks, fresh from their constructors, all work or are repaired. These are what people
put around and into them.
"""

import re
import warnings
from collections.abc import Callable

import torch
from monai.networks import nets
from torch import nn

from models.behaviour import check_behaviour
from models.dp_safe import make_dp_safe, require_dp_safe
from models.errors import ModelError
from models.synthetic import MadeUp
from tests.models.losses import cross_entropies, declared, dice


def _densenet() -> nn.Module:
    return nets.DenseNet(2, 1, 2, init_features=8, growth_rate=8, block_config=(1, 1))


def _trained_statistics() -> nn.Module:
    network = _densenet().train()
    network(torch.randn(2, 1, 32, 32))
    return network


def _between(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), layer, nn.Conv2d(4, 2, 1))


class _OwnBatchNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


class BatchStatistics(nn.Module):
    """Normalises over the batch by hand."""

    def forward(self, x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / (x.std((0, 2, 3), keepdim=True) + 1e-5)


class EarlyExit(nn.Module):
    """Looks at a value to decide what to compute."""

    def forward(self, x):
        return x if x.max().item() > 100 else x.relu()


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = _between(nn.utils.weight_norm(nn.Conv2d(4, 4, 1)))
    network(torch.zeros(1, 1, 8, 8))
    return network


def _guard(network: nn.Module, loss=cross_entropies) -> None:
    check_behaviour(network, loss, record=MadeUp, declared=declared())


REFUSED: dict[str, Callable[[], object]] = {
    "`norm: batch` in an experiment's UNet": lambda: require_dp_safe(
        nets.UNet(2, 1, 2, (4, 8), (2,), norm="batch")
    ),
    "MONAI's DenseNet with BatchNorm statistics from an earlier training": lambda: make_dp_safe(
        _trained_statistics()
    ),
    "a BatchNorm with a `forward` of its own": lambda: make_dp_safe(_between(_OwnBatchNorm(4))),
    "batch statistics by hand": lambda: _guard(_between(BatchStatistics())),
    "spectral norm, which writes a buffer in each pass": lambda: _guard(
        _between(nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)))
    ),
    "a decision by a value": lambda: _guard(_between(EarlyExit())),
    "`torch.nn.utils.weight_norm`, the deprecated one": lambda: _guard(_old_weight_norm()),
    "Dice over a batch (`DiceLoss(batch=True)`)": lambda: _guard(
        _between(nn.ReLU()), dice(batch=True)
    ),
    "a network that is frozen as a whole": lambda: _guard(
        _between(nn.ReLU()).requires_grad_(False)
    ),
}


def refusal(name: str) -> str:
    """Return the row of the table.

    Raises:
        AssertionError: It was not refused.
    """
    torch.manual_seed(0)
    try:
        REFUSED[name]()
    except ModelError as error:
        # Without the size of a difference, which another processor may round otherwise.
        words = re.sub(r" by [\d.]+%", "", " ".join(str(error).replace("|", "/").split()))
        return f"| {name} | {words} |"
    raise AssertionError(f"{name} was not refused")
