"""What an ethics board reads: who trained what on whose data, and what it cost their privacy.

``board_report`` puts together what the verifier found, what the ledgers' records say and which
experiments they were of. ``federation.audit.report_page`` writes it down.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from federation.audit.report_numbers import Attack, best_attack
from federation.audit.report_records import Approval, Point, Told, tell
from federation.audit.report_sources import Experiments, SelfAuditSeen
from federation.audit.verify import TOLD_COUNTS, Report, Verdict
from federation.experiment import Experiment
from federation.ledger.filter import BudgetPolicy

_ATTACKS_TIME_S = 60.0


class Claim(Protocol):
    """One thing that a verdict speaks of, and what is known of it."""

    @property
    def what(self) -> str:
        """Return what is claimed."""
        ...

    @property
    def status(self) -> str:
        """Return ``recomputed``, ``signed``, ``asserted`` or ``contradicted``."""
        ...

    @property
    def why(self) -> str:
        """Return what that rests on."""
        ...


@dataclass(frozen=True)
class Share:
    """What one experiment cost one site.

    Attributes:
        epsilon: The filter's state had it been the only one. Shares do not add up to the whole.
        attack: How well the best attacker could do against what was really run; ``replace_one``
            the same, compared with another person in the same place.
    """

    experiment: str
    charges: int
    sent: int
    lost: int
    first: str
    last: str
    epsilon: float
    attack: Attack
    replace_one: Attack | None


@dataclass(frozen=True)
class Month:
    """Charges of one month, and the filter's state at its end."""

    name: str
    charges: int
    epsilon: float


@dataclass(frozen=True)
class SiteAccount:
    """One site's ledger, told.

    Attributes:
        counts_told: The site lets the number of subjects leave, exactly or rounded.
        whole: The best attack on everything that was charged, had nothing been chosen adaptively.
        changed: The file was written to between its check and its telling.
    """

    verdict: Verdict
    told: Told
    shares: tuple[Share, ...]
    months: tuple[Month, ...]
    self_audits: tuple[SelfAuditSeen, ...]
    counts_told: bool
    whole: Attack
    whole_replace_one: Attack | None
    changed: bool

    @property
    def name(self) -> str:
        """Return the site's name, or its file's where there is none."""
        return self.verdict.site or self.verdict.path.name

    @property
    def policy(self) -> BudgetPolicy | None:
        """Return what was promised."""
        return self.verdict.policy

    @property
    def spent(self) -> float:
        """Return the filter's state, as the verifier recomputed it."""
        return self.verdict.spent_epsilon

    @property
    def held(self) -> float:
        """Return the filter's state with what approved runs may still charge."""
        return max(self.spent, self.told.promised)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Return what the verifier says, claim by claim."""
        return tuple(getattr(self.verdict, "claims", ()))


@dataclass(frozen=True)
class ExperimentAccount:
    """One experiment, at every site that approved it.

    Attributes:
        letter: What names it in plots and tables.
        document: Its file, where one with this digest was given.
        at_sites: Each site's approvals of it.
    """

    letter: str
    digest: str
    document: Experiment | None
    at_sites: tuple[tuple[SiteAccount, tuple[Approval, ...]], ...]

    @property
    def name(self) -> str:
        """Return what people call it."""
        return self.document.name if self.document else f"Experiment {self.letter}"


@dataclass(frozen=True)
class BoardReport:
    """Everything that the page says.

    Attributes:
        made_at: When, as records write times.
        receipts: How many receipts were compared.
    """

    made_at: str
    software: str
    report: Report
    sites: tuple[SiteAccount, ...]
    experiments: tuple[ExperimentAccount, ...]
    unread: tuple[str, ...]
    receipts: int
    letters: Mapping[str, str] = field(default_factory=dict)

    @property
    def contradicted(self) -> bool:
        """Tell whether anything given speaks against anything else."""
        changed = any(site.changed for site in self.sites)
        found = any(site.verdict.problems for site in self.sites)
        return bool(self.report.problems) or changed or found


def board_report(
    report: Report,
    *,
    made_at: str,
    experiments: Experiments | None = None,
    self_audits: Sequence[SelfAuditSeen] = (),
    receipts: int = 0,
) -> BoardReport:
    """Tell what was verified.

    Args:
        report: Of the verifier; its verdicts name the files that are read here.
        made_at: Time of the report, as records write times.
        receipts: How many receipts it was given.
    """
    known = experiments or Experiments({})
    attacks = _Attacks()
    sites = tuple(_site(verdict, self_audits, attacks) for verdict in report.verdicts)
    letters = _letters(sites)
    return BoardReport(
        made_at=made_at,
        software=_software(),
        report=report,
        sites=sites,
        experiments=tuple(_experiments(sites, known, letters)),
        unread=known.unread,
        receipts=receipts,
        letters=letters,
    )


class _Attacks:
    """Remembers what was computed: sites of one run were mostly charged the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Attack] = {}
        self._deadline = time.monotonic() + _ATTACKS_TIME_S

    def on(self, steps: Counter[tuple[float, float]], delta: float, *, replace_one: bool) -> Attack:
        """Return the best attack, or that there was no time for it."""
        key = (frozenset(steps.items()), delta, replace_one)
        if key not in self._known:
            if time.monotonic() > self._deadline:
                return Attack(why_not="the time that a report may take was up")
            self._known[key] = best_attack(steps, delta, replace_one=replace_one)
        return self._known[key]


def _site(verdict: Verdict, audits: Sequence[SelfAuditSeen], attacks: _Attacks) -> SiteAccount:
    told = tell(verdict.path)
    counted = any(
        not TOLD_COUNTS.isdisjoint(approval.record.body["leaves"]) for approval in told.approvals
    )
    shares = tuple(_shares(told, attacks, counted=counted))
    plans = {approval.record.body["plan_digest"] for approval in told.approvals}
    head = (told.head.seq, told.head.hash) if told.head else None
    return SiteAccount(
        verdict=verdict,
        told=told,
        shares=shares,
        months=tuple(_months(told.points)),
        self_audits=tuple(audit for audit in audits if audit.may_be_of(verdict.site, plans)),
        counts_told=counted,
        whole=_attack(told, told.steps, told.unprotected, attacks, replace_one=False),
        whole_replace_one=(
            _attack(told, told.steps, told.unprotected, attacks, replace_one=True)
            if counted
            else None
        ),
        changed=not verdict.problems and head != verdict.head,
    )


def _attack(
    told: Told,
    steps: Counter[tuple[float, float]],
    unprotected: int,
    attacks: _Attacks,
    *,
    replace_one: bool,
) -> Attack:
    if unprotected or told.policy is None:
        return Attack(why_not="a round was trained without noise" if unprotected else "no policy")
    return attacks.on(steps, told.policy.delta, replace_one=replace_one)


def _shares(told: Told, attacks: _Attacks, *, counted: bool) -> Iterator[Share]:
    for digest, own in told.by_experiment.items():
        charges = [at for approval in own for at in approval.charges]
        if not charges:
            continue
        steps: Counter[tuple[float, float]] = Counter()
        for approval in own:
            steps.update(approval.steps)
        bare = sum(approval.unprotected for approval in own)
        yield Share(
            experiment=digest,
            charges=len(charges),
            sent=sum(approval.releases for approval in own),
            lost=sum(approval.losses for approval in own),
            first=charges[0],
            last=charges[-1],
            epsilon=told.costs_of[digest].epsilon if digest in told.costs_of else 0.0,
            attack=_attack(told, steps, bare, attacks, replace_one=False),
            replace_one=_attack(told, steps, bare, attacks, replace_one=True) if counted else None,
        )


def _months(points: Sequence[Point]) -> Iterator[Month]:
    """In the order of the records, which a wrong clock cannot change."""
    months: dict[str, list[Point]] = {}
    for point in points:
        months.setdefault(point.at[:7], []).append(point)
    for name, own in months.items():
        charges = sum(point.cause == "charge" for point in own)
        yield Month(name, charges, own[-1].epsilon)


def _letters(sites: Sequence[SiteAccount]) -> dict[str, str]:
    """Name experiments A, B, ... in the order in which they were first approved."""
    first: dict[str, str] = {}
    for site in sites:
        for approval in site.told.approvals:
            at = first.get(approval.experiment, approval.record.at)
            first[approval.experiment] = min(at, approval.record.at)
    ordered = sorted(first, key=lambda digest: (first[digest], digest))
    return {digest: _letter(place) for place, digest in enumerate(ordered)}


def _letter(place: int) -> str:
    """Return A to Z, then AA and so on.

    >>> _letter(0), _letter(25), _letter(26), _letter(701)
    ('A', 'Z', 'AA', 'ZZ')
    """
    before, last = divmod(place, 26)
    return (_letter(before - 1) if before else "") + chr(ord("A") + last)


def _experiments(
    sites: Sequence[SiteAccount], known: Experiments, letters: Mapping[str, str]
) -> Iterator[ExperimentAccount]:
    found: dict[str, list[tuple[SiteAccount, tuple[Approval, ...]]]] = {}
    for site in sites:
        for digest, own in site.told.by_experiment.items():
            found.setdefault(digest, []).append((site, tuple(own)))
    for digest, letter in letters.items():
        document = known.by_digest.get(digest)
        yield ExperimentAccount(letter, digest, document, tuple(found[digest]))


def _software() -> str:
    try:
        return f"cohortium {version('cohortium')}"
    except PackageNotFoundError:
        return "cohortium"
