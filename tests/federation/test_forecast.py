"""A forecast says what the ledger then does."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.cli import show_budget
from federation.errors import PrivacyBudgetError, Refused
from federation.experiment import Experiment
from federation.forecast import Budget, forecast, runs_that_fit
from federation.ledger.entries import Terms
from federation.ledger.filter import (
    EPSILON_STEP,
    MAX_RUN_EPSILON,
    BudgetPolicy,
    FilterState,
    PoissonGaussian,
    Unprotected,
)
from federation.ledger.ledger import RoundKey
from federation.privacy.plan import make_plan
from tests.experiments import tiny_experiment, unprotected

EMPTY = FilterState()


def private(epsilon, **algorithm):
    experiment = tiny_experiment(**algorithm)
    privacy = experiment.privacy.model_copy(update={"epsilon": epsilon})
    return experiment.model_copy(update={"privacy": privacy})


def budget(policy, spent=EMPTY, promised=None):
    promised = spent if promised is None else promised
    return Budget("north", policy, spent, promised, promised)


def asked(ledger, experiment_digest=""):
    promised = ledger.promised(experiment_digest), ledger.promised("")
    return Budget("x", ledger.policy, ledger.state, *promised)


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
    found = forecast(plan, asked(ledger, planned.digest()))
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
    found = forecast(plan, asked(ledger))
    assert (found.admitted, found.more_runs) == (False, 0)

    def ask(noise):
        event = dataclasses.replace(plan.round_event, noise_multiplier=noise)
        digest = "sha256:" + "5" * 64
        ledger.approve(Terms(digest, digest, event, plan.charges, digest, "a", digest))

    with pytest.raises(PrivacyBudgetError):
        ask(round(found.noise_that_fits - 0.001, 3))
    ask(found.noise_that_fits)


def test_a_row_fits_exactly_where_the_ledger_approves_it(approved_sites):
    ledger = approved_sites[0].ledger
    plan = make_plan(private(4.0, rounds=4))
    told = forecast(plan, asked(ledger))
    digest, seen = "sha256:" + "5" * 64, set()
    for point in told.by_rounds:
        terms = Terms(digest, digest, plan.round_event, int(point.value), digest, "a", digest)
        if point.fits:
            ledger.approve(terms)
        else:
            with pytest.raises(PrivacyBudgetError):
                ledger.approve(terms)
        seen.add(point.fits)
    assert seen == {True, False}
    assert max(p.epsilon for p in told.by_rounds if p.fits) < told.limit, "others hold some of it"


def test_the_tables_hold_the_plan_itself_and_move_the_right_way():
    plan = make_plan(private(8.0, rounds=4))
    found = forecast(plan, budget(BudgetPolicy.of(10.0, 1e-5)))
    assert {p.value: p.epsilon for p in found.by_rounds}[4] == pytest.approx(found.cost)
    assert {p.value: p.epsilon for p in found.by_noise}[found.noise_multiplier] == found.cost
    tables = (found.by_rounds, found.by_noise, found.by_sampling_rate, found.noise_for)
    for point in (point for table in tables for point in table):
        # Alone it must fit the limit, and what was spent can only make it worse.
        assert not point.fits or point.epsilon <= found.limit
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


# The largest epsilon that an experiment could ask for


def charged(ledger, planned, number, attempt=1):
    plan = make_plan(planned)
    return ledger.charge(
        RoundKey("run-1", number, attempt),
        request_digest="sha256:" + f"{number:032x}{attempt:032x}",
        experiment_digest=planned.digest(),
        plan_digest=plan.digest(),
        event=plan.round_event,
    )


def terms(planned):
    plan, some = make_plan(planned), "sha256:" + "5" * 64
    return Terms(planned.digest(), plan.digest(), plan.round_event, plan.charges, some, "a", some)


@pytest.mark.parametrize("delta", [1e-5, 3e-7])
def test_the_largest_epsilon_is_written_down_and_the_run_finishes_and_one_more_step_is_refused(
    approved_sites, delta
):
    ledger = approved_sites[0].ledger
    first = private(8.0, rounds=3, retries=2, steps_per_round=1)
    privacy = first.privacy.model_copy(update={"delta": delta})
    first = first.model_copy(update={"privacy": privacy})
    wanted = forecast(make_plan(first), asked(ledger, first.digest())).epsilon_that_fits
    planned = Experiment.model_validate_json(
        first.model_copy(
            update={"privacy": privacy.model_copy(update={"epsilon": wanted})}
        ).model_dump_json()
    )
    assert planned.privacy.epsilon == wanted and f"{wanted:g}" == str(wanted)
    ledger.approve(terms(planned))
    ledger.reserve(planned.digest(), "run-1")
    for number in range(1, 4):
        charged(ledger, planned, number)
    for attempt in (2, 3):
        charged(ledger, planned, 1, attempt)
    with pytest.raises(Refused, match="approval_used_up"):
        charged(ledger, planned, 1, 4)
    one_more = dataclasses.replace(
        terms(planned), charges=1, experiment_digest="sha256:" + "6" * 64
    )
    assert one_more.event.steps == 1
    with pytest.raises(PrivacyBudgetError, match="do not fit what is left"):
        ledger.approve(one_more)


def test_the_next_larger_epsilon_does_not_fit(approved_sites):
    ledger, planned = approved_sites[0].ledger, private(8.0)
    wanted = forecast(make_plan(planned), asked(ledger)).epsilon_that_fits
    larger = private(round(wanted + 0.0001, 4))
    assert make_plan(larger).noise_multiplier < make_plan(private(wanted)).noise_multiplier
    with pytest.raises(PrivacyBudgetError):
        ledger.approve(terms(larger))
    ledger.approve(terms(private(wanted)))


def test_an_approval_of_the_experiment_itself_still_holds_its_rounds(approved_sites):
    """The number goes into the experiment's file, and makes another experiment of it."""
    ledger, planned = approved_sites[0].ledger, private(2.0)
    before = forecast(make_plan(planned), asked(ledger, planned.digest()))
    ledger.approve(terms(planned))
    after = forecast(make_plan(planned), asked(ledger, planned.digest()))
    assert (after.admitted, after.promised) == (True, before.promised)
    assert after.epsilon_that_fits < before.epsilon_that_fits
    ledger.approve(terms(private(after.epsilon_that_fits)))


@pytest.mark.parametrize(("limit", "spent"), [(1000.0, EMPTY), (1.0, EMPTY)])
def test_the_largest_epsilon_is_one_that_an_experiment_may_have(limit, spent):
    found = forecast(make_plan(private(8.0)), budget(BudgetPolicy.of(limit, 1e-5), spent))
    assert private(found.epsilon_that_fits).privacy.epsilon <= MAX_RUN_EPSILON
    assert (found.epsilon_that_fits == MAX_RUN_EPSILON) == (limit == 1000.0)
    values = private(8.0).model_dump(mode="json")
    values["privacy"]["epsilon"] = MAX_RUN_EPSILON + EPSILON_STEP
    with pytest.raises(ValueError, match="less than or equal to 100"):
        Experiment.model_validate(values)


def test_where_nothing_is_left_no_epsilon_fits():
    policy = BudgetPolicy.of(1.0, 1e-5)
    spent = EMPTY.after(PoissonGaussian(1.0, 0.1, 1000))
    assert forecast(make_plan(private(8.0)), budget(policy, spent)).epsilon_that_fits is None


def test_the_table_of_rounds_is_of_rounds_charged_and_says_so(capsys):
    policy = BudgetPolicy.of(8.0, 1e-5)
    plan = make_plan(private(2.0, rounds=4, retries=4))
    found = forecast(plan, budget(policy))
    assert [point.value for point in found.by_rounds] == [2, 4, 8, 16, 32]
    by_number = {point.value: point.epsilon for point in found.by_rounds}
    assert by_number[8] == pytest.approx(found.cost, rel=1e-12), "4 rounds and 4 repeats"
    without = forecast(dataclasses.replace(plan, charges=4), budget(policy))
    assert by_number[4] == pytest.approx(without.cost, rel=1e-12)
    show_budget.forecast("brains", found)
    assert "rounds charged, retries included" in capsys.readouterr().out
