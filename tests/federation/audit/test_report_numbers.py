"""What an epsilon means, against closed forms and a second way to compute it."""

from math import exp, inf, sqrt

import pytest
from scipy.stats import norm

from federation.audit.report_numbers import (
    FALSE_POSITIVE_RATE,
    Attack,
    advantage,
    best_attack,
    true_positives,
)

DELTA = 1e-5


@pytest.mark.parametrize(("epsilon", "shown"), [(1, 0.46), (3, 0.91), (8, 0.9993)])
def test_the_advantages_that_every_board_is_told(epsilon, shown):
    assert advantage(epsilon, DELTA) == pytest.approx(shown, abs=0.005 if shown < 0.99 else 5e-5)
    formula = (exp(epsilon) - 1 + 2 * DELTA) / (exp(epsilon) + 1)
    assert advantage(epsilon, DELTA) == pytest.approx(formula, rel=1e-12)


def test_without_a_limit_an_attacker_may_be_certain():
    assert advantage(inf, 0.0) == true_positives(inf, 0.0, 0.01) == 1.0
    assert advantage(900.0, DELTA) == true_positives(900.0, DELTA, 0.01) == 1.0


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 3.0, 8.0])
def test_the_advantage_is_the_furthest_that_true_positives_get_from_false_ones(epsilon):
    grid = [k / 20_000 for k in range(20_001)]
    furthest = max(true_positives(epsilon, DELTA, rate) - rate for rate in grid)
    assert furthest == pytest.approx(advantage(epsilon, DELTA), abs=1e-4)


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 2.5])
def test_a_plain_gaussian_has_its_closed_form(mu):
    """Dong, Roth and Su (arXiv 1905.02383): TPR = Phi(Phi^-1(FPR) + mu)."""
    steps = 4
    attack = best_attack({(1.0, sqrt(steps) / mu): steps}, DELTA)
    exact = norm.cdf(norm.ppf(FALSE_POSITIVE_RATE) + mu)
    assert exact <= attack.true_positives <= 1.02 * exact
    assert attack.advantage == pytest.approx(2 * norm.cdf(mu / 2) - 1, rel=0.01)


def test_exchanging_one_person_is_a_gaussian_of_twice_the_distance():
    mu = 0.7
    attack = best_attack({(1.0, 1 / mu): 1}, DELTA, replace_one=True)
    exact = norm.cdf(norm.ppf(FALSE_POSITIVE_RATE) + 2 * mu)
    assert exact <= attack.true_positives <= 1.02 * exact


@pytest.mark.parametrize("steps", [{(0.25, 1.575): 60}, {(0.01, 0.8): 3000, (0.1, 2.0): 50}])
def test_no_attack_does_better_than_its_own_epsilon_allows(steps):
    attack = best_attack(steps, DELTA)
    assert attack.why_not == "" and attack.epsilon > 1
    assert attack.true_positives <= true_positives(attack.epsilon, DELTA, 0.01)
    assert attack.advantage <= advantage(attack.epsilon, DELTA)
    exchanged = best_attack(steps, DELTA, replace_one=True)
    assert exchanged.true_positives > attack.true_positives


def test_nothing_charged_is_a_guess():
    assert best_attack({}, DELTA) == Attack(0.0, FALSE_POSITIVE_RATE, 0.0)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ({(0.5, 0.01): 1}, "noise multiplier"),
        ({(0.5, 1.0): 10**9}, "steps"),
        ({(0.5, 1.0 + k / 100): 1 for k in range(20)}, "kinds of steps"),
    ],
)
def test_what_could_exhaust_the_readers_machine_is_not_computed(steps, why):
    attack = best_attack(steps, DELTA)
    assert why in attack.why_not
    assert (attack.true_positives, attack.epsilon) == (1.0, inf), "unknown is never shown as safe"


def test_without_time_nothing_is_claimed():
    attack = best_attack({(0.25, 1.575): 60}, DELTA, time_limit_s=-1.0)
    assert attack == Attack(why_not="not settled within -1 s")
