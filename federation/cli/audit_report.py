"""``cohortium audit report``: one page for an ethics board. Decodes arguments, writes the page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from federation.cli.audit_options import Closings, Files, Opening, Paths, Receipts, Trust
from federation.errors import FederationError
from federation.files import write_where_asked

if TYPE_CHECKING:
    from federation.audit.checking import Checked

REPORT_HELP = """Write one HTML page that an ethics board reads without mathematics.

It says who trained what on whose data and why, what was promised and what is spent (with plots),
what these numbers mean and what they do not cover, and what was verified. PATH is a ledger, or a
folder that is searched for ledgers, receipts and closings. The page loads nothing, runs nothing and
prints well; nothing is sent anywhere.

\b
Examples:
  cohortium audit report --trust trust.txt --experiments configs/ runs/brains/ site-a/state/
  cohortium audit report --trust trust.txt --out may.html --receipts receipts.json a.jsonl b.jsonl
  cohortium audit report --trust trust.txt --self-audit self-audits.json a.jsonl
  cohortium audit report --trust trust.txt --opening opening.json site-a/state/ runs/brains/

Without --experiments an approval's experiment is shown by its digest alone, since a ledger holds
neither its name nor its purpose.

Exit status: 0 verified; 1 contradicted, or no --trust (the page is written and says so); 2 the
command cannot be run as given.
"""


def report(  # noqa: PLR0913, PLR0917 - options of a command
    paths: Paths,
    trust: Trust = None,
    receipts: Receipts = None,
    closings: Closings = None,
    experiments: Annotated[
        Files,
        typer.Option(metavar="FILE|FOLDER", help="Experiment files: names, purposes. Repeatable."),
    ] = None,
    self_audit: Annotated[
        Files,
        typer.Option(
            "--self-audit",
            "--self-audits",
            metavar="FILE|FOLDER",
            help="A site's own test of its noise. Repeatable.",
        ),
    ] = None,
    opening: Opening = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("report.html"),
) -> None:
    """Write one page for an ethics board."""
    # Here and not above: dp-accounting takes seconds to load, and --help needs none of it.
    from federation.audit.checking import check

    try:
        found = check(
            paths,
            trust=trust or (),
            receipts=receipts or (),
            closings=closings or (),
            self_audits=self_audit or (),
            openings=opening or (),
        )
        if not found.found.ledgers:
            raise FederationError(
                f"{found.found.told or 'These are no ledgers.'} A report is made from ledgers: ask "
                "the sites for theirs. 'cohortium audit verify' checks receipts by themselves."
            )
        write_where_asked(out, _page(found, experiments or []).encode(), "The report")
    except FederationError as error:
        Console(stderr=True).print(Text(f"Error: {error}"), soft_wrap=True)
        raise typer.Exit(2) from error
    checked = found.report
    verdicts = ", ".join(f"{v.site or v.path}: {v.summary}" for v in checked.verdicts)
    for problem in checked.problems:
        Console().print(Text(f"PROBLEM {problem}", style="red"), soft_wrap=True)
    Console().print(Text(f"{verdicts}. The report is {out}."), soft_wrap=True)
    raise typer.Exit(0 if checked.ok else 1)


def _page(checked: "Checked", experiments: list[Path]) -> str:
    from federation.audit.report import board_report
    from federation.audit.report_page import page
    from federation.audit.report_sources import read_experiments
    from federation.ledger.records import now

    told = board_report(
        checked.report,
        made_at=now(),
        experiments=read_experiments(experiments),
        self_audits=checked.self_audits,
        receipts=checked.num_receipts,
    )
    return page(told)
