"""``cohortium audit``: for boards and auditors. Decodes arguments, prints verdicts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from federation.audit.sources import (
    find_sources,
    read_closings,
    read_opening,
    read_receipts,
    read_text,
)
from federation.audit.verify import verify_ledgers
from federation.cli.audit_report import REPORT_HELP, report
from federation.cli.show_audit import show
from federation.errors import FederationError

if TYPE_CHECKING:
    from federation.audit.report_sources import SelfAuditSeen

__all__ = ["app", "read_receipts", "read_trust"]

app = typer.Typer(no_args_is_help=True, help="Check what sites say their subjects have lost.")

VERIFY_HELP = """Check ledgers: hash chain, signatures, approvals, and epsilon by dp-accounting.

Nothing is sent anywhere, and neither a site's key nor its images are needed. PATH is a ledger, or
a folder that is searched for ledgers, receipts and closings: what a run left, a site's state
folder, a hub's folder, or an export of an MLflow run.

\b
Examples:
  cohortium audit verify --trust trust.txt runs/brains/ site-a/state/ site-b/state/
  cohortium audit verify --trust trust.txt --receipts out/receipts.json a.jsonl
  cohortium audit verify --trust SHA256:Zmh6...fKSU a.jsonl b.jsonl
  cohortium audit verify --trust trust.txt --json a.jsonl > verdict.json

\b
A trust file has one site a line, as each site told you itself:
  # name     fingerprint
  hospital-a SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU

Receipts and closings are the JSON lists that a run leaves beside its model. Without them a site
could leave out its newest records unnoticed; from the site itself they are worth nothing.

\b
Each claim of a ledger is one of
  recomputed    shown from the files, whoever wrote them
  signed        a key that you trust stands for it
  asserted      somebody says so
  contradicted  it is not so

Exit status: 0 verified; 1 contradicted, or no --trust; 2 the command cannot be run as given.
"""


@app.callback()
def audit() -> None:
    """Check what sites say their subjects have lost."""


@app.command(help=VERIFY_HELP)
def verify(  # noqa: PLR0913, PLR0917 - options of a command
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", show_default=False)],
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|SHA256:...", help="Trust file, or a fingerprint. Repeatable."),
    ] = None,
    receipts: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Receipts that a run left. Repeatable."),
    ] = None,
    closings: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Closings that a run left. Repeatable."),
    ] = None,
    self_audit: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE|FOLDER", help="A site's own test of its noise. Repeatable."),
    ] = None,
    opening: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What a site opened its data commitment with."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check ledgers and print a verdict on each."""
    try:
        trusted = read_trust(trust) if trust else None
        found = find_sources(paths, receipts=receipts or (), closings=closings or ())
        checked = verify_ledgers(
            found.ledgers,
            trust=trusted,
            receipts=[receipt for path in found.receipts for receipt in read_receipts(path)],
            closings=[closing for path in found.closings for closing in read_closings(path)],
            self_audits=_self_audits(self_audit or []),
            openings=[read_opening(path) for path in opening or ()],
        )
    except FederationError as error:
        Console(stderr=True).print(Text(f"Error: {error}"), soft_wrap=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps({**checked.to_json(), "found": found.to_json()}, indent=2))
    else:
        show(checked, found)
    raise typer.Exit(0 if checked.ok else 1)


app.command("report", help=REPORT_HELP)(report)


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


def _self_audits(paths: list[Path]) -> "Sequence[SelfAuditSeen]":
    if not paths:
        return ()
    from federation.audit.report_sources import read_self_audits

    return read_self_audits(paths)


def _trust_file(path: Path) -> dict[str, str]:
    trusted: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "trust").splitlines(), start=1):
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
