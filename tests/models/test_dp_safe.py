import pytest
import torch
from monai.networks.nets import ResNet
from torch import nn

from models.behaviour import check_behaviour
from models.build import build_network
from models.dp_safe import (
    Repair,
    make_dp_safe,
    num_groups_for,
    require_dp_safe,
    standardise_weights,
)
from models.errors import ModelError
from models.specs import ResNetSpec, UNetSpec
from models.synthetic import MadeUp
from models.weights import weights_digest
from tests.models.losses import cross_entropies, declared


def passes(network):
    require_dp_safe(network)
    check_behaviour(network, cross_entropies, record=MadeUp, declared=declared(), draws=2)


def convolutions(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *layers, nn.Conv2d(8, 2, 1))


def test_batch_norm_becomes_group_norm_with_the_same_scale_and_shift():
    layer = nn.BatchNorm2d(8, eps=1e-3)
    nn.init.normal_(layer.weight)
    layer.bias.requires_grad_(False)
    network, repairs = make_dp_safe(convolutions(layer))
    repaired = network[1]
    assert isinstance(repaired, nn.GroupNorm) and repaired.num_groups == 2
    assert repaired.eps == 1e-3 and torch.equal(repaired.weight, layer.weight)
    assert repaired.weight.requires_grad and not repaired.bias.requires_grad
    assert repairs == (Repair("1", "BatchNorm2d", "GroupNorm"),)
    passes(network)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.SyncBatchNorm(8),
        type("Renamed", (nn.BatchNorm2d,), {})(8),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_repaired_passes_the_guard(layer):
    network, repairs = make_dp_safe(convolutions(layer))
    assert len(repairs) == 1
    passes(network)


def test_the_given_network_is_left_alone():
    given = convolutions(nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    make_dp_safe(given)
    assert isinstance(given[1], nn.BatchNorm2d) and given[2].inplace


def test_instance_norm_keeps_its_scale_and_computes_the_same_in_training():
    layer = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    nn.init.normal_(layer.weight)
    images = torch.randn(2, 8, 4, 4)
    network, repairs = make_dp_safe(nn.Sequential(layer))
    assert repairs[0].now == "without running statistics"
    assert torch.equal(network(images), layer(images)) and not dict(network.named_buffers())


def test_activations_no_longer_work_in_place_and_mean_the_same():
    given = convolutions(nn.ReLU(inplace=True), nn.Dropout(0.0, inplace=True))
    images = torch.randn(2, 1, 8, 8)
    network, repairs = make_dp_safe(given)
    assert [repair.now for repair in repairs] == ["not in place"] * 2
    assert torch.equal(network(images), given(images))


def test_a_network_that_is_a_batch_norm_is_replaced_as_a_whole():
    network, repairs = make_dp_safe(nn.BatchNorm2d(8))
    assert isinstance(network, nn.GroupNorm) and repairs[0].layer == ""


def test_a_shared_layer_stays_shared():
    layer = nn.BatchNorm2d(8)
    network, _ = make_dp_safe(convolutions(layer, nn.ReLU(), layer))
    assert network[1] is network[3] and isinstance(network[1], nn.GroupNorm)


def test_repairs_are_the_same_each_time():
    given = ResNet("basic", [1] * 4, [8] * 4, 2, n_input_channels=1, num_classes=2)
    first, second = make_dp_safe(given), make_dp_safe(given)
    assert first[1] == second[1]
    pairs = zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(8), nn.InstanceNorm2d(8, track_running_stats=True)]
)
def test_learned_statistics_are_refused_because_weights_would_mean_something_else(layer):
    layer(torch.randn(2, 8, 4, 4))
    with pytest.raises(ModelError, match=r"'1'.*has learned.*trained with GroupNorm"):
        make_dp_safe(convolutions(layer))


def test_a_batch_norm_with_a_forward_of_its_own_is_refused():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    with pytest.raises(ModelError, match=r"'1'.*forward of its own.*GroupNorm"):
        make_dp_safe(convolutions(Own(8)))


def test_a_layer_that_is_not_initialised_is_refused():
    with pytest.raises(ModelError, match=r"lazy layers.*give layers their sizes"):
        make_dp_safe(convolutions(nn.LazyBatchNorm2d()))


@pytest.mark.parametrize("channels", range(1, 200))
def test_groups_divide_the_channels_and_hold_four_or_more_of_them_or_all(channels):
    groups = num_groups_for(channels)
    assert channels % groups == 0 and groups <= 32
    assert groups == 1 or channels // groups >= 4


def test_weight_standardisation_gives_mean_zero_and_the_scale_of_the_fan_in():
    network = standardise_weights(convolutions())
    weight = network[0].weight.flatten(1)
    assert torch.allclose(weight.mean(1), torch.zeros(8), atol=1e-6)
    assert torch.allclose(weight.norm(dim=1), torch.ones(8), atol=0.02)
    passes(network)


def test_a_weight_alone_in_its_channel_is_not_standardised_to_zero():
    network = standardise_weights(nn.Sequential(nn.Conv2d(1, 8, 1)))
    assert network[0].weight.any()


def test_a_spec_without_weight_standardisation_builds_and_writes_what_it_always_did():
    plain = UNetSpec(spatial_dims=2, channels=(4, 8), strides=(2,))
    standardised = UNetSpec(**plain.model_dump(), weight_standardisation=True)
    assert "weight_standardisation" not in plain.model_dump(mode="json")
    assert standardised.model_dump(mode="json")["weight_standardisation"] is True
    assert UNetSpec.model_validate(standardised.model_dump(mode="json")) == standardised
    passes(build_network(standardised, num_classes=2))
    names = build_network(standardised, num_classes=2).state_dict().keys()
    assert any(name.endswith("parametrizations.weight.original") for name in names)


def test_resnet_is_built_without_batch_norm_from_the_seed_alone():
    from models.build import weights_of

    spec = ResNetSpec(spatial_dims=2, channels=(8, 8, 8, 8))
    network = build_network(spec, num_classes=2)
    require_dp_safe(network)
    again = build_network(spec, num_classes=2)
    assert weights_digest(weights_of(network)) == weights_digest(weights_of(again))
