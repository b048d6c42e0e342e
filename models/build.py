"""Specs to MONAI networks, and networks to named float32 arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.networks.nets import AttentionUnet, DenseNet, DynUNet, ResNet, SegResNet, UNet
from torch import nn

from models.dp_safe import make_dp_safe, standardise_weights
from models.errors import ModelError
from models.specs import (
    AnyModel,
    AttentionUnetSpec,
    DenseNetSpec,
    DynUNetSpec,
    ResNetSpec,
    SegResNetSpec,
    UNetSpec,
)

_CLASSES: dict[str, Callable[..., nn.Module]] = {
    "AttentionUnet": AttentionUnet,
    "DenseNet": DenseNet,
    "DynUNet": DynUNet,
    "ResNet": ResNet,
    "SegResNet": SegResNet,
    "UNet": UNet,
}
_UNET_NORMS = {
    "instance": ("instance", {"affine": False}),
    "group": ("group", {"num_groups": 4}),
    "batch": "batch",
}
_DYNUNET_NORMS = {
    "instance": ("instance", {"affine": True}),
    "group": ("group", {"num_groups": 4}),
}
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
            network = _make(spec, num_classes)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"MONAI cannot build this {spec.kind}: {error}") from error
    return standardise_weights(network) if spec.weight_standardisation else network


def _make(spec: AnyModel, num_classes: int) -> nn.Module:
    made = constructor(spec, num_classes)
    network = _CLASSES[made.name](**made.arguments)
    # These two keep BatchNorm in MONAI 1.6, whatever they are asked for.
    if isinstance(spec, AttentionUnetSpec | ResNetSpec):
        return make_dp_safe(network)[0]
    return network


@dataclass(frozen=True)
class Constructor:
    """How MONAI makes a network, before anything of ours is done to it.

    Attributes:
        name: Of a class in ``monai.networks.nets``.
        arguments: Keyword arguments, JSON values but for tuples.
    """

    name: str
    arguments: dict[str, Any]


def constructor(spec: AnyModel, num_classes: int) -> Constructor:
    """Return what MONAI is asked for, for ``build_network`` and for exports."""
    match spec:
        case UNetSpec():
            return Constructor("UNet", _unet(spec, num_classes))
        case SegResNetSpec():
            return Constructor("SegResNet", _segresnet(spec, num_classes))
        case DynUNetSpec():
            return Constructor("DynUNet", _dynunet(spec, num_classes))
        case DenseNetSpec():
            return Constructor("DenseNet", _densenet(spec, num_classes))
        case AttentionUnetSpec():
            return Constructor("AttentionUnet", _attention_unet(spec, num_classes))
        case ResNetSpec():
            return Constructor("ResNet", _resnet(spec, num_classes))


def _unet(spec: UNetSpec, num_classes: int) -> dict[str, Any]:
    return {
        "spatial_dims": spec.spatial_dims,
        "in_channels": spec.in_channels,
        "out_channels": num_classes,
        "channels": spec.channels,
        "strides": spec.strides,
        "num_res_units": spec.num_res_units,
        "norm": _UNET_NORMS[spec.norm],
    }


def _segresnet(spec: SegResNetSpec, num_classes: int) -> dict[str, Any]:
    return {
        "spatial_dims": spec.spatial_dims,
        "in_channels": spec.in_channels,
        "out_channels": num_classes,
        "init_filters": spec.init_filters,
        "blocks_down": spec.blocks_down,
        "blocks_up": spec.blocks_up,
    }


def _dynunet(spec: DynUNetSpec, num_classes: int) -> dict[str, Any]:
    return {
        "spatial_dims": spec.spatial_dims,
        "in_channels": spec.in_channels,
        "out_channels": num_classes,
        "kernel_size": [3] * len(spec.channels),
        "strides": [1, *spec.strides],
        "upsample_kernel_size": list(spec.strides),
        "filters": spec.channels,
        "norm_name": _DYNUNET_NORMS[spec.norm],
        "res_block": spec.res_block,
    }


def _attention_unet(spec: AttentionUnetSpec, num_classes: int) -> dict[str, Any]:
    return {
        "spatial_dims": spec.spatial_dims,
        "in_channels": spec.in_channels,
        "out_channels": num_classes,
        "channels": spec.channels,
        "strides": spec.strides,
    }


def _resnet(spec: ResNetSpec, num_classes: int) -> dict[str, Any]:
    return {
        "block": spec.block,
        "layers": list(spec.blocks),
        "block_inplanes": list(spec.channels),
        "spatial_dims": spec.spatial_dims,
        "n_input_channels": spec.in_channels,
        "conv1_t_size": spec.first_kernel,
        "conv1_t_stride": spec.first_stride,
        "no_max_pool": not spec.max_pool,
        "num_classes": num_classes,
    }


def _densenet(spec: DenseNetSpec, num_classes: int) -> dict[str, Any]:
    return {
        "spatial_dims": spec.spatial_dims,
        "in_channels": spec.in_channels,
        "out_channels": num_classes,
        "init_features": spec.init_features,
        "growth_rate": spec.growth,
        "block_config": spec.block_layers,
        "norm": _DENSENET_NORM,
    }


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
