"""A finished run's folder as MLflow is told of it: at the end of the run, and again whenever."""

from collections.abc import Mapping

import yaml

from federation.ledger.closings import Closing
from federation.ledger.receipts import Receipt
from federation.run_record import FinishedRun, RunRecord, example_input
from federation.tracking.runs import TrackedModel, TrackedRun


def tracked_run(finished: FinishedRun, store: str) -> TrackedRun:
    """Return what is recorded of a run.

    Args:
        store: Tracking URI.
    """
    record, experiment = finished.record, finished.record.experiment
    values = experiment.model_dump(mode="json")
    return TrackedRun(
        store=store,
        experiment=experiment.name,
        name=f"{experiment.name}-{record.run[:8]}",
        parameters=values | {"noise_multiplier": record.noise_multiplier},
        experiment_yaml=yaml.safe_dump(values, sort_keys=False),
        experiment_digest=experiment.digest(),
        events=record.events,
        descriptions=record.sites,
        receipts=finished.receipts,
        closings=finished.closings,
        heads=record.heads,
        model=TrackedModel(
            spec=values["model"],
            classes=experiment.task.classes,
            weights=finished.weights,
            input_example=example_input(experiment),
            value=values["task"] if experiment.task.learns == "values" else None,
        ),
        tags=_tags(finished),
        run=record.run,
    )


def _tags(finished: FinishedRun) -> dict[str, str]:
    record = finished.record
    return {
        "run": record.run,
        "model_digest": record.model_digest,
        "verification": verification(finished),
        **epsilon_tags(record),
    }


def epsilon_tags(record: RunRecord) -> dict[str, str]:
    """Return what this run cost each site."""
    cost = sorted(record.epsilon.items())
    return {f"epsilon/{site}": "infinite" if e is None else f"{e:.4f}" for site, e in cost}


def verification(finished: FinishedRun) -> str:
    """Say how far what is kept here shows what sites were charged.

    Signatures are checked; whose keys they are, and what else a ledger was charged, is for
    ``cohortium audit verify`` with the sites' ledgers.
    """
    keys = {site.site: site.public_key for site in finished.record.sites}
    receipts = [_signed(one, Receipt, keys) for one in finished.receipts]
    closings = [_signed(one, Closing, keys) for one in finished.closings]
    said = (
        f"{sum(receipts)} of {len(receipts)} receipts and {sum(closings)} of {len(closings)} "
        "closings signed with the sites' keys"
    )
    if not all((*receipts, *closings)):
        return f"contradicted: {said}"
    return f"signed: {said}; ledgers not held here"


def _signed(
    value: Mapping[str, object], kind: type[Receipt] | type[Closing], keys: Mapping[str, str]
) -> bool:
    try:
        said = kind.from_json(dict(value))
    except ValueError:
        return False
    return keys.get(said.site) == said.public_key and said.verify()
