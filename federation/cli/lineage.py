"""``cohortium lineage``: which data sets made a model, and which models used a data set."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli.site import AsJson
from federation.errors import FederationError

if TYPE_CHECKING:
    from federation.lineage.graph import Lineage, Run, Use

LINEAGE_HELP = """Show which data sets made a model, and which models used a data set.

RUN is a folder, searched for finished runs (run.json) and ledgers: what 'cohortium run' left, a
hub's folder, an exported crate, a site's state folder. Nothing is sent anywhere.

\b
Examples:
  cohortium lineage runs/                                  # everything
  cohortium lineage runs/ --model sha256:90fb3a            # what made it
  cohortium lineage hub/ --dataset north-hospital/brain-mr # what used it
  cohortium lineage hub/ site-a/state/                     # withdrawals, too
  cohortium lineage brains-crate/ --opening opening.json   # are these the data?
  cohortium lineage runs/ --out lineage.svg --json > lineage.json

A site's commitment to its data is another one for each experiment, so that nobody can link two
experiments on one data set by what left. Run folders alone therefore show two data sets. The
site's own ledger links them and knows what was withdrawn; so do the files that a site makes for an
auditor with 'cohortium site open-commitment'.

Receipts and closings count where they are validly signed; whose keys those are, and whether
ledgers hold, 'cohortium audit verify' checks.

Exit status: 0 shown; 1 shown, but something does not fit, such as an opening; 2 it cannot be.
"""


def lineage(  # noqa: PLR0913, PLR0917 - options of a command
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", show_default=False)],
    model: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="What made this model. May be cut short.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="COMMITMENT|SITE/DATASET", help="What was made from these data."),
    ] = None,
    opening: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What a site opened its commitment with. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="picture.svg", help="Draw it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which data sets made a model, and which models used a data set."""
    # Here and not above: it loads dp-accounting, which takes seconds.
    from federation.files import write_where_asked
    from federation.lineage.picture import svg
    from federation.lineage.reading import read_lineage

    if model is not None and dataset is not None:
        raise FederationError("Give --model or --dataset, not both: each asks another question.")
    found = read_lineage(paths, openings=opening or ())
    if model is not None:
        found = found.of_model(model)
    if dataset is not None:
        found = found.of_data_set(dataset)
    if out is not None:
        write_where_asked(out, svg(found).encode())
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        _show(found)
        if out is not None:
            typer.echo(f"\nDrawn: {out}")
    raise typer.Exit(1 if found.problems else 0)


def _show(found: "Lineage") -> None:
    from federation.audit.state import counted

    typer.echo("What made each model")
    for run in found.runs:
        typer.echo(f"  {_model(run)}")
        typer.echo(f"    run {run.name[:12]} of {run.experiment or 'an experiment not here'}")
        if run.started_from:
            typer.echo(f"    started from model {run.started_from[:23]}")
        for use in found.uses_in(run):
            typer.echo(f"    {_data(found, use)}")
    typer.echo("\nWhat used each data set")
    for data in found.data_sets:
        typer.echo(f"  {data.site}/{' or '.join(data.names)}")
        if data.linked_by:
            number = counted(len(data.commitments), "commitment")
            typer.echo(f"    {number}, linked by {data.linked_by}")
        if data.root:
            typer.echo(f"    opened: the data are {data.root[:23]}")
        for use in found.uses_of(data):
            run = found.run_of(use)
            typer.echo(f"    {_model(run)}, run {run.name[:12]}{_gone(use)}")
    for title, lines in (("Does not fit", found.problems), ("Not seen from here", found.notes)):
        for line in lines:
            typer.echo(f"\n{title}: {line}")


def _model(run: "Run") -> str:
    return f"model {run.model[:23]}" if run.model else "a model not known here"


def _data(found: "Lineage", use: "Use") -> str:
    from federation.audit.state import counted

    data = found.data_set_of(use)
    told = f"{data.site}/{' or '.join(data.names)}  {use.commitment[:23]}"
    return f"{told}  {counted(use.updates, 'update')}{_gone(use)}"


def _gone(use: "Use") -> str:
    return f", WITHDRAWN {use.withdrawn}" if use.withdrawn else ""


__all__ = ["LINEAGE_HELP", "lineage"]
