"""Commitments to data sets, opened for an auditor and recomputed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from federation.audit.replay import Replay
from federation.audit.state import counted
from federation.ledger.openings import Opening

OPENED_TO_ANOTHER = "an opening gives another commitment than the approvals that it is for"


@dataclass(frozen=True)
class Opened:
    """What openings say of one ledger.

    Attributes:
        roots: By commitment, the data set that it is to.
        wrong: Openings of experiments approved here that fit none of their approvals.
    """

    roots: dict[str, str] = field(default_factory=dict)
    wrong: tuple[Opening, ...] = ()


def opened(replay: Replay, openings: Sequence[Opening]) -> Opened:
    """Recompute the commitments of one site's approvals."""
    committed: dict[str, set[str]] = {}
    for record in replay.approvals:
        body = record.body
        committed.setdefault(body["experiment_digest"], set()).add(body["commitment"])
    return opened_at(replay.site, committed, openings)


def opened_at(
    site: str, committed: Mapping[str, Collection[str]], openings: Sequence[Opening]
) -> Opened:
    """Recompute one site's commitments, wherever they stand.

    Args:
        committed: By experiment, the commitments that there are.
    """
    roots, wrong = {}, []
    for opening in openings:
        if opening.site != site or opening.experiment_digest not in committed:
            continue
        if opening.commitment in committed[opening.experiment_digest]:
            roots[opening.commitment] = opening.root
        else:
            wrong.append(opening)
    return Opened(roots, tuple(wrong))


def problems_of(replay: Replay, found: Opened) -> list[str]:
    """Say what does not fit; nobody signed an opening, so it accuses no ledger."""
    return [
        f"{replay.site}: the opening of experiment {one.experiment_digest[:19]} does not give the "
        "commitment in its approvals: it is of other data, or of another nonce. Ask the site for "
        "another, made by 'cohortium site open-commitment'"
        for one in found.wrong
    ]


def unmatched(replays: Sequence[Replay], openings: Sequence[Opening]) -> list[str]:
    """Note openings that are of no approval in any of the ledgers."""
    approved = {(r.site, a.body["experiment_digest"]) for r in replays for a in r.approvals}
    number = sum((one.site, one.experiment_digest) not in approved for one in openings)
    return [f"{counted(number, 'opening')} of no approval in a ledger here"] if number else []


def told(roots: dict[str, str]) -> str:
    """Return which data sets were opened, in words."""
    different = sorted({root[:19] for root in roots.values()})
    return f"to {counted(len(different), 'data set')}: {', '.join(different[:3])}"
