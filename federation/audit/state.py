"""What a ledger says once it is read, and what is wrong with it; ``replay`` fills it."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from federation.audit.accounting import Spent
from federation.ledger.filter import BudgetPolicy, Event, PoissonGaussian, event_from_json
from federation.ledger.records import Record

_MAX_PROBLEMS = 100
_MAX_NOTES = 20

About = Literal[
    "chain", "identity", "spent", "totals", "charged", "tail", "data", "times", "approvals", "noise"
]
"""What a problem speaks against; each has a claim in ``federation.audit.claims``."""


def counted(number: int, what: str) -> str:
    """Return a number of things in words.

    >>> counted(1, "record"), counted(1200, "record")
    ('1 record', '1,200 records')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")


@dataclass
class Cost:
    """Events added up kind by kind: noised steps by rate and noise, and how many had no noise."""

    steps: Counter[tuple[float, float]] = field(default_factory=Counter)
    num_unprotected: int = 0

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Cost":
        """Return what all of ``events`` are together."""
        cost = cls()
        for event in events:
            cost.add(event)
        return cost

    def add(self, event: Event, times: int = 1) -> None:
        """Add an event so often."""
        if isinstance(event, PoissonGaussian):
            self.steps[event.sampling_rate, event.noise_multiplier] += event.steps * times
        else:
            self.num_unprotected += times

    def covers(self, other: "Cost") -> bool:
        """Tell whether all of ``other`` is within this, kind by kind.

        One unprotected event covers any number of them: each is infinite.
        """
        enough = all(self.steps[kind] >= steps for kind, steps in other.steps.items())
        return enough and (self.num_unprotected > 0 or not other.num_unprotected)


@dataclass
class Permit:
    """The newest approval of an experiment, and what became of it.

    Attributes:
        run: The run that took it up.
        used: Charges made under it.
        ended: Why nothing more may be charged under it, if that is so.
    """

    record: Record
    run: str | None = None
    used: int = 0
    ended: str = ""

    @property
    def held(self) -> int:
        """How many charges it still holds."""
        return 0 if self.ended else max(0, self.record.body["charges"] - self.used)

    @property
    def event(self) -> Event:
        """What one charge costs."""
        return event_from_json(self.record.body["event"])


@dataclass(eq=False)
class Replay:
    """What a file says, and every problem found on the way.

    Attributes:
        against: For each topic, the first problem that speaks against it.
        records: Those that could be read, by line number from 0.
        sound_to: Newest record up to which every one follows, and is signed.
        keys: From which record on each key signs, hex, oldest first.
        spent: What everything charged has cost, by dp-accounting.
        permits: The newest approval of each experiment; ``open_permits`` those that did not end.
        approvals: Every approval record.
        runs: The runs that reservations named.
        charges: Each charge record with its approval, by position.
        releases, losses: By the position of the charge that they end.
        closings, recoveries, merges, withdrawals: Those records, oldest first.
        merged_into: The ledger in which this budget goes on.
        one_sided: The other ledger of one of its merges was not there to be held against it.
        declaration: By whom, and why, the population was said to be of no human subjects.
        noted: What else the site recorded, by kind; it costs nothing.
        num_backward: How often the site's clock went back.
        num_insecure: Releases that say that a test's randomness was in them (rule 9).
        anchors: By what others keep, the records that it pins.
        salts: The random bits of every record, never the same twice.
    """

    problems: list[str] = field(default_factory=list)
    against: dict[About, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    genesis: Record | None = None
    records: dict[int, Record] = field(default_factory=dict)
    sound_to: int = -1
    head: Record | None = None
    keys: list[tuple[int, str]] = field(default_factory=list)
    spent: Spent | None = None
    permits: dict[str, Permit] = field(default_factory=dict)
    open_permits: dict[str, Permit] = field(default_factory=dict)
    approvals: list[Record] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)
    charges: dict[int, tuple[Record, Record | None]] = field(default_factory=dict)
    charged: set[tuple[str, int, int]] = field(default_factory=set)
    releases: dict[int, Record] = field(default_factory=dict)
    losses: dict[int, Record] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    closings: list[Record] = field(default_factory=list)
    recoveries: list[Record] = field(default_factory=list)
    merges: list[Record] = field(default_factory=list)
    withdrawals: list[Record] = field(default_factory=list)
    merged_into: str | None = None
    one_sided: bool = False
    declaration: tuple[str, str] | None = None
    noted: Counter[str] = field(default_factory=Counter)
    num_backward: int = 0
    num_insecure: int = 0
    salts: set[str] = field(default_factory=set)
    anchors: dict[str, set[int]] = field(default_factory=dict)
    _positions: dict[str, int] = field(default_factory=dict)

    @property
    def policy(self) -> BudgetPolicy | None:
        """The policy of the genesis record, if there is one."""
        return self.spent.policy if self.spent else None

    @property
    def site(self) -> str:
        """The name that the site gives itself; empty without a genesis."""
        return str(self.genesis.body["site"]) if self.genesis else ""

    @property
    def ledger(self) -> str:
        """The hash of the genesis record, by which a ledger is known; empty without one."""
        return self.genesis.hash if self.genesis else ""

    @property
    def public_keys(self) -> set[str]:
        """Every key that ever signed, hex."""
        return {key for _, key in self.keys}

    def key_at(self, seq: int) -> str:
        """Return the key in force at a record: a rotation is still signed by the old one."""
        position = bisect_left(self.keys, (seq, "~"))
        return self.keys[max(0, position - 1)][1] if self.keys else ""

    def position(self, record_hash: str) -> int | None:
        """Return where the ledger holds a record of this hash."""
        if len(self._positions) != len(self.records):
            self._positions = {record.hash: seq for seq, record in self.records.items()}
        return self._positions.get(record_hash)

    def anchored(self, by: str, record_hash: str) -> None:
        """Keep that something which others hold pins this record, and all before it."""
        position = self.position(record_hash)
        if position is not None:
            self.anchors.setdefault(by, set()).add(position)

    def end(self, experiment: str, why: str) -> None:
        """Let nothing more be charged under an experiment's open approval."""
        self.open_permits.pop(experiment).ended = why

    def problem(self, about: About, text: str) -> None:
        """Keep the first hundred; a hostile file has no more to say after that."""
        self.against.setdefault(about, text)
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text)

    def note(self, text: str) -> None:
        """Keep the first few."""
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(text)
