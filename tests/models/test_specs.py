import numpy as np
import pytest
import torch

from models.build import build_network, load_weights, weights_of
from models.dp_safe import require_dp_safe
from models.specs import (
    AttentionUnetSpec,
    DenseNetSpec,
    DynUNetSpec,
    ResNetSpec,
    SegResNetSpec,
    UNetSpec,
    parse_model_spec,
)

UNET = {"spatial_dims": 2, "channels": [8, 16], "strides": [2]}
DEEPER = {"spatial_dims": 2, "channels": [8, 8, 16], "strides": [2, 2]}


def test_the_first_kinds_are_written_as_they_always_were():
    """Digests of approved experiments are over these values."""
    assert UNetSpec(**UNET).model_dump(mode="json") == {
        "kind": "unet",
        "spatial_dims": 2,
        "in_channels": 1,
        "channels": [8, 16],
        "strides": [2],
        "num_res_units": 0,
        "norm": "instance",
    }
    assert SegResNetSpec(spatial_dims=3).model_dump(mode="json") == {
        "kind": "segresnet",
        "spatial_dims": 3,
        "in_channels": 1,
        "init_filters": 8,
        "blocks_down": [1, 2, 2, 4],
        "blocks_up": [1, 1, 1],
    }
    assert DenseNetSpec(spatial_dims=2).model_dump(mode="json") == {
        "kind": "densenet",
        "spatial_dims": 2,
        "in_channels": 1,
        "init_features": 16,
        "growth": 8,
        "block_layers": [2, 4, 4],
    }


@pytest.mark.parametrize(
    ("spec", "classifies", "downsampling"),
    [
        (UNetSpec(**UNET), False, 2),
        (SegResNetSpec(spatial_dims=2), False, 8),
        (DynUNetSpec(**DEEPER), False, 4),
        (AttentionUnetSpec(**UNET), False, 2),
        (DenseNetSpec(spatial_dims=2), True, 1),
        (ResNetSpec(spatial_dims=2), True, 1),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_a_spec_tells_what_it_is_for_and_what_a_grid_must_divide_by(spec, classifies, downsampling):
    assert spec.classifies is classifies and spec.downsampling == downsampling
    assert parse_model_spec(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "values",
    [
        {"kind": "dynunet", **DEEPER},
        {"kind": "dynunet", **DEEPER, "norm": "group", "res_block": True},
        {"kind": "attention_unet", **UNET},
        {"kind": "resnet", "channels": [8, 8, 8, 8]},
        {"kind": "resnet", "block": "bottleneck", "channels": [4, 4, 8, 8], "max_pool": True},
    ],
    ids=str,
)
def test_the_newer_kinds_build_in_both_dimensions(values, dims):
    spec = parse_model_spec({**values, "spatial_dims": dims})
    network = build_network(spec, num_classes=3)
    require_dp_safe(network)
    shape = (32,) * dims
    logits = network(torch.zeros(2, 1, *shape))
    assert logits.shape == ((2, 3) if spec.classifies else (2, 3, *shape))


def test_strides_that_do_not_fit_are_refused_with_their_number():
    for kind in ("unet", "dynunet", "attention_unet"):
        with pytest.raises(ValueError, match="1 entries for 3 channels; give 2"):
            parse_model_spec({"kind": kind, **DEEPER, "strides": [2]})


def test_a_tensor_with_two_names_is_one_weight_and_loads_whole():
    """DynUNet lists its blocks twice: the second name must not undo the first."""
    network = build_network(DynUNetSpec(**DEEPER), num_classes=2)
    weights = weights_of(network)
    assert set(weights) == {name for name, _ in network.named_parameters()}
    changed = {name: array + np.float32(1) for name, array in weights.items()}
    load_weights(network, changed)
    assert all(np.array_equal(changed[n], a) for n, a in weights_of(network).items())
