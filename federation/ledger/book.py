"""What a ledger's records add up to. Always folded from the records, never stored."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from federation.errors import LedgerError
from federation.ledger.filter import BudgetPolicy, Event, FilterState, event_from_json
from federation.ledger.records import (
    MAX_NOTED_EXPERIMENTS,
    Record,
    check_round,
    check_run,
    check_text,
)


@dataclass(frozen=True)
class RoundKey:
    """Names one piece of work: the same key never gets two different updates.

    Raises:
        ValueError: A malformed run name, or a negative or huge number.
    """

    run: str
    round: int
    attempt: int

    def __post_init__(self) -> None:
        check_run(self.run)
        check_round(self.round)
        check_round(self.attempt)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"run": self.run, "round": self.round, "attempt": self.attempt}


@dataclass(frozen=True)
class Work:
    """What a request asks to be charged for, whole: compared when a key comes again."""

    key: RoundKey
    request_digest: str
    experiment_digest: str
    plan_digest: str
    event: Event

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a charge record has them."""
        return {
            **self.key.to_json(),
            "request_digest": self.request_digest,
            "experiment_digest": self.experiment_digest,
            "plan_digest": self.plan_digest,
            "event": self.event.to_json(),
        }


@dataclass(frozen=True)
class Declaration:
    """Who answers for it that a data set is of no human subjects, and why that is so.

    Raises:
        ValueError: A text that a ledger does not take: 1 to 200 printable characters each.
    """

    by: str
    reason: str

    def __post_init__(self) -> None:
        check_text(self.by)
        check_text(self.reason)

    def to_json(self) -> dict[str, Any]:
        """Return the body of the note that records it."""
        return note_body("declaration", by=self.by, reason=self.reason)


def note_body(
    what: str, *, by: str, reason: str, experiments: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the body of a note; of very many experiments the newest, which come last."""
    newest = list(experiments)[-MAX_NOTED_EXPERIMENTS:]
    return {"what": what, "by": by, "reason": reason, "experiments": newest}


@dataclass(frozen=True)
class Charge:
    """A durable charge: from here on protected data may be opened, once.

    Attributes:
        seq: Position of the charge record.
        head_before: Hash of the record before it.
        hash: Hash of the charge record.
        replay: The same request was charged and released before: send the stored bytes.
    """

    work: Work
    commitment: str
    seq: int
    head_before: str
    hash: str
    replay: bool = False

    @property
    def key(self) -> RoundKey:
        """Return the round that was charged for."""
        return self.work.key

    @property
    def event(self) -> Event:
        """Return what was charged."""
        return self.work.event


@dataclass
class Approval:
    """The newest approval of an experiment, and how many charges were made under it."""

    record: Record
    used: int = 0

    @property
    def event(self) -> Event:
        """Return what one round costs."""
        return event_from_json(self.record.body["event"])

    @property
    def charges_left(self) -> int:
        """Return how many charges may still be made, repeats of lost rounds included."""
        return int(self.record.body["attempts"]) - self.used

    @property
    def rounds_reserved(self) -> int:
        """Return the rounds that were promised and not charged yet."""
        return max(0, int(self.record.body["rounds"]) - self.used)

    def permits(self, work: Work) -> bool:
        """Tell whether plan and event are exactly what was approved."""
        return (work.plan_digest, work.event) == (self.record.body["plan_digest"], self.event)


@dataclass
class Book:
    """The state after some records, genesis first."""

    genesis: Record
    policy: BudgetPolicy
    state: FilterState = field(default_factory=FilterState)
    approvals: dict[str, Approval] = field(default_factory=dict)
    charges: dict[RoundKey, Charge] = field(default_factory=dict)
    charged: set[int] = field(default_factory=set)
    releases: dict[int, Record] = field(default_factory=dict)
    refused: set[tuple[RoundKey, str]] = field(default_factory=set)
    declaration: Declaration | None = None
    notes: list[Record] = field(default_factory=list)

    @classmethod
    def opened(cls, genesis: Record) -> "Book":
        """Return the book of a ledger that holds only its genesis."""
        return cls(genesis, BudgetPolicy.from_json(genesis.body["policy"]))

    def apply(self, record: Record) -> None:
        """Fold one record in.

        Raises:
            LedgerError: It contradicts the records before it.
        """
        fold = {
            "approval": self._approval,
            "charge": self._charge,
            "release": self._release,
            "refusal": self._refusal,
            "note": self._note,
        }.get(record.kind)
        if fold is None:
            raise LedgerError(f"Record {record.seq}: a ledger has one genesis, at its start.")
        fold(record)

    def fits(self, event: Event, experiment_digest: str) -> bool:
        """Tell whether ``event`` fits beside what other open approvals have still reserved."""
        return self.promised(experiment_digest).admits(self.policy, event)

    def promised(self, experiment_digest: str) -> FilterState:
        """Return the state with every round that is reserved for other experiments."""
        state = self.state
        for digest, approval in self.approvals.items():
            if digest != experiment_digest and approval.rounds_reserved:
                state = state.after(approval.event.times(approval.rounds_reserved))
        return state

    def totals_after(self, event: Event) -> list[float]:
        """Return every order's total once ``event`` is charged."""
        return list(self.state.after(event).totals(self.policy.orders))

    def _approval(self, record: Record) -> None:
        """A newer approval replaces the older one of the same experiment."""
        self.approvals[record.body["experiment_digest"]] = Approval(record)

    def _charge(self, record: Record) -> None:
        work = work_from_json(record.body)
        approval = self.approvals.get(work.experiment_digest)
        if approval is None or not approval.permits(work) or approval.charges_left < 1:
            raise LedgerError(f"Record {record.seq}: this charge was not approved.")
        if work.key in self.charges:
            raise LedgerError(f"Record {record.seq}: this round was charged before.")
        if not self.state.admits(self.policy, work.event):
            raise LedgerError(f"Record {record.seq}: this charge passes the budget.")
        if not _agree(record.body["totals"], self.totals_after(work.event)):
            raise LedgerError(f"Record {record.seq}: its totals are not those of the records.")
        approval.used += 1
        self.charged.add(record.seq)
        self.state = self.state.after(work.event)
        self.charges[work.key] = Charge(
            work=work,
            commitment=approval.record.body["commitment"],
            seq=record.seq,
            head_before=record.previous,
            hash=record.hash,
        )

    def _release(self, record: Record) -> None:
        seq = record.body["charge_seq"]
        if seq in self.releases or seq not in self.charged:
            raise LedgerError(f"Record {record.seq}: it releases nothing that was charged.")
        self.releases[seq] = record

    def _refusal(self, record: Record) -> None:
        request = record.body["request"]
        if request is not None:
            self.refused.add((_key_from_json(request), record.body["code"]))

    def _note(self, record: Record) -> None:
        """Keep it; approvals, charges and the budget stay as they are."""
        if record.body["what"] == "declaration":
            if record.seq != 1:
                raise LedgerError(
                    f"Record {record.seq}: a declaration stands right after the genesis."
                )
            self.declaration = Declaration(record.body["by"], record.body["reason"])
        self.notes.append(record)


def _agree(stated: list[float], computed: list[float]) -> bool:
    """Allow for another machine's exp and log, which may differ in the last digits."""
    return len(stated) == len(computed) and all(
        isclose(a, b, rel_tol=1e-9, abs_tol=1e-15) for a, b in zip(stated, computed, strict=True)
    )


def work_from_json(body: Any) -> Work:
    """Return what a charge record was for."""
    return Work(
        key=_key_from_json(body),
        request_digest=body["request_digest"],
        experiment_digest=body["experiment_digest"],
        plan_digest=body["plan_digest"],
        event=event_from_json(body["event"]),
    )


def _key_from_json(body: Any) -> RoundKey:
    return RoundKey(body["run"], body["round"], body["attempt"])
