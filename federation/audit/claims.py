"""What is known of a ledger, claim by claim, and how: a board reads this before any number."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from federation.audit.evidence import RECEIPT
from federation.audit.openings import OPENED_TO_ANOTHER, Opened, told
from federation.audit.state import About, Replay, counted

if TYPE_CHECKING:  # it reads experiments, too, and verifying needs none of that
    from federation.audit.report_sources import SelfAuditSeen

Status = Literal["recomputed", "signed", "asserted", "contradicted"]

CLAIMS: dict[About, str] = {
    "chain": "chain whole",
    "identity": "identity of the signer",
    "spent": "epsilon spent",
    "totals": "every order's total",
    "charged": "each update that left was charged",
    "tail": "newest records are there",
    "data": "commitment to the data",
    "times": "times",
    "approvals": "who approved, on what basis",
    "noise": "noise was drawn",
}
NOT_ANCHORED = "tail not anchored: pass --receipts and --closings that others kept"
_MOST_NAMED = 6
NOTHING_OPENED = Opened()


@dataclass(frozen=True)
class Claim:
    """One thing that a ledger says.

    Attributes:
        what: The claim; see ``CLAIMS``.
        status: *recomputed*: shown here, whoever wrote the file. *signed*: a trusted key stands for
            it. *asserted*: somebody says so. *contradicted*: it is not so.
        why: What the status rests on, or what speaks against it.
    """

    what: str
    status: Status
    why: str

    def to_json(self) -> dict[str, str]:
        """Return JSON values."""
        return {"what": self.what, "status": self.status, "why": self.why}


def claims_of(
    replay: Replay,
    *,
    trusted: bool,
    self_audits: Sequence["SelfAuditSeen"] = (),
    openings: Opened = NOTHING_OPENED,
) -> tuple[Claim, ...]:
    """Return every claim about one ledger, after everything was held against it.

    Args:
        trusted: Whether the reader knows the key.
        self_audits: What this site's own tests of its noise said.
        openings: Of its commitments to data.
    """
    found: dict[About, tuple[Status, str]] = {
        "chain": _chain(replay),
        "identity": _identity(trusted),
        "spent": _spent(replay),
        "totals": _totals(replay),
        "charged": _charged(replay),
        "tail": _tail(replay, trusted),
        "data": _data(replay, openings, trusted),
        "times": _times(replay),
        "approvals": _signed(_approvals(replay), trusted),
        "noise": _noise(self_audits),
    }
    return tuple(
        Claim(what, *_weighed(replay, about, *found[about])) for about, what in CLAIMS.items()
    )


def _weighed(replay: Replay, about: About, status: Status, why: str) -> tuple[Status, str]:
    """Let a problem win; and nothing is shown by records that are contradicted themselves."""
    if about in replay.against:
        return "contradicted", replay.against[about]
    if "chain" in replay.against and status in {"recomputed", "signed"}:
        return "asserted", f"{why}; but the records themselves are contradicted"
    return status, why


def _chain(replay: Replay) -> tuple[Status, str]:
    rotations = len(replay.keys) - 1
    by = f"{rotations + 1} keys, each handing over to the next" if rotations > 0 else "one key"
    number = counted(len(replay.records), "record")
    return "recomputed", f"{number}, numbered, hashed, signed by {by}"


def _identity(trusted: bool) -> tuple[Status, str]:
    if trusted:
        return "signed", "the key of the first record is among the trusted ones"
    return "asserted", "the key is named in the ledger alone: pass --trust"


def _spent(replay: Replay) -> tuple[Status, str]:
    spent = replay.spent
    if spent is None:
        return "asserted", "there is no policy to recompute it under"
    limit = f"of at most {spent.policy.epsilon:g} at delta {spent.policy.delta:g}"
    if spent.num_unprotected:
        number = counted(spent.num_unprotected, "charge")
        return "recomputed", f"infinite: {number} had no noise; {limit}"
    return "recomputed", f"{spent.rdp_epsilon:.4g} {limit}; no charge passed the limit"


def _totals(replay: Replay) -> tuple[Status, str]:
    orders = replay.policy.orders if replay.policy else ()
    named = ", ".join(str(order) for order in orders)
    return "recomputed", f"at order {named}, after each charge, by dp-accounting within 1e-9"


def _charged(replay: Replay) -> tuple[Status, str]:
    """A ledger alone cannot show that nothing else left."""
    num_receipts = len(replay.anchors.get(RECEIPT, ()))
    told = f"{counted(len(replay.releases), 'update')} in the ledger, each with its own charge"
    if not num_receipts:
        return "asserted", f"{told}; without receipts, what left is the site's word"
    if replay.one_sided:
        return "asserted", f"{told}; of a merge with another ledger only one side is here"
    return "recomputed", f"{told}; {counted(num_receipts, 'receipt')} checked against it"


def _tail(replay: Replay, trusted: bool) -> tuple[Status, str]:
    if not replay.anchors:
        return "asserted", NOT_ANCHORED
    pinned = (counted(len(seqs), what) for what, seqs in sorted(replay.anchors.items()))
    by = f"by {', '.join(pinned)}: worth as much as whoever kept them"
    after = records_after_anchor(replay)
    if after:
        return "asserted", f"tail not anchored: {counted(after, 'record')} after those pinned {by}"
    return _signed(f"pinned to the last record {by}", trusted)


def records_after_anchor(replay: Replay) -> int:
    """Return how many records no statement or head that others hold pins."""
    newest = max((max(seqs) for seqs in replay.anchors.values()), default=-1)
    return max(replay.records, default=-1) - newest


def _signed(why: str, trusted: bool) -> tuple[Status, str]:
    return ("signed" if trusted else "asserted"), why


def _data(replay: Replay, openings: Opened, trusted: bool) -> tuple[Status, str]:
    number = len({record.body["commitment"] for record in replay.approvals})
    if openings.wrong:
        return "contradicted", OPENED_TO_ANOTHER
    if not number:
        return _signed("nothing was approved", trusted)
    commitments = counted(number, "commitment")
    if len(openings.roots) == number:
        return "recomputed", f"{commitments}, opened {told(openings.roots)}"
    if openings.roots:
        text = f"{commitments}, {len(openings.roots)} of them opened {told(openings.roots)}"
        return _signed(text, trusted)
    text = f"{commitments}, not opened: to which data is the site's word so far"
    return _signed(text, trusted)


def _times(replay: Replay) -> tuple[Status, str]:
    number = replay.num_backward
    backward = f"; it went back {counted(number, 'time')}" if number else ""
    return "asserted", f"the site's own clock{backward}"


def _approvals(replay: Replay) -> str:
    if not replay.approvals:
        return "nothing was approved"
    named = Counter(_basis(record.body) for record in replay.approvals)
    return "; ".join(_first(f"{text} ({n})" if n > 1 else text for text, n in named.items()))


def _basis(body: Mapping[str, Any]) -> str:
    people = " and ".join(str(body[n]) for n in ("approver", "second_approver") if body[n])
    basis = [str(body[name]) for name in ("legal_basis", "ethics_reference") if body[name]]
    return f"{people}, on {', '.join(basis)}" if basis else f"{people}, no basis stated"


def _first(texts: Iterable[str]) -> list[str]:
    listed = list(texts)
    more = [f"{len(listed) - _MOST_NAMED} more"] if len(listed) > _MOST_NAMED else []
    return listed[:_MOST_NAMED] + more


def _noise(audits: Sequence["SelfAuditSeen"]) -> tuple[Status, str]:
    """No receipt proves it; what the site's own test of it said stands beside."""
    told = "; ".join(_first(_told(audit) for audit in audits))
    if any(audit.verdict == "violation" for audit in audits):
        return "contradicted", f"the site's own self-audit: {told}"
    beside = f"the site's own self-audit: {told}" if told else "no self-audit is given"
    return "asserted", f"no receipt proves it; {beside}"


def _told(audit: "SelfAuditSeen") -> str:
    return f"{audit.verdict.replace('_', ' ')} (plan {audit.plan_digest[7:15]})"
