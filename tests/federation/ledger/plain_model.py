"""What a ledger ought to say, in a few dicts: written from docs/ledger/format.md, by itself.

Nothing of ``federation.ledger`` is used. What is spent comes from dp-accounting.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, rdp

Key = tuple[str, int, int]
# Sampling rate, noise multiplier, steps; None is a release without noise.
Noised = tuple[float, float, int]
Steps = Counter[tuple[float, float]]


@cache
def step_cost(rate: float, noise: float, orders: tuple[int, ...]) -> tuple[float, ...]:
    step = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
    return tuple(float(one) for one in rdp.RdpAccountant(orders).compose(step).rdp)


def epsilon(steps: Steps, orders: Sequence[int], deltas: Sequence[float]) -> float:
    """Return the filter's epsilon: the smallest over the orders, each with its own delta."""
    costs = [step_cost(rate, noise, tuple(orders)) for rate, noise in steps]
    totals = [
        sum(number * cost[index] for number, cost in zip(steps.values(), costs, strict=True))
        for index in range(len(orders))
    ]
    return min(
        float(rdp.compute_epsilon([order], [total], delta)[0]) if total else 0.0
        for order, total, delta in zip(orders, totals, deltas, strict=True)
    )


def steps_of(event: Noised, times: int = 1) -> Steps:
    return Counter({event[:2]: event[2] * times})


@dataclass
class Approval:
    """What an operator permits, and how much of it is left."""

    plan: str
    event: Noised
    left: int
    expired: bool
    run: str | None = None
    number: int = 0


@dataclass
class Work:
    """What a hub asks for."""

    key: Key
    request: str
    experiment: str
    plan: str
    event: Noised


@dataclass
class PlainSite:
    """One site's account. Each method answers as the site should, and changes what it would.

    Attributes:
        ended: Rounds that were under way in a copy that was recovered: lost, without a record.
        free: Whether a recovery may have passed the limit.
        closed_under: How often the key had been rotated when a run was closed.
    """

    limit: float
    orders: tuple[int, ...]
    deltas: tuple[float, ...]
    spent: Steps = field(default_factory=Counter)
    open: dict[str, Approval] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    charged: dict[Key, Work] = field(default_factory=dict)
    charged_under: dict[Key, int] = field(default_factory=dict)
    released: dict[Key, bytes] = field(default_factory=dict)
    lost: set[Key] = field(default_factory=set)
    closed: dict[str, object] = field(default_factory=dict)
    closed_under: dict[str, int] = field(default_factory=dict)
    ended: set[Key] = field(default_factory=set)
    refused: set[tuple[Key, str]] = field(default_factory=set)
    num_approvals: int = 0
    key_number: int = 0
    rotations: int = 0
    free: bool = False

    def copied(self) -> "PlainSite":
        return copy.deepcopy(self)

    @property
    def open_rounds(self) -> set[Key]:
        return self.charged.keys() - self.released.keys() - self.lost - self.ended

    def epsilon(self, more: Steps | None = None) -> float:
        return epsilon(self.spent + (more or Counter()), self.orders, self.deltas)

    def fits(self, more: Steps) -> bool:
        found = self.epsilon(more)
        assert abs(found - self.limit) > 1e-6, "too near to the limit to tell: use other numbers"
        return found <= self.limit

    def held(self, *, but: str | None = None, expired=False, reserved=False) -> Steps:
        """Return what open approvals hold: those that expired, too; or only what runs took up."""
        total: Steps = Counter()
        for experiment, approval in self.open.items():
            counts = (expired or not approval.expired) and (approval.run or not reserved)
            if experiment != but and counts:
                total += steps_of(approval.event, approval.left)
        return total

    def approve(self, experiment: str, approval: Approval) -> list[str]:
        if not self.fits(self.held(but=experiment) + steps_of(approval.event, approval.left)):
            return ["refusal"]
        self.num_approvals += 1
        self.open[experiment] = replace(approval, number=self.num_approvals)
        return ["approval"]

    def why_not_reserved(self, experiment: str, run: str) -> str | None:
        approval = self.open.get(experiment)
        if approval is None or approval.expired:
            return "not_approved"
        if approval.run != run and (approval.run is not None or run in self.runs):
            return "approval_used_up"
        whole = steps_of(approval.event, approval.left)
        if approval.run is None and not self.fits(self.held(but=experiment, reserved=True) + whole):
            return "budget"
        return None

    def reserve(self, experiment: str, run: str) -> list[str]:
        if self.open[experiment].run is not None:
            return []
        self.open[experiment].run = run
        self.runs[run] = experiment
        return ["reservation"]

    def why_refused(self, work: Work) -> str | None:
        earlier = self.charged.get(work.key)
        if earlier is not None:
            if earlier != work:
                return "equivocation"
            return None if work.key in self.released else "lost"
        refusal = self.why_not_reserved(work.experiment, work.key[0])
        if refusal is not None:
            return refusal
        approval = self.open[work.experiment]
        if (approval.plan, approval.event) != (work.plan, work.event):
            return "not_approved"
        if approval.left < 1:
            return "approval_used_up"
        return None if self.fits(steps_of(work.event)) else "budget"

    def refuse(self, work: Work, code: str) -> list[str]:
        kinds = self.lose(work.key) if code == "lost" else []
        if (work.key, code) not in self.refused:
            self.refused.add((work.key, code))
            kinds = [*kinds, "refusal"]
        return kinds

    def charge(self, work: Work) -> list[str]:
        if work.key in self.charged:
            return []
        kinds = self.reserve(work.experiment, work.key[0])
        self.charged[work.key] = work
        self.spent += steps_of(work.event)
        self.open[work.experiment].left -= 1
        self.charged_under[work.key] = self.open[work.experiment].number
        return [*kinds, "charge"]

    def may_be_released(self, key: Key) -> bool:
        """Tell whether the approval that a round was charged under is still open."""
        approval = self.open.get(self.charged[key].experiment)
        same = approval is not None and approval.number == self.charged_under[key]
        return key in self.released or (same and key not in self.lost | self.ended)

    def release(self, key: Key, payload: bytes) -> list[str]:
        if key in self.released:
            return []
        self.released[key] = payload
        return ["release"]

    def lose(self, key: Key) -> list[str]:
        if key not in self.open_rounds:
            return []
        self.lost.add(key)
        return ["loss"]

    def conclude(self, experiment: str, run: str, content: object) -> tuple[str | None, list[str]]:
        """Return the refusal, if it is one, and the kinds of records."""
        if run in self.closed:
            return (None if self.closed[run] == (experiment, content) else "equivocation"), []
        if experiment not in self.open or self.open[experiment].run != run:
            return "not_approved", []
        del self.open[experiment]
        self.closed[run], self.closed_under[run] = (experiment, content), self.rotations
        return None, ["closing"]

    def recover(self, spends: Steps) -> None:
        self.spent += spends
        self.open.clear()
        self.ended |= self.open_rounds
        self.free = True
