import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from models.build import build_network, load_weights, num_parameters, weights_of
from models.dp_safe import require_dp_safe
from models.errors import ModelError
from models.specs import DenseNetSpec, SegResNetSpec, UNetSpec
from models.weights import weights_digest, weights_from_bytes, weights_to_bytes

SMALL = UNetSpec(spatial_dims=2, channels=(16, 32), strides=(2,))


def test_the_demo_network_has_6101_parameters():
    assert num_parameters(build_network(SMALL, num_classes=3)) == 6101


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (SMALL, (64, 80)),
        (UNetSpec(spatial_dims=3, channels=(8, 16), strides=(2,), norm="group"), (8, 8, 8)),
        (SegResNetSpec(spatial_dims=2, blocks_down=(1, 1), blocks_up=(1,)), (16, 16)),
    ],
)
def test_logits_have_one_channel_a_class_on_the_input_grid(spec, shape):
    network = build_network(spec, num_classes=3)
    assert network(torch.zeros(2, 1, *shape)).shape == (2, 3, *shape)
    require_dp_safe(network)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_classifier_gives_one_logit_a_class_and_may_be_trained_under_privacy(dims):
    network = build_network(DenseNetSpec(spatial_dims=dims), num_classes=3)
    assert network(torch.zeros(2, 1, *(28,) * dims)).shape == (2, 3)
    require_dp_safe(network)


def test_feature_maps_that_no_group_divides_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"block 2 ends with 22 .* multiples of 32"):
        DenseNetSpec(spatial_dims=2, growth=24, block_layers=(1, 1, 1))


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = weights_of(build_network(SMALL, num_classes=3, seed=1))
    assert torch.equal(torch.rand(3), expected)
    assert weights_digest(first) == weights_digest(
        weights_of(build_network(SMALL, num_classes=3, seed=1))
    )
    assert weights_digest(first) != weights_digest(
        weights_of(build_network(SMALL, num_classes=3, seed=2))
    )


def test_batch_norm_is_refused_under_privacy_by_name_and_with_a_replacement():
    spec = UNetSpec(spatial_dims=2, channels=(16, 32), strides=(2,), norm="batch")
    with pytest.raises(ModelError, match=r"BatchNorm2d.*norm: instance"):
        require_dp_safe(build_network(spec, num_classes=3))


def test_running_statistics_are_refused_under_privacy():
    with pytest.raises(ModelError, match="running statistics"):
        require_dp_safe(nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True)))


def test_weights_of_another_shape_are_refused():
    network = build_network(SMALL, num_classes=3)
    weights = weights_of(network)
    name = next(iter(weights))
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_weights(network, weights | {name: np.zeros(3, np.float32)})


named_st = st.dictionaries(
    st.text("abc.", min_size=1, max_size=8),
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(named_st)
def test_weights_survive_the_trip_through_bytes(weights):
    back = weights_from_bytes(weights_to_bytes(weights))
    ordered = {name: weights[name] for name in sorted(weights)}
    assert weights_digest(back) == weights_digest(ordered)


def test_bytes_that_are_no_weights_are_refused():
    with pytest.raises(ModelError, match="safetensors"):
        weights_from_bytes(b"\x80\x04junk that could be a pickle")


def test_the_digest_of_weights_is_of_their_names_not_of_their_order():
    weights = weights_of(build_network(SMALL, num_classes=3))
    other = dict(reversed(weights.items()))
    assert list(other) != list(weights)
    assert weights_digest(other) == weights_digest(weights)
    assert weights_digest(weights_from_bytes(weights_to_bytes(weights))) == weights_digest(weights)
    first, second = sorted(weights)[:2]
    renamed = {{first: second, second: first}.get(n, n): array for n, array in weights.items()}
    assert weights_digest(renamed) != weights_digest(weights)
