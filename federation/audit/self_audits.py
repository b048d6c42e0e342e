"""Whose a self-audit is, among the ledgers that are given: a site answers for its own alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from federation.audit.replay import Replay

if TYPE_CHECKING:  # it reads experiments, too, and verifying needs none of that
    from federation.audit.report_sources import SelfAuditSeen

Matched = tuple[list[list["SelfAuditSeen"]], list[str], list[str]]


def match_self_audits(replays: Sequence[Replay], audits: Sequence["SelfAuditSeen"]) -> Matched:
    """Sort self-audits by the site that they name, and that approved their plan.

    Returns:
        Those of each ledger, what is wrong, and notes. A file that names no site is the only such
        site's; where several approved the plan, it is nobody's, and a violation in it is told.
    """
    of: list[list[SelfAuditSeen]] = [[] for _ in replays]
    problems, notes = [], []
    for audit in audits:
        places = [n for n, replay in enumerate(replays) if _may_be_of(audit, replay)]
        sites = sorted({replays[n].site for n in places})
        if len(sites) == 1:
            for place in places:
                of[place].append(audit)
        else:
            notes.append(_whose(audit, sites))
        if sites and audit.verdict == "violation":
            problems.append(
                f"a self-audit of {' or '.join(sites)} ({audit.source}) found a violation: what "
                "left was noised less than the ledger says, so its figures do not hold. Ask the "
                "site to stop, and to look at 'cohortium site audit'"
            )
    return of, problems, notes


def _may_be_of(audit: "SelfAuditSeen", replay: Replay) -> bool:
    plans = {record.body["plan_digest"] for record in replay.approvals}
    return audit.may_be_of(replay.site, plans)


def _whose(audit: "SelfAuditSeen", sites: Sequence[str]) -> str:
    told = f"a self-audit ({audit.source}: {audit.verdict.replace('_', ' ')})"
    if not sites:
        return f"{told} is of no ledger that is given"
    return (
        f"{told} names no site, and {', '.join(sites)} approved its plan: export it anew with "
        "'cohortium site audit --json'"
    )
