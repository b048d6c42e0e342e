"""A finished run's folder as MLflow is told of it: at the end of the run, and again whenever."""

from collections.abc import Mapping

import yaml

from federation.ledger.closings import Closing
from federation.ledger.receipts import Receipt
from federation.run_record import FinishedRun, RunRecord, example_input, rounded_up
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
        descriptions=record.contributors,
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
    return {f"epsilon/{site}": rounded_up(e, 4) for site, e in sorted(record.epsilon.items())}


def verification(finished: FinishedRun) -> str:
    """Say how far what is kept here shows what sites were charged.

    Receipts and closings are held against the run and the keys that sites stated. Whose keys those
    are, and what else a ledger was charged, is for ``cohortium audit verify`` with the ledgers.
    """
    record = finished.record
    receipts = [_receipt(record, one) for one in finished.receipts]
    closings = [_closing(record, one) for one in finished.closings]
    keys = {(r.site, r.round, r.attempt) for r in receipts if r is not None}
    said = (
        f"{len(keys)} of {len(receipts)} receipts and {sum(closings)} of {len(closings)} closings "
        "signed with the sites' keys"
    )
    if len(keys) < len(receipts) or not all(closings):
        return f"contradicted: {said}"
    if {site.site for site in record.contributors} - {site for site, _, _ in keys}:
        return f"unsigned: {said}, none of some sites whose updates are in the model"
    return f"signed: {said}; ledgers not held here"


def _receipt(record: RunRecord, value: Mapping[str, object]) -> Receipt | None:
    """Return a receipt of this run that its site has signed."""
    try:
        said = Receipt.from_json(dict(value))
    except ValueError:
        return None
    site = next((one for one in record.sites if one.site == said.site), None)
    fits = site is not None and (
        (said.public_key, said.commitment) == (site.public_key, site.commitment)
        and (said.run, said.experiment_digest) == (record.run, record.experiment.digest())
    )
    return said if fits and said.verify() else None


def _closing(record: RunRecord, value: Mapping[str, object]) -> bool:
    """Tell whether this is a site's signed statement about the end of this run and its model."""
    try:
        said = Closing.from_json(dict(value))
    except ValueError:
        return False
    keys = {site.site: site.public_key for site in record.sites}
    return (
        keys.get(said.site) == said.public_key
        and (said.run, said.model_digest) == (record.run, record.model_digest)
        and said.verify()
    )
