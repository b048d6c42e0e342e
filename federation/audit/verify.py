"""Verify ledgers: whose they are, whether they are whole, and what they really cost."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from federation.audit.accounting import PldEpsilon, pld_epsilon
from federation.audit.claims import NOT_ANCHORED, Claim, claims_of, records_after_anchor
from federation.audit.evidence import (
    RECEIPT,
    Statement,
    about,
    check_heads,
    check_merges,
    check_statements,
    statements,
)
from federation.audit.openings import Opened, opened, problems_of
from federation.audit.openings import unmatched as unmatched_openings
from federation.audit.replay import Replay, replay_file
from federation.audit.self_audits import match_self_audits
from federation.audit.state import counted
from federation.audit.unheld import Unheld, unheld
from federation.ledger.bounds import highest_declared, most_subjects
from federation.ledger.closings import Closing
from federation.ledger.filter import BudgetPolicy
from federation.ledger.keys import fingerprint_of
from federation.ledger.openings import Opening
from federation.ledger.receipts import Receipt

if TYPE_CHECKING:  # it reads experiments, too, and verifying needs none of that
    from federation.audit.report_sources import SelfAuditSeen

__all__ = ["NOT_ANCHORED", "Report", "Trust", "Verdict", "verify_ledger", "verify_ledgers"]

Trust = Mapping[str, str] | Collection[str]
"""Fingerprints by site name, or fingerprints alone."""

Identity = Literal["trusted", "unknown"]
# Of an approval's list of what leaves. Rounding hides nothing for sure: at an edge one more shows.
TOLD_COUNTS = frozenset({"counts: exact", "counts: rounded"})


@dataclass(frozen=True)
class Verdict:
    """What is known of one ledger after checking it.

    Attributes:
        fingerprint: Of the key of the genesis record, by which the site is known.
        identity: Whether that key is one that the reader trusts.
        claims: What the ledger says, one by one, and how far each is shown.
        problems: Why the ledger is not to be believed; empty if it is consistent.
        notes: What a reader should know although it is no fault.
        spent_epsilon: State of the site's own filter, recomputed.
        rdp_epsilon: The same by dp-accounting, from its own totals.
        pld: Epsilon if nothing had been chosen adaptively.
        replace_one: The same between data sets where one subject's data are other data; where an
            approval lets exact counts leave, for these say who is present.
        totals: dp-accounting's Rényi divergence at each order of the policy.
    """

    path: Path
    site: str
    population: str
    fingerprint: str
    identity: Identity
    claims: tuple[Claim, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    policy: BudgetPolicy | None
    spent_epsilon: float
    rdp_epsilon: float
    pld: PldEpsilon
    replace_one: PldEpsilon | None
    totals: tuple[float, ...]
    charges: int
    unprotected_charges: int
    releases: int
    losses: int
    refusals: Mapping[str, int]
    head: tuple[int, str] | None

    @property
    def consistent(self) -> bool:
        """Tell whether nothing was found wrong. Whose ledger it is is another question."""
        return not self.problems

    @property
    def ok(self) -> bool:
        """Tell whether the ledger is consistent and signed by somebody trusted."""
        return self.consistent and self.identity == "trusted"

    @property
    def summary(self) -> str:
        """The verdict in a few words."""
        if self.problems:
            return "contradicted"
        return "verified" if self.ok else "consistent, identity unknown"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; an infinite epsilon is null beside ``unprotected_charges``."""
        replace_one = self.replace_one
        return {
            "path": str(self.path),
            "site": self.site,
            "population": self.population,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "verdict": self.summary,
            "ok": self.ok,
            "claims": [claim.to_json() for claim in self.claims],
            "problems": list(self.problems),
            "notes": list(self.notes),
            "policy": self.policy.to_json() if self.policy else None,
            "spent_epsilon": _finite(self.spent_epsilon),
            "rdp_epsilon": _finite(self.rdp_epsilon),
            "pld_epsilon": self.pld.value,
            "pld_note": self.pld.note,
            "replace_one_epsilon": replace_one.value if replace_one else None,
            "replace_one_note": replace_one.note if replace_one else None,
            "rdp_totals": list(self.totals),
            "charges": self.charges,
            "unprotected_charges": self.unprotected_charges,
            "releases": self.releases,
            "losses": self.losses,
            "refusals": dict(self.refusals),
            "head": list(self.head) if self.head else None,
        }


@dataclass(frozen=True)
class Report:
    """The verdicts on several ledgers, and what is wrong between them."""

    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unheld: tuple[Unheld, ...] = ()

    @property
    def ok(self) -> bool:
        """Tell whether every ledger is verified and is the one that its site's receipts name.

        Without a ledger nothing is: receipts show what left, not what was charged.
        """
        return bool(self.verdicts) and not self.problems and all(v.ok for v in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON object that ``cohortium audit verify --json`` prints."""
        return {
            "format": "cohortium-audit-verify/2",
            "ok": self.ok,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "ledgers": [verdict.to_json() for verdict in self.verdicts],
            "unheld": [one.to_json() for one in self.unheld],
        }


def verify_ledger(
    path: Path,
    *,
    trust: Trust | None = None,
    receipts: Iterable[Receipt] = (),
    closings: Iterable[Closing] = (),
) -> Verdict:
    """Check one ledger file. Never raises on what the file holds: that becomes a problem.

    Args:
        trust: Whom the reader believes. Without it the identity stays unknown.
        receipts: What left the site, kept by others. Receipts under other keys are passed over.
        closings: What the site signed at the end of runs, likewise.
    """
    (verdict,) = verify_ledgers([path], trust=trust, receipts=receipts, closings=closings).verdicts
    return verdict


def verify_ledgers(  # noqa: PLR0913 - all but one are named
    paths: Sequence[Path],
    *,
    trust: Trust | None = None,
    receipts: Iterable[Receipt] = (),
    closings: Iterable[Closing] = (),
    self_audits: Sequence["SelfAuditSeen"] = (),
    openings: Sequence[Opening] = (),
) -> Report:
    """Check ledgers together.

    A receipt of a given site that belongs to another ledger is a problem: the site's ledger was
    replaced. Statements of sites whose ledger was not given are checked for themselves alone.

    Args:
        self_audits: What sites' own tests of their noise said; it stands beside what is shown.
        openings: Of commitments to data, as sites gave them to this reader.
    """
    replays = {path: replay_file(path) for path in paths}
    said = statements([*receipts, *closings])
    given = tuple(replays.values())
    _compare_ledgers(given)
    for replay in given:
        _check_randomness(replay)
    # Of what is no ledger the keys are not known: nobody can tell who is a stranger to it.
    sound = [replay for replay in given if replay.genesis and not replay.problems]
    between = check_merges(sound)
    for replay in given:
        check_statements(replay, about(replay, said))
    gone, notes = check_heads(given, said, sound)
    problems, strangers = _strangers(given, said, sound)
    alone, twice = unheld(strangers, trust)
    audits, violations, unmatched = match_self_audits(given, self_audits)
    found = [opened(replay, openings) for replay in given]
    of_each = zip(replays.items(), audits, found, strict=True)
    verdicts = tuple(_judge(*item, trust, seen, told) for item, seen, told in of_each)
    closed = [text for pair in zip(given, found, strict=True) for text in problems_of(*pair)]
    problems = [*between, *gone, *problems, *twice, *violations, *closed]
    notes += [*(one.told for one in alone), *unmatched, *unmatched_openings(given, openings)]
    return Report(verdicts, tuple(problems), tuple(notes), tuple(alone))


def _compare_ledgers(replays: Sequence[Replay]) -> None:
    """Find sites that show more than one ledger for one population: each would be a budget."""
    shown: dict[tuple[str, str], list[Replay]] = {}
    for replay in replays:
        if replay.genesis is not None:
            shown.setdefault((replay.site, replay.genesis.body["population"]), []).append(replay)
    for (site, population), own in shown.items():
        different = len({replay.genesis.hash for replay in own if replay.genesis})
        for replay in own:
            if different > 1:
                text = f"{site} has {different} ledgers for {population}: a population has one"
                replay.problem("charged", f"{text} budget")
            elif any(_forked(replay, other) for other in own):
                text = "another copy of this ledger goes on otherwise: one of them was rewritten"
                replay.problem("chain", text)


def _forked(one: Replay, other: Replay) -> bool:
    """Tell whether the site has signed two continuations of one ledger.

    Only what is whole counts: anybody can write a record under somebody else's ledger.
    """
    shared = min(one.sound_to, other.sound_to)
    ends = [replay.records[shared].hash for replay in (one, other) if shared in replay.records]
    return len(set(ends)) > 1


def _strangers(
    replays: Sequence[Replay], statements_: Iterable[Statement], sound: Sequence[Replay]
) -> tuple[list[str], list[Statement]]:
    """Return what is wrong with statements about none of the ledgers, and those of other sites."""
    sites = {replay.site for replay in sound}
    ledgers = {replay.genesis.hash for replay in sound if replay.genesis}
    strange = [s for s in statements_ if not any(about(replay, [s]) for replay in replays)]
    problems = [f"{s.name}: it is not validly signed" for s in strange if not s.valid]
    others: list[Statement] = []
    kinds: Counter[tuple[str, str, bool]] = Counter()
    for said in (s for s in strange if s.valid):
        if said.of.site in sites or said.of.ledger in ledgers:
            kinds[said.kind, said.of.site, said.of.ledger in ledgers] += 1
        else:
            others.append(said)
    for (kind, site, _), count in kinds.items():
        problems.append(
            f"{counted(count, kind)} of {site}: of another ledger than the one given; it was "
            "replaced or started anew, or somebody else signs under its name"
        )
    return problems, others


def _judge(
    path: Path,
    replay: Replay,
    trust: Trust | None,
    self_audits: Sequence["SelfAuditSeen"],
    openings: Opened,
) -> Verdict:
    fingerprint, identity = _identify(replay, trust)
    replace_one = _replace_one(replay)
    spent, policy = replay.spent, replay.policy
    unprotected = spent.num_unprotected if spent else 0
    rdp_epsilon = spent.rdp_epsilon if spent else 0.0
    return Verdict(
        path=path,
        site=replay.site,
        population=replay.genesis.body["population"] if replay.genesis else "",
        fingerprint=fingerprint,
        identity=identity,
        claims=claims_of(
            replay,
            trusted=identity == "trusted",
            self_audits=self_audits,
            openings=openings,
        ),
        policy=policy,
        spent_epsilon=spent.filter_epsilon if spent else 0.0,
        rdp_epsilon=inf if unprotected else rdp_epsilon,
        pld=_pld(replay),
        replace_one=replace_one,
        totals=spent.totals if spent else (),
        charges=len(replay.charges),
        unprotected_charges=unprotected,
        releases=len(replay.releases),
        losses=len(replay.losses),
        refusals=dict(replay.refusals),
        head=(replay.head.seq, replay.head.hash) if replay.head else None,
        problems=tuple(replay.problems),
        notes=(
            *replay.notes,
            *_tail(replay),
            *_told(replay),
            *_told_counts(replace_one),
            *_large_delta(replay),
        ),
    )


def _told(replay: Replay) -> list[str]:
    """Return what else the records say, in a few sentences: they crowd out nothing else."""
    told = []
    if replay.declaration is not None:
        by, reason = replay.declaration
        told.append(f"declared to be of no human subjects by {by}: {reason}")
    others = [f"{n} {what}" for what, n in sorted(replay.noted.items()) if what != "declaration"]
    if others:
        told.append(f"the site recorded, beside training: {', '.join(others)}")
    if replay.recoveries:
        number = counted(len(replay.recoveries), "time")
        told.append(f"it fell behind {number}, and spent all that could have been released since")
    if replay.merges:
        number = counted(len(replay.merges), "merge")
        told.append(f"{number} charged here what shared subjects had lost elsewhere")
    if replay.merged_into is not None:
        told.append(f"its budget goes on in another ledger, {replay.merged_into[:19]}")
    if len(replay.keys) > 1:
        now = fingerprint_of(bytes.fromhex(replay.keys[-1][1]))
        number = counted(len(replay.keys) - 1, "time")
        told.append(f"its key was replaced {number}; now {now} signs")
    return told


def _identify(replay: Replay, trust: Trust | None) -> tuple[str, Identity]:
    if replay.genesis is None:
        return "", "unknown"
    fingerprint = fingerprint_of(bytes.fromhex(replay.genesis.body["public_key"]))
    if trust is None:
        return fingerprint, "unknown"
    trusted = set(trust.values()) if isinstance(trust, Mapping) else set(trust)
    if fingerprint not in trusted:
        text = f"it is signed with {fingerprint}, which is not among the trusted keys"
        replay.problem("identity", text)
        return fingerprint, "unknown"
    if isinstance(trust, Mapping):
        _check_name(replay, fingerprint, trust)
    return fingerprint, "trusted"


def _check_name(replay: Replay, fingerprint: str, trust: Mapping[str, str]) -> None:
    """A fingerprint that was given alone is trusted under any name; one beside a name is not."""
    if trust.get(replay.site, fingerprint) != fingerprint:
        text = f"it calls itself {replay.site!r}, a name that is trusted with another key"
        replay.problem("identity", text)
        return
    names = sorted(name for name, key in trust.items() if key == fingerprint)
    if not {replay.site, fingerprint} & set(names):
        text = f"it calls itself {replay.site!r}, and its key is trusted as {', '.join(names)}"
        replay.problem("identity", f"{text}: ask whose it is, then correct the trust file")


def _pld(replay: Replay, *, replace_one: bool = False) -> PldEpsilon:
    spent = replay.spent
    if spent is None:
        return PldEpsilon(None, "there is no policy")
    if spent.num_unprotected:
        return PldEpsilon(None, "infinite: a charge was made without noise")
    return pld_epsilon(
        spent.steps,
        delta=spent.policy.delta,
        rdp_epsilon=spent.rdp_epsilon,
        replace_one=replace_one,
    )


def _replace_one(replay: Replay) -> PldEpsilon | None:
    """Counts can give away who is present; what is left is which data of theirs."""
    if all(TOLD_COUNTS.isdisjoint(record.body["leaves"]) for record in replay.approvals):
        return None
    return _pld(replay, replace_one=True)


def _told_counts(replace_one: PldEpsilon | None) -> list[str]:
    if replace_one is None:
        return []
    value = replace_one.value
    stated = "not computed" if value is None else f"{value:.4g}"
    return [
        "counts may leave, exact or rounded, which can tell that there is one subject more: "
        "between data sets where one subject's data are other data, epsilon by PLD is "
        f"{stated} ({replace_one.note})"
    ]


def _large_delta(replay: Replay) -> list[str]:
    """Hold delta against the most subjects that an approval declared."""
    declared = highest_declared(record.body["leaves"] for record in replay.approvals)
    if replay.policy is None or declared is None:
        return []
    delta = replay.policy.delta
    if declared <= most_subjects(delta):
        return []
    return [
        f"delta {delta:g} is above 1/N^2 = {1 / declared**2:.2g} for the {declared} subjects that "
        "an approval declared at most: so large a delta comes close to giving one away whole"
    ]


def _check_randomness(replay: Replay) -> None:
    """Rule 9."""
    if replay.num_insecure:
        replay.problem(
            "noise",
            f"{counted(replay.num_insecure, 'update')} released with a test's randomness "
            "(insecure-test): whoever knows its seed can take the noise away, so they protected "
            "nobody",
        )


def _tail(replay: Replay) -> list[str]:
    if not replay.anchors:
        return [NOT_ANCHORED]
    missing = len(replay.releases) - len(replay.anchors.get(RECEIPT, ()))
    after = records_after_anchor(replay)
    notes = []
    if missing > 0:
        notes.append(f"{counted(missing, 'release')} without a receipt here")
    if after > 0:
        notes.append(f"{counted(after, 'record')} after the newest that others hold: not anchored")
    return notes


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
