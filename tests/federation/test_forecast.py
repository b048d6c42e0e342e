"""A forecast says what the ledger then does."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.errors import PrivacyBudgetError
from federation.forecast import Budget, forecast, runs_that_fit
from federation.ledger.entries import Terms
from federation.ledger.filter import BudgetPolicy, FilterState, PoissonGaussian, Unprotected
from federation.privacy.plan import make_plan
from tests.experiments import tiny_experiment, unprotected

EMPTY = FilterState()


def private(epsilon, **algorithm):
    experiment = tiny_experiment(**algorithm)
    privacy = experiment.privacy.model_copy(update={"epsilon": epsilon})
    return experiment.model_copy(update={"privacy": privacy})


def budget(policy, spent=EMPTY, promised=None):
    return Budget("north", policy, spent, spent if promised is None else promised)


@settings(max_examples=60, deadline=None)
@given(
    q=st.floats(0.005, 0.5),
    noise=st.floats(0.8, 20),
    steps=st.integers(1, 300),
    before=st.integers(0, 300),
)
def test_the_number_of_further_runs_is_what_charging_one_after_the_other_finds(
    q, noise, steps, before
):
    policy = BudgetPolicy.of(4.0, 1e-5)
    run, state = PoissonGaussian(q, noise, steps), EMPTY
    if before:
        state = state.after(PoissonGaussian(0.1, 3.0, before))
    counted, found = 0, runs_that_fit(state, policy, run)
    if found > 300:
        counted, state = 300, state.after(run.times(300))
        state = state.after(run.times(found - 300))
        assert state.admits(policy, run.times(1)) is False
        return
    while state.admits(policy, run):
        counted, state = counted + 1, state.after(run)
    assert found == counted


def test_what_is_forecast_is_what_the_ledgers_filter_then_says(approved_sites):
    site = approved_sites[0]
    planned = private(2.0)
    plan = make_plan(planned)
    ledger = site.ledger
    found = forecast(
        plan, Budget("x", ledger.policy, ledger.state, ledger.promised(planned.digest()))
    )
    assert found.spent == 0
    assert found.promised > 0, "another experiment is approved at this site"
    whole = plan.round_event.times(plan.charges)
    assert found.admitted == ledger.fits(whole, planned.digest())
    state = ledger.promised(planned.digest()).after(whole)
    assert found.after == state.spent_epsilon(ledger.policy)
    assert found.cost == pytest.approx(found.after - found.promised)


def test_a_run_that_does_not_fit_is_told_the_noise_with_which_it_would(approved_sites):
    ledger = approved_sites[0].ledger
    plan = make_plan(private(60.0))
    found = forecast(plan, Budget("x", ledger.policy, ledger.state, ledger.promised("")))
    assert (found.admitted, found.more_runs) == (False, 0)

    def ask(noise):
        event = dataclasses.replace(plan.round_event, noise_multiplier=noise)
        digest = "sha256:" + "5" * 64
        ledger.approve(Terms(digest, digest, event, plan.charges, digest, "a", digest))

    with pytest.raises(PrivacyBudgetError):
        ask(round(found.noise_that_fits - 0.001, 3))
    ask(found.noise_that_fits)


def test_the_tables_hold_the_plan_itself_and_move_the_right_way():
    plan = make_plan(private(8.0, rounds=4))
    found = forecast(plan, budget(BudgetPolicy.of(10.0, 1e-5)))
    assert {p.value: p.epsilon for p in found.by_rounds}[4] == pytest.approx(found.cost)
    assert {p.value: p.epsilon for p in found.by_noise}[found.noise_multiplier] == found.cost
    for points, rises in ((found.by_rounds, 1), (found.by_noise, -1), (found.by_sampling_rate, 1)):
        epsilons = [point.epsilon * rises for point in points]
        assert epsilons == sorted(epsilons) and len(set(epsilons)) > 1
    noise = {p.value: p.noise_multiplier for p in found.noise_for}
    assert noise[8.0] == found.noise_multiplier, "what the plan was calibrated to"
    assert noise[1.0] > noise[8.0]


def test_a_budget_with_an_unprotected_run_has_nothing_left():
    spent = EMPTY.after(Unprotected())
    policy = BudgetPolicy.of(10.0, 1e-5, allow_unprotected=True)
    found = forecast(make_plan(private(8.0)), budget(policy, spent))
    assert found.left == 0
    json.dumps(found.to_json(), allow_nan=False)


def test_no_privacy_has_no_forecast():
    with pytest.raises(ValueError, match="infinite"):
        forecast(make_plan(unprotected(private(8.0))), budget(BudgetPolicy.of(10.0, 1e-5)))
