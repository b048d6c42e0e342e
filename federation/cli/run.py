"""``cohortium run``: one experiment over sites on this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.authors import Signature, read_signature, signature_path
from federation.cli import show
from federation.cli.decide import (
    EthicsReference,
    Expires,
    LegalBasis,
    end_of,
    for_the_ledger,
)
from federation.cli.site import operator
from federation.errors import FederationError
from federation.experiment import Experiment, load_experiment

if TYPE_CHECKING:
    from federation.run import Quote
    from federation.site import Site

ExperimentFile = Annotated[Path, typer.Argument(help="The experiment, a YAML file.")]
SiteFiles = Annotated[
    list[Path], typer.Option("--site", help="A site file; give one --site for each site.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for the results.", show_default="runs/<name>-<date-time>"),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Approve for every site without asking.")]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", help="Go on with the run in this folder, which was interrupted."),
]
Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        metavar="URI",
        help="Record the run in this MLflow server or store, too. One that is down stops nothing: "
        "'cohortium track' records it later.",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON; progress stays on stderr.")
]


def run(  # noqa: PLR0913 - a command's options
    experiment: ExperimentFile,
    site: SiteFiles,
    *,
    out: Out = None,
    ethics_reference: EthicsReference = None,
    legal_basis: LegalBasis = None,
    expires: Expires = None,
    yes: Yes = False,
    resume: Resume = None,
    track: Track = None,
    as_json: AsJson = False,
) -> None:
    """Train over sites on this machine, each paying from its own privacy budget.

    Data is checked and cached first, then you see exactly what will run and leave at each site
    that has not approved it yet, and what each will pay, and are asked once.
    With --resume a run that was interrupted goes on after its last round, under its approval.

    Example:

    $ cohortium run configs/hippocampus.yaml --site north/site.yaml --site lab/site.yaml
    """
    for_the_ledger(ethics_reference, legal_basis)
    loaded = load_experiment(experiment)
    if track is not None:
        from federation.elsewhere import require_address

        require_address(track)
    if resume is not None:
        if out is not None:
            raise FederationError("--resume goes on in the run's own folder. Leave --out away.")
        go_on(loaded, site, out=resume, as_json=as_json, folder=experiment.parent, track=track)
        return
    folder = out or show.new_folder(Path("runs"), loaded.name)
    carry_out(
        loaded,
        site,
        out=folder,
        yes=yes,
        approver=operator(),
        as_json=as_json,
        folder=experiment.parent,
        track=track,
        signature=read_signature(signature_path(experiment)),
        basis={
            "ethics_reference": ethics_reference,
            "legal_basis": legal_basis,
            "expires": end_of(expires) if expires else None,
        },
    )


def carry_out(  # noqa: PLR0913 - all but two are named
    experiment: Experiment,
    site_files: Sequence[Path],
    *,
    out: Path,
    yes: bool,
    approver: str,
    as_json: bool,
    folder: Path | None = None,
    track: str | None = None,
    signature: Signature | None = None,
    basis: Mapping[str, str | None] | None = None,
) -> None:
    """Do all of a local run with progress on stderr and results on stdout.

    Args:
        folder: Where the experiment's file is, for weights beside it that it starts from.
        track: Address of an MLflow server that is to know of the run, too.
        basis: Ethics reference, legal basis and expiry of the approvals; None where no operator
            decides, and then nobody is shown what exactly would be approved.

    Raises:
        FederationError: What the person at the screen can put right.
    """
    from federation.run import (
        approve,
        check_new_run,
        ingest_sites,
        open_sites,
        quote,
    )

    _require_new(out)
    check_new_run(experiment, folder)
    sites = open_sites(site_files)
    with show.ingest_progress() as progress:
        reports = ingest_sites(sites, progress)
    show.ingest_table(sites, reports)
    show.consent(experiment, sites)
    with show.working("Trying the experiment on every subject"):
        quotes = quote(experiment, sites)
    show.quote_table(experiment, quotes)
    if all(q.admitted for q in quotes):
        if basis is not None:
            _offer(experiment, list(zip(sites, quotes, strict=True)), approver, signature, basis)
        _ask(yes, approver)
    # Where a quote does not fit this raises, and that site's ledger has the refusal on record.
    approve(experiment, sites, approver=approver, signature=signature, **(basis or {}))
    _train(experiment, sites, out=out, as_json=as_json, resume=False, folder=folder, track=track)


def go_on(  # noqa: PLR0913 - all but two are named
    experiment: Experiment,
    site_files: Sequence[Path],
    *,
    out: Path,
    as_json: bool,
    folder: Path | None = None,
    track: str | None = None,
) -> None:
    """Carry on with an interrupted run; its sites have approved it, and are asked nothing.

    Raises:
        FederationError: There is nothing to go on from, or what ``carry_out`` raises.
    """
    from federation.run import check_experiment, how_far, open_sites

    show.going_on(how_far(experiment, out), experiment)
    check_experiment(experiment)
    sites = open_sites(site_files)
    _train(experiment, sites, out=out, as_json=as_json, resume=True, folder=folder, track=track)


def _train(  # noqa: PLR0913 - all but two are named
    experiment: Experiment,
    sites: "Sequence[Site]",
    *,
    out: Path,
    as_json: bool,
    resume: bool,
    folder: Path | None,
    track: str | None,
) -> None:
    from federation.elsewhere import want
    from federation.run import run_experiment

    if track is not None:
        out.mkdir(parents=True, exist_ok=True)
        want(out, track)
    with show.run_progress(experiment, sites) as on_event:
        summary = run_experiment(
            experiment, sites, out=out, on_event=on_event, resume=resume, folder=folder
        )
    show.failures(sites)
    show.self_audits(sites, summary.run)
    if as_json:
        show.summary_json(summary)
    else:
        show.summary_table(summary)
    _record_elsewhere(out)


def _record_elsewhere(out: Path) -> None:
    from federation.tracking.waiting import record_waiting

    for folder, uri, outcome in record_waiting([out]):
        if isinstance(outcome, str):
            show.note(f"Not recorded in {uri} yet: {outcome}\nLater: cohortium track {folder}")
        else:
            show.note(f"Recorded in {uri} as MLflow run {outcome.run_id}, too.")


def _offer(
    experiment: Experiment,
    quoted: "Sequence[tuple[Site, Quote]]",
    approver: str,
    signature: Signature | None,
    basis: Mapping[str, str | None],
) -> None:
    """Show what each site that has not approved it would approve."""
    from federation.cli import show_decide
    from federation.privacy.plan import make_plan
    from federation.site import Permission

    plan = make_plan(experiment)
    for site, found in quoted:
        if not site.has_approved(experiment, plan):
            author = site.require_author(experiment, signature)
            terms = site.terms(experiment, plan, Permission(approver, author=author, **basis))
            show_decide.offer(experiment, plan, found, terms)


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
