"""``cohortium submit``, ``runs``, ``watch``, ``cancel`` and ``resume``: runs over a hub."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.cli.site import AsJson
from federation.errors import FederationError

if TYPE_CHECKING:
    from federation.hub_folder import HubFolder
    from federation.hub_runs import RunFolder, RunStatus

Hub = Annotated[
    Path, typer.Option("--hub", metavar="HUB.yaml", help="The hub file.", show_default=False)
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or how it begins.")]

SUBMIT_HELP = """Start a run of an experiment over the sites of a hub.

Every site answers only if its operator has approved this experiment for this hub.

\b
Examples:
  cohortium submit experiment.yaml --hub hub/hub.yaml
  cohortium submit experiment.yaml --hub hub/hub.yaml --watch
  cohortium submit experiment.yaml --hub hub/hub.yaml --json
"""

RUNS_HELP = """List a hub's runs, newest first.

\b
Example:
  cohortium runs --hub hub/hub.yaml
"""

WATCH_HELP = """Follow a run in plain words until it ends.

\b
Examples:
  cohortium watch 5f0c --hub hub/hub.yaml
  cohortium watch 5f0c --hub hub/hub.yaml --json     # one JSON object a line

Exit status: 0 it completed; 1 it stopped or was cancelled.
"""

CANCEL_HELP = """End a run at once. What sites have paid for stands.

\b
Example:
  cohortium cancel 5f0c --hub hub/hub.yaml
"""

RESUME_HELP = """Go on with a run that stopped, from its newest checkpoint.

Sites send again what they had sent for the round that was interrupted; they pay nothing for it.

\b
Example:
  cohortium resume 5f0c --hub hub/hub.yaml
"""

POLL_S = 0.3
_DIED = "its process at the hub died; resume the run"


def submit(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", show_default=False)],
    hub: Hub,
    follow: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run."""
    from federation.experiment import load_experiment
    from federation.hub_folder import open_hub
    from federation.hub_runs import submit as make_folder
    from federation.run import check_new_run

    opened, loaded = open_hub(hub), load_experiment(experiment)
    check_new_run(loaded, experiment.parent)
    folder = make_folder(opened, experiment)
    _start(opened, folder)
    if as_json and not follow:
        _json({"run": folder.run, "folder": str(folder.path)})
    elif not follow:
        typer.echo(f"Run {folder.run} of '{folder.status.experiment}' is submitted.")
        typer.echo(f"Follow it: cohortium watch {folder.run[:8]} --hub {hub}")
    if follow:
        _follow(folder, as_json=as_json)


def runs(hub: Hub, as_json: AsJson = False) -> None:
    """List runs."""
    from federation.hub_folder import open_hub
    from federation.hub_runs import all_runs

    found = [folder.status for folder in all_runs(open_hub(hub))]
    if as_json:
        _json({"runs": [one.to_json() for one in found]})
        return
    for one in found:
        typer.echo(f"{one.run[:8]}  {one.experiment:24}  {_how_far(one)}")
    if not found:
        typer.echo("No runs yet: cohortium submit EXPERIMENT.yaml --hub HUB.yaml")


def watch(run: RunId, hub: Hub, as_json: AsJson = False) -> None:
    """Follow a run."""
    from federation.hub_folder import open_hub
    from federation.hub_runs import open_run

    _follow(open_run(open_hub(hub), run), as_json=as_json)


def cancel(run: RunId, hub: Hub) -> None:
    """End a run."""
    from federation.flower.superlink import Control
    from federation.hub_folder import open_hub
    from federation.hub_runs import ENDED, open_run

    opened = open_hub(hub)
    folder = open_run(opened, run)
    status = folder.status
    if status.state in ENDED:
        raise FederationError(f"Run {folder.run[:8]} has ended already: {_how_far(status)}.")
    with Control(opened) as control:
        if status.flower_run and control.is_up():
            control.stop_run(status.flower_run)
    folder.note(state="cancelled", why="cancelled at the hub")
    typer.echo(f"Run {folder.run[:8]} is cancelled. What sites have paid for stands.")


def resume(
    run: RunId,
    hub: Hub,
    follow: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
) -> None:
    """Go on with a run."""
    from federation.hub_folder import open_hub
    from federation.hub_runs import open_run

    opened = open_hub(hub)
    folder = open_run(opened, run)
    status = folder.status
    if status.state in ("completed", "cancelled"):
        raise FederationError(f"Run {folder.run[:8]} is over: {_how_far(status)}.")
    if status.state == "running" and _alive(status.pid):
        raise FederationError(f"Run {folder.run[:8]} is under way: {_how_far(status)}.")
    _start(opened, folder)
    typer.echo(f"Run {folder.run[:8]} goes on after round {status.done}.")
    if follow:
        _follow(folder, as_json=False)


def _start(hub: "HubFolder", folder: "RunFolder") -> None:
    from federation.flower.superlink import Control

    with Control(hub) as control:
        if not control.is_up():
            raise FederationError(
                f"The hub does not run. Start it (cohortium hub start {hub.path / 'hub.yaml'}), "
                f"then: cohortium resume {folder.run[:8]} --hub {hub.path / 'hub.yaml'}"
            )
        # Before it is started: from then on the status is written by the process that runs it.
        folder.note(state="submitted", why="", pid=0, flower_run=0)
        control.start_run(folder.run)


def _follow(folder: "RunFolder", *, as_json: bool) -> None:
    """Print each finished round and how it ended; the exit code says so, too."""
    for event in _events_until_the_end(folder):
        typer.echo(json.dumps(event) if as_json else _in_words(event, folder.status.rounds))
    status = folder.status
    if status.state == "running":  # its process is gone, and the disk is too full to say so there
        status = replace(status, state="stopped", why=_DIED)
    if as_json:
        typer.echo(json.dumps(status.to_json()))
    else:
        typer.echo(f"{_how_far(status)}{f': {status.why}' if status.why else ''}")
    raise typer.Exit(0 if status.state == "completed" else 1)


def _events_until_the_end(folder: "RunFolder") -> Iterator[dict[str, Any]]:
    from federation.hub_runs import ENDED

    shown: set[int] = set()
    while True:
        status = folder.status
        ended = status.state in ENDED or (status.pid and not _alive(status.pid))
        for event in folder.events():
            if event["round"] not in shown:
                shown.add(event["round"])
                yield event
        if ended:
            if status.state == "running":
                with suppress(OSError):
                    folder.note(state="stopped", why=_DIED)
            return
        time.sleep(POLL_S)


def _in_words(event: dict[str, Any], rounds: int) -> str:
    """Say what a round came to, such as 'round 7 of 20 aggregated, 4 of 5 sites returned'."""
    returned, refused, late = event["returned"], event["refused"], event["late"]
    asked = len(returned) + len(refused) + len(late)
    did = "aggregated" if event["outcome"] == "completed" else "SKIPPED, the model is as it was"
    what = f"round {event['round']} of {rounds} {did}" if event["round"] else "sites described"
    text = f"{what}, {len(returned)} of {asked} sites returned"
    for site, code in sorted(refused.items()):
        text += f", {site} refused: {code}"
    return text + "".join(f", {site} was late" for site in sorted(late))


def _how_far(status: "RunStatus") -> str:
    return f"{status.state}, {status.done} of {status.rounds} rounds, since {status.since}"


def _alive(pid: int) -> bool:
    from federation.hub_runs import is_alive

    return is_alive(pid)


def _json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps({"format": "cohortium-runs/1", **value}, indent=1))


COMMANDS = (
    (submit, SUBMIT_HELP),
    (runs, RUNS_HELP),
    (watch, WATCH_HELP),
    (cancel, CANCEL_HELP),
    (resume, RESUME_HELP),
)
