"""Specs to MONAI networks, and networks to named float32 arrays."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from monai.networks.nets import DenseNet, SegResNet, UNet
from torch import nn

from models.errors import ModelError
from models.specs import AnyModel, DenseNetSpec, UNetSpec

_UNET_NORMS = {
    "instance": ("instance", {"affine": False}),
    "group": ("group", {"num_groups": 4}),
    "batch": "batch",
}
# Not MONAI's ResNet: in 1.6 it keeps BatchNorm in its blocks whatever ``norm`` says.
_DENSENET_NORM = ("group", {"num_groups": 4})


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
            return _make(spec, num_classes)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"MONAI cannot build this {spec.kind}: {error}") from error


def _make(spec: AnyModel, num_classes: int) -> nn.Module:
    if isinstance(spec, DenseNetSpec):
        return _densenet(spec, num_classes)
    if isinstance(spec, UNetSpec):
        return UNet(
            spatial_dims=spec.spatial_dims,
            in_channels=spec.in_channels,
            out_channels=num_classes,
            channels=spec.channels,
            strides=spec.strides,
            num_res_units=spec.num_res_units,
            norm=_UNET_NORMS[spec.norm],
        )
    return SegResNet(
        spatial_dims=spec.spatial_dims,
        in_channels=spec.in_channels,
        out_channels=num_classes,
        init_filters=spec.init_filters,
        blocks_down=spec.blocks_down,
        blocks_up=spec.blocks_up,
    )


def _densenet(spec: DenseNetSpec, num_classes: int) -> nn.Module:
    return DenseNet(
        spatial_dims=spec.spatial_dims,
        in_channels=spec.in_channels,
        out_channels=num_classes,
        init_features=spec.init_features,
        growth_rate=spec.growth,
        block_config=spec.block_layers,
        norm=_DENSENET_NORM,
    )


def weights_of(network: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """Return every floating state entry (parameters and buffers) as float32, in model order."""
    return {
        name: value.detach().cpu().numpy().astype(np.float32, copy=True)
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }


def load_weights(network: nn.Module, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Copy ``weights`` into ``network``.

    Raises:
        ModelError: Names or shapes differ from the network's.
    """
    expected = {name: value.shape for name, value in weights_of(network).items()}
    given = {name: array.shape for name, array in weights.items()}
    if expected != given:
        wrong = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
        raise ModelError(
            f"{len(wrong)} weights do not fit this network (first: {wrong[0]!r}, "
            f"expected {expected.get(wrong[0])}, got {given.get(wrong[0])})."
        )
    state = network.state_dict()
    for name, array in weights.items():
        state[name].copy_(torch.from_numpy(np.array(array, dtype=np.float32)))


def num_parameters(network: nn.Module) -> int:
    """Return how many trainable numbers the network has."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
