"""``cohortium audit``: for boards and auditors. Decodes arguments, prints verdicts."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from federation.audit.verify import Report, Verdict, verify_ledgers
from federation.errors import FederationError
from federation.ledger.receipts import Receipt

app = typer.Typer(no_args_is_help=True, help="Check what sites say their subjects have lost.")

VERIFY_HELP = """Check ledgers: hash chain, signatures, approvals, and epsilon by dp-accounting.

Nothing is sent anywhere, and neither a site's key nor its images are needed.

\b
Examples:
  cohortium audit verify --trust trust.txt --receipts out/receipts.json a.jsonl
  cohortium audit verify --trust SHA256:Zmh6...fKSU a.jsonl b.jsonl
  cohortium audit verify --trust trust.txt --json a.jsonl > verdict.json

\b
A trust file has one site a line, as each site told you itself:
  # name     fingerprint
  hospital-a SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU

Receipts are the JSON lists that a run leaves beside its model. Without them a site could leave
out its newest records unnoticed.

Exit status: 0 verified; 1 contradicted, or no --trust; 2 the command cannot be run as given.
"""


@app.callback()
def audit() -> None:
    """Check what sites say their subjects have lost."""


@app.command(help=VERIFY_HELP)
def verify(
    ledgers: Annotated[list[Path], typer.Argument(metavar="LEDGER...", show_default=False)],
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|SHA256:...", help="Trust file, or a fingerprint. Repeatable."),
    ] = None,
    receipts: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Receipts that a run left. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check ledgers and print a verdict on each."""
    try:
        trusted = read_trust(trust) if trust else None
        given = [receipt for path in receipts or () for receipt in read_receipts(path)]
    except FederationError as error:
        Console(stderr=True).print(Text(f"Error: {error}"), soft_wrap=True)
        raise typer.Exit(2) from error
    report = verify_ledgers(ledgers, trust=trusted, receipts=given)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        _show(report)
    raise typer.Exit(0 if report.ok else 1)


def read_trust(values: list[str]) -> dict[str, str]:
    """Return fingerprints by site name, from trust files and bare fingerprints.

    Raises:
        FederationError: A file is missing, or a line is not a name and a fingerprint.
    """
    trusted: dict[str, str] = {}
    for value in values:
        if value.startswith("SHA256:"):
            trusted.update({part: _fingerprint(part, "--trust") for part in value.split(",")})
        else:
            trusted.update(_trust_file(Path(value)))
    return trusted


def read_receipts(path: Path) -> list[Receipt]:
    """Return the receipts in a JSON list.

    Raises:
        FederationError: The file is missing, not JSON, or an entry is not a receipt.
    """
    try:
        values = json.loads(_read(path, "receipts"))
    except (ValueError, RecursionError) as error:
        raise FederationError(
            f"{path} is not JSON. Pass the receipts.json that a run left, unchanged."
        ) from error
    if not isinstance(values, list):
        raise FederationError(f"{path} is not a JSON list of receipts, as a run leaves it.")
    return [_receipt(path, position, value) for position, value in enumerate(values)]


def _receipt(path: Path, position: int, value: object) -> Receipt:
    try:
        return Receipt.from_json(value)
    except ValueError as error:
        raise FederationError(
            f"{path}, entry {position + 1}: {error}. Pass the receipts.json that a run left, "
            "unchanged."
        ) from error


def _trust_file(path: Path) -> dict[str, str]:
    trusted: dict[str, str] = {}
    for number, line in enumerate(_read(path, "trust").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) != 2 or words[0] in trusted:
            raise FederationError(
                f"{where}: expected a site's name once, and its fingerprint, as in "
                "'hospital-a SHA256:...'. Correct the line."
            )
        trusted[words[0]] = _fingerprint(words[1], where)
    if not trusted:
        raise FederationError(f"{path} names no site. Write lines such as 'hospital-a SHA256:...'.")
    return trusted


def _fingerprint(text: str, where: str) -> str:
    if not (text.startswith("SHA256:") and len(text) == len("SHA256:") + 43):
        raise FederationError(
            f"{where}: {text!r} is not a fingerprint, which is SHA256: and 43 characters. "
            "Copy it whole from the site."
        )
    return text


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise FederationError(
            f"There is no readable {what} file {path} ({error.strerror}). Correct the path."
        ) from error
    except UnicodeDecodeError as error:
        raise FederationError(f"The {what} file {path} is not text. Correct the path.") from error


def _show(report: Report) -> None:
    console = Console()
    console.print(_table(report.verdicts))
    for verdict in report.verdicts:
        name = verdict.site or str(verdict.path)
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
        verdict.site or str(verdict.path),
        verdict.summary.removeprefix("consistent, "),
        limit,
        f"{verdict.spent_epsilon:.3f}",
        f"{verdict.rdp_epsilon:.3f}",
        "n/a" if pld is None else f"{pld:.3f}",
        str(verdict.charges),
        str(verdict.releases),
        str(sum(verdict.refusals.values())),
    )


def _conclusion(report: Report) -> str:
    lines = [
        "The guarantee is the limit (epsilon @ delta); filter and dp-acc. say how near it is.",
        "* PLD: epsilon if nothing had been chosen adaptively.",
        "A receipt shows what was charged; it does not prove that noise was drawn.",
    ]
    if report.ok:
        return "\n".join([*lines, "Verified."])
    if report.problems or any(not verdict.consistent for verdict in report.verdicts):
        return "\n".join([*lines, "Contradicted: do not rely on these figures."])
    return "\n".join(
        [*lines, "Consistent, identity unknown: pass --trust with the sites' fingerprints."]
    )
