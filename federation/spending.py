"""What a site's subjects have lost so far, by experiment and by month. Torch-free."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from federation.forecast import without_infinity
from federation.ledger.filter import BudgetPolicy, FilterState, event_from_json
from federation.ledger.records import Record

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
    return Spending(
        site=site,
        limit=policy.epsilon,
        delta=policy.delta,
        spent=_state(charges).spent_epsilon(policy),
        promised=promised.spent_epsilon(policy),
        experiments=tuple(_shares(charges, _released(records), policy)),
        months=tuple(_months(charges, policy)),
    )


def _released(records: Sequence[Record]) -> set[int]:
    return {record.body["charge_seq"] for record in records if record.kind == "release"}


def _state(charges: Sequence[Record]) -> FilterState:
    state = FilterState()
    for record in charges:
        state = state.after(event_from_json(record.body["event"]))
    return state


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


def _months(charges: Sequence[Record], policy: BudgetPolicy) -> Iterator[Month]:
    state = FilterState()
    for month in dict.fromkeys(record.at[:7] for record in charges):
        own = [record for record in charges if record.at[:7] == month]
        for record in own:
            state = state.after(event_from_json(record.body["event"]))
        yield Month(month, len(own), state.spent_epsilon(policy))
