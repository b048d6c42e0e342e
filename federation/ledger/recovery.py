"""What a ledger that has fallen behind must spend: everything that may have been released since."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from federation.errors import LedgerError
from federation.ledger.book import Book
from federation.ledger.closings import Closing
from federation.ledger.filter import FilterState
from federation.ledger.high_water import Mark
from federation.ledger.receipts import Receipt
from federation.ledger.records import NO_RECORD


@dataclass(frozen=True)
class Forgotten:
    """What is known of records that a ledger lacks.

    Attributes:
        seen_seq, seen_hash: The newest of them that anybody can name.
        spends: What may have been released since this copy was made, and is not charged in it.
    """

    seen_seq: int
    seen_hash: str
    spends: FilterState


def forgotten(
    book: Book,
    mark: Mark | None,
    receipts: Iterable[Receipt],
    unknown: Sequence[int] = (),
    *,
    closings: Iterable[Closing] = (),
) -> Forgotten | None:
    """Compare a ledger with what others have seen of it; None where it lacks nothing.

    Every open approval counts as spent whole: the records that are gone may have charged all of
    it. So does every charge without a release, which may have had one; what the mark had seen
    spent or promised; and what receipts show beyond all of this. When in doubt it is charged again.

    Args:
        mark: Only if the ledger lacks its record.
        receipts: Of this ledger, properly signed, and not accounted for by an earlier recovery;
            those for releases that it holds are passed over.
        unknown: Positions of charges whose updates are in the outbox, and not in the ledger.
        closings: Like receipts. They say how far the ledger had come, and nothing of the cost.

    Raises:
        LedgerError: An update or a run is unknown whose cost nobody here can tell.
    """
    heads = {seq: release.hash for seq, release in book.releases.items()}
    lost = {r.head_after: r for r in receipts if heads.get(r.charge_seq) != r.head_after}
    closed = [c for c in closings if _closed(book, c.run) != c.head]
    if mark is None and not lost and not unknown and not closed:
        return None
    untold = set(unknown) - {r.charge_seq for r in lost.values()}
    spends = _spends(book, mark, lost.values())
    if untold and mark is None and not book.unfinished():
        raise LedgerError(
            f"{len(untold)} updates in the outbox are unknown to the ledger, and no approval, "
            "receipt or mark here says what they cost. Ask the hub for its receipts and pass them "
            "with --receipts."
        )
    if closed and not (mark or lost or unknown or book.unfinished()):
        raise LedgerError(
            f"The run {closed[0].run} was closed here, and no approval, receipt or mark says what "
            "it cost. Ask the hub for its receipts and pass them with --receipts."
        )
    return Forgotten(*_newest(mark, lost.values(), unknown, closed), spends)


def _closed(book: Book, run: str) -> str | None:
    record = book.closings.get(run)
    return record.hash if record is not None else None


def _newest(
    mark: Mark | None,
    lost: Collection[Receipt],
    unknown: Sequence[int],
    closed: Sequence[Closing],
) -> tuple[int, str]:
    """Return the newest record that anybody can name; of one position, who knows its hash best."""
    named = [(seq, NO_RECORD) for seq in unknown]
    # The release came after the charge, nobody else can say how long after.
    named += [(receipt.charge_seq + 1, receipt.head_after) for receipt in lost]
    named += [(closing.seq, closing.head) for closing in closed]
    if mark is not None:
        named.append((mark.farthest_seq, mark.farthest_hash))
    place = max(range(len(named)), key=lambda n: (named[n][0], n))
    return named[place]


def _spends(book: Book, mark: Mark | None, lost: Iterable[Receipt]) -> FilterState:
    possible = book.unfinished()
    shown: dict[str, FilterState] = {}
    for receipt in lost:
        before = shown.get(receipt.experiment_digest, FilterState())
        shown[receipt.experiment_digest] = before.after(receipt.event)
    known = FilterState()
    for state in possible.values():
        known = known.after_all(state.events())
    for experiment, state in shown.items():
        more = state.beyond(possible.get(experiment, FilterState()))
        known = known.after_all(more.events())
    return _most(known, mark.state.beyond(book.state) if mark else FilterState())


def _most(one: FilterState, other: FilterState) -> FilterState:
    """Return the larger of both, kind by kind."""
    keys = {*one.steps, *other.steps}
    steps = {key: max(one.steps.get(key, 0), other.steps.get(key, 0)) for key in keys}
    return FilterState(steps, max(one.num_unprotected, other.num_unprotected))
