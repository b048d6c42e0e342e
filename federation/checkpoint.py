"""Where a run stands, on disk: after a crash it goes on from there, and sites pay nothing again.

A round is asked for only once everything that its requests are made of is durable, so a run that
goes on sends the same requests, and sites answer those with the same bytes from their outboxes.
Arrays are safetensors, everything else is JSON under a digest; nothing is ever unpickled.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from federation.canonical import canonical_json, digest
from federation.cohort import Cohort
from federation.errors import CheckpointError, StorageError
from federation.files import private_folder, write_atomically, write_atomically_by
from federation.messages import Description, RoundFinished, Weights
from models.errors import ModelError
from models.weight_files import Array, WeightFile, write_weights
from models.weights import weights_digest

FORMAT = "cohortium-checkpoint/1"
FILE = "checkpoint.json"
# Its folder's name in a run's.
CHECKPOINT = "checkpoint"
Kind = Literal["weights", "average"]


@dataclass
class RunState:
    """How far a run has come: all that its next request depends on, but the arrays.

    Attributes:
        round: Newest round that was averaged or skipped; 0 before the first.
        num_averaged: How many models are in the moving average.
        repeats: Site name to the lost rounds it has paid for once more.
        cohort: Who takes part; None before anybody was asked.
        events: Of finished rounds.
        unscored: What round ``round`` came to, until its model is scored.
        receipts: Of every valid update, by round and site name.
        ended: Why no further round will come, if that is so.
    """

    run: str
    experiment_digest: str
    round: int = 0
    num_averaged: int = 0
    repeats: dict[str, int] = field(default_factory=dict)
    cohort: Cohort | None = None
    events: list[RoundFinished] = field(default_factory=list)
    unscored: RoundFinished | None = None
    receipts: list[dict[str, Any]] = field(default_factory=list)
    ended: str | None = None

    @property
    def heads(self) -> dict[str, str]:
        """Return the newest head of each site's ledger that there is a receipt for."""
        return {str(receipt["site"]): str(receipt["head_after"]) for receipt in self.receipts}

    @property
    def num_completed(self) -> int:
        """Return how many rounds have changed the model."""
        return self.num_averaged


class Checkpoint:
    """A run's folder, held by one process: arrays are put, then a state that goes with them.

    ``new`` and ``open`` say what is expected in it.

    Raises:
        CheckpointError: Another process is at it.
        StorageError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[Kind, dict[str, str]] = {}
        with storage_errors(folder):
            private_folder(folder)
            self._lock: int | None = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise CheckpointError(
                f"Another process is carrying out the run in {folder}. Nothing was sent. Wait "
                "for it, or stop it first."
            ) from error

    @classmethod
    def new(cls, folder: Path) -> Self:
        """Make a folder for a run that is new.

        Raises:
            CheckpointError: A run is in it that has not come to its end; or another process is.
        """
        if (folder / FILE).is_file():
            raise CheckpointError(
                f"{folder} holds a run that did not come to its end, and two runs never share one "
                "folder. Nothing was sent. Go on with it (--resume), or give another folder."
            )
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder that a run has been kept in.

        Raises:
            CheckpointError: There is none; or as for a new one.
        """
        if not (folder / FILE).is_file():
            raise _nothing_in(folder)
        return cls(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def exists(self) -> bool:
        """Tell whether there is a state to load."""
        return (self.folder / FILE).is_file()

    def put(self, kind: Kind, number: int, weights: Mapping[str, Array]) -> None:
        """Write the arrays of a round; they count once ``save`` has told of them."""
        name = f"{kind}-{number:06d}.safetensors"
        with storage_errors(self.folder):
            write_atomically_by(self.folder / name, lambda file: write_weights(file, weights))
        self._arrays[kind] = {"file": name, "digest": weights_digest(weights)}

    def save(self, state: RunState) -> None:
        """Make this the state that a run goes on from, together with the arrays put last."""
        body = {"state": _to_json(state), "arrays": dict(self._arrays)}
        whole = {"format": FORMAT, "digest": digest(body), "body": body}
        with storage_errors(self.folder):
            write_atomically(self.folder / FILE, canonical_json(whole) + b"\n")
            self._remove_older()

    def load(self, experiment_digest: str) -> tuple[RunState, Weights]:
        """Return the state and the weights that the next round starts from.

        Raises:
            CheckpointError: There is none, it is damaged, another experiment's, or at its end.
        """
        state = self._state(self._body(), experiment_digest)
        for kind in self._arrays:
            self._checked(kind)
        return state, dict(self._file("weights"))

    @property
    def average(self) -> WeightFile | None:
        """Return the moving average of the rounds' models, where one is kept."""
        return self._file("average") if "average" in self._arrays else None

    def remove(self) -> None:
        """Delete the folder: the run's results are elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def _body(self) -> dict[str, Any]:
        path = self.folder / FILE
        if not path.is_file():
            raise _nothing_in(self.folder)
        try:
            whole = json.loads(path.read_bytes())
            if whole["format"] != FORMAT:
                raise CheckpointError(
                    f"{path} has format {whole['format']!r}; this version reads {FORMAT!r}. Go on "
                    "with the version that began the run."
                )
            if digest(whole["body"]) != whole["digest"]:
                raise ValueError("its digest does not match")
            return dict(whole["body"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(path, error) from error

    def _state(self, body: dict[str, Any], experiment_digest: str) -> RunState:
        try:
            state, self._arrays = _from_json(body["state"]), dict(body["arrays"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(self.folder / FILE, error) from error
        if state.experiment_digest != experiment_digest:
            raise CheckpointError(
                f"{self.folder} is a run of experiment {state.experiment_digest}, and this is "
                f"{experiment_digest}. Nothing was sent. Give the experiment file as it was."
            )
        if state.ended is not None:
            raise CheckpointError(
                f"The run in {self.folder} has ended: {state.ended} Start a new run with --out."
            )
        return state

    def _file(self, kind: Kind) -> WeightFile:
        return WeightFile(self.folder / self._arrays[kind]["file"])

    def _checked(self, kind: Kind) -> None:
        path = self.folder / self._arrays[kind]["file"]
        try:
            found = weights_digest(WeightFile(path))
        except (ModelError, OSError, ValueError) as error:
            raise self._damaged(path, error) from error
        if found != self._arrays[kind]["digest"]:
            raise self._damaged(path, ValueError("its digest does not match"))

    def _damaged(self, path: Path, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}). Nothing was sent. Restore "
            f"{self.folder} from backup, or start a new run, which sites must approve and pay anew."
        )

    def _remove_older(self) -> None:
        kept = {about["file"] for about in self._arrays.values()}
        for path in self.folder.glob("*.safetensors"):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _nothing_in(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds no checkpoint ({FILE}): no run began there, or it came to its end and "
        "left its results. Nothing was sent. Start a run with --out instead."
    )


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Say of a disk that is full, or gone, what it means and what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{folder}: {error.strerror or error}. The run stands still, and what sites sent is "
            "not lost: they send it again at no charge. Make room, then go on with "
            "'cohortium run --resume', or at a hub with 'cohortium resume'."
        ) from error


def _to_json(state: RunState) -> dict[str, Any]:
    cohort = state.cohort
    return {
        **{name: getattr(state, name) for name in _PLAIN},
        "repeats": dict(state.repeats),
        "receipts": list(state.receipts),
        "events": [_event_to_json(event) for event in state.events],
        "unscored": None if state.unscored is None else _event_to_json(state.unscored),
        "cohort": None if cohort is None else _cohort_to_json(cohort),
    }


_PLAIN = ("run", "experiment_digest", "round", "num_averaged", "ended")


def _from_json(values: dict[str, Any]) -> RunState:
    receipts = [dict(receipt) for receipt in values["receipts"]]
    unscored, cohort = values["unscored"], values["cohort"]
    return RunState(
        **{name: values[name] for name in _PLAIN},
        repeats=dict(values["repeats"]),
        receipts=receipts,
        events=[_event_from_json(event, receipts) for event in values["events"]],
        unscored=None if unscored is None else _event_from_json(unscored, receipts),
        cohort=None if cohort is None else _cohort_from_json(cohort),
    )


def _event_to_json(event: RoundFinished) -> dict[str, Any]:
    """Leave the receipts out: the state has them all."""
    return asdict(replace(event, receipts=()))


def _event_from_json(values: Mapping[str, Any], receipts: list[dict[str, Any]]) -> RoundFinished:
    found = RoundFinished(**values)
    return replace(
        found,
        returned=tuple(found.returned),
        late=tuple(found.late),
        receipts=tuple(r for r in receipts if r["round"] == found.round),
    )


def _cohort_to_json(cohort: Cohort) -> dict[str, Any]:
    # JSON's keys are texts, and the order of sites is not one of its own.
    sites = [[str(node_id), asdict(site)] for node_id, site in cohort.sites.items()]
    return {"sites": sites, "refused": dict(cohort.refused), "details": dict(cohort.details)}


def _cohort_from_json(values: Mapping[str, Any]) -> Cohort:
    sites = {int(node_id): Description(**site) for node_id, site in values["sites"]}
    return Cohort(sites, values["refused"], values["details"])
