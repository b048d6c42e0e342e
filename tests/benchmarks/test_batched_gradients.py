"""The paths that are not shipped give what the shipped one gives, to 1e-5, where nobody attacks."""

from functools import partial

import pytest
import torch
from torch import nn

from data_adapters.prepare import Record
from federation.experiment import CrossEntropy, DiceCrossEntropy, ForegroundDice
from federation.losses import loss_per_image
from federation.privacy.plan import make_plan
from federation.steps import LocalWork, gradients_of
from models.build import build_network
from models.specs import parse_model_spec
from tests.benchmarks.batched_gradients import (
    AGREEMENT,
    batched,
    largest_difference,
    layer_gradients,
    loop_gradients,
    vmap_gradients,
)
from tests.experiments import tiny_experiment
from tests.federation.privacy.randomness import NoNoise

NETWORKS = {
    "unet": {"channels": [4, 8], "strides": [2], "num_res_units": 1},
    "unet with group norm": {"channels": [4, 8], "strides": [2], "norm": "group"},
    "segresnet": {"blocks_down": [1, 1], "blocks_up": [1]},
    "densenet": {"init_features": 8, "growth": 8, "block_layers": [1, 2]},
}
LOSSES = {"densenet": (CrossEntropy(),)}
BATCHED = [vmap_gradients, layer_gradients]
CASES = [
    pytest.param(name, dims, path, id=f"{name} {dims}-D {path.__name__}")
    for name in NETWORKS
    for dims in (2, 3)
    for path in BATCHED
]


def network_of(name, dims):
    """In float64: in float32 rounding alone can turn a ReLU."""
    kind = name.split()[0]
    spec = parse_model_spec({"kind": kind, "spatial_dims": dims} | NETWORKS[name])
    return build_network(spec, num_classes=3, seed=1).double().train()


def records_of(count, dims, *, num_images=1, labelled=True, side=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(count + dims)
    shape = (num_images, *[side] * dims)
    labels = shape if labelled else (num_images,)
    return [
        Record(
            torch.randn((num_images, 1, *shape[1:]), generator=generator).to(dtype) * (1 + index),
            torch.randint(3, labels, generator=generator, dtype=torch.uint8),
        )
        for index in range(count)
    ]


def exact_records(*asks, **named):
    return records_of(*asks, **named, dtype=torch.float64)


def trained(network):
    return [p for p in network.parameters() if p.requires_grad]


def losses_of(loss):
    return partial(loss_per_image, loss=loss)


@pytest.mark.parametrize(("name", "dims", "path"), CASES)
def test_a_batched_path_agrees_with_the_loop(name, dims, path):
    network = network_of(name, dims)
    for num_images in (1, 2):
        records = exact_records(3, dims, num_images=num_images, labelled=name != "densenet")
        for loss in LOSSES.get(name, (DiceCrossEntropy(), ForegroundDice())):
            arguments = (network, trained(network), records, losses_of(loss))
            expected = loop_gradients(*arguments)
            found = path(*arguments)
            assert [g.shape for g in found] == [(3, *p.shape) for p in network.parameters()]
            assert largest_difference(found, expected) <= AGREEMENT


@pytest.mark.parametrize("path", BATCHED)
def test_frozen_parameters_have_no_gradient_sample(path):
    network = network_of("densenet", 2)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or "class_layers" in name)
    records = exact_records(2, 2, labelled=False, side=32)
    arguments = (network, trained(network), records, losses_of(CrossEntropy()))
    assert largest_difference(path(*arguments), loop_gradients(*arguments)) <= AGREEMENT


@pytest.mark.parametrize("path", BATCHED)
def test_subjects_with_different_numbers_of_images_are_not_one_tensor(path):
    network = network_of("unet", 2)
    records = exact_records(1, 2) + exact_records(1, 2, num_images=2)
    with pytest.raises(ValueError, match="different numbers of images"):
        path(network, trained(network), records, losses_of(DiceCrossEntropy()))


def test_layers_are_themselves_again_after_a_pass_and_after_one_that_failed():
    network, records = network_of("unet", 2), exact_records(2, 2)
    layer_gradients(network, trained(network), records, losses_of(DiceCrossEntropy()))
    assert not any("forward" in vars(layer) for layer in network.modules())
    with pytest.raises(AssertionError, match="different shape"):
        layer_gradients(
            network,
            trained(network),
            [Record(r.images[..., :3], r.labels) for r in records],
            losses_of(DiceCrossEntropy()),
        )
    assert not any("forward" in vars(layer) for layer in network.modules())


class Layers(nn.Module):
    """A network over images that is handed to ``plain_losses``."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def plain_losses(network, records):
    outputs = network(torch.cat([r.images for r in records]))
    return outputs.flatten(1).square().mean(1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.Conv2d(4, 6, 3, dilation=2, stride=2),
        nn.Conv2d(4, 6, 1, bias=False),
        nn.Conv2d(4, 6, 1, padding=1),
        nn.Conv2d(4, 6, 1, groups=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, padding=1),
        nn.GroupNorm(2, 4),
        nn.PReLU(),
        nn.PReLU(4),
        nn.Linear(8, 5),
        nn.Sequential(nn.Flatten(), nn.Linear(256, 3, bias=False)),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_images", [1, 3])
def test_every_kind_of_layer_is_taken_apart_rightly(layer, num_images):
    torch.manual_seed(0)
    network = Layers(nn.Conv2d(1, 4, 3, padding=1), layer).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    records = exact_records(3, 2, num_images=num_images, side=8)
    arguments = (network, trained(network), records, plain_losses)
    assert largest_difference(layer_gradients(*arguments), loop_gradients(*arguments)) <= AGREEMENT


def test_a_difference_with_nan_is_infinite():
    assert largest_difference([torch.tensor([[float("nan")]])], [torch.ones(1, 1)]) == torch.inf


class Records:
    """A subject of None cannot be read."""

    def __init__(self, records):
        self.records = records

    def record(self, index, uniforms):
        if self.records[index] is None:
            raise RuntimeError("this subject cannot be read")
        return self.records[index]


@pytest.mark.parametrize("path", BATCHED)
def test_what_stands_in_for_the_shipped_one_leaves_out_only_who_fails(path):
    network, failures, experiment = network_of("unet", 2), [], tiny_experiment()
    work = LocalWork(experiment, make_plan(experiment), network, NoNoise(0), failures.append)
    records = [*exact_records(3, 2), None, *exact_records(4, 2)]
    asks = (work, Records(records), range(len(records)))
    shipped = [torch.cat(parts) for parts in zip(*gradients_of(*asks), strict=True)]
    chunks = list(batched(path, 3)(*asks))
    assert [len(chunk[0]) for chunk in chunks] == [3, 2, 2]
    together = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
    assert largest_difference(together, shipped) <= AGREEMENT
    assert len(failures) == 2
