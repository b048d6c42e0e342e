from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from federation.privacy.engine import SubjectOptimizer, clip_subject, subject_gradient
from federation.privacy.plan import make_plan
from federation.privacy.random import SecureRandomness
from tests.experiments import tiny_experiment
from tests.federation.privacy.randomness import NoNoise

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


def test_small_gradients_pass_unclipped_and_large_ones_keep_their_direction():
    small, large = gradients_like(3, 1e-3), gradients_like(4, 100.0)
    assert all(torch.equal(a, b) for a, b in zip(clip_subject(small, 1.0), small, strict=True))
    clipped = flat(clip_subject(large, 1.0))
    assert clipped.norm() == pytest.approx(1.0, abs=2e-6)
    assert torch.cosine_similarity(clipped, flat(large), dim=0) > 1 - 1e-9


def test_a_zero_dimensional_parameter_is_clipped_like_the_others():
    clipped = clip_subject([torch.tensor(3.0), torch.tensor([4.0])], 1.0)
    assert flat([clipped[0].view(1), clipped[1]]).norm() <= 1.0


def test_the_sum_equals_clipping_by_hand():
    subjects = [gradients_like(seed, scale) for seed, scale in ((1, 0.01), (2, 5.0), (3, 1e6))]
    by_hand = sum(g * min(1.0, 1.0 / float(g.norm())) for g in map(flat, subjects))
    assert torch.allclose(released_sum(subjects), by_hand, atol=5e-6)


def test_the_noise_has_the_plans_deviation_on_every_tensor_also_for_an_empty_batch():
    net = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 100))
    before = [p.detach().clone() for p in net.parameters()]
    optimizer_for(net, SecureRandomness()).release_step()
    for old, new in zip(before, net.parameters(), strict=True):
        noise = ((old - new) * PLAN.expected_batch / PLAN.noise_stddev).detach().flatten().numpy()
        assert stats.kstest(noise, "norm").pvalue > 1e-6


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
