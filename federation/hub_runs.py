"""The runs of a hub, each a folder: what was submitted, how far it is, what it left."""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from federation.authors import signature_path
from federation.errors import FederationError
from federation.experiment import Experiment, load_experiment
from federation.files import append_durably, private_folder, write_atomically
from federation.hub_folder import HubFolder
from federation.ledger.records import now
from federation.messages import RoundFinished
from federation.starting import read_start

State = Literal["submitted", "running", "completed", "stopped", "cancelled"]
ENDED = ("completed", "stopped", "cancelled")
# In a run's folder, the folder of the weights that it starts from.
START = "start"
_RUN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        run: Its id; sites bind what they charge to it.
        since: Of this state, as the ledger's records write times.
        why: Of a run that stopped, in words.
        flower_run: Flower's id for the attempt that runs or ran last; 0 before it.
        pid: Of the process that carries it out.
    """

    run: str
    experiment: str
    state: State
    since: str
    rounds: int
    done: int = 0
    why: str = ""
    flower_run: int = 0
    pid: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class RunFolder:
    """One run at a hub. Make one with ``submit``, open one with ``open_run``."""

    path: Path

    @property
    def run(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def experiment(self) -> Experiment:
        """What was submitted."""
        return load_experiment(self.path / "experiment.yaml")

    @property
    def status(self) -> RunStatus:
        """How far it is."""
        path = self.path / "status.json"
        try:
            return RunStatus(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise FederationError(
                f"{path} is damaged ({error}). Restore it from backup."
            ) from error

    def note(self, **changes: Any) -> RunStatus:
        """Write down that something of the status has changed."""
        status = self.status
        if changes.get("state", status.state) != status.state:
            changes["since"] = now()
        status = replace(status, **changes)
        write_atomically(self.path / "status.json", json.dumps(status.to_json()).encode())
        return status

    def append(self, event: RoundFinished) -> None:
        """Add a finished round to what ``watch`` shows, durably."""
        value = {
            "at": now(),
            "round": event.round,
            "returned": list(event.returned),
            "refused": dict(event.refused),
            "late": list(event.late),
            "outcome": event.outcome,
            "scores": {site: dict(scores) for site, scores in event.scores.items()},
        }
        append_durably(self.events_path, json.dumps(value).encode() + b"\n")

    @property
    def events_path(self) -> Path:
        """The rounds that finished, a JSON object a line."""
        return self.path / "events.jsonl"

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the rounds that finished; each once, as it was written last."""
        if not self.events_path.is_file():
            return
        lines = self.events_path.read_text().split("\n")[:-1]
        found = {event["round"]: event for event in map(json.loads, lines)}
        yield from (found[number] for number in sorted(found))


def submit(hub: HubFolder, experiment: Path) -> RunFolder:
    """Make the folder of a new run of an experiment, with its author's signature if there is one.

    The weights that it starts from go with it; they are checked again when the run begins.

    Raises:
        FederationError: The experiment is invalid. ModelError: See ``starting.read_start``.
    """
    loaded = load_experiment(experiment)
    read_start(loaded, experiment.parent)
    run = secrets.token_hex(16)
    folder = private_folder(_runs(hub) / f".{run}")
    shutil.copy(experiment, folder / "experiment.yaml")
    if signature_path(experiment).is_file():
        shutil.copy(signature_path(experiment), folder / "experiment.yaml.sig")
    if loaded.initial_weights is not None:
        name = loaded.initial_weights.file
        # Apart from what the run leaves: a file may be called as its model is.
        shutil.copy(experiment.parent / name, private_folder(folder / START) / name)
    status = RunStatus(run, loaded.name, "submitted", now(), loaded.algorithm.rounds)
    write_atomically(folder / "status.json", json.dumps(status.to_json()).encode())
    folder.rename(_runs(hub) / run)
    return RunFolder(_runs(hub) / run)


def open_run(hub: HubFolder, run: str) -> RunFolder:
    """Open a run by its id, or by the beginning of it.

    Raises:
        FederationError: There is none such, or several.
    """
    if not re.fullmatch(r"[0-9a-f]{4,32}", run):
        raise FederationError(f"{run!r} is no id of a run: give at least 4 hex digits of it.")
    found = [folder for folder in all_runs(hub) if folder.run.startswith(run)]
    if len(found) != 1:
        how_many = f"{len(found)} runs begin" if found else "No run begins"
        raise FederationError(f"{how_many} with {run}. See: cohortium runs --hub HUB.yaml")
    return found[0]


def is_alive(pid: int) -> bool:
    """Tell whether a process runs on this machine. One that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True  # not Linux
    return state != "Z"


def all_runs(hub: HubFolder) -> list[RunFolder]:
    """Return a hub's runs, newest first."""
    folders = [RunFolder(p) for p in _runs(hub).iterdir() if _RUN.fullmatch(p.name)]
    return sorted(folders, key=lambda one: (one.path / "experiment.yaml").stat().st_mtime)[::-1]


def _runs(hub: HubFolder) -> Path:
    return private_folder(hub.path / "runs")
