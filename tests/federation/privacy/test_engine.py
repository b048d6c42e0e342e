from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from federation.privacy.engine import SubjectOptimizer, clip_subjects
from federation.privacy.gradients import subject_gradient
from federation.privacy.plan import make_plan
from federation.privacy.random import SecureRandomness
from tests.experiments import tiny_experiment
from tests.federation.privacy.randomness import NoNoise, SeededRandomness

PLAN = replace(make_plan(tiny_experiment()), clip_norm=1.0, expected_batch=4.0)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def optimizer_for(net, randomness, plan=PLAN):
    return SubjectOptimizer(
        torch.optim.SGD(net.parameters(), lr=1.0), plan=plan, randomness=randomness
    )


def flat(tensors):
    return torch.cat([t.detach().flatten().double() for t in tensors])


def released_sum(subjects, plan=PLAN):
    """The sum that a step adds noise to, seen through a step of SGD at learning rate one."""
    net = network()
    before = flat(net.parameters())
    optimizer = optimizer_for(net, NoNoise(0), plan)
    for gradients in subjects:
        optimizer.add_subject(gradients)
    optimizer.release_step()
    return (before - flat(net.parameters())) * plan.expected_batch


def gradients_like(values, scale):
    random = np.random.default_rng(values)
    return [
        torch.from_numpy(random.standard_normal(tuple(p.shape)) * scale).float()
        for p in network().parameters()
    ]


subject_st = st.tuples(
    st.integers(0, 2**32 - 1), st.sampled_from([1e-12, 1e-3, 0.1, 1.0, 1e3, 1e15, 1e30])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(subject_st, max_size=4), subject_st)
def test_one_subject_more_moves_the_sum_by_at_most_the_clip_norm(others, one):
    rest = [gradients_like(*s) for s in others]
    with_one = released_sum([*rest, gradients_like(*one)])
    assert (with_one - released_sum(rest)).norm() <= PLAN.clip_norm * (1 + 1e-5)


def test_without_clipping_that_bound_would_not_hold():
    loose = replace(PLAN, clip_norm=1e9)
    one = gradients_like(1, 10.0)
    assert released_sum([one], loose).norm() > PLAN.clip_norm


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_counts_as_zero_and_spares_the_others(poison):
    good, bad = gradients_like(1, 0.01), gradients_like(2, 0.01)
    bad[1][0] = poison
    assert torch.equal(released_sum([good, bad]), released_sum([good]))


def batch(subjects):
    return [torch.stack(tensors) for tensors in zip(*subjects, strict=True)]


def clipped(subject, clip_norm=1.0):
    return [rows[0] for rows in clip_subjects(batch([subject]), clip_norm)]


def test_small_gradients_pass_unclipped_and_large_ones_keep_their_direction():
    small, large = gradients_like(3, 1e-3), gradients_like(4, 100.0)
    assert all(torch.equal(a, b) for a, b in zip(clipped(small), small, strict=True))
    shortened = flat(clipped(large))
    assert shortened.norm() == pytest.approx(1.0, abs=2e-6)
    assert torch.cosine_similarity(shortened, flat(large), dim=0) > 1 - 1e-9


def test_a_zero_dimensional_parameter_is_clipped_like_the_others():
    alone = nn.ParameterList([nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.zeros(1))])
    optimizer = optimizer_for(alone, NoNoise(0))
    optimizer.add_subjects([torch.tensor([3.0, 30.0]), torch.tensor([[4.0], [40.0]])])
    sums = [p.summed_grad.clone() for p in alone]
    assert sums[0].ndim == 0
    assert flat([sums[0].view(1), sums[1]]).norm() == pytest.approx(2.0, abs=4e-6)
    assert float(sums[0]) == pytest.approx(1.2, abs=4e-6)


MANY = [(1, 0.01), (2, 5.0), (3, 1e6), (4, 0.2), (5, 0.0), (6, 1e30), (7, 1e-12)]


def sums_of(*calls, plan=PLAN):
    """A step's sum before noise, after one call of ``add_subjects`` for each batch."""
    net = network()
    optimizer = optimizer_for(net, NoNoise(0), plan)
    for subjects in calls:
        optimizer.add_subjects(batch(subjects))
    return [p.summed_grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("clip_norm", [0.02, 1.0, 50.0])
def test_the_sum_equals_clipping_by_hand(clip_norm):
    subjects = [gradients_like(*s) for s in MANY]
    bound, plan = clip_norm * (1 - 1e-6), replace(PLAN, clip_norm=clip_norm)
    by_hand = sum(g * min(1.0, bound / max(float(g.norm()), 1e-9)) for g in map(flat, subjects))
    # The second clip divides by the norm plus 1e-6, which shows where the clip norm is small.
    loss = max(0.0, 1 - clip_norm / (bound + 1e-6)) * clip_norm * len(subjects)
    found = flat(sums_of(subjects, plan=plan))
    assert (found - by_hand).abs().max() <= 2e-8 * max(1.0, clip_norm) + loss


def test_batches_of_any_size_give_the_same_sum_to_rounding_in_float64():
    subjects = [gradients_like(*s) for s in MANY]
    together = flat(sums_of(subjects))
    apart = flat(sums_of(*[[subject] for subject in subjects]))
    assert (together - apart).abs().max() < 1e-14
    assert all(total.dtype == torch.float64 for total in sums_of(subjects))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("row", [0, 2])
def test_in_a_batch_only_the_subject_that_is_not_finite_counts_as_zero(poison, row):
    subjects = [gradients_like(*s) for s in MANY[:3]]
    without = sums_of(
        [*subjects[:row], [torch.zeros_like(g) for g in subjects[row]], *subjects[row + 1 :]]
    )
    subjects[row][3].view(-1)[1] = poison
    assert all(map(torch.equal, sums_of(subjects), without))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_was_handed_over_stays_as_it_was(dtype):
    given = [rows.to(dtype) for rows in batch([gradients_like(*s) for s in MANY[:3]])]
    kept = [rows.clone() for rows in given]
    net = network().to(dtype)
    optimizer_for(net, NoNoise(0)).add_subjects(given)
    assert all(map(torch.equal, given, kept))
    expected = flat(sums_of([gradients_like(*s) for s in MANY[:3]]))
    found = torch.cat([p.summed_grad.flatten() for p in net.parameters()])
    assert (found - expected).abs().max() < 1e-6


def test_a_batch_of_nobody_adds_nothing():
    empty = [torch.zeros((0, *p.shape)) for p in network().parameters()]
    net = network()
    optimizer = optimizer_for(net, NoNoise(0))
    optimizer.add_subjects(empty)
    assert not any(p.summed_grad.any() for p in net.parameters())


def test_gradients_larger_than_a_block_are_summed_whole(monkeypatch):
    subjects = [gradients_like(*s) for s in MANY]
    usual = flat(sums_of(subjects))
    monkeypatch.setattr("federation.privacy.engine._BLOCK", {"cpu": 10})
    assert (flat(sums_of(subjects)) - usual).abs().max() < 1e-14


def test_sixty_four_aligned_subjects_and_one_more_stay_within_the_clip_norm():
    """Opacus's own sum over a batch is in float32: there, rounding alone goes past it."""
    generator = torch.Generator().manual_seed(0)
    direction = [torch.rand(p.shape, generator=generator) + 0.5 for p in network().parameters()]
    subject = [tensor * 10 for tensor in direction]
    moved = flat(sums_of([subject] * 65)) - flat(sums_of([subject] * 64))
    assert moved.norm() <= PLAN.clip_norm
    in_float32 = [
        torch.einsum("i,i...", torch.ones(n), clip_subjects(batch([subject] * n), 1.0)[0])
        for n in (64, 65)
    ]
    exact = clip_subjects(batch([subject]), 1.0)[0][0].double()
    error = (in_float32[1].double() - in_float32[0].double() - exact).norm()
    assert error > 1e-6


def test_the_second_clip_catches_what_the_first_lets_through(monkeypatch):
    monkeypatch.setattr("federation.privacy.engine.clip_subjects", lambda g, _: list(g))
    assert flat(sums_of([gradients_like(1, 50.0)])).norm() <= PLAN.clip_norm * (1 + 1e-6)


def test_the_gradient_is_there_noised_and_scaled_when_a_step_is_observed():
    net, seen = network(), []
    optimizer = optimizer_for(net, NoNoise(0))
    optimizer.add_subject(gradients_like(1, 0.01))
    optimizer.release_step(lambda: seen.append(flat([p.grad for p in net.parameters()])))
    expected = flat(gradients_like(1, 0.01)) / PLAN.expected_batch
    assert torch.allclose(seen[0], expected, atol=1e-9)


def test_the_noise_has_the_plans_deviation_on_every_tensor_also_for_an_empty_batch():
    net = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 100))
    before = [p.detach().clone() for p in net.parameters()]
    optimizer_for(net, SecureRandomness()).release_step()
    for old, new in zip(before, net.parameters(), strict=True):
        noise = ((old - new) * PLAN.expected_batch / PLAN.noise_stddev).detach().flatten().numpy()
        assert stats.kstest(noise, "norm").pvalue > 1e-6


@pytest.mark.parametrize("together", [1, 7, 20, 10**6])
def test_noise_drawn_for_several_tensors_is_what_each_would_have_drawn_in_turn(
    monkeypatch, together
):
    """Bit for bit, from a source whose numbers do not depend on how many are asked for at once."""
    monkeypatch.setattr("federation.privacy.engine._DRAWN_TOGETHER", together)
    net, source = network(), SeededRandomness(3)
    optimizer = optimizer_for(net, SeededRandomness(3))
    optimizer.add_subject(gradients_like(1, 0.01))
    expected = []
    for parameter in net.parameters():
        noise = source.gaussians(parameter.numel()) * PLAN.noise_stddev
        noised = parameter.summed_grad + torch.from_numpy(noise).view(parameter.shape)
        expected.append((noised.to(parameter.dtype) / PLAN.expected_batch).flatten())
    found = []
    optimizer.release_step(lambda: found.extend(p.grad.flatten() for p in net.parameters()))
    assert torch.equal(torch.cat(found), torch.cat(expected))


def test_noise_is_fresh_at_each_step():
    net = network()
    optimizer = optimizer_for(net, SecureRandomness())
    points = [flat(net.parameters())]
    for _ in range(2):
        optimizer.release_step()
        points.append(flat(net.parameters()))
    assert not torch.any(points[1] - points[0] == points[2] - points[1])


def test_a_step_is_divided_by_the_expected_batch_however_many_subjects_came():
    one = gradients_like(1, 0.01)
    assert torch.allclose(released_sum([one, one]), 2 * released_sum([one]), atol=1e-6)


def test_nothing_of_one_step_is_left_for_the_next():
    net = network()
    optimizer = optimizer_for(net, NoNoise(0))
    optimizer.add_subject(gradients_like(1, 1.0))
    optimizer.release_step()
    before = flat(net.parameters())
    optimizer.release_step()
    assert torch.equal(before, flat(net.parameters()))


def test_a_parameter_that_the_loss_does_not_use_has_gradient_zero():
    net = network()
    unused = nn.Parameter(torch.ones(3))
    gradients = subject_gradient(net(torch.ones(1, 5)).sum(), [*net.parameters(), unused])
    assert torch.equal(gradients[-1], torch.zeros(3))
