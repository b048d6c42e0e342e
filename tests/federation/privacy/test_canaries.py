"""Canaries go through the engine's own code and leave real subjects' coordinates as they were."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from federation.privacy.canaries import CanaryBlock, seeing_only
from federation.privacy.engine import SubjectOptimizer
from federation.privacy.plan import make_plan
from federation.privacy.self_audit import SelfAudit
from federation.steps import LocalWork, stepper
from tests.federation.classification import bright_and_dark, classification
from tests.federation.privacy.planted_faults import REGIMES
from tests.federation.privacy.randomness import NoNoise, SeededRandomness

PLAN = REGIMES[0].plan


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def real_gradients(net, count=4):
    random = np.random.default_rng(1)
    return [
        torch.from_numpy(random.standard_normal((count, *p.shape))).float()
        for p in net.parameters()
    ]


def block_of(count=50):
    return CanaryBlock(np.arange(count) % 2 == 0, clip_norm=PLAN.clip_norm)


def optimizer_for(parameters, randomness=None, make=torch.optim.SGD):
    return SubjectOptimizer(
        make(parameters, lr=0.1), plan=PLAN, randomness=randomness or SeededRandomness(3)
    )


def with_canaries(net, block, canaries, **options):
    optimizer = optimizer_for([*net.parameters(), block.parameter], **options)
    with seeing_only(optimizer, list(net.parameters())):
        optimizer.add_subjects(real_gradients(net))
    block.add_to(optimizer, canaries)
    return optimizer


def test_real_parameters_sums_are_bit_identical_with_and_without_canaries():
    plain = network()
    without = optimizer_for(plain.parameters())
    without.add_subjects(real_gradients(plain))
    net = network()
    with_canaries(net, block_of(), [0, 2, 48])
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.summed_grad, theirs.summed_grad)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_real_parameters_are_bit_identical_after_a_step_too(make):
    plain, net, block = network(), network(), block_of()
    without = optimizer_for(plain.parameters(), make=make)
    without.add_subjects(real_gradients(plain))
    without.release_step()
    with_canaries(net, block, [0, 2, 48], make=make).release_step()
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_canary_adds_the_clip_norm_to_its_own_coordinate_and_nothing_else():
    net, block = network(), block_of()
    with_canaries(net, block, [4, 7])
    expected = torch.zeros(50, dtype=torch.float64)
    expected[[4, 7]] = PLAN.clip_norm
    assert torch.allclose(block.parameter.summed_grad, expected, rtol=3e-6, atol=0)


def test_without_the_clip_a_canary_would_show_ten_clip_norms():
    assert float(block_of().gradients([3]).norm()) == pytest.approx(10 * PLAN.clip_norm)


def test_the_short_way_gives_the_same_sums_as_whole_gradients():
    short, long, canaries = block_of(), block_of(), [1, 2, 30]
    with_canaries(network(), short, canaries)
    net = network()
    optimizer = with_canaries(net, long, [])
    optimizer.add_subjects(long.whole_gradients(canaries, optimizer.params))
    assert torch.equal(short.parameter.summed_grad, long.parameter.summed_grad)
    plain = network()
    optimizer_for(plain.parameters()).add_subjects(real_gradients(plain))
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.summed_grad, theirs.summed_grad)


def test_the_optimiser_sees_all_its_parameters_again_afterwards_also_after_a_failure():
    net, block = network(), block_of()
    optimizer = with_canaries(net, block, [1])
    assert len(optimizer.params) == len(list(net.parameters())) + 1
    optimizer._plan = replace(PLAN, clip_norm=None)
    with pytest.raises(TypeError):
        block.add_to(optimizer, [1])
    assert len(optimizer.params) == len(list(net.parameters())) + 1


def test_the_block_is_no_part_of_the_network():
    net, block = network(), block_of()
    with_canaries(net, block, [2], randomness=NoNoise(0)).release_step()
    assert float(block.parameter[2].detach()) != 0.0
    assert all(p is not block.parameter for p in net.parameters())
    block.forget()
    assert torch.equal(block.parameter, torch.zeros(50))


class Sums(SubjectOptimizer):
    """Keeps each step's sum as it is before noise."""

    seen: list

    def add_noise(self):
        self.seen.append([p.summed_grad.clone() for p in self.params])
        super().add_noise()


def sums_of(subjects, audit, batches):
    """Take steps at the shipped size through the shipped stepper: 30,349 parameters."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 117), nn.Tanh(), nn.Linear(117, 2))
    plan = replace(make_plan(classification()), clip_norm=0.5)
    if audit:
        audit = SelfAudit.begin(plan, SeededRandomness(5), num_subjects=len(subjects))
    Sums.seen = []
    step = stepper(
        LocalWork(classification(), plan, net, NoNoise(0), pytest.fail, audit=audit or None)
    )
    for batch in batches:
        canaries = range(len(subjects), len(subjects) + 1000) if audit else ()
        step(subjects, [*batch, *canaries])
    return Sums.seen, audit


def test_at_shipped_sizes_the_steppers_sums_are_bit_identical_too(tmp_path, monkeypatch):
    monkeypatch.setattr("federation.steps.SubjectOptimizer", Sums)
    subjects = bright_and_dark(tmp_path, 12)
    batches = [[i] for i in range(12)] + [[i, 11 - i, 6] for i in range(5)] + [[]]
    plain, _ = sums_of(subjects, False, batches)
    beside, audit = sums_of(subjects, True, batches)
    assert audit.evidence().contributions_longer >= 10, "the clip has to act"
    for without, (*real, block) in zip(plain, beside, strict=True):
        assert all(map(torch.equal, without, real))
        assert block.count_nonzero() == audit.evidence().present.sum()
