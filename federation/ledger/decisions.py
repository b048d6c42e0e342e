"""Whether a site's ledger says yes, and the words in which it says no. Nothing is written here."""

from collections.abc import Mapping

from federation.errors import Refused
from federation.ledger.book import Book
from federation.ledger.entries import Approval, Charge, Terms, Work
from federation.ledger.filter import Unprotected


def why_refused(
    book: Book, work: Work, at: str, *, heads: Mapping[str, str], foreseen: bool = True
) -> Refused | None:
    """Return the refusal of this work, or None if it may be charged or sent again.

    Args:
        at: The present time, as records have it.
        heads: By site, the newest head that the hub has a receipt for.
        foreseen: Whether the experiment has this round, and as many attempts at it.
    """
    earlier = book.charges.get(work.key)
    if earlier is not None:
        return _why_not_again(book, earlier, work)
    refusal = why_not_reserved(book, work.experiment_digest, work.key.run, at)
    if refusal is not None:
        return refusal
    refusal = why_behind(book, heads)
    refusal = refusal or _why_not_charged(book, book.approvals[work.experiment_digest], work)
    if refusal is None and not foreseen:
        return Refused("approval_used_up", "the experiment has no such round, or fewer retries")
    return refusal


def why_behind(book: Book, heads: Mapping[str, str]) -> Refused | None:
    """Return the refusal of a hub that has seen of this ledger what it does not hold.

    Nothing is locked by it: a head is no more than the hub's word, and its receipts are not here.
    """
    head = heads.get(book.genesis.body["site"])
    if head is None or head in book.heads:
        return None
    return Refused(
        "behind",
        f"the hub shows a head of this site's ledger, {head}, that the ledger does not hold: it is "
        "an older copy, or the hub is wrong. Restore the newest copy; if there is none, ask the "
        "hub for the run's receipts and closings: 'cohortium site recover SITE.yaml --receipts "
        "receipts.json --closings closings.json' spends what was forgotten",
    )


def why_not_reserved(book: Book, experiment_digest: str, run: str, at: str) -> Refused | None:
    """Return why a run may not take up an experiment's approval, or go on under it."""
    approval = book.open_approval(experiment_digest)
    if approval is None:
        return Refused("not_approved", "no open approval of this experiment")
    if approval.expired(at):
        return Refused("not_approved", f"the approval expired at {approval.record.body['expires']}")
    if approval.run == run:
        return None
    if approval.run is not None or run in book.runs:
        return Refused(
            "approval_used_up", "an approval is for one run, and another has taken it up"
        )
    if not book.fits_reserved(approval, at):
        return Refused("budget", "the whole run would pass the site's limit by now")
    return None


def equivocation() -> Refused:
    """Return the refusal of what was charged under the same key with other content."""
    return Refused("equivocation", "this run, round and attempt came with other content")


def _why_not_again(book: Book, earlier: Charge, work: Work) -> Refused | None:
    if earlier.work != work:
        return equivocation()
    if earlier.seq not in book.releases:
        return Refused("lost", "this attempt was charged but never released; ask for a new one")
    return None


def _why_not_charged(book: Book, approval: Approval, work: Work) -> Refused | None:
    if not approval.permits(work):
        return Refused("not_approved", "no approval of this experiment with this plan and event")
    if approval.charges_left < 1:
        return Refused("approval_used_up", "every charge that was approved has been made")
    if not book.state.admits(book.policy, work.event):
        limit = f"epsilon {book.policy.epsilon:g} at delta={book.policy.delta:g}"
        return Refused("budget", f"this round would pass the site's limit of {limit}")
    return None


def does_not_fit(book: Book, terms: Terms) -> str:
    """Say why an experiment cannot be approved, and what would help."""
    policy, spent = book.policy, book.state.spent_epsilon(book.policy)
    population = book.genesis.body["population"]
    if isinstance(terms.event, Unprotected):
        return (
            f"{population}: the experiment has privacy kind 'none' (epsilon infinite) and this "
            "site's policy forbids it. Nothing was read or sent. Use privacy kind 'subject_dp'."
        )
    return (
        f"{population}: {terms.charges} rounds of this experiment do not fit what is left: the "
        f"filter stands at epsilon {spent:.2f} of {policy.epsilon:g} at delta={policy.delta:g}, "
        "beside what other approvals hold. Nothing was read or sent. Lower rounds or steps, or "
        "raise the noise."
    )
