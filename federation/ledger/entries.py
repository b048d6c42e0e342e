"""What a ledger speaks of: rounds and what they ask for, approvals and their terms."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from federation.ledger.filter import Event, event_from_json
from federation.ledger.forms import MAX_NOTED_EXPERIMENTS, check_round, check_run, check_text
from federation.ledger.records import BODIES, Record


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

    @classmethod
    def of(cls, body: Any) -> "RoundKey":
        """Read it from a charge or a refused request."""
        return cls(body["run"], body["round"], body["attempt"])

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

    @classmethod
    def of(cls, body: Any) -> "Work":
        """Return what a charge record was for."""
        return cls(
            key=RoundKey.of(body),
            request_digest=body["request_digest"],
            experiment_digest=body["experiment_digest"],
            plan_digest=body["plan_digest"],
            event=event_from_json(body["event"]),
        )

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
class Charge:
    """A durable charge: from here on protected data may be opened, once.

    Attributes:
        seq: Position of the charge record.
        head_before: Hash of the record before it.
        hash: Hash of the charge record.
        approval_seq: Position of the approval that permitted it.
        replay: The same request was charged and released before: send the stored bytes.
    """

    work: Work
    commitment: str
    seq: int
    head_before: str
    hash: str
    approval_seq: int
    replay: bool = False

    @property
    def key(self) -> RoundKey:
        """Return the round that was charged for."""
        return self.work.key

    @property
    def event(self) -> Event:
        """Return what was charged."""
        return self.work.event


@dataclass(frozen=True)
class Terms:
    """What exactly a site's operator permits, for one run. Anything else needs a new approval.

    Attributes:
        event: What one round costs.
        charges: Most rounds, repeats of lost ones included.
        commitment: To the data set, as receipts will have it.
        author: Fingerprint of the key that signed the experiment, if one did.
        hub_key: Ed25519 key of the hub that may ask, hex; None on one machine.
        expires: Time after which nothing more is charged (``records.now``'s form).
        epsilon: What the run may cost at most by its own plan; None without privacy.
        leaves: Everything that leaves, a short text each.
        software: Digest of the installed distributions that will run.
    """

    experiment_digest: str
    plan_digest: str
    event: Event
    charges: int
    commitment: str
    approver: str
    software: str
    algorithm: str = "fedavg"
    epsilon: float | None = None
    leaves: tuple[str, ...] = ("update",)
    second_approver: str | None = None
    author: str | None = None
    hub_key: str | None = None
    ethics_reference: str | None = None
    legal_basis: str | None = None
    expires: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the body of the approval record."""
        return {**vars(self), "event": self.event.to_json(), "leaves": list(self.leaves)}

    @classmethod
    def of(cls, body: Any) -> "Terms":
        """Read the body of an approval record."""
        given = {name: body[name] for name in BODIES["approval"]}
        event, leaves = event_from_json(body["event"]), tuple(body["leaves"])
        return cls(**{**given, "event": event, "leaves": leaves})


@dataclass
class Approval:
    """The newest approval of an experiment, and what became of it.

    Attributes:
        event: What one round costs.
        run: The run that took it up.
        ended: Why nothing more is charged under it, if that is so.
    """

    record: Record
    used: int = 0
    run: str | None = None
    ended: str | None = None
    event: Event = field(init=False)

    def __post_init__(self) -> None:
        self.event = event_from_json(self.record.body["event"])

    @property
    def charges_left(self) -> int:
        """Return how many charges may still be made, repeats of lost rounds included."""
        return 0 if self.ended else int(self.record.body["charges"]) - self.used

    @property
    def held(self) -> Event | None:
        """Return what is promised and not charged yet."""
        return self.event.times(self.charges_left) if self.charges_left else None

    def permits(self, work: Work) -> bool:
        """Tell whether plan and event are exactly what was approved."""
        return (work.plan_digest, work.event) == (self.record.body["plan_digest"], self.event)

    def expired(self, at: str) -> bool:
        """Tell whether it has run out by then."""
        expires = self.record.body["expires"]
        return expires is not None and at > expires


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
