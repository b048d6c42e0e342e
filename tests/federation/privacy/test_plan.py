from dataclasses import fields, replace
from math import inf

import dp_accounting
import pytest
from dp_accounting import pld

from federation.errors import FederationError
from federation.experiment import Experiment
from federation.ledger.filter import BudgetPolicy, FilterState, PoissonGaussian, Unprotected
from federation.privacy.plan import make_plan
from tests.experiments import demo_values, tiny_experiment, unprotected


def whole_run(plan):
    return plan.round_event.times(plan.charges)


def test_a_calibrated_plan_finishes_every_round_and_a_round_more_is_refused():
    plan = make_plan(Experiment.model_validate(demo_values()))
    policy = BudgetPolicy.of(plan.epsilon, plan.delta)
    state = FilterState()
    for _ in range(plan.charges):
        assert state.admits(policy, plan.round_event)
        state = state.after(plan.round_event)
    assert not state.admits(policy, plan.round_event)


def test_the_noise_is_the_smallest_that_fits():
    plan = make_plan(Experiment.model_validate(demo_values()))
    policy = BudgetPolicy.of(plan.epsilon, plan.delta)
    assert FilterState().admits(policy, whole_run(plan))
    less_noise = PoissonGaussian(plan.sampling_rate, plan.noise_multiplier - 0.001, 60)
    assert not FilterState().admits(policy, less_noise)


def test_an_epsilon_that_no_noise_reaches_is_one_sentence():
    values = demo_values()
    values["privacy"]["epsilon"] = 0.004
    with pytest.raises(FederationError, match="Raise epsilon or lower the number of steps"):
        make_plan(Experiment.model_validate(values))


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_the_privacy_loss_distribution_agrees_that_epsilon_is_not_exceeded(epsilon):
    values = demo_values()
    values["privacy"]["epsilon"] = epsilon
    plan = make_plan(Experiment.model_validate(values))
    step = dp_accounting.PoissonSampledDpEvent(
        plan.sampling_rate, dp_accounting.GaussianDpEvent(plan.noise_multiplier)
    )
    accountant = pld.PLDAccountant()
    accountant.compose(step, plan.steps * plan.charges)
    assert 0.75 * epsilon < accountant.get_epsilon(plan.delta) < epsilon


def test_no_privacy_is_epsilon_infinity_and_never_looks_like_a_small_number():
    plan = make_plan(unprotected(tiny_experiment()))
    assert plan.epsilon == inf and not plan.is_private and plan.noise_stddev == 0
    assert plan.round_event == Unprotected()


def test_every_number_of_a_plan_changes_its_digest():
    plan = make_plan(tiny_experiment())
    for field in fields(plan):
        value = getattr(plan, field.name)
        other = value + "x" if isinstance(value, str) else value + 1
        assert replace(plan, **{field.name: other}).digest() != plan.digest(), field.name


def test_retries_are_paid_for_beforehand_with_noise():
    plan = make_plan(tiny_experiment(rounds=4))
    prepared = make_plan(tiny_experiment(rounds=4, retries=2))
    assert (plan.charges, prepared.charges) == (4, 6)
    assert prepared.noise_multiplier > plan.noise_multiplier
    assert prepared.noise_multiplier == make_plan(tiny_experiment(rounds=6)).noise_multiplier
    assert tiny_experiment(rounds=4, retries=0).digest() == tiny_experiment(rounds=4).digest()
    assert tiny_experiment(rounds=4, retries=2).digest() != tiny_experiment(rounds=4).digest()
