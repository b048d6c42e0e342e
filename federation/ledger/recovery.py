"""What a ledger that has fallen behind must spend: everything that may have been released since."""

from collections.abc import Iterable
from dataclasses import dataclass

from federation.ledger.book import Book
from federation.ledger.filter import FilterState
from federation.ledger.high_water import Mark
from federation.ledger.receipts import Receipt
from federation.ledger.records import NO_RECORD

Key = tuple[float, float]


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


def forgotten(book: Book, mark: Mark | None, receipts: Iterable[Receipt]) -> Forgotten | None:
    """Compare a ledger with what others have seen of it; None where it lacks nothing.

    Every open approval counts as spent whole: the records that are gone may have charged all of
    it. So does what the mark had seen spent or promised, and every receipt for an approval that
    this copy does not know.

    Args:
        mark: Only if the ledger lacks its record.
        receipts: Of this ledger, properly signed; those for charges that it holds are passed over.
    """
    lost = {
        r.charge_seq: r
        for r in receipts
        if r.charge_seq not in book.charged or _head(book, r) != r.head_after
    }
    if mark is None and not lost:
        return None
    newest = max(lost.values(), key=lambda r: r.charge_seq, default=None)
    seen = (-1, NO_RECORD)
    if newest is not None:
        # The release came after the charge, nobody else can say how long after.
        seen = (newest.charge_seq + 1, newest.head_after)
    if mark is not None and mark.seq >= seen[0]:
        seen = (mark.seq, mark.hash)
    held = FilterState().after_all(a.held for a in book.approvals.values() if a.held is not None)
    beyond = _beyond_approvals(book, lost.values())
    spends = _most(held.after_all(beyond.events()), _since(book, mark))
    return Forgotten(*seen, spends)


def _head(book: Book, receipt: Receipt) -> str | None:
    release = book.releases.get(receipt.charge_seq)
    return release.hash if release else None


def _beyond_approvals(book: Book, receipts: Iterable[Receipt]) -> FilterState:
    """Return what lost charges cost that no open approval holds."""
    by_experiment: dict[str, FilterState] = {}
    for receipt in receipts:
        before = by_experiment.get(receipt.experiment_digest, FilterState())
        by_experiment[receipt.experiment_digest] = before.after(receipt.event)
    beyond = FilterState()
    for experiment, state in by_experiment.items():
        approval = book.open_approval(experiment)
        held = FilterState().after(approval.held) if approval and approval.held else FilterState()
        beyond = beyond.after_all(state.beyond(held).events())
    return beyond


def _since(book: Book, mark: Mark | None) -> FilterState:
    return mark.state.beyond(book.state) if mark else FilterState()


def _most(one: FilterState, other: FilterState) -> FilterState:
    """Return the larger of both, kind by kind."""
    keys: set[Key] = {*one.steps, *other.steps}
    steps = {key: max(one.steps.get(key, 0), other.steps.get(key, 0)) for key in keys}
    return FilterState(steps, max(one.num_unprotected, other.num_unprotected))
