"""What an epsilon means: how well anybody could tell whether a person took part.

The attacker here knows every model and update that left, and everything about one person but this:
were this person's data used? Two figures bound how well any such attacker can do. The *advantage*
is the share of participants who are recognised less the share of others who are wrongly accused.
The *true positives at 1 %* are the participants recognised by one who accuses 1 of 100 others.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import exp, inf
from typing import Any

import numpy as np
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution

FALSE_POSITIVE_RATE = 0.01

Steps = Mapping[tuple[float, float], int]
"""Noised steps by (sampling_rate, noise_multiplier)."""

_INTERVALS = (1e-2, 5e-3, 2e-3, 1e-3, 5e-4)
_SLOPES = np.linspace(-20.0, 20.0, 801)
_MAX_EVENTS = 16
_MAX_STEPS = 10**6
# Below, privacy losses reach so far that their grid would not fit in memory.
_MIN_NOISE_MULTIPLIER = 0.3


def advantage(epsilon: float, delta: float) -> float:
    """Return the most by which true positives can exceed false ones under (epsilon, delta).

    It is (e^epsilon - 1 + 2 delta) / (e^epsilon + 1), by Kairouz, Oh and Viswanath
    (arXiv 1311.0776, Theorem 2.1).

    >>> [round(advantage(epsilon, 1e-5), 4) for epsilon in (0.0, 1.0, 3.0, 8.0)]
    [0.0, 0.4621, 0.9051, 0.9993]
    """
    if epsilon == inf:
        return 1.0
    small = exp(-epsilon)
    return min(1.0, (1 - small + 2 * delta * small) / (1 + small))


def true_positives(epsilon: float, delta: float, false_positives: float) -> float:
    """Return the largest share of participants recognised under (epsilon, delta).

    The worst case of arXiv 1311.0776, Theorem 2.1, at one rate of false positives.

    >>> [round(true_positives(epsilon, 1e-5, 0.01), 4) for epsilon in (0.0, 1.0, 3.0, 8.0)]
    [0.01, 0.0272, 0.2009, 0.9997]
    """
    if epsilon == inf:
        return 1.0
    accused = delta + exp(min(epsilon, 700.0)) * false_positives
    missed = exp(-epsilon) * (1 - delta - false_positives)
    return min(1.0, accused, 1 - missed)


@dataclass(frozen=True)
class Attack:
    """How well the best attacker could do against what was really run.

    Attributes:
        advantage: Most by which true positives exceed false ones.
        true_positives: At 1 % false positives.
        epsilon: At the delta asked for.
        why_not: Why nothing was computed; empty where something was.
    """

    advantage: float = 1.0
    true_positives: float = 1.0
    epsilon: float = inf
    why_not: str = ""


def best_attack(
    steps: Steps, delta: float, *, replace_one: bool = False, time_limit_s: float = 8.0
) -> Attack:
    """Bound every attack on these steps by their privacy loss distribution.

    Finer intervals are tried until the true positives move by under 1 %; each is an upper bound.
    It holds for steps whose plan was fixed before the first of them.

    Args:
        replace_one: Compare with another person in the same place, not with nobody: what counts
            where the number of subjects leaves.
    """
    if not steps:
        return Attack(0.0, FALSE_POSITIVE_RATE, 0.0)
    if reason := _why_not(steps):
        return Attack(why_not=reason)
    deadline = time.monotonic() + time_limit_s
    found: Attack | None = None
    for attack in _refined(steps, delta, replace_one, deadline):
        if found and found.true_positives - attack.true_positives <= 0.01 * attack.true_positives:
            return attack
        found = attack
    return found or Attack(why_not=f"not settled within {time_limit_s:g} s")


def _why_not(steps: Steps) -> str:
    """A hostile file may name any numbers: refuse what could exhaust memory or time."""
    if len(steps) > _MAX_EVENTS:
        return f"it has more than {_MAX_EVENTS} kinds of steps"
    if sum(steps.values()) > _MAX_STEPS:
        return f"it has more than {_MAX_STEPS:,} steps"
    if min(noise for _, noise in steps) < _MIN_NOISE_MULTIPLIER:
        return (
            f"a noise multiplier is below {_MIN_NOISE_MULTIPLIER:g}, which protects hardly anybody"
        )
    return ""


def _refined(steps: Steps, delta: float, replace_one: bool, deadline: float) -> Iterator[Attack]:
    for interval in _INTERVALS:
        if time.monotonic() > deadline:
            return
        yield _attack(_composed(steps, interval, replace_one), delta)


def _composed(steps: Steps, interval: float, replace_one: bool) -> Any:
    """Return dp-accounting's privacy loss distribution of all steps together."""
    relation = NeighboringRelation
    whole = privacy_loss_distribution.identity(value_discretization_interval=interval)
    for (rate, noise), count in steps.items():
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise,
            sampling_prob=rate,
            value_discretization_interval=interval,
            neighboring_relation=relation.REPLACE_ONE
            if replace_one
            else relation.ADD_OR_REMOVE_ONE,
        )
        whole = whole.compose(one.self_compose(count))
    return whole


def _attack(distribution: Any, delta: float) -> Attack:
    """Read the curve of true against false positives off delta(epsilon), by its tangents."""
    deltas = np.asarray(distribution.get_delta_for_epsilon(_SLOPES))
    recognised = float((np.exp(_SLOPES) * FALSE_POSITIVE_RATE + deltas).min())
    return Attack(
        advantage=min(1.0, float(distribution.get_delta_for_epsilon(0.0))),
        true_positives=min(1.0, max(FALSE_POSITIVE_RATE, recognised)),
        epsilon=float(distribution.get_epsilon_for_delta(delta)),
    )
