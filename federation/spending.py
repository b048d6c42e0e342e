"""What a site's subjects have lost so far, by experiment and by month. Torch-free."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from federation.forecast import without_infinity
from federation.ledger.filter import BudgetPolicy, Event, FilterState, event_from_json
from federation.ledger.records import Record

# What records cost anything.
_COSTING = ("charge", "recovery", "merge")

NOT_COVERED = (
    "A person who is in the data of several sites: their budgets add up.",
    "One person under two identifiers that nobody has linked.",
    "What relatives' images tell of a person, and what is true of everybody alike.",
    "The time that a round takes.",
    "Whether noise was really drawn: the self-audit's verdict speaks to that.",
)


@dataclass(frozen=True)
class Share:
    """What one experiment was charged.

    Attributes:
        epsilon: The filter's state had it been the only one. The shares do not add up to the
            whole: together they cost less than their sum.
    """

    experiment_digest: str
    charges: int
    releases: int
    first: str
    last: str
    epsilon: float


@dataclass(frozen=True)
class Beside:
    """What was charged for no experiment of this ledger: a recovery, or another ledger's past.

    Attributes:
        epsilon: The filter's state had it been the only charge.
    """

    kind: str
    at: str
    reason: str
    epsilon: float


@dataclass(frozen=True)
class Month:
    """Charges of one month, and the filter's state at its end."""

    month: str
    charges: int
    epsilon: float


@dataclass(frozen=True)
class Spending:
    """A ledger's account. ``spent`` and ``left`` are the filter's state; the limit is promised."""

    site: str
    limit: float
    delta: float
    spent: float
    promised: float
    experiments: tuple[Share, ...]
    months: tuple[Month, ...]
    beside: tuple[Beside, ...] = ()

    @property
    def left(self) -> float:
        """Return what of the limit is neither spent nor promised."""
        return max(0.0, self.limit - self.promised)

    def to_json(self) -> Any:
        """Return JSON values; an infinite epsilon is null."""
        values = asdict(self) | {"left": self.left, "not_covered": NOT_COVERED}
        return without_infinity(values)


def spending(
    site: str, policy: BudgetPolicy, records: Sequence[Record], promised: FilterState
) -> Spending:
    """Add up a ledger's records.

    Args:
        promised: The filter's state with every round that is approved and not charged yet.
    """
    charges = [record for record in records if record.kind == "charge"]
    costing = [record for record in records if record.kind in _COSTING]
    return Spending(
        site=site,
        limit=policy.epsilon,
        delta=policy.delta,
        spent=_state(costing).spent_epsilon(policy),
        promised=promised.spent_epsilon(policy),
        experiments=tuple(_shares(charges, _released(records), policy)),
        months=tuple(_months(costing, policy)),
        beside=tuple(_beside(costing, policy)),
    )


def _released(records: Sequence[Record]) -> set[int]:
    return {record.body["charge_seq"] for record in records if record.kind == "release"}


def _events(record: Record) -> list[Event]:
    values = [record.body["event"]] if record.kind == "charge" else record.body["spends"]
    return [event_from_json(value) for value in values]


def _state(costing: Sequence[Record]) -> FilterState:
    return FilterState().after_all(event for record in costing for event in _events(record))


def _beside(costing: Sequence[Record], policy: BudgetPolicy) -> Iterator[Beside]:
    for record in costing:
        if record.kind != "charge":
            epsilon = _state([record]).spent_epsilon(policy)
            yield Beside(record.kind, record.at, record.body["reason"], epsilon)


def _shares(charges: Sequence[Record], released: set[int], policy: BudgetPolicy) -> Iterator[Share]:
    for digest in dict.fromkeys(record.body["experiment_digest"] for record in charges):
        own = [record for record in charges if record.body["experiment_digest"] == digest]
        yield Share(
            experiment_digest=digest,
            charges=len(own),
            releases=sum(record.seq in released for record in own),
            first=own[0].at,
            last=own[-1].at,
            epsilon=_state(own).spent_epsilon(policy),
        )


def _months(costing: Sequence[Record], policy: BudgetPolicy) -> Iterator[Month]:
    state = FilterState()
    for month in dict.fromkeys(record.at[:7] for record in costing):
        own = [record for record in costing if record.at[:7] == month]
        state = state.after_all(event for record in own for event in _events(record))
        charges = sum(record.kind == "charge" for record in own)
        yield Month(month, charges, state.spent_epsilon(policy))
