import time
from itertools import pairwise
from math import exp, sqrt
from statistics import NormalDist

import pytest

from federation.audit import accounting
from federation.audit.accounting import Spent, pld_epsilon
from federation.ledger.filter import BudgetPolicy, PoissonGaussian, Unprotected

CDF = NormalDist().cdf


def gaussian_epsilon(mu, delta):
    """The Gaussian mechanism's exact epsilon, mu its sensitivity over its noise.

    Balle and Wang (arXiv 1805.06530), Theorem 8, solved for epsilon by halving.
    """

    def delta_at(epsilon):
        near, far = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        return CDF(near) - exp(epsilon) * CDF(far)

    low, high = 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("noise", "steps"), [(4.0, 20), (10.0, 50), (2.0, 1)])
def test_without_sampling_it_is_the_gaussian_mechanisms_exact_epsilon(noise, steps):
    """And replacing a subject is a sensitivity twice as large."""
    found = pld_epsilon({(1.0, noise): steps}, delta=1e-5, rdp_epsilon=1.0)
    exact = gaussian_epsilon(sqrt(steps) / noise, 1e-5)
    assert exact <= found.value <= exact * 1.01
    found = pld_epsilon({(1.0, noise): steps}, delta=1e-5, rdp_epsilon=1.0, replace_one=True)
    exact = gaussian_epsilon(2 * sqrt(steps) / noise, 1e-5)
    assert exact <= found.value <= exact * 1.01


@pytest.mark.parametrize("rate", [0.02, 0.25, 0.9])
def test_replacing_a_subject_costs_more_than_adding_one_and_at_most_twice_as_large_a_step(rate):
    steps = {(rate, 4.0): 20}
    added = pld_epsilon(steps, delta=1e-5, rdp_epsilon=1.0)
    replaced = pld_epsilon(steps, delta=1e-5, rdp_epsilon=1.0, replace_one=True)
    doubled = pld_epsilon({(rate, 2.0): 20}, delta=1e-5, rdp_epsilon=1.0)
    assert 1.2 * added.value < replaced.value < doubled.value * 1.01


def test_the_interval_is_halved_exactly_until_it_moves_by_under_one_percent(monkeypatch):
    seen, values = [], [2.0, 1.5, 1.2, 1.195]

    class Coarse:
        def __init__(self, neighbours, *, value_discretization_interval):
            seen.append(value_discretization_interval)

        def compose(self, event):
            pass

        def get_epsilon(self, delta):
            return values[len(seen) - 1]

    monkeypatch.setattr(accounting, "PLDAccountant", Coarse)
    found = pld_epsilon({(0.5, 3.25): 3}, delta=1e-5, rdp_epsilon=1.0)
    assert (found.value, found.note) == (1.195, "settled within 1 % at interval 0.00125")
    assert seen[0] == 1e-2
    assert all(wide == 2 * narrow for wide, narrow in pairwise(seen))


def test_what_does_not_settle_says_so_and_is_still_an_upper_bound(monkeypatch):
    class Restless:
        count = 0

        def __init__(self, neighbours, *, value_discretization_interval):
            Restless.count += 1

        def compose(self, event):
            pass

        def get_epsilon(self, delta):
            return 2.0 / Restless.count

    monkeypatch.setattr(accounting, "PLDAccountant", Restless)
    found = pld_epsilon({(0.5, 3.5): 3}, delta=1e-5, rdp_epsilon=1.0)
    assert found.note == "upper bound; not settled within 1 %"
    assert (found.value, Restless.count) == (2.0 / 8, 8)


def test_time_is_bounded_and_what_was_not_reached_says_so():
    steps = {(0.5, 3.0 + n / 100): 3 for n in range(60)}
    started = time.monotonic()
    found = pld_epsilon(steps, delta=1e-5, rdp_epsilon=1.0, time_limit_s=0.0)
    assert (found.value, found.note) == (None, "not settled within 0 s")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("steps", "epsilon", "why"),
    [
        ({(0.5, 3.0 + n): 3 for n in range(65)}, 1.0, "more than 64 different events"),
        ({(0.5, 0.1): 3}, 1.0, "a noise multiplier is below 0.2"),
        ({(0.5, 3.0): 10**6 + 1}, 1.0, "more than a million steps of one kind"),
        ({(0.5, 3.0): 3}, 1e9, "epsilon is above 200"),
    ],
)
def test_what_could_exhaust_the_reader_is_not_tried(steps, epsilon, why):
    assert pld_epsilon(steps, delta=1e-5, rdp_epsilon=epsilon).note == why


def test_the_limit_is_compared_as_the_format_says():
    """At tiny divergences dp-accounting says 0 where the format's formula does not."""
    policy = BudgetPolicy(0.5, 1e-5, (2,), (1e-5,))
    spent = Spent(policy)
    assert not spent.passes_the_limit
    spent.add(PoissonGaussian(1e-9, 1e3, 1))
    assert spent.rdp_epsilon == 0.0
    assert spent.passes_the_limit


def test_an_unprotected_event_is_counted_and_costs_no_divergence():
    spent = Spent(BudgetPolicy.of(8.0, 1e-5))
    assert spent.add(Unprotected()) and spent.num_unprotected == 1
    assert spent.totals == (0.0, 0.0, 0.0)
    assert spent.agrees([0.0, 0.0, 0.0]) and not spent.agrees([1e-18, 0.0, 0.0])
