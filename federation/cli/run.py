"""``cohortium run``: one experiment over sites on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from federation.authors import Signature, read_signature, signature_path
from federation.cli import show
from federation.cli.site import operator
from federation.errors import FederationError
from federation.experiment import Experiment, load_experiment

ExperimentFile = Annotated[Path, typer.Argument(help="The experiment, a YAML file.")]
SiteFiles = Annotated[
    list[Path], typer.Option("--site", help="A site file; give one --site for each site.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for the results.", show_default="runs/<name>-<date-time>"),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Approve for every site without asking.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON; progress stays on stderr.")
]


def run(
    experiment: ExperimentFile,
    site: SiteFiles,
    out: Out = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Train over sites on this machine, each paying from its own privacy budget.

    Data is checked and cached first, then you see what each site will pay and are asked once.

    Example:

    $ cohortium run configs/hippocampus.yaml --site north/site.yaml --site lab/site.yaml
    """
    loaded = load_experiment(experiment)
    folder = out or show.new_folder(Path("runs"), loaded.name)
    carry_out(
        loaded,
        site,
        out=folder,
        yes=yes,
        approver=operator(),
        as_json=as_json,
        signature=read_signature(signature_path(experiment)),
    )


def carry_out(  # noqa: PLR0913 - all but two are named
    experiment: Experiment,
    site_files: Sequence[Path],
    *,
    out: Path,
    yes: bool,
    approver: str,
    as_json: bool,
    signature: Signature | None = None,
) -> None:
    """Do all of a local run with progress on stderr and results on stdout.

    Raises:
        FederationError: What the person at the screen can put right.
    """
    from federation.run import (
        approve,
        check_experiment,
        ingest_sites,
        open_sites,
        quote,
        run_experiment,
    )

    _require_new(out)
    check_experiment(experiment)
    sites = open_sites(site_files)
    with show.ingest_progress() as progress:
        reports = ingest_sites(sites, progress)
    show.ingest_table(sites, reports)
    show.consent(experiment, sites)
    with show.working("Trying the experiment on every subject"):
        quotes = quote(experiment, sites)
    show.quote_table(experiment, quotes)
    if all(q.admitted for q in quotes):
        _ask(yes, approver)
    # Where a quote does not fit this raises, and that site's ledger has the refusal on record.
    approve(experiment, sites, approver=approver, signature=signature)
    with show.run_progress(experiment, sites) as on_event:
        summary = run_experiment(experiment, sites, out=out, on_event=on_event)
    show.failures(sites)
    show.self_audits(sites, summary.run)
    if as_json:
        show.summary_json(summary)
    else:
        show.summary_table(summary)


def _require_new(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FederationError(
            f"{out} is not an empty folder, and two runs never share one. Give another --out."
        )


def _ask(yes: bool, approver: str) -> None:
    if yes:
        show.note(f"Approved by {approver} (--yes); recorded in each site's ledger.")
    elif not typer.confirm("Approve for every site and start?", err=True):
        raise FederationError("Not approved. Nothing was charged and nothing was sent.")
