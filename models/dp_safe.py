"""What may not be trained under subject-level privacy, found before anything is charged."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.errors import ModelError


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
        if isinstance(layer, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d):
            _refuse_running_statistics(name, layer)


def _refuse_running_statistics(name: str, layer: nn.Module) -> None:
    if getattr(layer, "track_running_stats", False):
        raise ModelError(
            f"Layer {name!r} keeps running statistics of protected images in a buffer that would "
            "leave without noise. Build it with track_running_stats=False."
        )
