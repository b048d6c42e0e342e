"""One ledger's records, told: who approved what, what it cost when, and what else happened.

Nothing here decides whether a ledger is to be believed: ``federation.audit.verify`` does. A line
that is no record is left out (it is a problem there), and no record makes this raise.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from pathlib import Path

from federation.ledger.filter import (
    BudgetPolicy,
    Event,
    PoissonGaussian,
    event_from_json,
    rdp_of,
    rdp_to_epsilon,
)
from federation.ledger.records import MAX_LINE_BYTES, Record, parse_record

# Of different events and orders together: past it, the costs of a hostile file take minutes.
_MAX_TERMS = 300_000


@dataclass(frozen=True)
class Point:
    """The filter right after one record that spent something."""

    seq: int
    at: str
    epsilon: float
    cause: str
    experiment: str


@dataclass(frozen=True)
class Happening:
    """Something that is no charge: a refusal, a withdrawal, a purge.

    Attributes:
        kind: The record's.
        what: Which of several: a refusal's code, what a note says.
        count: How many records of the kind, alike, from ``at`` to ``until``.
    """

    kind: str
    at: str
    until: str
    what: str = ""
    experiment: str = ""
    run: str = ""
    by: str = ""
    reason: str = ""
    count: int = 1


@dataclass
class Approval:
    """One approval, and what was done under it.

    Attributes:
        ended: How it ended, and when; empty while it is open.
        at_sites: Sites whose ledgers' heads the hub showed with this run's requests.
        steps: Noised steps charged under it.
    """

    record: Record
    run: str = ""
    reserved_at: str = ""
    charges: list[str] = field(default_factory=list)
    releases: int = 0
    losses: int = 0
    ended: str = ""
    ended_at: str = ""
    ended_by: str = ""
    ended_reason: str = ""
    at_sites: set[str] = field(default_factory=set)
    steps: Counter[tuple[float, float]] = field(default_factory=Counter)
    unprotected: int = 0

    @property
    def experiment(self) -> str:
        """Return the experiment's digest."""
        return str(self.record.body["experiment_digest"])

    @property
    def held(self) -> int:
        """Return the charges that may still be made."""
        return 0 if self.ended else max(0, int(self.record.body["charges"]) - len(self.charges))

    @property
    def event(self) -> Event:
        """Return what one round costs."""
        return event_from_json(self.record.body["event"])

    def cost(self, policy: BudgetPolicy) -> float:
        """Return the filter's state after every charge that it permits, were they the only ones.

        Computed from the approved event: the ``epsilon`` beside it is the site's word.
        """
        costs = Costs(policy)
        costs.add(self.event, int(self.record.body["charges"]))
        return costs.epsilon


class Costs:
    """Rényi divergence added up at the policy's orders, as the site's filter does."""

    def __init__(self, policy: BudgetPolicy) -> None:
        self._policy = policy
        self._totals = [0.0] * len(policy.orders)
        self._kinds: set[tuple[float, float]] = set()
        self._stopped = False
        self.unprotected = 0

    def add(self, event: Event, times: int = 1) -> bool:
        """Add an event; False where there are too many different ones to go on."""
        if not isinstance(event, PoissonGaussian):
            self.unprotected += times
            return True
        self._kinds.add((event.sampling_rate, event.noise_multiplier))
        if len(self._kinds) * sum(self._policy.orders) > _MAX_TERMS:
            self._stopped = True
            return False
        step = PoissonGaussian(event.sampling_rate, event.noise_multiplier, 1)
        for place, order in enumerate(self._policy.orders):
            self._totals[place] += event.steps * times * rdp_of(step, order)
        return True

    @property
    def epsilon(self) -> float:
        """Return the filter's state as one number.

        Infinite after an unprotected charge, and where not all was added up.
        """
        if self.unprotected or self._stopped:
            return inf
        parts = zip(self._totals, self._policy.orders, self._policy.order_deltas, strict=True)
        return min(rdp_to_epsilon(total, order, delta) for total, order, delta in parts)


@dataclass
class Told:
    """What a ledger's records say, in the order in which they say it.

    Attributes:
        steps, unprotected: Everything that was spent, by recoveries and merges, too.
        promised: The filter with every charge that open approvals still hold.
        stopped_at: Record from which on costs were not added up: too many different events.
    """

    genesis: Record | None = None
    policy: BudgetPolicy | None = None
    head: Record | None = None
    approvals: list[Approval] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    versions: dict[str, set[str]] = field(default_factory=dict)
    costs_of: dict[str, Costs] = field(default_factory=dict)
    steps: Counter[tuple[float, float]] = field(default_factory=Counter)
    unprotected: int = 0
    promised: float = 0.0
    stopped_at: int | None = None

    @property
    def by_experiment(self) -> dict[str, list[Approval]]:
        """Return the approvals of each experiment, the oldest first."""
        found: dict[str, list[Approval]] = {}
        for approval in self.approvals:
            found.setdefault(approval.experiment, []).append(approval)
        return found


def tell(path: Path) -> Told:
    """Read a ledger file, leaving out what cannot be read."""
    telling = _Telling()
    for record in _records(path):
        telling.take(record)
    return telling.done()


def day_of(at: str) -> datetime | None:
    """Return a record's time, or None for one that no calendar has."""
    try:
        return datetime.strptime(at, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None


def _records(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            while (line := file.readline(MAX_LINE_BYTES + 1)).endswith(b"\n"):
                try:
                    yield parse_record(line[:-1])
                except ValueError:
                    continue
    except OSError:
        return


class _Telling:
    """Folds records into a ``Told``."""

    def __init__(self) -> None:
        self.told = Told()
        self._costs: Costs | None = None
        self._open: dict[str, Approval] = {}
        self._runs: dict[str, Approval] = {}
        self._charged: dict[int, Approval] = {}
        self._alike: dict[tuple[str, ...], int] = {}
        self._folds: Mapping[str, Callable[[Record], None]] = {
            "genesis": self._genesis,
            "approval": self._approval,
            "reservation": self._reservation,
            "charge": self._charge,
            "release": self._release,
            "loss": self._loss,
            "withdrawal": self._withdrawal,
            "closing": self._closing,
            "recovery": self._recovery,
            "merge": self._merge,
            "merged": self._merged,
        }

    def take(self, record: Record) -> None:
        """Fold one record in."""
        self.told.head = record
        self._folds.get(record.kind, self._happens)(record)

    def done(self) -> Told:
        """Return everything, with what open approvals still hold."""
        if self._costs is not None:
            for approval in self._open.values():
                if approval.held:
                    self._costs.add(approval.event, approval.held)
            self.told.promised = self._costs.epsilon
        return self.told

    def _genesis(self, record: Record) -> None:
        if self.told.genesis is None:
            self.told.genesis = record
            self.told.policy = BudgetPolicy.from_json(record.body["policy"])
            self._costs = Costs(self.told.policy)

    def _approval(self, record: Record) -> None:
        approval = Approval(record)
        earlier = self._open.pop(approval.experiment, None)
        if earlier is not None:
            self._end(earlier, record, "replaced")
        self._open[approval.experiment] = approval
        self.told.approvals.append(approval)

    def _reservation(self, record: Record) -> None:
        approval = self._open.get(record.body["experiment_digest"])
        if approval is not None:
            approval.run, approval.reserved_at = record.body["run"], record.at
            self._runs[approval.run] = approval

    def _charge(self, record: Record) -> None:
        body, event = record.body, event_from_json(record.body["event"])
        experiment = body["experiment_digest"]
        approval = self._open.get(experiment)
        if approval is not None:
            approval.charges.append(record.at)
            approval.at_sites.update(body["heads"])
            approval.unprotected += _count(event, approval.steps)
            self._charged[record.seq] = approval
        if self._costs is not None and self.told.policy is not None:
            self.told.costs_of.setdefault(experiment, Costs(self.told.policy)).add(event)
        self._spend(record, [event], experiment)

    def _spend(self, record: Record, events: Sequence[Event], experiment: str = "") -> None:
        self.told.unprotected += sum(_count(event, self.told.steps) for event in events)
        if self._costs is None or self.told.stopped_at is not None:
            return
        added = [self._costs.add(event) for event in events]
        if not all(added):
            self.told.stopped_at = record.seq
            return
        point = Point(record.seq, record.at, self._costs.epsilon, record.kind, experiment)
        self.told.points.append(point)

    def _release(self, record: Record) -> None:
        approval = self._charged.get(record.body["charge_seq"])
        if approval is not None:
            approval.releases += 1
        for name, version in record.body["versions"].items():
            self.told.versions.setdefault(name, set()).add(version)

    def _loss(self, record: Record) -> None:
        approval = self._charged.get(record.body["charge_seq"])
        if approval is not None:
            approval.losses += 1
        told = (approval.experiment, approval.run) if approval else ("", "")
        self._add(Happening("loss", record.at, record.at, "", *told))

    def _withdrawal(self, record: Record) -> None:
        approval = self._open.pop(record.body["experiment_digest"], None)
        if approval is not None:
            self._end(approval, record, "withdrawn")
        self._happens(record)

    def _closing(self, record: Record) -> None:
        approval = self._runs.get(record.body["run"])
        if approval is not None:
            approval.at_sites.update(record.body["heads"])
            self._end(approval, record, "closed")
            if self._open.get(approval.experiment) is approval:
                del self._open[approval.experiment]
        self._happens(record)

    def _recovery(self, record: Record) -> None:
        for approval in self._open.values():
            self._end(approval, record, "recovery")
        self._open.clear()
        self._spend(record, _spent_by(record))
        self._happens(record)

    def _merge(self, record: Record) -> None:
        self._spend(record, _spent_by(record))
        self._happens(record)

    def _merged(self, record: Record) -> None:
        for approval in self._open.values():
            self._end(approval, record, "merged")
        self._open.clear()
        self._happens(record)

    def _end(self, approval: Approval, record: Record, how: str) -> None:
        if not approval.ended:
            approval.ended, approval.ended_at = how, record.at
            approval.ended_by = str(record.body.get("by") or "")
            approval.ended_reason = str(record.body.get("reason") or "")

    def _happens(self, record: Record) -> None:
        body = record.body
        request = body.get("request") or {}
        self._add(
            Happening(
                kind=record.kind,
                at=record.at,
                until=record.at,
                what=str(body.get("code") or body.get("what") or ""),
                experiment=str(body.get("experiment_digest") or ""),
                run=str(body.get("run") or request.get("run") or ""),
                by=str(body.get("by") or ""),
                reason=str(body.get("reason") or ""),
            )
        )

    def _add(self, new: Happening) -> None:
        """Join what is alike: a hub that asks a thousand times makes one line."""
        alike = (new.kind, new.what, new.experiment, new.run, new.by, new.reason)
        place = self._alike.get(alike) if new.kind in ("refusal", "loss") else None
        if place is None:
            self._alike[alike] = len(self.told.happenings)
            self.told.happenings.append(new)
            return
        first = self.told.happenings[place]
        joined = {**vars(first), "until": new.until, "count": first.count + 1}
        self.told.happenings[place] = Happening(**joined)


def _count(event: Event, steps: Counter[tuple[float, float]]) -> int:
    """Add an event's steps, and return how many rounds without noise it is."""
    if not isinstance(event, PoissonGaussian):
        return 1
    steps[event.sampling_rate, event.noise_multiplier] += event.steps
    return 0


def _spent_by(record: Record) -> Sequence[Event]:
    return [event_from_json(value) for value in record.body["spends"]]
