"""``cohortium site``: for who runs a site. Decodes arguments; nothing here is sent anywhere."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.errors import FederationError

app = typer.Typer(no_args_is_help=True, help="Set up, check and keep a site's own data.")

SiteFile = Annotated[
    Path, typer.Argument(metavar="SITE.yaml", help="The site file.", show_default=False)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; progress stays on stderr.")
]
Workers = Annotated[int, typer.Option(min=1, max=256, help="Processes that read images.")]
By = Annotated[
    str | None, typer.Option(help="Who does this, for the ledger.", show_default="your login")
]

INIT_HELP = """Look at a folder of images and write a commented site file for it.

It finds DICOM, OME-Zarr and NIfTI, and the names of labels where files say them. What is not given
as an option is asked, if somebody sits at the terminal. An existing file is never touched.

\b
Examples:
  cohortium site init /data/brain-mr
  cohortium site init /data/brain-mr --site north-hospital --epsilon 8 --no-ask
  cohortium site init scans --subjects-between 40 60 --out north.yaml
"""

CHECK_HELP = """Say whether a site is ready to train, and exactly what would leave it.

It ingests what is new (or, with --quick, reads headers only) and shows subjects, spacings, shapes,
labels, what cannot be used with the reason and the remedy, identifiers found (names and counts,
never values), consent, budget, and every field that leaves with its value. No budget is fixed.

\b
Examples:
  cohortium site check site.yaml
  cohortium site check site.yaml --html readiness.html
  cohortium site check site.yaml --experiment experiment.yaml
  cohortium site check site.yaml --quick --json > readiness.json

Exit status: 0 ready; 1 something would block training; 2 the command cannot be run as given.
"""

INGEST_HELP = """Check every scan and write the site's own cache, from which training reads.

Repeat it when new studies have arrived: only those are read. It can be killed at any point; the
next one finishes. What cannot be used is listed with the reason and the remedy.

\b
Examples:
  cohortium site ingest site.yaml
  cohortium site ingest site.yaml --workers 8
  cohortium site ingest site.yaml --json > ingest.json
"""

EXCLUDE_HELP = """Take one subject out of the data set, for good.

The subject leaves the cache and is in no further round; later ingests keep them out. The ledger
notes that somebody was excluded (nobody's identifier), and you see which experiments had used the
earlier data. Approvals of those end: approve again to go on. Another issuer, crosswalk or folder
name brings nobody back. Copies in the mirror of a PACS are deleted and not fetched again. Your own
images are not touched: folders that still hold the subject are named.

\b
Examples:
  cohortium site exclude site.yaml MR-0042 --reason "consent withdrawn"
  cohortium site exclude site.yaml "0042^^^NORTH-HOSPITAL"
  cohortium site exclude site.yaml 5f0c3a9d1e7b42689c0d5e6f7a8b9c0d
"""

AUDIT_HELP = """Show a site's self-audits: what the steps of each experiment say of its noise.

Canary subjects with secret coins went through the same sampling, clipping and noise as the real
ones, in coordinates of their own. A violation means that the engine did not do what the plan says.
No verdict says that it is correct, and nothing here is sent. --json prints what a board may be
given: no test that counts real subjects, and none of the evidence in the state folder.

\b
Examples:
  cohortium site audit site.yaml
  cohortium site audit site.yaml --json > self-audits.json

Exit status: 0 no violation; 1 a violation; 2 the command cannot be run as given.
"""

PURGE_HELP = """Delete the site's cache, look that nothing is left, and record it in the ledger.

Ledger, keys, approvals and updates that were sent stay: they are the account of what was spent.
Your own images are not touched; a new ingest makes the cache again.

\b
Examples:
  cohortium site purge site.yaml
  cohortium site purge site.yaml --yes
"""


@app.callback()
def site() -> None:
    """Set up, check and keep a site's own data."""


@app.command(help=INIT_HELP)
def init(  # noqa: PLR0913, PLR0917 - options of a command
    folder: Annotated[Path, typer.Argument(help="The folder that holds the images.")] = Path(),
    out: Annotated[Path, typer.Option(help="The site file to write.")] = Path("site.yaml"),
    site: Annotated[str | None, typer.Option(help="Public name of the site.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Public name of the data set.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the data, public.")] = None,
    modality: Annotated[str | None, typer.Option(help="Such as MR, public.")] = None,
    subjects_between: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="LOW HIGH", help="Public bounds on the number of subjects."),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Lifetime privacy budget of each subject.")
    ] = None,
    ask: Annotated[
        bool | None,
        typer.Option(help="Ask what is not given.", show_default="at a terminal"),
    ] = None,
) -> None:
    """Write a site file."""
    from federation.cli import show_site
    from federation.look import look
    from federation.site_file import suggested, write_site_file

    if out.exists():
        raise FederationError(f"{out} exists already and was not touched. Give another --out.")
    seen = look(folder)
    for one in seen:
        labels = ", ".join(sorted(one.labels)[:8]) or "no labels seen"
        show_site.say(f"Found {one.kind} in {one.path}: {labels}")
    given: dict[str, Any] = {
        "site": site,
        "dataset": dataset,
        "licence": licence,
        "modality": modality,
        "subjects_between": subjects_between,
        "epsilon": epsilon,
    }
    answers = suggested(folder, seen)
    answers = replace(
        answers, **{name: value for name, value in given.items() if value is not None}
    )
    if sys.stdin.isatty() if ask is None else ask:
        answers = replace(answers, **_asked(answers, given))
    write_site_file(out, answers, seen)
    show_site.say(f"Wrote {out}. Read it, correct it, then: cohortium site check {out}")


def _asked(answers: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Ask for what was not given; each question comes with what was seen as its default."""
    values: dict[str, Any] = {}
    for name, question in (
        ("site", "Public name of the site"),
        ("dataset", "Public name of the data set"),
        ("licence", "Licence of the data (public)"),
        ("modality", "Modality (public)"),
        ("epsilon", "Lifetime privacy budget of each subject (epsilon)"),
    ):
        if given[name] is None:
            default = getattr(answers, name)
            values[name] = typer.prompt(question, default=default, type=type(default))
    if given["subjects_between"] is None:
        low, high = answers.subjects_between
        values["subjects_between"] = (
            typer.prompt("At least so many subjects (public)", default=low, type=int),
            typer.prompt("At most so many subjects (public)", default=high, type=int),
        )
    return values


@app.command(help=CHECK_HELP)
def check(  # noqa: PLR0913, PLR0917 - options of a command
    site_file: SiteFile,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page, too.")
    ] = None,
    experiment: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check terms and consent for this one.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read headers only.")] = False,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Check a site."""
    from federation.cli import show_site
    from federation.experiment import load_experiment
    from federation.readiness import check_site
    from federation.readiness_page import write_page
    from federation.site_config import load_site_config

    loaded = load_experiment(experiment) if experiment else None
    name = load_site_config(site_file).site
    with show_site.progress(name) as progress:
        found = check_site(
            site_file, quick=quick, experiment=loaded, progress=progress, workers=workers
        )
    if as_json:
        show_site.as_json(found.to_json())
    else:
        show_site.readiness(found)
    if html is not None:
        write_page(html, found)
    raise typer.Exit(0 if found.ready else 1)


@app.command(help=INGEST_HELP)
def ingest(site_file: SiteFile, workers: Workers = 1, as_json: AsJson = False) -> None:
    """Ingest a site's data."""
    from federation.cli import show_site
    from federation.site import open_existing
    from federation.withdrawal import finish_exclusions

    data = open_existing(site_file)
    finish_exclusions(data)
    reports = {}
    with show_site.progress(data.name) as progress:
        for part in data.parts:
            reports[part] = data.ingest(part, partial(progress, part), workers=workers)
    if as_json:
        show_site.ingested_json(data, reports)
    else:
        show_site.ingested(data, reports)
    data.check_subjects()


@app.command(help=EXCLUDE_HELP)
def exclude(  # noqa: PLR0913, PLR0917 - options of a command
    site_file: SiteFile,
    subject: Annotated[str, typer.Argument(help="The identifier in the images, or the pseudonym.")],
    reason: Annotated[
        str, typer.Option(help="For the ledger, which auditors read: no identifiers.")
    ] = "withdrawn",
    by: By = None,
    in_advance: Annotated[
        bool,
        typer.Option(
            "--in-advance",
            help="Also somebody who was not ingested yet; without ^^^ISSUER, all with that number.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Exclude a subject."""
    from federation.cli import show_site
    from federation.site import open_existing
    from federation.withdrawal import exclude as take_out

    done = take_out(
        open_existing(site_file),
        subject,
        by=by or operator(),
        reason=reason,
        in_advance=in_advance,
    )
    if as_json:
        show_site.excluded_json(done)
    else:
        show_site.excluded(done)


@app.command("audit", help=AUDIT_HELP)
def self_audits(site_file: SiteFile, as_json: AsJson = False) -> None:
    """Show self-audits."""
    from federation.cli import show_site
    from federation.evidence import run_audits
    from federation.site import open_existing

    data = open_existing(site_file)
    audits = list(run_audits(data.config.state))
    if as_json:
        show_site.self_audits_json(data, audits)
    else:
        show_site.self_audits(data, audits)
    raise typer.Exit(any(audit.report["verdict"] == "violation" for audit in audits))


@app.command(help=PURGE_HELP)
def purge(
    site_file: SiteFile,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    by: By = None,
) -> None:
    """Delete the cache."""
    from federation.cli import show_site
    from federation.site import open_existing
    from federation.withdrawal import purge as delete

    data = open_existing(site_file)
    if not yes and not typer.confirm(f"Delete the cache of {data.name}?", err=True):
        raise FederationError("Nothing was deleted.")
    show_site.purged(delete(data, by=by or operator()))


def operator() -> str:
    """Return who is logged in, as the ledger names people."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unnamed operator"
