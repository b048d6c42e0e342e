"""The hub's side of one run, as SuperExec starts it: the same rounds as on one machine."""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from federation.errors import FederationError
from federation.files import write_atomically
from federation.flower.hub_grid import HubGrid
from federation.flower.server_app import RunResult, RunStoppedError, run_rounds
from federation.hub_folder import HubFolder
from federation.hub_runs import RunFolder
from federation.messages import RoundFinished
from federation.results import keep_receipts, record, write_json
from federation.training import initial_weights
from models.weights import weights_to_bytes

# Longest wait for one round's replies, and for sites to connect, in seconds.
ROUND_S = 24 * 3600.0
JOIN_S = 120.0


def carry_out(hub: HubFolder, run: RunFolder, grid: Grid, *, flower_run: int) -> None:
    """Carry out a run, or go on with it, and leave its results in its folder.

    Args:
        flower_run: Flower's id of this attempt.

    Raises:
        FederationError: It stopped. Its status says why; it can be resumed.
    """
    if run.status.state == "cancelled":
        return
    run.note(state="running", pid=os.getpid(), flower_run=flower_run, why="")
    try:
        result = _rounds(hub, run, grid)
    except FederationError as error:
        if isinstance(error, RunStoppedError):
            keep_receipts(run.path, error.receipts)
            write_json(run.path / "closings.json", error.closings)
        run.note(state="stopped", why=str(error))
        raise
    _keep(run, result)
    run.note(state="completed")


def _rounds(hub: HubFolder, run: RunFolder, grid: Grid) -> RunResult:
    experiment = run.experiment
    named = HubGrid(grid, hub.nodes, hub.key, valid_s=ROUND_S)
    _wait_for_sites(named, len(hub.sites), experiment.algorithm.min_sites)
    receipts: list[dict[str, Any]] = []
    return run_rounds(
        named,
        experiment_digest=experiment.digest(),
        run=run.run,
        weights=initial_weights(experiment),
        rounds=experiment.algorithm.rounds,
        min_sites=experiment.algorithm.min_sites,
        ema_decay=experiment.algorithm.ema_decay,
        on_event=partial(_after_round, run, receipts),
        timeout_s=ROUND_S,
    )


def _after_round(run: RunFolder, receipts: list[dict[str, Any]], event: RoundFinished) -> None:
    """Put on record what sites have paid for, even if this process dies in the next round."""
    receipts.extend(dict(receipt) for receipt in event.receipts)
    keep_receipts(run.path, receipts)
    run.append(event)
    run.note(done=event.round)


def _wait_for_sites(grid: HubGrid, registered: int, at_least: int) -> None:
    """Wait until every registered site is connected, and not for ever.

    Raises:
        FederationError: Fewer are than a round needs.
    """
    end = time.monotonic() + JOIN_S
    while len(grid.names) < registered and time.monotonic() < end:
        time.sleep(0.2)
    if len(grid.names) < at_least:
        connected = ", ".join(grid.names.values()) or "none"
        raise FederationError(
            f"{len(grid.names)} of {registered} sites connected within {JOIN_S:.0f} s "
            f"({connected}), and this run needs {at_least}. Nothing was asked of anybody. Ask the "
            "operators of the others to start their sites, then resume the run."
        )


def _keep(run: RunFolder, result: RunResult) -> None:
    out: Path = run.path
    keep_receipts(out, result.receipts)
    write_json(out / "closings.json", result.closings)
    write_atomically(out / "model.safetensors", weights_to_bytes(result.weights), mode=0o644)
    record(run.experiment, result, run.run, out)
