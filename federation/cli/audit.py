"""``cohortium audit``: for boards and auditors. Decodes arguments, prints verdicts."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from federation.cli.audit_options import Closings, Files, Opening, Paths, Receipts, Trust
from federation.cli.audit_report import REPORT_HELP, report
from federation.errors import FederationError

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
could leave out its newest records unnoticed; from the site itself they are worth nothing. By
themselves (a hub's folder holds no ledger) they show what left, and the exit status is 1.

\b
Each claim of a ledger is one of
  recomputed    shown from the files, whoever wrote them
  signed        a key that you trust stands for it
  asserted      somebody says so
  contradicted  it is not so

Exit status: 0 verified; 1 contradicted, no ledger, or no --trust; 2 the command cannot be run.
"""


@app.callback()
def audit() -> None:
    """Check what sites say their subjects have lost."""


@app.command(help=VERIFY_HELP)
def verify(  # noqa: PLR0913, PLR0917 - options of a command
    paths: Paths,
    trust: Trust = None,
    receipts: Receipts = None,
    closings: Closings = None,
    self_audit: Annotated[
        Files,
        typer.Option(metavar="FILE|FOLDER", help="A site's own test of its noise. Repeatable."),
    ] = None,
    opening: Opening = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check ledgers and print a verdict on each."""
    # Here and not above: dp-accounting takes seconds to load, and no other command needs it.
    from federation.audit.checking import check
    from federation.cli.show_audit import show

    try:
        checked = check(
            paths,
            trust=trust or (),
            receipts=receipts or (),
            closings=closings or (),
            self_audits=self_audit or (),
            openings=opening or (),
        )
    except FederationError as error:
        Console(stderr=True).print(Text(f"Error: {error}"), soft_wrap=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(
            json.dumps({**checked.report.to_json(), "found": checked.found.to_json()}, indent=2)
        )
    else:
        show(checked.report, checked.found)
    raise typer.Exit(0 if checked.report.ok else 1)


app.command("report", help=REPORT_HELP)(report)
