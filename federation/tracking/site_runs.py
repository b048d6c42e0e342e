"""A run below the run for each site: its scores, in which rounds it took part, its data set."""

import time
from collections.abc import Iterator

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from federation.messages import Description
from federation.tracking.dataset import training_input
from federation.tracking.runs import TrackedRun
from federation.tracking.store import key


def log_sites(client: MlflowClient, parent: str, run: TrackedRun) -> None:
    """Record each site of a run below it."""
    experiment_id = client.get_run(parent).info.experiment_id
    for site in run.descriptions:
        tags = {MLFLOW_PARENT_RUN_ID: parent, **_tags(site, run)}
        below = client.create_run(experiment_id, run_name=f"{run.name} {site.site}", tags=tags)
        run_id = below.info.run_id
        client.log_batch(run_id, metrics=list(_metrics(site.site, run)))
        client.log_inputs(run_id, datasets=[training_input(site)])
        client.set_terminated(run_id, "FINISHED")


def _tags(site: Description, run: TrackedRun) -> dict[str, str]:
    tags = {
        "site": site.site,
        "experiment_digest": run.experiment_digest,
        "epsilon": run.tags.get(f"epsilon/{site.site}", ""),
        "receipts": str(sum(receipt.get("site") == site.site for receipt in run.receipts)),
        "commitment": site.commitment,
        "ledger_head": str(run.heads.get(site.site, "")),
    }
    return {name: value for name, value in tags.items() if value}


def _metrics(site: str, run: TrackedRun) -> Iterator[Metric]:
    now_ms = int(time.time() * 1000)
    for event in run.events:
        values = dict(event.scores.get(site, {}))
        if event.round:
            values["returned"] = float(site in event.returned)
        for name, value in values.items():
            yield Metric(key(name), value, now_ms, event.round)
