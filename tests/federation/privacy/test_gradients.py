"""What is shipped: a gradient for each subject by itself, a few of them clipped together."""

import pytest
import torch
from torch import nn

from federation.experiment import DiceCrossEntropy
from federation.losses import loss_per_image
from federation.privacy import gradients
from federation.privacy.gradients import (
    each_by_itself,
    stacked,
    subject_gradient,
    subjects_at_a_time,
)
from federation.privacy.plan import make_plan
from federation.steps import LocalWork, gradients_of
from models.build import build_network
from models.specs import parse_model_spec
from tests.benchmarks.test_batched_gradients import records_of
from tests.experiments import tiny_experiment
from tests.federation.privacy.randomness import NoNoise


class Records:
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def record(self, index, uniforms):
        return self.records[index]


@pytest.fixture
def network():
    spec = {"kind": "unet", "spatial_dims": 2, "channels": [4, 8], "strides": [2]}
    return build_network(parse_model_spec(spec), num_classes=3, seed=1).train()


def work_on(network, failures):
    experiment = tiny_experiment()
    return LocalWork(experiment, make_plan(experiment), network, NoNoise(0), failures.append)


def test_each_subject_gets_what_it_would_have_alone_bit_for_bit_whoever_else_is_there(network):
    records, failures = records_of(11, 2, num_images=2), []
    work = work_on(network, failures)
    for subjects in (range(11), [10, 3], [3]):
        chunks = list(gradients_of(work, Records(records), subjects))
        together = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
        for row, index in enumerate(subjects):
            loss = loss_per_image(network, [records[index]], loss=DiceCrossEntropy()).mean()
            alone = subject_gradient(loss, work.parameters)
            assert all(torch.equal(g[row], a) for g, a in zip(together, alone, strict=True))
    assert not failures


def test_a_few_subjects_are_held_at_a_time_and_the_last_ones_too(network):
    chunks = list(gradients_of(work_on(network, []), Records(records_of(11, 2)), range(11)))
    assert [len(chunk[0]) for chunk in chunks] == [8, 3]
    assert list(gradients_of(work_on(network, []), Records([]), [])) == []


def test_frozen_parameters_have_no_gradient_sample(network):
    names = [name for name, p in network.named_parameters() if name.endswith("bias")]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
    (chunk,) = gradients_of(work_on(network, []), Records(records_of(2, 2)), [0, 1])
    assert 0 < len(chunk) == len(names) < len(list(network.parameters()))


def test_a_parameter_that_is_not_used_has_gradient_zero():
    used, unused = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3))
    found = subject_gradient(used * used, [used, unused])
    assert found[0] == 4 and torch.equal(found[1], torch.zeros(3))


def test_subjects_are_stacked_parameter_by_parameter():
    one, other = [torch.ones(2), torch.tensor(1.0)], [torch.zeros(2), torch.tensor(2.0)]
    assert [g.tolist() for g in stacked([one, other])] == [[[1, 1], [0, 0]], [1, 2]]
    assert [g.tolist() for g in stacked([one])] == [[[1, 1]], [1]]


def test_how_many_subjects_are_held_depends_on_public_sizes_alone(monkeypatch):
    of = [nn.Parameter(torch.zeros(1000))]
    assert subjects_at_a_time(of) == 8
    monkeypatch.setattr(gradients, "_HELD_BYTES", 12_000)
    assert subjects_at_a_time(of) == 3
    monkeypatch.setattr(gradients, "_HELD_BYTES", 1)
    assert subjects_at_a_time(of) == 1


def test_a_subject_has_the_same_gradient_bit_for_bit_whoever_is_computed_beside_it(network):
    """Also on several cores: threads share the time and nothing else."""
    cores = torch.get_num_threads()
    records = records_of(6, 2)
    work, order = work_on(network, []), [4, 0, 5, 2, 1, 3]
    try:
        torch.set_num_threads(2)
        together = list(gradients_of(work, Records(records), order))
        gradients_of_all = [torch.cat(parts) for parts in zip(*together, strict=True)]
        for place, subject in enumerate(order):
            (alone,) = gradients_of(work, Records(records), [subject])
            for a, b in zip(alone, gradients_of_all, strict=True):
                assert torch.equal(a[0], b[place])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(cores)


def test_large_subjects_and_other_devices_are_computed_one_after_another():
    cores = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for num_numbers, device in ((1 << 20, "cpu"), (1, "cuda")):
            with each_by_itself(num_numbers, torch.device(device)) as each:
                assert each is map
        with each_by_itself(1, torch.device("cpu")) as each:
            assert list(each(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
    finally:
        torch.set_num_threads(cores)
