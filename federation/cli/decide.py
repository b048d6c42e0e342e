"""``cohortium site approve`` and the other things that only an operator decides."""

import json
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.cli.site import AsJson, By, SiteFile, app, operator
from federation.errors import FederationError

ExperimentFile = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment.", show_default=False)
]
Reason = Annotated[str, typer.Option(help="For the ledger, which auditors read: no identifiers.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
EthicsReference = Annotated[
    str | None, typer.Option(help="Of the ethics vote, such as EK-2026-117.")
]
LegalBasis = Annotated[str | None, typer.Option(help="Why this is lawful.")]
Expires = Annotated[
    str | None, typer.Option(metavar="DATE", help="Last day, as in 2027-06-30 (UTC).")
]

APPROVE_HELP = """Permit one run of an experiment, after showing exactly what will run and leave.

The approval binds the experiment, its privacy plan, the data as they are now, the hub that may ask,
everything that leaves, the number of rounds and the installed software. Whatever changes, it ends,
and nothing is charged before you approve again. It holds the budget until the run has ended.

\b
Examples:
  cohortium site approve site.yaml experiment.yaml
  cohortium site approve site.yaml experiment.yaml --ethics-reference EK-2026-117 \\
      --legal-basis "research exemption, section 27" --expires 2027-06-30
  cohortium site approve site.yaml experiment.yaml --by "Dr A" --second-approver "Dr B" --yes

Exit status: 0 approved; 1 not, you said no; 2 it cannot be, or the command cannot be run as given.
"""

REFUSE_HELP = """Record that this site does not permit an experiment, and why.

\b
Example:
  cohortium site refuse site.yaml experiment.yaml --reason "the purpose is too wide"
"""

WITHDRAW_HELP = """End an approval. A round that is under way stops at its next step.

What was charged stays charged, and what has left cannot be called back: the runs that used the
data are listed, so that you know whom to tell.

\b
Examples:
  cohortium site withdraw site.yaml experiment.yaml --reason "consent form was replaced"
  cohortium site withdraw site.yaml sha256:5f0c... --reason "ethics vote expired"
"""

RECOVER_HELP = """Unlock a ledger that was restored from a backup, by spending all it has forgotten.

Restore the newest copy first, if there is one: then nothing is lost and this command is not
needed. Otherwise every open approval, everything that the high-water mark has seen promised, and
every receipt that you pass (the hub keeps them) is charged, and all approvals end. Pass the hub's
closings, too: what this site signed at the end of a run says how far its ledger had come.

\b
Examples:
  cohortium site recover site.yaml --receipts receipts.json --closings closings.json
  cohortium site recover site.yaml --start-mark     # where no high-water mark was kept before
"""

MERGE_HELP = """Give data sets that share subjects one budget: the first ledger pays for both.

What the second ledger was charged is charged in the first, too, and the second ends for good.
Then name its images as a further source in the first site file, and ingest.

\b
Example:
  cohortium site merge site.yaml older-site.yaml --reason "40 patients are in both"
"""

OPEN_HELP = """Write what opens an experiment's data commitment, for an auditor alone.

An approval commits to the data set without telling which it is. Whoever has this file can tell, and
can tell which other opened experiments were on the same data: give it to nobody else.

\b
Example:
  cohortium site open-commitment site.yaml experiment.yaml --out opening.json
"""

ROTATE_HELP = """Replace the site's signing key; the old key signs that the new one follows it.

\b
Example:
  cohortium site rotate-key site.yaml
"""


@app.command(help=APPROVE_HELP)
def approve(  # noqa: PLR0913, PLR0917 - options of a command
    site_file: SiteFile,
    experiment: ExperimentFile,
    by: By = None,
    second_approver: Annotated[str | None, typer.Option(help="Somebody else who agrees.")] = None,
    ethics_reference: EthicsReference = None,
    legal_basis: LegalBasis = None,
    expires: Expires = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Approve an experiment."""
    from federation.authors import read_signature, signature_path
    from federation.cli import show, show_decide
    from federation.experiment import load_experiment
    from federation.run import check_experiment, quote
    from federation.site import Permission, open_site

    loaded, site = load_experiment(experiment), open_site(site_file)
    approver = by or operator()
    if second_approver is not None and second_approver.casefold() == approver.casefold():
        raise FederationError("The second approver is the first. Name somebody else.")
    for_the_ledger(approver, second_approver, ethics_reference, legal_basis)
    permission = Permission(
        approver=approver,
        second_approver=second_approver,
        ethics_reference=ethics_reference,
        legal_basis=legal_basis,
        expires=end_of(expires) if expires else None,
        hub_key=site.config.hub.key if site.config.hub else None,
        author=site.require_author(loaded, read_signature(signature_path(experiment))),
    )
    with show.working("Trying the experiment on every subject"):
        plan = check_experiment(loaded)
        (found,) = quote(loaded, [site])
    terms = site.terms(loaded, plan, permission)
    show_decide.offer(loaded, plan, found, terms)
    if found.admitted and not (yes or typer.confirm("Approve?", err=True)):
        show.note("Not approved. Nothing was recorded.")
        raise typer.Exit(1)
    if site.terms(loaded, plan, permission) != terms:
        raise FederationError(
            f"{site.name}: the data or the software changed while you read. Nothing was recorded; "
            "give the command again and look at what it shows then."
        )
    record = site.approve(loaded, plan, permission)
    if as_json:
        typer.echo(json.dumps({"format": "cohortium-approval/1", **record.body}, indent=1))
    else:
        show_decide.approved(site, record)


def end_of(text: str) -> str:
    """Return the last second of a day, as records write times."""
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise FederationError(f"--expires {text}: write a day as in 2027-06-30.") from error
    last = datetime.combine(day, time(23, 59, 59), UTC)
    if last < datetime.now(UTC):
        raise FederationError(f"--expires {text} is over. Give a day that is still to come.")
    return last.strftime("%Y-%m-%dT%H:%M:%SZ")


@app.command(help=REFUSE_HELP)
def refuse(site_file: SiteFile, experiment: ExperimentFile, reason: Reason, by: By = None) -> None:
    """Refuse an experiment."""
    from federation.cli import show_decide
    from federation.site import open_site

    site, digest = open_site(site_file), _digest_of(experiment)
    for_the_ledger(by, reason)
    site.ledger.refuse(digest, by=by or operator(), reason=reason)
    show_decide.say(f"{site.name}: refused, with the reason in the ledger.")


@app.command(help=WITHDRAW_HELP)
def withdraw(
    site_file: SiteFile,
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT.yaml|DIGEST", show_default=False)
    ],
    reason: Reason,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Withdraw an approval."""
    from federation.cli import show_decide
    from federation.site import open_site
    from federation.usage import used_by

    site = open_site(site_file)
    digest = experiment if experiment.startswith("sha256:") else _digest_of(Path(experiment))
    for_the_ledger(by, reason)
    site.ledger.withdraw(digest, by=by or operator(), reason=reason)
    used = used_by(site, digest)
    if as_json:
        value: dict[str, object] = {"format": "cohortium-withdrawal/1", "experiment": digest}
        value |= {"runs": used.runs, "models": used.models}
        typer.echo(json.dumps(value, indent=1))
    else:
        show_decide.withdrawn(site, used)


@app.command(help=RECOVER_HELP)
def recover(  # noqa: PLR0913, PLR0917 - options of a command
    site_file: SiteFile,
    reason: Reason = "restored from backup",
    receipts: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Receipts that a hub kept.")
    ] = None,
    closings: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Closings that a hub kept.")
    ] = None,
    start_mark: Annotated[
        bool, typer.Option("--start-mark", help="Start a high-water mark where there is none.")
    ] = False,
    by: By = None,
    yes: Yes = False,
) -> None:
    """Recover a ledger."""
    from federation.audit.sources import read_closings, read_receipts
    from federation.cli import show_decide
    from federation.ledger import upkeep
    from federation.site import open_to_recover

    for_the_ledger(by, reason)
    site = open_to_recover(site_file)
    if start_mark and site.config.high_water_mark is None:
        raise FederationError(
            f"{site_file} names no high_water_mark. Add 'high_water_mark: FILE' on other storage "
            "than the state folder, then give the command again."
        )
    if start_mark:
        site.ledger.start_mark()
    given = [receipt for path in receipts or () for receipt in read_receipts(path)]
    ended = [closing for path in closings or () for closing in read_closings(path)]
    lost = upkeep.missing(site.ledger, given, closings=ended)
    if lost is None:
        show_decide.say(f"{site.name}: the ledger lacks nothing that anybody here has seen.")
        return
    show_decide.forgotten(site, lost)
    if not (yes or typer.confirm("Spend all of this and end every approval?", err=True)):
        raise FederationError("Nothing was recorded. The ledger stays locked.")
    who = {"by": by or operator(), "reason": reason}
    upkeep.recover(site.ledger, **who, receipts=given, closings=ended)
    show_decide.say(f"{site.name}: recorded. Approve again what is to run.")


@app.command(help=MERGE_HELP)
def merge(
    site_file: SiteFile,
    other: Annotated[Path, typer.Argument(metavar="OTHER.yaml", show_default=False)],
    reason: Reason,
    by: By = None,
    yes: Yes = False,
) -> None:
    """Merge another ledger into a site's."""
    from federation.cli import show_decide
    from federation.merging import merge_sites
    from federation.site import open_site

    for_the_ledger(by, reason)
    into, ended = open_site(site_file), open_site(other)
    before, after = into.ledger.spent_epsilon, show_decide.merged_epsilon(into, ended)
    show_decide.say(
        f"{into.name}: epsilon {before:.2f} becomes {after:.2f} of {into.ledger.policy.epsilon:g}; "
        f"the ledger of {ended.name} ends for good."
    )
    if not (yes or typer.confirm("Merge?", err=True)):
        raise FederationError("Nothing was merged.")
    merge_sites(into, ended, by=by or operator(), reason=reason)
    show_decide.say(f"Merged. Now name the images of {other} as a further source in {site_file}.")


@app.command("open-commitment", help=OPEN_HELP)
def open_commitment(
    site_file: SiteFile,
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT.yaml|DIGEST", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file for the auditor.")],
) -> None:
    """Open a data commitment."""
    from federation.cli import show_decide
    from federation.files import write_where_asked
    from federation.site import open_site

    site = open_site(site_file)
    digest = experiment if experiment.startswith("sha256:") else _digest_of(Path(experiment))
    text = json.dumps(site.opening(digest).to_json(), indent=1)
    write_where_asked(out, text.encode() + b"\n", mode=0o600)
    show_decide.say(f"{site.name}: {out} opens the commitment. It is for the auditor alone.")


@app.command("rotate-key", help=ROTATE_HELP)
def rotate_key(site_file: SiteFile, yes: Yes = False) -> None:
    """Replace the signing key."""
    from federation.cli import show_decide
    from federation.site import open_site, replace_key

    site = open_site(site_file)
    if not (yes or typer.confirm(f"Replace the signing key of {site.name}?", err=True)):
        raise FederationError("The key was not replaced.")
    fingerprint = replace_key(site)
    show_decide.say(
        f"{site.name} signs with {fingerprint} from now on. Auditors go on trusting the first key, "
        f"which signed for this one: {site.key.fingerprint}. Keep a backup of the state folder."
    )


def _digest_of(path: Path) -> str:
    from federation.experiment import load_experiment

    return load_experiment(path).digest()


def for_the_ledger(*texts: str | None) -> None:
    from federation.ledger.forms import check_text

    for text in texts:
        if text is not None:
            try:
                check_text(text)
            except ValueError as error:
                raise FederationError(f"{text[:40]!r} goes into the ledger: {error}.") from error


__all__: list[Any] = ["approve", "recover", "refuse", "rotate_key", "withdraw"]
