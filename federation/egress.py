"""The journal of everything that a site sends: when, to whom, what kind, how much, which bytes.

A line is durable before the first byte of what it tells of leaves. It is the site's own: beside
the ledger's receipts it shows that nothing left that was not paid for. Nothing is sent from it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from federation.canonical import canonical_json
from federation.errors import FederationError
from federation.files import append_durably
from federation.ledger.records import now

JOURNAL = "egress.jsonl"


@dataclass(frozen=True)
class Sent:
    """One reply.

    Attributes:
        at: As the ledger's records write times.
        to: The hub's address.
        kind: Of the request: ``describe``, ``train``, ``evaluate``, ``close``, or ``unknown``.
        answer: ``reply``, or the code of a refusal.
        num_bytes: Of everything that leaves for it, Flower's own records included.
        digest: Of these bytes.
        update_digest: Of the update in it, as its receipt has it; None where there is none.
    """

    at: str
    to: str
    kind: str
    answer: str
    num_bytes: int
    digest: str
    update_digest: str | None = None


class EgressJournal:
    """Appends to a site's journal, and reads it."""

    def __init__(self, state: Path) -> None:
        self.path = state / JOURNAL

    def note(self, **sent: Any) -> Sent:
        """Write one line, durable when this returns. Arguments as ``Sent`` has them, but ``at``.

        Raises:
            FederationError: It cannot be written; then nothing may be sent.
        """
        entry = Sent(at=now(), **sent)
        line = canonical_json(asdict(entry)) + b"\n"
        try:
            append_durably(self.path, line)
        except OSError as error:
            raise FederationError(
                f"{self.path} cannot be written ({error.strerror}), so nothing was sent. Free some "
                "space or mend the folder: the reply is kept, and sent then."
            ) from error
        return entry

    def entries(self) -> Iterator[Sent]:
        """Yield what was sent, oldest first. A line that a crash has cut short is left out.

        Raises:
            FederationError: The journal was changed: a whole line of it is no entry.
        """
        if not self.path.is_file():
            return
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            cut_short = not line.endswith(b"}")
            if not cut_short:
                yield _entry(line, f"{self.path}, line {number}")


def _entry(line: bytes, where: str) -> Sent:
    try:
        return Sent(**json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise FederationError(
            f"{where} is no entry of the journal: it was changed by hand. Restore it from backup."
        ) from error


@dataclass(frozen=True)
class Reconciliation:
    """What journal and ledger say of one another.

    Attributes:
        sent: Releases of the ledger that the journal has, by update digest, and how often.
        unsent: Update digests that were released and have not been sent.
        unpaid: Update digests that were sent and that no release of the ledger has. Never in order.
    """

    sent: Mapping[str, int]
    unsent: tuple[str, ...]
    unpaid: tuple[str, ...]


def reconcile(entries: Sequence[Sent], released: Sequence[str]) -> Reconciliation:
    """Compare what was sent with the update digests that a ledger has released, in its order."""
    counts = dict.fromkeys(released, 0)
    unpaid = dict.fromkeys(
        entry.update_digest
        for entry in entries
        if entry.update_digest is not None and entry.update_digest not in counts
    )
    for entry in entries:
        if entry.update_digest in counts:
            counts[entry.update_digest] += 1
    return Reconciliation(
        sent={digest: count for digest, count in counts.items() if count},
        unsent=tuple(digest for digest, count in counts.items() if not count),
        unpaid=tuple(digest for digest in unpaid if digest is not None),
    )
