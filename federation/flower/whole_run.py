"""All rounds of a run over any grid, and what they leave: statements, the model, a record."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.checkpoint import Checkpoint, RunState, storage_errors
from federation.experiment import Experiment
from federation.files import write_atomically
from federation.flower.hub_run import Watcher
from federation.flower.server_app import (
    DEFAULT_TIMEOUT_S,
    RunResult,
    RunStoppedError,
    run_rounds,
)
from federation.ledger.filter import BudgetPolicy, FilterState
from federation.messages import RoundFinished
from federation.privacy.plan import PrivacyPlan, make_plan
from federation.run_record import MODEL, FinishedRun, RunRecord, write_record
from federation.tracking.finished import tracked_run
from federation.tracking.log import log_run
from federation.tracking.runs import LoggedRun
from federation.tracking.store import open_store
from federation.training import initial_weights
from models.weights import weights_to_bytes

if TYPE_CHECKING:
    from flwr.serverapp import Grid

Keep = Callable[[Sequence[Mapping[str, Any]]], None]
_Resumed = Callable[[Sequence[RoundFinished]], None]


def carry_out(  # noqa: PLR0913 - all but three are named
    experiment: Experiment,
    grid: "Grid",
    checkpoint: Checkpoint,
    *,
    out: Path,
    run: str,
    keep: Keep,
    on_event: Watcher,
    on_resume: _Resumed = lambda _: None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    folder: Path | None = None,
) -> tuple[RunResult, LoggedRun, str]:
    """Carry out the rounds that are left, and leave everything in ``out``.

    Args:
        run: The run's id, where there is no checkpoint yet.
        keep: Told the receipts so far after each round, before ``on_event`` is.
        on_resume: Told the rounds that were finished before, where a run goes on.
        folder: Where the weights are that the experiment starts from, if it names some.

    Returns:
        What the rounds came to, its record in MLflow, and the address of the MLflow store.

    Raises:
        RunStoppedError: A round had too few sites. What was signed is in ``out``.
        StorageError: The disk is full; the run can go on.
    """
    try:
        told = (keep, on_event, on_resume)
        result = _rounds_left(experiment, grid, checkpoint, run, told, timeout_s, folder)
    except RunStoppedError as stopped:
        keep(stopped.receipts)
        write_json(out / "closings.json", stopped.closings)
        raise
    keep(result.receipts)
    write_json(out / "closings.json", result.closings)
    # The run's last results: written while there still is a checkpoint.
    with storage_errors(out):
        model = weights_to_bytes(result.weights)
        write_atomically(out / MODEL, model, mode=0o644)
        record = _record(experiment, result, out, model)
    finished = FinishedRun(out, record, result.weights, result.receipts, result.closings)
    store = open_store(out.resolve() / "mlflow")
    tracked = log_run(tracked_run(finished, store))
    checkpoint.remove()
    return result, tracked, store


def _rounds_left(  # noqa: PLR0913, PLR0917 - as ``carry_out`` has them
    experiment: Experiment,
    grid: "Grid",
    checkpoint: Checkpoint,
    run: str,
    told: tuple[Keep, Watcher, _Resumed],
    timeout_s: float,
    folder: Path | None,
) -> RunResult:
    keep, on_event, on_resume = told
    state: RunState | None = None
    weights = None
    if checkpoint.exists:
        state, weights = checkpoint.load(experiment.digest())
    events = [] if state is None else state.events
    receipts = [dict(receipt) for event in events for receipt in event.receipts]
    if events:
        # This process may have died between the checkpoint and what it tells of it.
        keep(receipts)
        on_resume(events)

    def after_round(event: RoundFinished) -> None:
        # What sites have paid for is on record even if this process dies in the next round.
        receipts.extend(dict(receipt) for receipt in event.receipts)
        keep(receipts)
        on_event(event)

    algorithm = experiment.algorithm
    return run_rounds(
        grid,
        experiment_digest=experiment.digest(),
        run=run if state is None else state.run,
        weights=initial_weights(experiment, folder) if weights is None else weights,
        rounds=algorithm.rounds,
        min_sites=algorithm.min_sites,
        policy=experiment.cohort,
        ema_decay=algorithm.ema_decay,
        retries=algorithm.retries,
        on_event=after_round,
        timeout_s=timeout_s,
        checkpoint=checkpoint,
        state=state,
    )


def write_json(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Write what sites have signed, for anybody to read."""
    text = json.dumps(list(values), indent=1, sort_keys=True)
    with storage_errors(path.parent):
        write_atomically(path, text.encode(), mode=0o644)


def _record(experiment: Experiment, result: RunResult, out: Path, model: bytes) -> RunRecord:
    plan = make_plan(experiment)
    return write_record(
        out,
        experiment,
        run=result.run,
        model=model,
        events=result.events,
        sites=result.descriptions,
        epsilon=_epsilon(plan, result.receipts),
        noise_multiplier=plan.noise_multiplier,
        heads=_heads(result),
    )


def _heads(result: RunResult) -> dict[str, str]:
    """Return the newest hash of each site's ledger that it has signed."""
    released = {receipt["site"]: receipt["head_after"] for receipt in result.receipts}
    return released | {closing["site"]: closing["head"] for closing in result.closings}


def _epsilon(plan: PrivacyPlan, receipts: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return what this run cost each site, from its receipts (not what the site spent before)."""
    rounds = Counter(receipt["site"] for receipt in receipts)
    if not plan.is_private:
        return dict.fromkeys(rounds)
    policy = BudgetPolicy.of(plan.epsilon, plan.delta)
    return {
        site: FilterState().after(plan.round_event.times(n)).spent_epsilon(policy)
        for site, n in rounds.items()
    }
