"""``cohortium export``: a finished run in formats that other tools open."""

import json
from pathlib import Path
from typing import Annotated

import typer

from federation.cli.site import AsJson
from federation.errors import FederationError

EXPORT_HELP = """Write a finished run in a format that other tools open.

RUN is the folder that 'cohortium run' left, or a run's in a hub's folder. Whose model it is and
under which licence stands in a file that you write: --about. No site is asked, nothing is sent.

\b
Examples:
  cohortium export runs/brains --about about.yaml --format monai-bundle
  cohortium export runs/brains --about about.yaml --format ro-crate --out brains-crate
  cohortium export runs/brains --template > about.yaml     # a file to fill in

\b
Formats:
  monai-bundle   a folder that monai.bundle runs
  bioimageio     a package of the BioImage Model Zoo
  onnx           the network in ONNX, checked number by number
  ro-crate       a Process Run Crate with W3C PROV
  croissant      the data sets' metadata, of each site a file
  model-card     Markdown and one HTML page

Exit status: 0 written; 2 it cannot be, and nothing is left behind.
"""


def export(  # noqa: PLR0913, PLR0917 - options of a command
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    form: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="See above.")
    ] = None,
    about: Annotated[
        Path | None, typer.Option(metavar="about.yaml", help="Title, authors, licence, use.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder; RUN-FORMAT by default.")
    ] = None,
    template: Annotated[
        bool, typer.Option("--template", help="Print an about.yaml to fill in, and stop.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a finished run in a format that other tools open."""
    from federation.export import about as abouts
    from federation.export import formats
    from federation.run_record import open_finished

    finished = open_finished(run)
    if template:
        typer.echo(abouts.template(finished.record.experiment), nl=False)
        return
    if form not in formats.FORMATS:
        raise FederationError(
            f"--format must be one of {', '.join(formats.FORMATS)}"
            + (f", not {form!r}." if form else ".")
        )
    if about is None:
        raise FederationError(
            "Name a file with --about: whose model this is and under which licence. "
            f"'cohortium export {run} --template > about.yaml' makes one to fill in."
        )
    told = abouts.load_about(about)
    place = out or run.with_name(f"{run.name or run.resolve().name}-{form}")
    files = formats.export(finished, told, form, place)
    if as_json:
        value = {"format": "cohortium-export/1", "kind": form, "folder": str(place)}
        typer.echo(json.dumps(value | {"files": [str(path) for path in files]}, indent=1))
        return
    typer.echo(f"{place}: {form}, {len(files)} files.")
    for path in files:
        typer.echo(f"  {path}")


__all__ = ["EXPORT_HELP", "export"]
