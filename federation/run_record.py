"""What a finished run was, in one file beside its model: what exports and lineage are made from.

Everything in it is public: the experiment, what sites said of themselves, and what happened round
by round. Receipts and closings lie beside it as sites signed them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import ROUND_CEILING, Decimal
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from federation.errors import FederationError
from federation.experiment import Experiment
from federation.files import write_atomically
from federation.ledger.records import now
from federation.messages import Description, RoundFinished, Weights
from federation.software import installed_versions
from models.errors import ModelError
from models.weights import weights_digest, weights_from_bytes

FORMAT = "cohortium-run/1"
RECORD, MODEL = "run.json", "model.safetensors"
RECEIPTS, CLOSINGS = "receipts.json", "closings.json"
_RUN = re.compile(r"[0-9A-Za-z-]{1,64}")


@dataclass(frozen=True)
class RunRecord:
    """One finished run.

    Attributes:
        finished: When, UTC, as the ledger's records write times.
        model_digest: Over names, shapes and values, as closings state it.
        model_sha256: Of the model's file.
        epsilon: By site, what this run alone cost it, by its receipts; None without privacy.
        noise_multiplier: Of the plan that the experiment makes; 0 without privacy.
        heads: By site, the newest hash of its ledger that the hub has seen signed.
        versions: Of the software at the hub.
    """

    run: str
    experiment: Experiment
    finished: str
    model_digest: str
    model_sha256: str
    events: tuple[RoundFinished, ...]
    sites: tuple[Description, ...]
    epsilon: Mapping[str, float | None]
    noise_multiplier: float
    heads: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    @property
    def contributors(self) -> tuple[Description, ...]:
        """Return the sites whose updates are in the model.

        One that described its data set and then never returned an update has no part in it.
        """
        done = [event for event in self.events if event.round and event.outcome == "completed"]
        returned = {name for event in done for name in event.returned}
        return tuple(site for site in self.sites if site.site in returned)

    @property
    def largest_epsilon(self) -> float | None:
        """Return what this run cost at the site where it cost most; None where it has no bound."""
        spent = [self.epsilon.get(site.site) for site in self.contributors]
        bounded = [value for value in spent if value is not None]
        return max(bounded) if bounded and len(bounded) == len(spent) else None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; receipts of rounds are left to their own file."""
        events = [{k: v for k, v in asdict(e).items() if k != "receipts"} for e in self.events]
        return {
            "format": FORMAT,
            "run": self.run,
            "experiment_digest": self.experiment.digest(),
            "experiment": self.experiment.model_dump(mode="json"),
            "finished": self.finished,
            "model_digest": self.model_digest,
            "model_sha256": self.model_sha256,
            "events": events,
            "sites": [asdict(site) for site in self.sites],
            "epsilon": dict(self.epsilon),
            "noise_multiplier": self.noise_multiplier,
            "heads": dict(self.heads),
            "versions": dict(self.versions),
        }


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder, read and checked against itself."""

    path: Path
    record: RunRecord
    weights: Weights
    receipts: tuple[Mapping[str, Any], ...]
    closings: tuple[Mapping[str, Any], ...]


def write_record(  # noqa: PLR0913 - what a run came to, by name
    folder: Path,
    experiment: Experiment,
    *,
    run: str,
    model: bytes,
    events: Sequence[RoundFinished],
    sites: Sequence[Description],
    epsilon: Mapping[str, float | None],
    noise_multiplier: float,
    heads: Mapping[str, str],
) -> RunRecord:
    """Write the record of a run beside its model, and return it.

    Args:
        model: The bytes of the model's file.
    """
    record = RunRecord(
        run=run,
        experiment=experiment,
        finished=now(),
        model_digest=weights_digest(weights_from_bytes(model)),
        model_sha256=sha256(model).hexdigest(),
        events=tuple(map(_recorded, events)),
        sites=tuple(sites),
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        heads=heads,
    )
    text = json.dumps(record.to_json(), indent=1, sort_keys=True, allow_nan=False)
    write_atomically(folder / RECORD, text.encode() + b"\n", mode=0o644)
    return record


def read_record(folder: Path) -> RunRecord:
    """Read the record of a run alone, without its model.

    Raises:
        FederationError: There is no finished run in the folder, or its record is damaged.
    """
    path = folder / RECORD
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FederationError(
            f"{folder} holds no finished run: there is no {RECORD}. Give the folder that "
            "'cohortium run --out' names, or a run's in a hub's folder. A run that stopped can be "
            "resumed; one of an older version leaves no such file: resume or run it again."
        ) from error
    except (OSError, ValueError) as error:
        raise FederationError(f"{path} cannot be read ({error}). Restore it.") from error
    return _record(value, path)


def open_finished(folder: Path) -> FinishedRun:
    """Read the folder that a run left.

    Raises:
        FederationError: There is no finished run in it, or its files do not fit each other.
    """
    record = read_record(folder)
    model = _read(folder / MODEL)
    if sha256(model).hexdigest() != record.model_sha256:
        raise FederationError(
            f"{folder / MODEL} is not the model that {RECORD} names. Restore both files from one "
            "copy of the run."
        )
    try:
        weights = weights_from_bytes(model)
    except ModelError as error:
        raise FederationError(f"{folder / MODEL}: {error}") from error
    if weights_digest(weights) != record.model_digest:
        raise FederationError(
            f"{folder / RECORD} names another digest of the model than its weights have. Restore "
            "both files from one copy of the run."
        )
    receipts, closings = (_read_list(folder / name) for name in (RECEIPTS, CLOSINGS))
    return FinishedRun(folder, record, weights, receipts, closings)


def rounded_up(epsilon: float | None, digits: int) -> str:
    """Return text that never says less than epsilon; None is infinite.

    >>> rounded_up(7.5001, 2)
    '7.51'
    """
    if epsilon is None:
        return "infinite"
    return str(Decimal(epsilon).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING))


def example_input(experiment: Experiment) -> npt.NDArray[np.float32]:
    """Return one image of noise, x_1CHW or x_1CDHW, normalised as the network sees images.

    Made from the experiment's seed and shape alone: no site's image has a part in it.
    """
    random = np.random.default_rng(experiment.seed)
    shape = (1, experiment.input.num_channels, *experiment.input.shape)
    return random.standard_normal(shape, dtype=np.float32)


def _record(value: Any, path: Path) -> RunRecord:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise FederationError(f"{path} is no {FORMAT}. Was it written by another version?")
    try:
        experiment = Experiment.model_validate(value["experiment"])
        record = RunRecord(
            run=value["run"],
            experiment=experiment,
            finished=value["finished"],
            model_digest=value["model_digest"],
            model_sha256=value["model_sha256"],
            events=tuple(_event(event) for event in value["events"]),
            sites=tuple(Description(**site) for site in value["sites"]),
            epsilon=value["epsilon"],
            noise_multiplier=value["noise_multiplier"],
            heads=value["heads"],
            versions=value["versions"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FederationError(f"{path} is damaged ({error}). Restore it.") from error
    texts = [record.run, record.finished, *record.epsilon, *record.heads, *record.versions]
    texts += [
        part for site in record.sites for part in vars(site).values() if isinstance(part, str)
    ]
    if not _RUN.fullmatch(record.run) or not all(text.isprintable() for text in texts):
        raise FederationError(f"{path} is damaged (a text in it cannot be). Restore it.")
    if experiment.digest() != value.get("experiment_digest"):
        raise FederationError(f"{path}: the experiment is not the one that its digest names.")
    return record


def _recorded(event: RoundFinished) -> RoundFinished:
    """Leave receipts to their own file, and out what is no number: JSON has none such."""
    scores = {
        site: {name: score for name, score in of_site.items() if isfinite(score)}
        for site, of_site in event.scores.items()
    }
    return replace(event, scores=scores, receipts=())


def _event(value: Mapping[str, Any]) -> RoundFinished:
    lists = {name: tuple(value[name]) for name in ("returned", "late")}
    return RoundFinished(**{**value, **lists})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FederationError(f"{path} cannot be read ({error.strerror}). Restore it.") from error


def _read_list(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise FederationError(f"{path} is not JSON. Restore it.") from error
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise FederationError(f"{path} is no list of statements. Restore it.")
    return tuple(value)
