"""What people see: progress on stderr, tables and JSON on stdout. No decisions here."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from math import isfinite, isinf
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from federation.experiment import Experiment
from federation.messages import RoundFinished

if TYPE_CHECKING:
    from data_adapters.ingest import IngestReport, Stage
    from federation.run import Quote, RunSummary
    from federation.site import Part, Site

# A task's score, as people know it.
SCORES = {"dice": "Dice", "auc": "AUC", "mae": "Mean absolute error"}
_LOWER = " (lower is better)"

_progress = Console(stderr=True)
_results = Console()


def note(text: str) -> None:
    """Print one line beside the progress."""
    _progress.print(text)


def new_folder(parent: Path, name: str) -> Path:
    """Return a folder name that says when; it is not made yet."""
    return parent / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def going_on(newest_round: int, experiment: Experiment) -> None:
    """Say where an interrupted run stands."""
    note(
        f"Going on after round {newest_round} of {experiment.algorithm.rounds}. What sites have "
        "sent they send again at no charge."
    )


def layout(site_files: Sequence[Path]) -> None:
    """Say where the simulated sites are."""
    for path in site_files:
        note(f"  [dim]site file[/] {path}")


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show that something of unknown length is going on."""
    with _progress.status(what):
        yield


@contextmanager
def layout_progress() -> Iterator[Callable[[int, int], None]]:
    """Show how many simulated subjects are on disk."""
    with _bar("Simulating subjects") as update:
        yield update


@contextmanager
def ingest_progress() -> Iterator[Callable[[str, "Part", "Stage", int, int], None]]:
    """Show each stage of each site's ingest as a bar of its own."""
    with _bars() as bars:
        tasks: dict[str, Any] = {}

        def update(site: str, part: "Part", stage: "Stage", done: int, total: int) -> None:
            name = f"{stage.capitalize()} {site} ({part})"
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=None)
            # While it is not known how much there is, a bar that only moves.
            bars.update(tasks[name], completed=done, total=total or None)

        yield update


def ingest_table(
    sites: Sequence["Site"], reports: Mapping[str, Mapping["Part", "IngestReport"]]
) -> None:
    """Show what a site operator would see of their own data; it stays on this screen."""
    table = Table(title="What each site's operator sees (never sent)", title_justify="left")
    for heading in (
        "site",
        "data",
        "format",
        "subjects",
        "scans",
        "set aside",
        "identifiers found",
    ):
        table.add_column(heading)
    for site in sites:
        for part, report in reports[site.name].items():
            table.add_row(*_ingest_row(site, part, report))
    _progress.print(table)
    for site in sites:
        for part, report in reports[site.name].items():
            _quarantine_lines(f"{site.name} ({part})", report)


def consent(experiment: Experiment, sites: Sequence["Site"]) -> None:
    """Tell each site's operator how many subjects are not sampled; never sent."""
    for site in sites:
        left_out = site.without_consent(experiment.data_use)
        if left_out:
            subjects = len(site.manifest("protected").subjects)
            note(
                f"  {site.name}: [yellow]{len(left_out)} of {subjects} subjects[/] have not "
                "consented to this experiment, or not any more; they are not sampled."
            )


def _ingest_row(site: "Site", part: "Part", report: "IngestReport") -> tuple[str, ...]:
    scans = report.manifest.scans
    found = report.identifiers_found
    kept_out = f"{len(found)} kinds, none kept" if found else "none"
    return (
        site.name,
        part,
        report.manifest.source_kind,
        str(len({scan.subject for scan in scans})),
        str(len(scans)),
        str(len(report.quarantined)),
        kept_out,
    )


def _quarantine_lines(where: str, report: "IngestReport") -> None:
    for code, count in Counter(q.code for q in report.quarantined).most_common():
        example = next(q for q in report.quarantined if q.code == code)
        note(f"  {where}: {count} x [yellow]{code}[/]: {example.sentence} {example.remedy}")


def quote_table(experiment: Experiment, quotes: Sequence["Quote"]) -> None:
    """Show what each site will pay."""
    table = Table(title=f"What '{experiment.name}' costs each site", title_justify="left")
    for heading in ("site", "epsilon now", "after this run", "limit", "delta", ""):
        table.add_column(heading)
    for q in quotes:
        fits = "[green]fits[/]" if q.admitted else "[bold red]refused[/]"
        table.add_row(
            q.site, epsilon(q.spent), epsilon(q.after), epsilon(q.limit), f"{q.delta:g}", fits
        )
    _progress.print(table)


@contextmanager
def run_progress(
    experiment: Experiment, sites: Sequence["Site"]
) -> Iterator[Callable[[RoundFinished], None]]:
    """Show rounds, which sites returned, public Dice, and epsilon against budget, live."""
    bars = Progress(*_columns(), console=_progress)
    task = bars.add_task("Training", total=experiment.algorithm.rounds)
    latest: list[Table] = [_standing(experiment, sites, None)]
    with Live(console=_progress, get_renderable=lambda: Group(bars, latest[0])) as live:

        def on_event(event: RoundFinished) -> None:
            bars.update(task, completed=event.round)
            latest[0] = _standing(experiment, sites, event)
            live.refresh()
            if not _progress.is_terminal:
                note(_round_line(experiment, event))

        yield on_event
    if not _progress.is_terminal:
        note("")


def _round_line(experiment: Experiment, event: RoundFinished) -> str:
    task = experiment.task
    scores = [s[task.score] for s in event.scores.values() if task.score in s]
    mean = f", {SCORES[task.score]} on public subjects {fmean(scores):.3f}" if scores else ""
    mean += _LOWER if scores and task.lower_is_better else ""
    returned = _how_many(event) if event.round else "before training"
    return (
        f"round {event.round} of {experiment.algorithm.rounds}: {returned}{mean}{_missing(event)}"
    )


def _how_many(event: RoundFinished) -> str:
    """Return how many sites a round had; of how many, where some are missing."""
    num, whole = len(event.returned), event.num_sites
    returned = f"{num} sites returned" if num == whole else f"{num} of {whole} sites returned"
    if event.outcome == "skipped":
        return f"[bold red]SKIPPED[/], too few: {returned}, the model is as it was"
    return returned if num == whole else f"[bold yellow]{returned}[/]"


def _missing(event: RoundFinished) -> str:
    refused = "".join(f", {site} refused: {code}" for site, code in event.refused.items())
    return refused + "".join(f", {site} late" for site in event.late)


def incomplete_rounds(events: Sequence[RoundFinished]) -> list[str]:
    """Say of a run's rounds, loudly, in which of them sites were missing."""
    rounds = [event for event in events if event.round]
    skipped = [str(event.round) for event in rounds if event.outcome == "skipped"]
    fewer = [str(event.round) for event in rounds if event.lacks_sites]
    lines = []
    if skipped:
        lines.append(
            f"[bold red]Skipped for want of sites: {len(skipped)} of {len(rounds)} rounds[/] "
            f"({', '.join(skipped)}). They changed nothing; what sites paid in them stands."
        )
    if fewer:
        lines.append(
            f"[bold yellow]Without all sites: {len(fewer)} of {len(rounds)} rounds[/] "
            f"({', '.join(fewer)}). {_who_was_missing(rounds)}"
        )
    return lines


def _who_was_missing(rounds: Sequence[RoundFinished]) -> str:
    why = Counter(
        f"{site} ({code})"
        for event in rounds
        for site, code in {**event.refused, **dict.fromkeys(event.late, "late")}.items()
    )
    return "Missing: " + ", ".join(f"{who} {num} x" for who, num in sorted(why.items())) + "."


def _standing(
    experiment: Experiment, sites: Sequence["Site"], event: RoundFinished | None
) -> Table:
    table, name = Table(), experiment.task.score
    how = "public, lower is better" if experiment.task.lower_is_better else "public"
    for heading in ("site", "this round", f"{SCORES[name]} ({how})", "epsilon spent", "of"):
        table.add_column(heading)
    for site in sites:
        score = event.scores.get(site.name, {}).get(name, float("nan")) if event else float("nan")
        spent, limit = site.ledger.spent_epsilon, site.ledger.policy.epsilon
        table.add_row(
            site.name,
            _state(event, site.name),
            three_digits(score),
            _meter(spent, limit),
            epsilon(limit),
        )
    return table


def _state(event: RoundFinished | None, site: str) -> str:
    if event is None or event.round == 0:
        return "[dim]ready[/]"
    if site in event.refused:
        return f"[red]refused: {event.refused[site]}[/]"
    if site not in event.returned:
        return "[yellow]late[/]" if site in event.late else "[dim]no reply[/]"
    return "[red]skipped[/]" if event.outcome == "skipped" else "[green]returned[/]"


def _meter(spent: float, limit: float) -> str:
    filled = 12 if isinf(spent) else min(12, round(12 * spent / limit))
    return f"{'█' * filled}{'░' * (12 - filled)} {epsilon(spent)}"


def failures(sites: Sequence["Site"]) -> None:
    """Point each site's operator to failures that only the site's own log tells of."""
    for site in sites:
        if site.log_path.is_file():
            note(
                f"[yellow]{site.name}[/]: there have been failures at this site; its updates may "
                f"be weaker than they could be. See {site.log_path} (never sent)."
            )


def self_audits(sites: Sequence["Site"], run: str) -> None:
    """Say what each site's self-audit of a run's experiment concludes; it stays on this screen."""
    from federation.evidence import run_audits

    for site in sites:
        for audit in run_audits(site.config.state):
            if run in audit.runs:
                colour = "bold red" if audit.report["verdict"] == "violation" else "dim"
                note(f"[{colour}]{site.name}: self-audit: {audit.report['statement']}[/]")


def summary_table(summary: "RunSummary") -> None:
    """Print the end of a run: the table, then what to look at next."""
    table = Table(title=f"{summary.experiment.name}: {summary.seconds:.0f} s", title_justify="left")
    score = SCORES[summary.experiment.task.score]
    for heading in ("site", f"{score} before", f"{score} after", "epsilon spent", "epsilon left"):
        table.add_column(heading, justify="left" if heading == "site" else "right")
    for s in summary.sites:
        left = 0.0 if isinf(s.spent) else max(0.0, s.limit - s.spent)
        scores = (three_digits(s.before), three_digits(s.after))
        table.add_row(s.site, *scores, epsilon(s.spent), epsilon_left(left))
    subjects = sum(s.num_public for s in summary.sites)
    table.add_section()
    before, after = summary.mean_score("before"), summary.mean_score("after")
    means = (three_digits(before), three_digits(after))
    table.add_row(f"all {subjects} public subjects", *means, "", "")
    _results.print(table)
    for line in incomplete_rounds(summary.events):
        _results.print(line, soft_wrap=True)
    lower = "; lower is better" if summary.experiment.task.lower_is_better else ""
    _results.print(
        f"{score} is on subjects that each site declares public{lower}; epsilon is the filter's "
        "state."
    )
    for line in _next_steps(summary):
        _results.print(line, soft_wrap=True, highlight=False)


def _next_steps(summary: "RunSummary") -> list[str]:
    from federation.run import from_here

    ledgers = [f"  {s.site}: {from_here(s.ledger)}" for s in summary.sites]
    return [
        f"Model: {summary.out / 'model.safetensors'}, registered in MLflow as "
        f"{summary.tracked.model_name} version {summary.tracked.model_version}",
        "Open MLflow:",
        f"  {summary.mlflow_command}",
        "Each site's ledger:",
        *ledgers,
        "Verify the ledgers (recomputes epsilon with another accountant):",
        f"  {summary.verify_command}",
    ]


def summary_json(summary: "RunSummary") -> None:
    """Print the summary as one JSON object."""
    value = {
        "format": "cohortium-run/1",
        "run": summary.run,
        "experiment": summary.experiment.name,
        "experiment_digest": summary.experiment.digest(),
        "seconds": round(summary.seconds, 1),
        "out": str(summary.out),
        "mlflow": summary.store,
        "verify": summary.verify_command,
        "score": summary.experiment.task.score,
        "lower_is_better": summary.experiment.task.lower_is_better,
        "before": _number(summary.mean_score("before")),
        "after": _number(summary.mean_score("after")),
        "rounds": [
            {
                "round": event.round,
                "outcome": event.outcome,
                "returned": list(event.returned),
                "refused": dict(event.refused),
                "late": list(event.late),
                "num_sites": event.num_sites,
            }
            for event in summary.events
        ],
        "sites": [
            {
                "site": s.site,
                "before": _number(s.before),
                "after": _number(s.after),
                "num_public": s.num_public,
                "epsilon_spent": _number(s.spent),
                "epsilon_limit": s.limit,
                "fingerprint": s.fingerprint,
                "ledger": str(s.ledger),
            }
            for s in summary.sites
        ],
    }
    _results.file.write(json.dumps(value, indent=1) + "\n")


def _number(value: float) -> float | str | None:
    if isinf(value):
        return "infinite"
    return value if isfinite(value) else None


def epsilon(value: float) -> str:
    """Return epsilon with two decimals, rounded up, or the infinity sign."""
    return "∞ (no privacy)" if isinf(value) else f"{value + 0.00499999:.2f}"


def epsilon_left(value: float) -> str:
    """Return what is left with two decimals: rounded down, as what is spent is rounded up."""
    return f"{int(value * 100) / 100:.2f}"


def three_digits(value: float) -> str:
    """Return a score with three decimals, or a dash."""
    return f"{value:.3f}" if isfinite(value) else "-"


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    with _bars() as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _bars() -> Progress:
    return Progress(*_columns(), console=_progress)


def _columns() -> tuple[Any, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


class Rate(ProgressColumn):
    """How many a second, or how many seconds each."""

    def render(self, task: Task) -> Text:
        """Return the rate of late, or nothing before it is known."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.0f} s each")
