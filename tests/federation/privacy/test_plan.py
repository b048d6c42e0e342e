from math import inf

import dp_accounting
import pytest
from dp_accounting import pld

from federation.experiment import Experiment
from federation.ledger.filter import BudgetPolicy, FilterState, PoissonGaussian, Unprotected
from federation.privacy.plan import make_plan
from tests.experiments import demo_values, tiny_experiment, unprotected


def whole_run(plan):
    return plan.round_event.times(plan.charges)


def test_a_calibrated_plan_fits_its_epsilon_and_one_step_more_does_not():
    plan = make_plan(Experiment.model_validate(demo_values()))
    policy = BudgetPolicy.of(plan.epsilon, plan.delta)
    assert FilterState().admits(policy, whole_run(plan))
    less_noise = PoissonGaussian(plan.sampling_rate, plan.noise_multiplier - 0.001, 60)
    assert not FilterState().admits(policy, less_noise)


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


def test_permitted_retries_are_calibrated_for():
    without = make_plan(tiny_experiment(rounds=10))
    with_retries = make_plan(tiny_experiment(rounds=8, retries=2))
    assert with_retries.noise_multiplier == without.noise_multiplier
    assert with_retries.charges == 10


def test_no_privacy_is_epsilon_infinity_and_never_looks_like_a_small_number():
    plan = make_plan(unprotected(tiny_experiment()))
    assert plan.epsilon == inf and not plan.is_private and plan.noise_stddev == 0
    assert plan.round_event == Unprotected()


def test_every_number_of_a_plan_changes_its_digest():
    plans = [
        make_plan(tiny_experiment()),
        make_plan(tiny_experiment(rounds=3)),
        make_plan(tiny_experiment(steps_per_round=3)),
        make_plan(unprotected(tiny_experiment())),
    ]
    assert len({plan.digest() for plan in plans}) == len(plans)


def test_a_plan_depends_on_no_site():
    assert make_plan(tiny_experiment()) == make_plan(tiny_experiment())
