import math
from fractions import Fraction

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.ledger.filter import (
    BudgetPolicy,
    FilterState,
    PoissonGaussian,
    Unprotected,
    calibrate_noise_multiplier,
    event_from_json,
    rdp_of,
    rdp_to_epsilon,
)

EVENTS = st.builds(
    PoissonGaussian,
    sampling_rate=st.sampled_from([0.01, 0.1, 0.25, 1.0]),
    noise_multiplier=st.floats(0.6, 20),
    steps=st.integers(1, 50),
)
POLICIES = st.sampled_from([BudgetPolicy.of(e, 1e-5) for e in (0.5, 1.0, 3.0, 8.0, 30.0)])


def dp_event(event: PoissonGaussian):
    step = PoissonSampledDpEvent(event.sampling_rate, GaussianDpEvent(event.noise_multiplier))
    return SelfComposedDpEvent(step, event.steps)


@pytest.mark.parametrize("sampling_rate", [0.001, 0.01, 0.02, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("noise_multiplier", [0.5, 0.7, 1.0, 1.42, 2.0, 5.0])
def test_cost_agrees_with_dp_accounting_to_1e_9(sampling_rate, noise_multiplier):
    orders = (2, 3, 4, 6, 8, 13, 20, 32, 64)
    event = PoissonGaussian(sampling_rate, noise_multiplier, 500)
    accountant = RdpAccountant(orders)
    accountant.compose(dp_event(event))
    ours = [rdp_of(event, order) for order in orders]
    assert ours == pytest.approx(list(accountant.rdp), rel=1e-9, abs=0)


@pytest.mark.parametrize(("order", "delta"), [(2, 1e-5), (4, 3e-6), (20, 1e-7)])
@pytest.mark.parametrize("noise_multiplier", [0.6, 1.0, 3.0])
def test_conversion_agrees_with_dp_accounting_to_1e_9(order, delta, noise_multiplier):
    event = PoissonGaussian(0.1, noise_multiplier, 100)
    accountant = RdpAccountant([order])
    accountant.compose(dp_event(event))
    ours = rdp_to_epsilon(rdp_of(event, order), order, delta)
    assert ours == pytest.approx(accountant.get_epsilon(delta), rel=1e-9)


def test_tiny_costs_keep_their_precision_where_a_sum_near_one_would_lose_it():
    event, order = PoissonGaussian(1e-4, 50.0, 1), 3
    q, exact = Fraction(1, 10_000), Fraction(0)
    for k in (2, 3):
        grown = Fraction(math.expm1((k * k - k) / (2 * 50.0**2)))
        exact += math.comb(order, k) * q**k * (1 - q) ** (order - k) * grown
    assert rdp_of(event, order) == pytest.approx(float(exact) / (order - 1), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(policy=POLICIES, events=st.lists(EVENTS, max_size=30))
def test_never_admits_past_epsilon(policy, events):
    state, accountants = FilterState(), [RdpAccountant([a]) for a in policy.orders]
    for event in events:
        if state.admits(policy, event):
            state = state.after(event)
            for accountant in accountants:
                accountant.compose(dp_event(event))
    spent = [a.get_epsilon(d) for a, d in zip(accountants, policy.order_deltas, strict=True)]
    assert min(spent) <= policy.epsilon * (1 + 1e-9)
    assert state.spent_epsilon(policy) <= policy.epsilon


@settings(max_examples=60, deadline=None)
@given(policy=POLICIES, events=st.lists(EVENTS, max_size=12), data=st.data())
def test_order_of_charges_does_not_matter_to_the_bit(policy, events, data):
    state, shuffled = FilterState(), FilterState()
    for event in events:
        state = state.after(event)
    for event in data.draw(st.permutations(events)):
        shuffled = shuffled.after(event)
    assert state.totals(policy.orders) == shuffled.totals(policy.orders)
    assert state.spent_epsilon(policy) == shuffled.spent_epsilon(policy)


@settings(max_examples=60, deadline=None)
@given(policy=POLICIES, events=st.lists(EVENTS, min_size=1, max_size=8))
def test_spent_never_falls(policy, events):
    state, last = FilterState(), 0.0
    for event in events:
        state = state.after(event)
        assert state.spent_epsilon(policy) >= last
        last = state.spent_epsilon(policy)


def test_whole_delta_at_every_order_is_not_what_the_filter_uses():
    policy = BudgetPolicy.of(8.0, 1e-5)
    noise = calibrate_noise_multiplier(policy, sampling_rate=0.25, steps=60)
    event = PoissonGaussian(0.25, noise - 0.02, 60)
    with_whole_delta = min(rdp_to_epsilon(rdp_of(event, a), a, 1e-5) for a in policy.orders)
    assert with_whole_delta <= 8.0
    assert not FilterState().admits(policy, event)
    assert math.fsum(policy.order_deltas) <= policy.delta


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0, 30.0])
@pytest.mark.parametrize(("q", "steps"), [(0.25, 60), (0.02, 500), (1.0, 10)])
def test_calibration_is_the_smallest_multiple_that_fits(epsilon, q, steps):
    policy = BudgetPolicy.of(epsilon, 1e-5)
    noise = calibrate_noise_multiplier(policy, sampling_rate=q, steps=steps)
    assert FilterState().admits(policy, PoissonGaussian(q, noise, steps))
    assert not FilterState().admits(policy, PoissonGaussian(q, noise - 1e-3, steps))


def test_calibrated_run_finishes_every_step_and_one_more_is_refused():
    policy = BudgetPolicy.of(8.0, 1e-5)
    noise = calibrate_noise_multiplier(policy, sampling_rate=0.25, steps=60, tolerance=1e-6)
    state, step = FilterState(), PoissonGaussian(0.25, noise, 1)
    for _ in range(60):
        assert state.admits(policy, step)
        state = state.after(step)
    assert not state.admits(policy, step)


def test_calibration_asks_for_a_little_more_noise_than_pld():
    noise = calibrate_noise_multiplier(BudgetPolicy.of(8.0, 1e-5), sampling_rate=0.25, steps=60)
    pld = PLDAccountant(value_discretization_interval=1e-3)
    pld.compose(dp_event(PoissonGaussian(0.25, noise, 60)))
    assert 1.42 < noise < 1.6
    assert 6.5 < pld.get_epsilon(1e-5) < 8.0


def test_calibration_without_an_answer_says_what_would_help():
    with pytest.raises(ValueError, match="Raise epsilon or lower the number of steps"):
        calibrate_noise_multiplier(BudgetPolicy.of(1e-6, 1e-9), sampling_rate=1.0, steps=10**9)


def test_unprotected_is_refused_unless_the_policy_allows_it():
    strict, lax = BudgetPolicy.of(8, 1e-5), BudgetPolicy.of(8, 1e-5, allow_unprotected=True)
    event = PoissonGaussian(0.25, 2.0, 5)
    assert not FilterState().admits(strict, Unprotected())
    assert FilterState().admits(lax, Unprotected())
    spent = FilterState().after(Unprotected())
    assert spent.spent_epsilon(lax) == math.inf
    assert not spent.admits(strict, event)
    assert spent.admits(lax, event)


def test_nothing_charged_is_nothing_spent():
    assert FilterState().spent_epsilon(BudgetPolicy.of(1.0, 1e-5)) == 0.0


@pytest.mark.parametrize(
    "numbers",
    [
        (0.0, 1.0, 1),
        (1.1, 1.0, 1),
        (0.1, 1e-300, 1),
        (0.1, 0.0, 1),
        (0.1, 1.0, 0),
        (0.1, 1.0, 1.5),
        (math.nan, 1.0, 1),
        (0.1, math.inf, 1),
        (0.1, 1.0, 10**30),
        (True, 1.0, 1),
        ("1", 1.0, 1),
        (0.1, 10**400, 1),
    ],
)
def test_hostile_numbers_are_refused(numbers):
    q, noise, steps = numbers
    value = {"kind": "poisson_gaussian", "sampling_rate": q}
    with pytest.raises(ValueError, match=r"is a (whole )?number from"):
        event_from_json({**value, "noise_multiplier": noise, "steps": steps})


@pytest.mark.parametrize("value", [None, [], "unprotected", {}, {"kind": "unprotected", "x": 1}])
def test_malformed_events_are_refused(value):
    with pytest.raises(ValueError, match="an event has exactly the keys"):
        event_from_json(value)


@pytest.mark.parametrize("q", [1e-300, 1e-9, 1.0])
@pytest.mark.parametrize("noise", [0.01, 1e6])
def test_extreme_events_in_range_have_a_finite_cost(q, noise):
    costs = [rdp_of(PoissonGaussian(q, noise, 10**9), order) for order in (2, 20, 1024)]
    assert all(math.isfinite(cost) and cost >= 0 for cost in costs)


@settings(max_examples=40, deadline=None)
@given(epsilon=st.floats(0.01, 900), delta=st.floats(1e-12, 0.01))
def test_every_policy_is_valid_and_reads_back(epsilon, delta):
    policy = BudgetPolicy.of(epsilon, delta)
    assert math.fsum(policy.order_deltas) <= delta
    assert BudgetPolicy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": math.inf},
        {"delta": 0.0},
        {"orders": [3, 2, 4]},
        {"orders": [1, 2, 3]},
        {"orders": "234"},
        {"order_deltas": [1e-05] * 3},
        {"unit": "image"},
        {"extra": 1},
        {"allow_unprotected": 1},
        {"orders": [2, 3]},
    ],
)
def test_policies_that_would_promise_something_else_are_refused(change):
    with pytest.raises(ValueError):
        BudgetPolicy.from_json({**BudgetPolicy.of(8.0, 1e-5).to_json(), **change})
