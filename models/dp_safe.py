"""Which layers may not be trained under subject-level privacy, and what they are replaced with.

``make_dp_safe`` repairs what can be repaired without changing what the network means;
``require_dp_safe`` refuses the known layers by type, at once. What neither knows by name,
``models.behaviour`` finds by trying the network out.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from models.errors import ModelError

# GroupNorm's default (arXiv 1803.08494), as Opacus's fixer takes it.
_MOST_GROUPS = 32
# Of one channel each, a group would lose its value on a grid of 1 x 1.
_LEAST_CHANNELS = 4
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Repair:
    """One layer that was replaced or changed.

    Attributes:
        layer: Its name in the network; "" is the network.
        was: Its class before.
        now: What it is instead, for people.
    """

    layer: str
    was: str
    now: str


def make_dp_safe(network: nn.Module) -> tuple[nn.Module, tuple[Repair, ...]]:
    """Return a copy that may be trained under subject-level privacy, and what was changed in it.

    BatchNorm becomes GroupNorm with ``num_groups_for`` groups and the same scale and shift;
    InstanceNorm loses its running statistics; activations stop working in place. Nothing is drawn
    anew, so the same network is always repaired into the same weights.

    Raises:
        ModelError: A layer has learned statistics (its weights would mean something else without
            them), or is a BatchNorm with a ``forward`` of its own.
    """
    network, repairs = copied(network), []
    done: dict[int, nn.Module] = {}
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        replacement = done.get(id(layer)) or _repaired(name, layer)
        if replacement is None:
            continue
        done[id(layer)] = replacement
        repairs.append(_repair(name, layer, replacement))
        network = _put(network, name, replacement)
    return network, (*repairs, *_out_of_place(network))


def copied(network: nn.Module) -> nn.Module:
    """Return a deep copy.

    Raises:
        ModelError: It holds tensors with a history, or layers that are not yet initialised.
    """
    try:
        return copy.deepcopy(network)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{type(network).__name__} cannot be copied, so it cannot be tried out: it keeps "
            "tensors with a history (torch.nn.utils.weight_norm does) or has lazy layers. Use "
            "torch.nn.utils.parametrizations, give layers their sizes, and keep nothing between "
            "passes."
        ) from error


def num_groups_for(num_channels: int) -> int:
    """Return GroupNorm's groups: the most that divide, at most 32, of 4 channels or more each.

    Where no such number divides the channels, one group.

    >>> [num_groups_for(channels) for channels in (3, 8, 20, 64, 512)]
    [1, 2, 5, 16, 32]
    """
    most = min(_MOST_GROUPS, num_channels // _LEAST_CHANNELS)
    return next((n for n in range(most, 1, -1) if num_channels % n == 0), 1)


def summary(repairs: Sequence[Repair]) -> str:
    """Return how many layers were changed into what.

    >>> summary([Repair("a", "BatchNorm2d", "GroupNorm"), Repair("b", "BatchNorm2d", "GroupNorm")])
    '2 BatchNorm2d: GroupNorm'
    """
    counted = Counter((repair.was, repair.now) for repair in repairs)
    return "; ".join(f"{times} {was}: {now}" for (was, now), times in counted.items())


def require_dp_safe(network: nn.Module) -> None:
    """Refuse layers through which one subject's data changes another subject's gradient.

    Raises:
        ModelError: Names the first layer found, why, and the replacement.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm):
            raise ModelError(
                f"Layer {name!r} is {type(layer).__name__}: it mixes the subjects of a batch and "
                "keeps their statistics, so clipping one subject's gradient does not bound what "
                "that subject changes. Use norm: instance or norm: group."
            )
        if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            raise ModelError(
                f"Layer {name!r} keeps running statistics of protected images in a buffer that "
                "would leave without noise. Build it with track_running_stats=False."
            )


def _repaired(name: str, layer: nn.Module) -> nn.Module | None:
    """Return what replaces a layer; None where nothing has to."""
    if isinstance(layer, _BatchNorm):
        _require_plain(name, layer)
        _require_nothing_learned(name, layer)
        return _as_group_norm(layer)
    if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
        _require_nothing_learned(name, layer)
        return _without_statistics(layer)
    return None


def _require_plain(name: str, layer: _BatchNorm) -> None:
    if type(layer).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        raise ModelError(
            f"Layer {name!r} ({type(layer).__name__}) is a BatchNorm with a forward of its own: "
            "what GroupNorm would change in it is not known. Build the network with GroupNorm."
        )


def _require_nothing_learned(name: str, layer: _BatchNorm | _InstanceNorm) -> None:
    fresh = (
        layer.running_mean is None
        or layer.running_var is None
        or (bool((layer.running_mean == 0).all()) and bool((layer.running_var == 1).all()))
    )
    if not fresh or int(layer.num_batches_tracked or 0):
        raise ModelError(
            f"Layer {name!r} ({type(layer).__name__}) holds statistics that it has learned: "
            "without them the network's weights would mean something else. Start from weights "
            "that were trained with GroupNorm, or from fresh ones."
        )


def _as_group_norm(layer: _BatchNorm) -> nn.GroupNorm:
    channels = layer.num_features
    group = nn.GroupNorm(num_groups_for(channels), channels, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        # The very parameters, so that what was frozen or shared stays so.
        group.weight, group.bias = layer.weight, layer.bias
    return group.train(layer.training)


def _without_statistics(layer: _InstanceNorm) -> _InstanceNorm:
    plain = copy.copy(layer)
    plain._buffers = {k: v for k, v in layer._buffers.items() if k not in _STATISTICS}
    for name in _STATISTICS:
        plain.register_buffer(name, None)
    plain.track_running_stats = False
    return plain


def _repair(name: str, was: nn.Module, now: nn.Module) -> Repair:
    if isinstance(now, nn.GroupNorm):
        return Repair(name, type(was).__name__, "GroupNorm")
    return Repair(name, type(was).__name__, "without running statistics")


def _put(network: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    if not name:
        return layer
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, layer)
    return network


def _out_of_place(network: nn.Module) -> Iterator[Repair]:
    """Let no activation or dropout overwrite its input: hooks and vmap need it afterwards."""
    for name, layer in network.named_modules():
        if getattr(layer, "inplace", False) is True:
            layer.inplace = False
            yield Repair(name, type(layer).__name__, "not in place")


def standardise_weights(network: nn.Module) -> nn.Module:
    """Give every convolution weights of mean 0 and deviation 1 per output channel, in place.

    Weight standardisation (arXiv 1903.10520) with the fan-in scaling of arXiv 2101.08692, which
    keeps activations at the size that the usual initialisation gives. It looks at weights alone,
    never at images. The trained tensor is ``<layer>.parametrizations.weight.original``. A weight
    that is alone in its channel would always be 0, so it is left as it is.
    """
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    for layer in [m for m in convolutions if m.weight[0].numel() > 1]:
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", _Standardised())
    return network


class _Standardised(nn.Module):
    """Weights (out, in, *kernel) to the same with mean 0 and variance 1 / fan-in for each out."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        flat = weight.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        scaled = centred * torch.rsqrt(variance * flat.shape[1] + 1e-4)
        return scaled.view_as(weight)
