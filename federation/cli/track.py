"""``cohortium track``: a finished run into any MLflow, whenever that can be reached."""

import json
from pathlib import Path
from typing import Annotated

import typer

from federation.cli.site import AsJson

TRACK_HELP = """Record a finished run in an MLflow server or store.

Every run is recorded in a store of its own, in its folder. This records it elsewhere, too: a
team's server, for example. Where that cannot be reached nothing is lost: the run's folder holds
everything, so type it again later. A run that is recorded there is not recorded twice.

\b
Examples:
  cohortium track runs/brains --to http://127.0.0.1:5000
  cohortium track runs/brains --to https://mlflow.example.org
  cohortium track runs/brains --to sqlite:////srv/mlflow/mlflow.db

A name and password for a server belong in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""


def track(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="URI", help="Of the server or store.")],
    as_json: AsJson = False,
) -> None:
    """Record a finished run in an MLflow server or store."""
    from dataclasses import asdict

    from federation.run_record import open_finished
    from federation.tracking.finished import tracked_run
    from federation.tracking.log import log_run

    logged = log_run(tracked_run(open_finished(run), to))
    if as_json:
        typer.echo(json.dumps({"format": "cohortium-tracked/1", **asdict(logged)}, indent=1))
        return
    typer.echo(
        f"Recorded as MLflow run {logged.run_id}; the model is {logged.model_name} version "
        f"{logged.model_version}."
    )


__all__ = ["TRACK_HELP", "track"]
