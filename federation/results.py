"""What a run leaves for people and programs: signed statements, the model, an MLflow record."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from federation.experiment import Experiment
from federation.files import write_atomically
from federation.flower.server_app import RunResult
from federation.ledger.filter import BudgetPolicy, FilterState
from federation.privacy.plan import PrivacyPlan, make_plan
from federation.tracking.log import log_run
from federation.tracking.runs import LoggedRun, TrackedModel, TrackedRun
from federation.tracking.store import open_store


def keep_receipts(out: Path, receipts: Sequence[Mapping[str, Any]]) -> None:
    """Write what an auditor starts from."""
    write_json(out / "receipts.json", receipts)


def record(experiment: Experiment, result: RunResult, run: str, out: Path) -> tuple[str, LoggedRun]:
    """Record a run in the MLflow store under ``out``; return the store's address and the record."""
    store = open_store(out.resolve() / "mlflow")
    return store, log_run(_tracked(experiment, result, run, store))


def write_json(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Write what sites have signed, for anybody to read."""
    text = json.dumps(list(values), indent=1, sort_keys=True)
    write_atomically(path, text.encode(), mode=0o644)


def _tracked(experiment: Experiment, result: RunResult, run: str, store: str) -> TrackedRun:
    plan = make_plan(experiment)
    values = experiment.model_dump(mode="json")
    return TrackedRun(
        store=store,
        experiment=experiment.name,
        name=f"{experiment.name}-{run[:8]}",
        parameters=values | {"noise_multiplier": plan.noise_multiplier},
        experiment_yaml=yaml.safe_dump(values, sort_keys=False),
        experiment_digest=experiment.digest(),
        events=result.events,
        descriptions=result.descriptions,
        receipts=result.receipts,
        closings=result.closings,
        heads={receipt["site"]: receipt["head_after"] for receipt in result.receipts}
        | {closing["site"]: closing["head"] for closing in result.closings},
        model=TrackedModel(
            spec=values["model"],
            classes=experiment.task.classes,
            weights=result.weights,
            input_example=_synthetic_input(experiment),
            value=values["task"] if experiment.task.learns == "values" else None,
        ),
        tags={"run": run} | _epsilon_tags(plan, result.receipts),
    )


def _epsilon_tags(plan: PrivacyPlan, receipts: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return what this run cost each site, from its receipts (not what the site spent before)."""
    if not plan.is_private:
        return {f"epsilon/{receipt['site']}": "infinite" for receipt in receipts}
    policy, rounds = BudgetPolicy.of(plan.epsilon, plan.delta), Counter(r["site"] for r in receipts)
    cost = {
        site: FilterState().after(plan.round_event.times(n)).spent_epsilon(policy)
        for site, n in rounds.items()
    }
    return {f"epsilon/{site}": f"{value:.4f}" for site, value in cost.items()}


def _synthetic_input(experiment: Experiment) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Return one image of noise, (1, channels, *shape): an example that shows no one."""
    random = np.random.default_rng(experiment.seed)
    shape = (1, experiment.input.num_channels, *experiment.input.shape)
    return random.standard_normal(shape, dtype=np.float32)
