"""What ``cohortium audit verify`` prints."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from federation.audit.sources import Sources
from federation.audit.verify import Report, Verdict

# Of claims, side by side: what 80 columns hold.
_LEDGERS_ABREAST = 4
_STYLES = {"contradicted": "bold red", "asserted": "yellow", "signed": "", "recomputed": "green"}


def show(report: Report, found: Sources) -> None:
    """Print what was found, the figures, the claims, what is wrong, and the conclusion."""
    console = Console()
    if found.told:
        console.print(Text(found.told), soft_wrap=True)
    if report.verdicts:
        console.print(_table(report.verdicts))
    for start in range(0, len(report.verdicts), _LEDGERS_ABREAST):
        console.print(_claims(report.verdicts[start : start + _LEDGERS_ABREAST]))
    for verdict in report.verdicts:
        name = _name(verdict)
        for problem in verdict.problems:
            console.print(Text(f"PROBLEM {name}: {problem}", style="red"), soft_wrap=True)
        for note in verdict.notes:
            console.print(Text(f"note    {name}: {note}", style="yellow"), soft_wrap=True)
    for problem in report.problems:
        console.print(Text(f"PROBLEM {problem}", style="red"), soft_wrap=True)
    for note in report.notes:
        console.print(Text(f"note    {note}", style="yellow"), soft_wrap=True)
    console.print(Text(_conclusion(report)), soft_wrap=True)


def _table(verdicts: tuple[Verdict, ...]) -> Table:
    table = Table(
        title="Epsilon that was spent, recomputed",
        box=SIMPLE_HEAD,
        padding=0,
        collapse_padding=True,
    )
    table.add_column("site", overflow="fold")
    table.add_column("verdict", overflow="fold", min_width=8)
    table.add_column("limit", justify="right")
    for column in ("filter", "dp-acc.", "PLD*", "charged", "sent", "refused"):
        table.add_column(column, justify="right", no_wrap=True)
    for verdict in verdicts:
        table.add_row(*map(Text, _row(verdict)))  # Text: a ledger's words are never markup
    return table


def _row(verdict: Verdict) -> tuple[str, ...]:
    policy: Any = verdict.policy
    limit = f"{policy.epsilon:g} @ {policy.delta:g}" if policy else "?"
    pld = verdict.pld.value
    return (
        _name(verdict),
        verdict.summary.removeprefix("consistent, "),
        limit,
        f"{verdict.spent_epsilon:.3f}",
        f"{verdict.rdp_epsilon:.3f}",
        "n/a" if pld is None else f"{pld:.3f}",
        str(verdict.charges),
        str(verdict.releases),
        str(sum(verdict.refusals.values())),
    )


def _claims(verdicts: Sequence[Verdict]) -> Table:
    """Show the claims of a few ledgers side by side; of one alone, with what each rests on."""
    table = Table(box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    table.add_column("claim", overflow="fold")
    for verdict in verdicts:
        table.add_column(Text(_name(verdict)), overflow="fold", min_width=len("contradicted"))
    alone = len(verdicts) == 1
    if alone:
        table.add_column("what it rests on", overflow="fold")
    for row in zip(*(verdict.claims for verdict in verdicts), strict=True):
        cells = [Text(claim.status, style=_STYLES[claim.status]) for claim in row]
        why = [Text(row[0].why)] if alone else []
        table.add_row(Text(row[0].what), *cells, *why)
    return table


def _name(verdict: Verdict) -> str:
    return verdict.site or str(verdict.path)


def _conclusion(report: Report) -> str:
    if not report.verdicts:
        return "\n".join(
            (
                "Receipts and closings show what left, not all that was charged, nor what permitted"
                " it.",
                *(["Contradicted: do not rely on them."] if report.problems else []),
                "No ledger was given, so no epsilon was recomputed: ask the sites for theirs.",
            )
        )
    lines = [
        "The guarantee is the limit (epsilon @ delta); filter and dp-acc. say how near it is.",
        "* PLD: epsilon if nothing had been chosen adaptively.",
        "A receipt shows what was charged; it does not prove that noise was drawn.",
        *(["--json says what each claim rests on."] if len(report.verdicts) > 1 else []),
    ]
    if report.ok:
        return "\n".join([*lines, "Verified."])
    if report.problems or any(not verdict.consistent for verdict in report.verdicts):
        return "\n".join([*lines, "Contradicted: do not rely on these figures."])
    return "\n".join(
        [*lines, "Consistent, identity unknown: pass --trust with the sites' fingerprints."]
    )
