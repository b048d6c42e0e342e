"""Costs recomputed by Google's dp-accounting, which no training code here uses."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import isclose, log, log1p

import dp_accounting
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant, compute_epsilon

from federation.ledger.filter import BudgetPolicy, Event, FilterState, PoissonGaussian

Steps = Mapping[tuple[float, float], int]
"""Noised steps by (sampling_rate, noise_multiplier)."""

AGREEMENT = 1e-9
# dp-accounting takes the log of a sum near one: this much of each step's cost is its rounding.
_ROUNDING_OF_A_STEP = 2e-15
# Different events times orders: past this a hostile file would keep the reader busy for hours.
_MAX_TERMS = 1_000_000

_WIDEST_INTERVAL = 1e-2
_MAX_HALVINGS = 7
_SETTLED = 0.01
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


@dataclass
class Spent:
    """What events have cost by dp-accounting, under one policy.

    Attributes:
        totals: Rényi divergence at each of the policy's orders.
    """

    policy: BudgetPolicy
    steps: Counter[tuple[float, float]] = field(default_factory=Counter)
    num_unprotected: int = 0
    totals: tuple[float, ...] = ()
    _num_steps: int = 0
    _conversions: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.totals = (0.0,) * len(self.policy.orders)
        parts = zip(self.policy.orders, self.policy.order_deltas, strict=True)
        self._conversions = tuple(_conversion(order, delta) for order, delta in parts)

    def add(self, event: Event) -> bool:
        """Add what an event costs; False where there are too many kinds of them to do so."""
        if not isinstance(event, PoissonGaussian):
            self.num_unprotected += 1
            return True
        orders = self.policy.orders
        if (len(self.steps) + 1) * sum(orders) > _MAX_TERMS:
            return False
        self.steps[event.sampling_rate, event.noise_multiplier] += event.steps
        self._num_steps += event.steps
        step = rdp_of_one_step(event.sampling_rate, event.noise_multiplier, orders)
        self.totals = tuple(
            total + event.steps * cost for total, cost in zip(self.totals, step, strict=True)
        )
        return True

    def agrees(self, stated: list[float]) -> bool:
        """Tell whether totals that a record states are these."""
        tolerance = _ROUNDING_OF_A_STEP * self._num_steps
        return len(stated) == len(self.totals) and all(
            isclose(a, b, rel_tol=AGREEMENT, abs_tol=tolerance)
            for a, b in zip(stated, self.totals, strict=True)
        )

    @property
    def passes_the_limit(self) -> bool:
        """Tell whether the filter's epsilon, as the format defines it, is above the policy's."""
        parts = zip(self.totals, self._conversions, strict=True)
        epsilon = min(max(0.0, rho + cost) if rho else 0.0 for rho, cost in parts)
        return epsilon > self.policy.epsilon * (1 + AGREEMENT)

    @property
    def rdp_epsilon(self) -> float:
        """The smallest epsilon over the orders by dp-accounting, without unprotected events."""
        policy = self.policy
        parts = zip(self.totals, policy.orders, policy.order_deltas, strict=True)
        return min(
            float(compute_epsilon([order], [max(0.0, rho)], delta)[0])
            for rho, order, delta in parts
        )

    @property
    def filter_epsilon(self) -> float:
        """What the site's own filter says of the same events; infinite after an unprotected one."""
        return FilterState(dict(self.steps), self.num_unprotected).spent_epsilon(self.policy)


def _conversion(order: int, delta: float) -> float:
    """What turns a divergence into epsilon (arXiv 2004.00010, Proposition 12)."""
    return log1p(-1 / order) - (log(delta) + log(order)) / (order - 1)


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
    steps: Steps,
    *,
    delta: float,
    rdp_epsilon: float,
    time_limit_s: float = 5.0,
    replace_one: bool = False,
) -> PldEpsilon:
    """Halve the discretisation until epsilon moves by under 1 %, or the time is over.

    Valid if nothing had been chosen adaptively: within one experiment whose plan was fixed
    beforehand it is a guarantee, across experiments an indication.

    Args:
        replace_one: Between data sets that differ in one subject's content, not in its presence:
            what is left to say where exact counts are known.
    """
    if not steps:
        return PldEpsilon(0.0, "nothing was charged")
    if reason := _why_too_large(steps, rdp_epsilon):
        return PldEpsilon(None, reason)
    return _settled(tuple(sorted(steps.items())), delta, time_limit_s, replace_one)


@lru_cache(maxsize=256)
def _settled(
    steps: tuple[tuple[tuple[float, float], int], ...],
    delta: float,
    time_limit_s: float,
    replace_one: bool,
) -> PldEpsilon:
    """Sites of one run have the same events: they are computed once."""
    deadline = time.monotonic() + time_limit_s
    values: list[float] = []
    for value, interval in _refined(dict(steps), delta, deadline, replace_one):
        values.append(value)
        if len(values) > 1 and abs(values[-1] - values[-2]) <= _SETTLED * values[-1]:
            return PldEpsilon(value, f"settled within 1 % at interval {interval:g}")
    if not values:
        return PldEpsilon(None, f"not settled within {time_limit_s:g} s")
    return PldEpsilon(min(values), "upper bound; not settled within 1 %")


def _refined(
    steps: Steps, delta: float, deadline: float, replace_one: bool
) -> Iterator[tuple[float, float]]:
    neighbours = NeighboringRelation.ADD_OR_REMOVE_ONE
    if replace_one:
        neighbours = NeighboringRelation.REPLACE_ONE
    for halvings in range(_MAX_HALVINGS + 1):
        interval = _WIDEST_INTERVAL / 2**halvings
        accountant = PLDAccountant(neighbours, value_discretization_interval=interval)
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
