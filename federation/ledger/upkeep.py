"""What happens to a ledger beside its rounds: runs end, keys change, copies fall behind."""

from collections.abc import Iterable, Mapping

from federation.canonical import canonical_json
from federation.errors import LedgerError, Refused
from federation.ledger.book import Book
from federation.ledger.closings import Closing
from federation.ledger.decisions import why_behind
from federation.ledger.filter import BudgetPolicy, FilterState
from federation.ledger.high_water import behind
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger
from federation.ledger.receipts import Receipt
from federation.ledger.records import Record
from federation.ledger.recovery import Forgotten, forgotten

_PROOF_OF = b"cohortium key rotation v1\0"


def conclude(
    ledger: Ledger,
    run: str,
    experiment_digest: str,
    *,
    heads: Mapping[str, str],
    model_digest: str | None,
) -> Closing:
    """End a run: nothing more is charged for it, and what was left of it is free again.

    Args:
        heads: By site, the newest head that the hub has of each.

    Returns:
        The same signed statement for the same request.

    Raises:
        Refused: ``not_approved``: no such run; ``equivocation``: closed with other content;
            ``behind``: the hub has a head of this ledger that it does not hold.
        LedgerError: It was closed before, under a key that was replaced since.
    """
    body = {
        "experiment_digest": experiment_digest,
        "run": run,
        "heads": dict(heads),
        "model_digest": model_digest,
    }
    with ledger.chain.locked() as book:
        ledger.require_current()
        record = book.closings.get(run)
        if record is None:
            approval = book.open_approval(experiment_digest)
            if approval is None or approval.run != run:
                raise Refused("not_approved", "no such run is open here")
            refusal = why_behind(book, heads)
            if refusal is not None:
                raise refusal
            record = ledger.chain.append("closing", body)
        if dict(record.body) != body:
            raise Refused("equivocation", "the run was closed with other content")
        if book.rotated > record.seq:
            raise LedgerError(
                "The run was closed under the site's earlier key, and what that signed is not kept "
                "here. The hub has it."
            )
        return _closing(book, record, ledger.chain.key)


def _closing(book: Book, record: Record, key: SiteKey) -> Closing:
    return Closing(
        site=book.genesis.body["site"],
        public_key=key.public_bytes.hex(),
        ledger=book.genesis.hash,
        seq=record.seq,
        head=record.hash,
        **record.body,
    ).signed(key)


def rotate(ledger: Ledger, new: SiteKey) -> None:
    """Sign with another key from the next record on. Open the ledger with it afterwards."""
    with ledger.chain.locked() as book:
        public_key = new.public_bytes.hex()
        previous = ledger.chain.records[-1].hash
        claim = {"ledger": book.genesis.hash, "previous": previous, "public_key": public_key}
        proof = new.sign(_PROOF_OF + canonical_json(claim)).hex()
        ledger.chain.append("key_rotation", {"public_key": public_key, "proof": proof})


def merge(into: Ledger, other: Ledger, *, by: str, reason: str) -> FilterState:
    """Charge one ledger with all that another was charged, and end the other for good.

    Killed in between, the first has paid and the other goes on: merging again charges what came
    since, so that nothing is ever counted too low.

    Returns:
        What was charged now.

    Raises:
        LedgerError: They are one ledger, or one of them has been merged away, or the first permits
            what the second's subjects were promised not to lose.
    """
    require_mergeable(into, other)
    first, second = sorted((into, other), key=lambda ledger: str(ledger.path.resolve()))
    with first.chain.locked(), second.chain.locked():
        ours, theirs = into.book, other.book
        spends = theirs.state.beyond(ours.merges.get(theirs.genesis.hash, FilterState()))
        newest = other.chain.records[-1]
        body = {
            "by": by,
            "reason": reason,
            "ledger": theirs.genesis.hash,
            "head_seq": newest.seq,
            "head": newest.hash,
            "spends": [event.to_json() for event in spends.events()],
            "totals": ours.totals_after(spends.events()),
        }
        other.chain.require_open()
        into.chain.append("merge", body)
        other.chain.append("merged", {"into": ours.genesis.hash})
    return spends


def require_mergeable(into: Ledger, other: Ledger) -> None:
    """Check, before anything is done, that one ledger can take in another.

    Raises:
        LedgerError: See ``merge``.
    """
    if into.path.resolve() == other.path.resolve():
        raise LedgerError(f"{into.path} cannot be merged into itself.")
    with into.chain.locked():
        into.chain.require_open()
    _require_not_laxer(into.book, other.book)


def _require_not_laxer(into: Book, other: Book) -> None:
    """A budget is never loosened: nobody of the second may lose more than it permits."""
    laxer, reverse = _laxer(into.policy, other.policy), _laxer(other.policy, into.policy)
    if not laxer and (into.declaration is None) == (other.declaration is None):
        return
    first, second = (book.genesis.body["population"] for book in (into, other))
    apart = "Take the people who are in both out of one data set, and ingest it again."
    if not laxer:
        raise LedgerError(
            f"{first} and {second}: one of the two is declared to be of no human subjects, so they "
            f"cannot have one budget. Nothing was charged. {apart}"
        )
    raise LedgerError(
        f"{first} permits more than {second} does ({', '.join(laxer)}), and the people of {second} "
        "were promised no more than that. Nothing was charged. "
        + (apart if reverse else f"Merge the other way round: {first} into {second}.")
    )


def _laxer(one: BudgetPolicy, other: BudgetPolicy) -> list[str]:
    """Return in what one policy permits more than another."""
    pairs = {"epsilon": (one.epsilon, other.epsilon), "delta": (one.delta, other.delta)}
    found = [f"{name} {a:g}, not {b:g}" for name, (a, b) in pairs.items() if a > b]
    unprotected = one.allow_unprotected and not other.allow_unprotected
    return [*found, *(["charges without noise"] if unprotected else [])]


def missing(
    ledger: Ledger, receipts: Iterable[Receipt] = (), *, closings: Iterable[Closing] = ()
) -> Forgotten | None:
    """Return what this copy has forgotten, by the mark, the outbox and what others have kept.

    Args:
        receipts, closings: Any that this site has signed; others are passed over.
    """
    with ledger.chain.locked() as book:
        return _missing(ledger, book, receipts, closings)


def recover(
    ledger: Ledger,
    *,
    by: str,
    reason: str,
    receipts: Iterable[Receipt] = (),
    closings: Iterable[Closing] = (),
) -> Forgotten | None:
    """Spend everything that an older copy may have forgotten, and unlock it.

    Every open approval ends, and updates that the copy does not know are set aside. None if the
    copy lacks nothing, and nothing is recorded then.
    """
    given = [*receipts], [*closings]
    with ledger.chain.locked() as book:
        lost = _missing(ledger, book, *given)
        if lost is not None:
            events = lost.spends.events()
            body = {
                "by": by,
                "reason": reason,
                "seen_seq": lost.seen_seq,
                "seen_hash": lost.seen_hash,
                "spends": [event.to_json() for event in events],
                "totals": book.totals_after(events),
            }
            ledger.chain.append_recovery(body)
            # Those by keys that this copy does not know were passed over, so they are not paid for.
            paid = [said for kind in given for said in kind if said.public_key in book.keys]
            ledger.outbox.set_aside(book.charges.values(), paid)
        return lost


def _missing(
    ledger: Ledger, book: Book, receipts: Iterable[Receipt], closings: Iterable[Closing]
) -> Forgotten | None:
    mark = ledger.chain.mark()
    hashes = [record.hash for record in ledger.chain.records]
    if mark is not None and not behind(mark, book.genesis.hash, hashes):
        mark = None
    paid = ledger.outbox.accounted()
    outbox = ledger.outbox.receipts()
    # A key that this copy does not know may have come in what it has forgotten: the outbox is ours.
    own = [r for r in receipts if r.public_key in book.keys and r.head_after not in paid]
    every = [r for r in (*own, *outbox) if r.ledger == book.genesis.hash and r.verify()]
    ended = [c for c in closings if c.public_key in book.keys and c.head not in paid]
    ended = [c for c in ended if c.ledger == book.genesis.hash and c.verify()]
    unknown = ledger.outbox.unknown(book.charges.values())
    return forgotten(book, mark, every, unknown, closings=ended)
