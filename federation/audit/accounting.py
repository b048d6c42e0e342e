"""Epsilon recomputed by Google's dp-accounting, which no training code here uses."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant, compute_epsilon

from federation.ledger.filter import BudgetPolicy

Steps = Mapping[tuple[float, float], int]
"""Noised steps by (sampling_rate, noise_multiplier)."""

_INTERVALS = (1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4)
_MAX_EVENTS = 64
# Privacy losses reach about 1/(2 sigma^2) + 10/sigma; below this the grid would not fit in memory.
_MIN_NOISE_MULTIPLIER = 0.2
_MAX_EPSILON = 200.0


@lru_cache(maxsize=4096)
def rdp_of_one_step(
    sampling_rate: float, noise_multiplier: float, orders: tuple[int, ...]
) -> tuple[float, ...]:
    """Return dp-accounting's Rényi divergence of one step at each order."""
    accountant = RdpAccountant(orders)
    accountant.compose(_event(sampling_rate, noise_multiplier, 1))
    return tuple(float(value) for value in accountant.rdp)


def epsilon_of_totals(totals: tuple[float, ...], policy: BudgetPolicy) -> float:
    """Return dp-accounting's smallest epsilon over the orders, each with its own delta."""
    parts = zip(totals, policy.orders, policy.order_deltas, strict=True)
    return min(float(compute_epsilon([order], [rho], delta)[0]) for rho, order, delta in parts)


@dataclass(frozen=True)
class PldEpsilon:
    """Epsilon by privacy loss distributions, an upper bound whatever the interval.

    Attributes:
        value: None where it was not computed.
        note: Why not, or how finely.
    """

    value: float | None
    note: str


def pld_epsilon(
    steps: Steps, *, delta: float, rdp_epsilon: float, time_limit_s: float = 5.0
) -> PldEpsilon:
    """Halve the discretisation until epsilon moves by under 1 %, or the time is over.

    Valid if nothing had been chosen adaptively: within one experiment whose plan was fixed
    beforehand it is a guarantee, across experiments an indication.
    """
    if not steps:
        return PldEpsilon(0.0, "nothing was charged")
    if reason := _why_too_large(steps, rdp_epsilon):
        return PldEpsilon(None, reason)
    deadline = time.monotonic() + time_limit_s
    values: list[float] = []
    for value, interval in _refined(steps, delta, deadline):
        values.append(value)
        if len(values) > 1 and abs(values[-1] - values[-2]) <= 0.01 * values[-1]:
            return PldEpsilon(value, f"settled within 1 % at interval {interval:g}")
    if not values:
        return PldEpsilon(None, f"not settled within {time_limit_s:g} s")
    return PldEpsilon(min(values), "upper bound; not settled within 1 %")


def _refined(steps: Steps, delta: float, deadline: float) -> Iterator[tuple[float, float]]:
    for interval in _INTERVALS:
        accountant = PLDAccountant(value_discretization_interval=interval)
        for key, count in steps.items():
            if time.monotonic() > deadline:
                return
            accountant.compose(_event(*key, count))
        yield float(accountant.get_epsilon(delta)), interval


def _why_too_large(steps: Steps, epsilon: float) -> str:
    """A hostile file may name any numbers: refuse what could exhaust memory or time."""
    if len(steps) > _MAX_EVENTS:
        return f"more than {_MAX_EVENTS} different events"
    if min(noise for _, noise in steps) < _MIN_NOISE_MULTIPLIER:
        return f"a noise multiplier is below {_MIN_NOISE_MULTIPLIER:g}"
    if max(steps.values()) > 10**6:
        return "more than a million steps of one kind"
    if not epsilon <= _MAX_EPSILON:
        return f"epsilon is above {_MAX_EPSILON:g}"
    return ""


def _event(sampling_rate: float, noise_multiplier: float, steps: int) -> dp_accounting.DpEvent:
    step = dp_accounting.PoissonSampledDpEvent(
        sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    return dp_accounting.SelfComposedDpEvent(step, steps)
