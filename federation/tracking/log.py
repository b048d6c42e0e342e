"""Record a finished run in MLflow: parameters, metrics, data sets, evidence and the model."""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from federation.elsewhere import masked
from federation.errors import FederationError
from federation.messages import RoundFinished
from federation.tracking.runs import LoggedRun, TrackedModel, TrackedRun
from federation.tracking.store import artifact_location, key, quiet_mlflow
from models.weights import weights_to_bytes

with quiet_mlflow():
    import mlflow
    import mlflow.pyfunc
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
    from mlflow.telemetry import set_telemetry_client
    from mlflow.tracking._tracking_service.utils import _get_store
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
    from sqlalchemy.exc import SQLAlchemyError

    from federation.tracking.dataset import training_input
    from federation.tracking.site_runs import log_sites

# MONAI imports MLflow wherever both are installed, maybe before our switches were set. This
# reads them again, and drops a client that was made without them.
set_telemetry_client()

ALIAS = "newest"
MODEL_NAME = "model"

# MLflow's limits: entries a batch, and characters of a parameter or tag value.
_METRICS_PER_BATCH = 1000
_ENTRIES_PER_BATCH = 100
_MAX_VALUE_LENGTH = 5000

# Who has begun to record a run this long ago and has not finished is taken to be dead.
_BUSY_S = 600

_T = TypeVar("_T")


def log_run(run: TrackedRun) -> LoggedRun:
    """Record ``run``, register its model, and return where.

    A run that is there already is left as it is. What an attempt that failed has left is deleted
    first, so that there is one record of a run.

    Raises:
        FederationError: The store cannot be used, or the model does not load and predict.
    """
    with quiet_mlflow(), _using(run.store):
        try:
            return _log(_client(run.store), run)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            why = masked(str(error))
            raise FederationError(
                f"MLflow could not record the run in {masked(run.store)}: {why}. The run's own "
                "results are not affected. Choose another store, or repair this one, and record it "
                "with: cohortium track RUN --to URI"
            ) from error


def _log(client: MlflowClient, run: TrackedRun) -> LoggedRun:
    experiment_id = _experiment(client, run)
    known = _recorded(client, experiment_id, run)
    if known is not None:
        return known
    with _finished_or_failed(client, _new_run(client, experiment_id, run)) as run_id:
        _log_entries(client, run_id, run)
        _log_datasets(client, run_id, run)
        _log_evidence(client, run_id, run)
        info = _log_model(client, run_id, run)
        log_sites(client, run_id, run)
    # Last, when the run is finished: what is begun again has registered nothing.
    name, number = _register(client, run_id, info, run)
    return LoggedRun(run_id, name, number, f"models:/{name}/{number}")


def _recorded(client: MlflowClient, experiment_id: str, run: TrackedRun) -> LoggedRun | None:
    """Return where the run is recorded, if it is; delete what was begun of it and not finished."""
    if not run.run:
        return None
    found = client.search_runs([experiment_id], f"tags.run = '{run.run}'")
    for one in found:
        run_id = one.info.run_id
        versions = client.search_model_versions(f"run_id = '{run_id}'")
        if versions:
            name, number = versions[0].name, str(versions[0].version)
            return LoggedRun(run_id, name, number, f"models:/{name}/{number}")
        if one.info.status == "RUNNING" and time.time() - one.info.start_time / 1000 < _BUSY_S:
            raise FederationError(
                f"The run {run.run[:12]} is being recorded in {masked(run.store)} by another "
                f"process, or one died there within {_BUSY_S // 60} minutes. Try again then."
            )
        for site in client.search_runs(
            [experiment_id], f"tags.{MLFLOW_PARENT_RUN_ID} = '{run_id}'"
        ):
            client.delete_run(site.info.run_id)
        client.delete_run(run_id)
    return None


def _client(uri: str) -> MlflowClient:
    """Open the store. A new one gets a default experiment, which would note where we stand."""
    location = artifact_location(uri)
    if location is not None and not Path(location).with_name("mlflow.db").exists():
        _get_store(uri, location)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _using(uri: str) -> Iterator[None]:
    """Point MLflow's global at the store, and back: only its fluent API logs models."""
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type] # None: back to not set


@contextmanager
def _finished_or_failed(client: MlflowClient, run_id: str) -> Iterator[str]:
    try:
        yield run_id
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def _experiment(client: MlflowClient, run: TrackedRun) -> str:
    """Return the id of the experiment, which is made where there is none."""
    found = client.get_experiment_by_name(run.experiment)
    if found is not None and found.lifecycle_stage == "deleted":
        raise FederationError(
            f"Experiment {run.experiment!r} was deleted in {masked(run.store)}. Restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}`, or use another store."
        )
    if found is not None:
        return str(found.experiment_id)
    place = artifact_location(run.store)
    return str(client.create_experiment(run.experiment, artifact_location=place))


def _new_run(client: MlflowClient, experiment_id: str, run: TrackedRun) -> str:
    """Create the run by the client, which adds no user name, host path or repository."""
    tags = {"run": run.run} if run.run else None
    return str(client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id)


def _log_entries(client: MlflowClient, run_id: str, run: TrackedRun) -> None:
    params = [Param(key(name), text) for name, text in _flat(run.parameters)]
    tags = [RunTag(key(name), text) for name, text in _tags(run).items()]
    metrics = list(_metrics(run.events))
    for some_params in _batches(params, _ENTRIES_PER_BATCH):
        client.log_batch(run_id, params=some_params)
    for some_tags in _batches(tags, _ENTRIES_PER_BATCH):
        client.log_batch(run_id, tags=some_tags)
    for some_metrics in _batches(metrics, _METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=some_metrics)


def _tags(run: TrackedRun) -> dict[str, str]:
    return {"experiment_digest": run.experiment_digest, **_cohort_tags(run.events), **run.tags}


def _cohort_tags(events: Iterable[RoundFinished]) -> dict[str, str]:
    """Return, for whoever looks at the run or its model, in how many rounds sites were missing."""
    rounds = [event for event in events if event.round]
    skipped = sum(event.outcome == "skipped" for event in rounds)
    fewer = sum(event.lacks_sites for event in rounds)
    return {
        "rounds_skipped": f"{skipped} of {len(rounds)}",
        "rounds_without_all_sites": f"{fewer} of {len(rounds)}",
    }


def _metrics(events: Iterable[RoundFinished]) -> Iterator[Metric]:
    """Yield scores by site and their mean over sites, and how many sites a round had."""
    now_ms = int(time.time() * 1000)
    for event in events:
        values = {
            "num_sites_returned": float(len(event.returned)),
            "num_sites_refused": float(len(event.refused)),
            "num_sites_late": float(len(event.late)),
            "num_sites": float(event.num_sites),
            "round_skipped": float(event.outcome == "skipped"),
        }
        by_name: dict[str, list[float]] = {}
        for site, scores in event.scores.items():
            for name, score in scores.items():
                values[f"{site}/{name}"] = score
                by_name.setdefault(name, []).append(score)
        values |= {f"mean/{name}": fmean(scores) for name, scores in by_name.items()}
        for name, value in values.items():
            yield Metric(key(name), value, now_ms, event.round)


def _log_datasets(client: MlflowClient, run_id: str, run: TrackedRun) -> None:
    client.log_inputs(run_id, datasets=[training_input(site) for site in run.descriptions])


def _log_evidence(client: MlflowClient, run_id: str, run: TrackedRun) -> None:
    client.log_text(run_id, run.experiment_yaml, "experiment.yaml")
    for name, value in {
        "receipts.json": [dict(receipt) for receipt in run.receipts],
        "closings.json": [dict(closing) for closing in run.closings],
        "heads.json": dict(run.heads),
        "rounds.json": [asdict(event) for event in run.events],
        "sites.json": [asdict(site) for site in run.descriptions],
    }.items():
        client.log_text(run_id, json.dumps(value, indent=1, sort_keys=True), name)


def _log_model(client: MlflowClient, run_id: str, run: TrackedRun) -> Any:
    """Log the model with a signature that comes from loading it and predicting once.

    From a neutral folder, since MLflow writes the paths it was given into the model; and into an
    entry made by the client, since an entry that MLflow makes itself names the user and host.
    """
    entry = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, MODEL_NAME, run_id, tags=_tags(run)
    )
    with tempfile.TemporaryDirectory(prefix="model-") as folder, mlflow.start_run(run_id=run_id):
        staged = _staged(run.model, Path(folder))
        info = mlflow.pyfunc.log_model(
            model_id=entry.model_id,
            python_model=staged["code"],
            artifacts={"weights": staged["weights"], "model": staged["model"]},
            input_example=run.model.input_example,
            pip_requirements=_requirements(),
        )
    if info.signature is None:
        raise FederationError(
            "The trained model could not be loaded and run on its input example, so it was not "
            "registered. Check that the example's shape is one the network accepts."
        )
    return info


def _staged(model: TrackedModel, folder: Path) -> dict[str, str]:
    files = {
        "code": folder / "served_model.py",
        "weights": folder / "weights.safetensors",
        "model": folder / "model.json",
    }
    shutil.copyfile(Path(__file__).with_name("served_model.py"), files["code"])
    files["weights"].write_bytes(weights_to_bytes(model.weights))
    description = {"spec": dict(model.spec), "classes": list(model.classes)}
    if model.value is not None:
        description["value"] = dict(model.value)
    files["model"].write_text(json.dumps(description, indent=1), encoding="utf-8")
    return {name: str(path) for name, path in files.items()}


def _requirements() -> list[str]:
    """Name what loading needs. Given, so that MLflow does not start a process to find out."""
    names = ("cohortium", "mlflow", "monai", "numpy", "safetensors", "torch")
    return [_pinned(name) for name in names]


def _pinned(name: str) -> str:
    try:
        return f"{name}=={version(name).partition('+')[0]}"
    except PackageNotFoundError:
        return name


def _register(client: MlflowClient, run_id: str, info: Any, run: TrackedRun) -> tuple[str, str]:
    name = re.sub(r"[/:]", "-", run.experiment)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    registered = client.create_model_version(
        name, info.model_uri, run_id, tags=_tags(run), model_id=info.model_id
    )
    number = str(registered.version)
    client.set_registered_model_alias(name, ALIAS, number)
    return name, number


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``a.b`` names and texts of nested JSON values.

    >>> list(_flat({"a": {"b": 1, "c": [1, 2]}, "d": "x"}))
    [('a.b', '1'), ('a.c', '[1, 2]'), ('d', 'x')]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{prefix}{name}", text[:_MAX_VALUE_LENGTH]


def _batches(items: list[_T], size: int) -> Iterator[list[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
