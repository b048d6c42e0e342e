"""What ``cohortium site check`` finds: whether a site is ready, and what would leave it.

Everything here is for the site's own screen: counts, paths and label shares are not released.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import isinf
from pathlib import Path
from typing import Any

from data_adapters.confinement import Protection
from data_adapters.decoding import protections_here, require
from data_adapters.errors import CacheError, DataError
from data_adapters.ingest import NothingUsable, Stage
from federation.data_use import GRU, HMB, PERMISSIONS, DataUse
from federation.errors import FederationError
from federation.experiment import Experiment
from federation.leaving import Leaving, site_leaves
from federation.readiness_parts import (
    Counts,
    PartFound,
    ingested_part,
    ordered,
    part_by_headers,
    unusable_part,
)
from federation.site import Site, has_ledger, open_site
from federation.site_config import Part
from federation.site_data import SiteData, local_day, open_site_data

Progress = Callable[[Part, Stage, int, int], None]


@dataclass(frozen=True)
class Finding:
    """Something to know before training; ``blocks`` means that no training is possible."""

    blocks: bool
    what: str


@dataclass(frozen=True)
class ConsentFound:
    """What the table of consent says of the ingested subjects.

    Attributes:
        with_consent: Subjects whose consent holds today, by what for.
        rows_unused: Rows that give no consent, by why not.
    """

    num_subjects: int
    unknown: int
    expired: int
    with_consent: Counts
    rows_unused: Counts


@dataclass(frozen=True)
class BudgetFound:
    """The state of the ledger; ``spent`` is infinite after a run without privacy."""

    limit: float
    delta: float
    spent: float
    charges: int
    open_approvals: tuple[str, ...]
    declaration: str


@dataclass(frozen=True)
class Readiness:
    """Everything that was found.

    Attributes:
        quick: Only headers were looked at.
        terms: What the data set may be used for, in words.
        budget: None before the first run, which makes the ledger.
        decoding: What the processes that decode this site's images cannot do on this machine.
    """

    site: str
    dataset: str
    at: str
    quick: bool
    parts: tuple[PartFound, ...]
    terms: tuple[str, ...]
    consent: ConsentFound | None
    num_excluded: int
    budget: BudgetFound | None
    leaving: tuple[Leaving, ...]
    findings: tuple[Finding, ...]
    decoding: tuple[Protection, ...] = ()

    @property
    def ready(self) -> bool:
        """Tell whether nothing that was found would block training."""
        return not any(finding.blocks for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON object that ``cohortium site check --json`` prints."""
        values = asdict(self)
        if self.budget is not None and isinf(self.budget.spent):
            values["budget"]["spent"] = None
        return {"format": "cohortium-site-check/1", "ready": self.ready, **values}


@dataclass(frozen=True)
class _How:
    """How the data are looked at."""

    quick: bool
    progress: Progress | None
    workers: int

    def telling(self, part: Part) -> Callable[[Stage, int, int], None] | None:
        return None if self.progress is None else partial(self.progress, part)


@dataclass
class _Findings:
    """Findings as they come up."""

    found: list[Finding] = field(default_factory=list)

    def blocks(self, what: object) -> None:
        self.found.append(Finding(True, str(what)))

    def tells(self, what: str) -> None:
        self.found.append(Finding(False, what))


def check_site(
    site_file: Path,
    *,
    quick: bool = False,
    experiment: Experiment | None = None,
    progress: Progress | None = None,
    workers: int = 1,
) -> Readiness:
    """Look at everything that training needs. Makes no ledger: no budget is fixed by looking.

    Args:
        quick: Look at headers only; nothing is cached, and shapes and labels stay unknown.
        experiment: Check terms, consent, classes and channels for this one.

    Raises:
        FederationError: The site file is invalid, or a folder or table that it names is missing.
    """
    data = open_site_data(site_file)
    findings = _Findings()
    how = _How(quick, progress, workers)
    parts = tuple(_part(data, part, how, findings) for part in data.parts)
    if not quick:
        _collect(findings, data.check_subjects)
        _collect(findings, data.require_one_budget)
    site = _opened(data, site_file, findings)
    use = experiment.data_use if experiment else None
    consent = _consent(data, use, findings)
    _terms(data, use, findings)
    if experiment is not None and not quick:
        _fits(data, experiment, findings)
    budget = _budget(site, findings) if site else None
    _policy(data, findings)
    return Readiness(
        site=data.name,
        dataset=data.config.dataset,
        at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        quick=quick,
        parts=parts,
        terms=data.config.data_use,
        consent=consent,
        num_excluded=len(data.exclusions),
        budget=budget,
        leaving=site_leaves(data, site.ledger if site else None),
        decoding=_decoding(data, findings),
        findings=tuple(sorted(findings.found, key=lambda finding: not finding.blocks)),
    )


def _decoding(data: SiteData, findings: _Findings) -> tuple[Protection, ...]:
    """Return what decoders give up here; nothing for images that no decoder process reads."""
    if not any(source.needs_codecs for source in data.config.every_source):
        return ()
    limits = data.config.decoding
    try:
        found = protections_here(limits)
        require(found, limits.require)
    except DataError as error:
        findings.blocks(error)
        return ()
    return found


def _collect(findings: _Findings, look: Callable[[], object]) -> None:
    try:
        look()
    except (FederationError, DataError) as error:
        findings.blocks(error)


def _tell(findings: _Findings, look: Callable[[], object]) -> None:
    """Tell of what stops some experiments, and not training."""
    try:
        look()
    except FederationError as error:
        findings.tells(str(error))


def _opened(data: SiteData, site_file: Path, findings: _Findings) -> Site | None:
    if not has_ledger(data.config):
        findings.tells(
            "There is no ledger yet: epsilon, delta and the declarations of the site file are "
            "fixed for good at the first run."
        )
        return None
    try:
        return open_site(site_file)
    except FederationError as error:
        findings.blocks(error)
        return None


# The data


def _part(data: SiteData, part: Part, how: _How, findings: _Findings) -> PartFound:
    try:
        if how.quick:
            return _quick_part(data, part, how, findings)
        return ingested_part(data, part, how.telling(part), how.workers)
    except CacheError:
        raise  # of the machine, not of the data: there is nothing to report on yet
    except NothingUsable as nothing:
        findings.blocks(f"{part}: {nothing}")
        return unusable_part(data, part, nothing.quarantined)
    except DataError as error:
        findings.blocks(f"{part}: {error}")
        return unusable_part(data, part, ())


def _quick_part(data: SiteData, part: Part, how: _How, findings: _Findings) -> PartFound:
    found = part_by_headers(data, part, how.telling(part))
    if not found.num_scans:
        findings.blocks(
            f"{part}: no scan can be used by what the headers say; {found.num_unusable} were set "
            "aside. Correct them, or `path` and `kind` in the site file."
        )
    return found


def _fits(data: SiteData, experiment: Experiment, findings: _Findings) -> None:
    """Hold the experiment's classes and channels against those of the data; no pixel is read."""
    from federation.training import open_dataset  # brings torch

    for part in data.parts:
        if data.is_ingested(part):
            try:
                open_dataset(experiment, data, part, without=())
            except (DataError, FederationError) as error:
                findings.blocks(f"{part}: {error}")


# Terms, consent, budget


def _consent(data: SiteData, use: DataUse | None, findings: _Findings) -> ConsentFound | None:
    if data.config.consent is None or not data.is_ingested("protected"):
        return None
    try:
        manifest = data.manifest("protected")
        consents = data.consents(manifest.subjects)
    except (DataError, FederationError) as error:
        findings.blocks(error)
        return None
    if consents is None:
        return None
    today, subjects = local_day(), set(manifest.subjects) - data.excluded_in(manifest)
    uses = {str(use): use} if use else _usual_uses()
    holding = {
        name: len(subjects) - len(consents.lacking(subjects, asked, today))
        for name, asked in uses.items()
    }
    found = ConsentFound(
        num_subjects=len(subjects),
        unknown=len(consents.unknown(subjects)),
        expired=len(consents.expired(subjects, today)),
        with_consent=tuple(holding.items()),
        rows_unused=ordered(dict(consents.num_rows_unused)),
    )
    _tell_consent(found, findings)
    if subjects and not any(holding.values()):
        _nobody_consents(found, use, findings)
    return found


def _nobody_consents(found: ConsentFound, use: DataUse | None, findings: _Findings) -> None:
    """Without an experiment it is not known what for: what holds may be for just that."""
    holds = found.num_subjects - found.unknown - found.expired
    if use is not None or not holds:
        findings.blocks("No subject's consent holds today" + (" for it." if use else "."))
        return
    findings.tells(
        f"The consent of {holds} subjects holds today, and none for general or health research: an "
        "experiment must name their disease or purpose. Check it with --experiment FILE."
    )


def _usual_uses() -> dict[str, DataUse]:
    """Return the uses that ask for least, so that whoever is missing consents to nothing of it."""
    modest = {"non_profit": True, "methods_development": False}
    uses = [DataUse.model_validate({"purpose": code, **modest}) for code in (GRU, HMB)]
    return {PERMISSIONS[use.purpose]: use for use in uses}


def _tell_consent(found: ConsentFound, findings: _Findings) -> None:
    without = found.unknown + found.expired
    if without:
        findings.tells(
            f"{without} of {found.num_subjects} subjects are not sampled: {found.unknown} are not "
            f"in the table of consent, and the consent of {found.expired} has expired."
        )
    for why, count in found.rows_unused:
        findings.tells(f"Consent: {count} rows give none, {why}.")


def _terms(data: SiteData, use: DataUse | None, findings: _Findings) -> None:
    if use is not None:
        _collect(findings, lambda: data.require_terms(use))
    if not data.config.data_use:
        findings.tells(
            "The site file does not say what the data may be used for ('data_use'), so no "
            "experiment is refused for its purpose."
        )


def _budget(site: Site, findings: _Findings) -> BudgetFound:
    ledger = site.ledger
    spent, policy, declared = ledger.spent_epsilon, ledger.policy, ledger.book.declaration
    if not isinf(spent) and spent >= policy.epsilon * (1 - 1e-3):
        findings.blocks(
            f"Nothing is left of the privacy budget: {spent:.2f} of epsilon {policy.epsilon:g} are "
            "spent. These subjects can take part in no further private experiment."
        )
    approvals = [
        f"{site.experiment_name(digest)} ({digest.removeprefix('sha256:')[:12]})"
        for digest in ledger.approvals
        if ledger.approval_for(digest) is not None
    ]
    return BudgetFound(
        limit=policy.epsilon,
        delta=policy.delta,
        spent=spent,
        charges=sum(record.kind == "charge" for record in ledger.records),
        open_approvals=tuple(approvals),
        declaration=f"{declared.by}: {declared.reason}" if declared else "",
    )


def _policy(data: SiteData, findings: _Findings) -> None:
    if data.config.allows_unprotected:
        who = data.config.declaration
        because = f", since {who.by} says they are of no people" if who else ""
        findings.tells(f"Experiments without any privacy may run on these data{because}.")
        if data.is_ingested("protected"):
            _tell(findings, data.require_no_people)
    how = data.config.policy.release_counts
    if how != "withheld":
        findings.tells(
            f"The number of subjects leaves this site (release_counts: {how}): epsilon does not "
            "cover that somebody is among them."
        )
    if data.config.high_water_mark is None:
        findings.tells(
            "There is no high-water mark: this site cannot tell by itself that its ledger was "
            "restored from a backup. Name a file on other storage (high_water_mark)."
        )
    if data.config.linking is None:
        findings.tells(
            "There is no linking folder: a person who is in another data set of yours as well has "
            "a budget there, too. Name one folder in all your site files (linking)."
        )
    pending = sum(not exclusion.done for exclusion in data.exclusions)
    if pending and has_ledger(data.config):
        findings.tells(
            f"{pending} exclusions were interrupted; the subjects are out. 'cohortium site "
            "ingest' finishes them."
        )
