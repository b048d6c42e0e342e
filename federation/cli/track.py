"""``cohortium track``: a finished run into any MLflow, whenever that can be reached."""

import json
from pathlib import Path
from typing import Annotated

import typer

from federation.cli.site import AsJson
from federation.errors import FederationError

TRACK_HELP = """Record finished runs in an MLflow server or store.

Every run is recorded in a store of its own, in its folder. This records it elsewhere, too: a
team's server, for example. Where that cannot be reached nothing is lost: the run's folder holds
everything, so type it again later. A run that is recorded there is not recorded twice.

Without --to it records what waits: runs that were to be recorded by 'cohortium run --track' or by
a hub's 'tracking', and whose server did not answer then. Give one run's folder, or one full of
runs.

\b
Examples:
  cohortium track runs/brains --to http://127.0.0.1:5000
  cohortium track runs/brains --to https://mlflow.example.org
  cohortium track runs/brains --to sqlite:////srv/mlflow/mlflow.db
  cohortium track runs
  cohortium track hub/runs

A name and password for a server belong in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""


def track(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="URI", help="Of the server or store.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Record finished runs in an MLflow server or store."""
    from dataclasses import asdict

    from federation.run_record import open_finished
    from federation.tracking.finished import tracked_run
    from federation.tracking.log import log_run

    if to is None:
        _what_waits(run, as_json=as_json)
        return
    logged = log_run(tracked_run(open_finished(run), to))
    if as_json:
        typer.echo(json.dumps({"format": "cohortium-tracked/1", **asdict(logged)}, indent=1))
        return
    typer.echo(
        f"Recorded as MLflow run {logged.run_id}; the model is {logged.model_name} version "
        f"{logged.model_version}."
    )


def _what_waits(folder: Path, *, as_json: bool) -> None:
    from dataclasses import asdict

    from federation.tracking.waiting import record_waiting

    if not folder.is_dir():
        raise FederationError(f"{folder} is no folder. Give a run's, or one full of runs.")
    recorded, still = [], []
    for run, uri, outcome in record_waiting([folder]):
        if isinstance(outcome, str):
            still.append(f"{run}: {outcome}")
            continue
        recorded.append({"path": str(run), "to": uri, **asdict(outcome)})
        if not as_json:
            typer.echo(f"{run}: recorded in {uri} as MLflow run {outcome.run_id}.")
    if as_json:
        value = {"format": "cohortium-tracked/1", "runs": recorded, "waiting": len(still)}
        typer.echo(json.dumps(value, indent=1))
    if still:
        raise FederationError("\n".join(still))
    if not recorded and not as_json:
        typer.echo(f"Nothing waits in {folder}. To record a run anyway, say where: --to URI.")


__all__ = ["TRACK_HELP", "track"]
