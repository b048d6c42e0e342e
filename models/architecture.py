"""A spec as MONAI's own words: the class and what it is called with. Torch-free, plain JSON values.

What other tools rebuild a network from, and what ``models.build`` itself calls: one source.
"""

from dataclasses import dataclass
from typing import Any

from models.specs import (
    AnyModel,
    AttentionUnetSpec,
    DenseNetSpec,
    DynUNetSpec,
    ResNetSpec,
    SegResNetSpec,
    UNetSpec,
)

MODULE = "monai.networks.nets"
_UNET_NORMS: dict[str, Any] = {
    "instance": ["instance", {"affine": False}],
    "group": ["group", {"num_groups": 4}],
    "batch": "batch",
}
_DYNUNET_NORMS: dict[str, Any] = {
    "instance": ["instance", {"affine": True}],
    "group": ["group", {"num_groups": 4}],
}
_DENSENET_NORM = ["group", {"num_groups": 4}]


@dataclass(frozen=True)
class Architecture:
    """One call of a class in ``monai.networks.nets``.

    Attributes:
        repaired: MONAI's network keeps BatchNorm, and ours has ``make_dp_safe`` after it: the
            call alone does not rebuild it.
    """

    network: str
    arguments: dict[str, Any]
    repaired: bool = False


def architecture_of(spec: AnyModel, *, num_classes: int) -> Architecture:
    """Return the call that makes a spec's network, weight standardisation left aside.

    >>> architecture_of(ResNetSpec(spatial_dims=2), num_classes=2).repaired
    True
    """
    match spec:
        case UNetSpec():
            return Architecture("UNet", _unet(spec, num_classes))
        case SegResNetSpec():
            return Architecture("SegResNet", _segresnet(spec, num_classes))
        case DynUNetSpec():
            return Architecture("DynUNet", _dynunet(spec, num_classes))
        case DenseNetSpec():
            return Architecture("DenseNet", _densenet(spec, num_classes))
        # These two keep BatchNorm in MONAI 1.6, whatever they are asked for.
        case AttentionUnetSpec():
            return Architecture("AttentionUnet", _attention_unet(spec, num_classes), repaired=True)
        case ResNetSpec():
            return Architecture("ResNet", _resnet(spec, num_classes), repaired=True)


def _unet(spec: UNetSpec, num_classes: int) -> dict[str, Any]:
    return {
        "spatial_dims": spec.spatial_dims,
        "in_channels": spec.in_channels,
        "out_channels": num_classes,
        "channels": list(spec.channels),
        "strides": list(spec.strides),
        "num_res_units": spec.num_res_units,
        "norm": _UNET_NORMS[spec.norm],
    }


def _segresnet(spec: SegResNetSpec, num_classes: int) -> dict[str, Any]:
    return {
        "spatial_dims": spec.spatial_dims,
        "in_channels": spec.in_channels,
        "out_channels": num_classes,
        "init_filters": spec.init_filters,
        "blocks_down": list(spec.blocks_down),
        "blocks_up": list(spec.blocks_up),
    }


def _dynunet(spec: DynUNetSpec, num_classes: int) -> dict[str, Any]:
    return {
        "spatial_dims": spec.spatial_dims,
        "in_channels": spec.in_channels,
        "out_channels": num_classes,
        "kernel_size": [3] * len(spec.channels),
        "strides": [1, *spec.strides],
        "upsample_kernel_size": list(spec.strides),
        "filters": list(spec.channels),
        "norm_name": _DYNUNET_NORMS[spec.norm],
        "res_block": spec.res_block,
    }


def _attention_unet(spec: AttentionUnetSpec, num_classes: int) -> dict[str, Any]:
    return {
        "spatial_dims": spec.spatial_dims,
        "in_channels": spec.in_channels,
        "out_channels": num_classes,
        "channels": list(spec.channels),
        "strides": list(spec.strides),
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
        "block_config": list(spec.block_layers),
        "norm": _DENSENET_NORM,
    }
