"""What a site's operator sees of their own site. Nothing here is sent."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isinf
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_adapters.confinement import Protection
from data_adapters.ingest import IngestReport, Stage
from federation.cli import show
from federation.evidence import RunAudit
from federation.privacy.audit_report import for_others
from federation.readiness import BudgetFound, Readiness
from federation.readiness_parts import Counts, PartFound
from federation.site_config import Part
from federation.site_data import SiteData
from federation.usage import UsedBy
from federation.withdrawal import Excluded, Purged

_BAR = 24
_MOST_ROWS = 12
# Paths that the screen shows of each reason; --json has all of them.
MOST_PATHS = 10
_results = Console()


def say(text: str, style: str = "") -> None:
    """Print one line; nothing in it is markup."""
    _results.print(Text(text, style=style), soft_wrap=True)


def as_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    _results.file.write(json.dumps(value, indent=1) + "\n")


@contextmanager
def progress(site: str) -> Iterator[Callable[[Part, Stage, int, int], None]]:
    """Show one bar for each stage of each part of the data, with rate and time left, on stderr."""
    with show.ingest_progress() as update:
        yield partial(update, site)


# Ingest


def ingested(data: SiteData, reports: dict[Part, IngestReport]) -> None:
    """Print a table, then everything that was set aside."""
    table = _table(f"{data.name}: ingested", "data", "subjects", "scans", "read now", "set aside")
    for part, report in reports.items():
        scans = report.manifest.scans
        subjects, aside = len(report.manifest.subjects), len(report.quarantined)
        table.add_row(part, *map(str, (subjects, len(scans), report.num_read, aside)))
    _results.print(table)
    for part, report in reports.items():
        for note in report.notes:
            say(f"{part}: {note}")
        _set_aside(part, [(q.code, q.sentence, q.remedy, q.where) for q in report.quarantined])


def ingested_json(data: SiteData, reports: dict[Part, IngestReport]) -> None:
    """Print the same as one JSON object."""
    as_json(
        {
            "format": "cohortium-site-ingest/1",
            "site": data.name,
            "parts": {part: _report_json(report) for part, report in reports.items()},
        }
    )


def _report_json(report: IngestReport) -> dict[str, Any]:
    return {
        "subjects": len(report.manifest.subjects),
        "scans": len(report.manifest.scans),
        "read_now": report.num_read,
        "manifest_root": report.manifest.root,
        "set_aside": [
            {"code": q.code, "where": q.where, "sentence": q.sentence, "remedy": q.remedy}
            for q in report.quarantined
        ],
        "identifiers_found": report.identifiers_found,
        "notes": list(report.notes),
    }


def _set_aside(part: str, entries: Iterable[tuple[str, str, str, str]]) -> None:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for code, sentence, remedy, where in entries:
        groups.setdefault((code, sentence, remedy), []).append(where)
    for (code, sentence, remedy), places in sorted(groups.items(), key=lambda g: -len(g[1])):
        say(f"{part}: {len(places)} x {code}: {sentence}", "yellow")
        say(f"    {remedy}")
        for where in places[:MOST_PATHS]:
            say(f"    - {where}", "dim")
        if len(places) > MOST_PATHS:
            say(f"    - and {len(places) - MOST_PATHS} more; --json lists all", "dim")


# Check


def readiness(found: Readiness) -> None:
    """Print what ``site check`` found."""
    for part in found.parts:
        _part(part)
    _permission(found)
    if found.decoding:
        _decoding(found.decoding)
    if found.budget is not None:
        _budget(found.budget)
    _leaving(found)
    for finding in found.findings:
        mark, style = ("BLOCKS", "red") if finding.blocks else ("note", "yellow")
        say(f"{mark:7}{finding.what}", style)
    if found.ready:
        say("Ready: nothing would block training.", "green")
    else:
        say("Not ready: see the lines that say BLOCKS.", "bold red")


def _part(part: PartFound) -> None:
    say(
        f"{part.part}: {part.num_subjects} subjects, {part.num_scans} scans, "
        f"{part.num_unusable} set aside ({part.kind})",
        "bold",
    )
    _bars("modality", part.modalities)
    _bars("spacing, z × y × x", part.spacings)
    _bars("shape, z × y × x", part.shapes)
    _bars("scans of a subject", part.scans_per_subject)
    _shares(part)
    _bars("target", part.targets)
    _bars("identifiers in headers (files; no value is kept)", part.identifiers)
    burned = sum(len(reason.where) for reason in part.burned_in)
    if burned:
        say(f"  {burned} images may carry burned-in text and were set aside", "yellow")
    for note in part.notes:
        say(f"  {note}")
    _set_aside(
        part.part, ((u.code, u.sentence, u.remedy, w) for u in part.unusable for w in u.where)
    )


def _bars(title: str, counts: Counts) -> None:
    if not counts:
        return
    most = max(number for _, number in counts) or 1
    shown = [(name, number / most, str(number)) for name, number in counts[:_MOST_ROWS]]
    _histogram(title, shown)
    if len(counts) > _MOST_ROWS:
        say(f"    and {len(counts) - _MOST_ROWS} more", "dim")


def _shares(part: PartFound) -> None:
    rows = [
        (use.name, use.share, f"{use.share:.2%} in {use.num_scans} scans") for use in part.labels
    ]
    if rows:
        _histogram("class: share of voxels", rows)


def _histogram(title: str, rows: Sequence[tuple[str, float, str]]) -> None:
    say(f"  {title}")
    width = min(40, max(len(name) for name, _, _ in rows))
    for name, share, text in rows:
        filled = max(1, round(share * _BAR)) if share else 0
        bar = "█" * filled + "░" * (_BAR - filled)
        say(f"    {name[:40]:{width}} {bar} {text}")


def _permission(found: Readiness) -> None:
    say(f"terms: {', '.join(found.terms) or 'not declared'}; {found.num_excluded} excluded", "bold")
    consent = found.consent
    if consent is None:
        return
    say(
        f"  consent: of {consent.num_subjects} subjects {consent.unknown} are not in the table, "
        f"{consent.expired} have expired"
    )
    _bars("consent holds today for", consent.with_consent)


def _decoding(found: Sequence[Protection]) -> None:
    active = ", ".join(one.name for one in found if not one.missing)
    say(f"images are decoded in a process of its own: {active or 'with no protection here'}")
    for one in found:
        if one.missing:
            say(f"  not on this machine: {one.name} ({one.missing})", style="yellow")


def _budget(budget: BudgetFound) -> None:
    spent = "infinite (no privacy)" if isinf(budget.spent) else f"{budget.spent:.2f}"
    say(
        f"budget: epsilon {spent} of {budget.limit:g} at delta {budget.delta:g} spent in "
        f"{budget.charges} rounds; {len(budget.open_approvals)} open approvals",
        "bold",
    )
    for approval in budget.open_approvals:
        say(f"  {approval}")
    if budget.declaration:
        say(f"  declared to be of no people by {budget.declaration}")


def _leaving(found: Readiness) -> None:
    table = _table("What would leave this site, and nothing else", "field", "value", "why")
    for one in found.leaving:
        table.add_row(*map(Text, (f"{one.message}: {one.field}", one.value, one.why)))
    _results.print(table)


# Exclusion and purge


def excluded(done: Excluded) -> None:
    """Print what became of an exclusion, and which models used the earlier data."""
    if done.already:
        say("This subject had been excluded before; everything is as it should be.")
    else:
        say(f"Excluded. Out of the cache: {done.num_scans} of their scans. No round samples them.")
    _still_there(done)
    if not done.used_by:
        say("No experiment was approved on the data with this subject.")
        return
    title = "Who may have used the earlier data"
    table = _table(title, "experiment", "run", "updates that left", "model")
    for used in done.used_by:
        for run, updates in used.runs.items() or [("none", 0)]:
            model = used.models.get(run, "none")
            table.add_row(*map(Text, (_called(used), run, str(updates), model)))
    _results.print(table)
    say(
        "Updates that left cannot be called back; each was noised within the subject's budget. "
        "These approvals hold no longer: approve again to go on with the data as they are."
    )


def _still_there(done: Excluded) -> None:
    """Say in which folders; what lies below them may be named after the subject."""
    for one in done.still_there:
        what = "the copy of a PACS" if one.is_mirror else "your own images"
        if not one.looked:
            say(f"Could not be looked through for the subject: {what} in {one.folder}", "yellow")
            continue
        say(
            f"Still there, and yours to delete: {what} in {one.folder} hold the subject in "
            f"{len(one.where)} places. --json names them; their names may tell who it is.",
            "yellow",
        )


def _called(used: UsedBy) -> str:
    earlier = " (on still earlier data)" if used.on_earlier_data else ""
    return f"{used.name} {used.digest.removeprefix('sha256:')[:12]}{earlier}"


def excluded_json(done: Excluded) -> None:
    """Print the same as one JSON object."""
    as_json(
        {
            "format": "cohortium-site-exclude/1",
            "pseudonym": done.subject,
            "already_excluded": done.already,
            "scans": done.num_scans,
            "still_there": [
                {
                    "folder": str(one.folder),
                    "is_mirror": one.is_mirror,
                    "looked": one.looked,
                    "where": list(one.where),
                }
                for one in done.still_there
            ],
            "used_by": [
                {
                    "experiment": used.name,
                    "digest": used.digest,
                    "runs": used.runs,
                    "models": used.models,
                    "on_earlier_data": used.on_earlier_data,
                }
                for used in done.used_by
            ],
        }
    )


def purged(done: Purged) -> None:
    """Print what a purge deleted, what it looked for, and what stays."""
    if not done.num_files:
        say("There was no cache to delete.")
    for part, root in done.roots.items():
        say(f"Deleted: {part} cache, manifest root {root}")
    if done.num_files:
        say(f"Deleted: {done.num_files} files, {done.num_bytes:,} bytes. Looked: nothing is left.")
    say(f"Still in the state folder: {', '.join(done.staying) or 'nothing'}.")
    for mirror in done.outside:
        say(
            f"Not deleted, since it lies outside the cache: the copy of a PACS in {mirror}",
            "yellow",
        )


def self_audits(data: SiteData, audits: Sequence[RunAudit]) -> None:
    """Show what each experiment's self-audit concludes, in its own words."""
    if not audits:
        say(f"{data.name}: no run under privacy has been audited here yet.")
    for audit in audits:
        style = "bold red" if audit.report["verdict"] == "violation" else "bold"
        several = len(audit.runs) > 1
        runs = f"{len(audit.runs)} runs, the newest {audit.run}" if several else f"run {audit.run}"
        say(f"Experiment {audit.experiment_digest[:19]}, {runs}", style)
        say(audit.text + "\n")


def self_audits_json(data: SiteData, audits: Sequence[RunAudit]) -> None:
    """Print, as one JSON object, what of it a board may be given."""
    experiments = [
        {"experiment": audit.experiment_digest, "runs": audit.runs, **for_others(audit.report)}
        for audit in audits
    ]
    as_json({"format": "cohortium-site-audit/1", "site": data.name, "experiments": experiments})


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
