"""The hub's side of one run, as SuperExec starts it: the same rounds as on one machine."""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid

from federation.checkpoint import CHECKPOINT, FILE, Checkpoint, storage_errors
from federation.elsewhere import want
from federation.errors import FederationError
from federation.flower.hub_grid import HubGrid
from federation.flower.whole_run import carry_out as carry_out_rounds
from federation.flower.whole_run import write_json
from federation.hub_folder import HubFolder
from federation.hub_runs import START, RunFolder
from federation.messages import RoundFinished
from federation.run_record import MODEL
from federation.tracking.waiting import record_waiting

_log = logging.getLogger(__name__)

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
    if (run.path / MODEL).is_file() and not (run.path / CHECKPOINT / FILE).is_file():
        run.note(state="completed", why="")  # it was, and its process died before it said so
        return
    try:
        with storage_errors(run.path):
            run.note(state="running", pid=os.getpid(), flower_run=flower_run, why="")
        if hub.config.tracking is not None:
            with storage_errors(run.path):
                want(run.path, hub.config.tracking)
        named = HubGrid(grid, hub.nodes, hub.key, valid_s=ROUND_S)
        experiment = run.experiment
        _wait_for_sites(named, len(hub.sites), experiment.algorithm.min_sites)
        with Checkpoint(run.path / CHECKPOINT) as checkpoint:
            carry_out_rounds(
                experiment,
                named,
                checkpoint,
                out=run.path,
                folder=run.path / START,
                run=run.run,
                keep=partial(write_json, run.path / "receipts.json"),
                on_event=partial(_after_round, run),
                on_resume=partial(_catch_up, run),
                timeout_s=ROUND_S,
            )
    except FederationError as error:
        # Where the disk is full, who watches sees that the process is gone; its log has the rest.
        with suppress(OSError):
            run.note(state="stopped", why=str(error))
        raise
    run.note(state="completed")
    _record_elsewhere(run.path.parent)


def _record_elsewhere(runs: Path) -> None:
    """Record what waits, of this run and of earlier ones; a server that is down ends nothing."""
    for folder, uri, outcome in record_waiting([runs]):
        if isinstance(outcome, str):
            _log.warning("Run %s is not recorded in %s yet: %s", folder.name, uri, outcome)


def _after_round(run: RunFolder, event: RoundFinished) -> None:
    with storage_errors(run.path):
        run.append(event)
        run.note(done=event.round)


def _catch_up(run: RunFolder, events: Sequence[RoundFinished]) -> None:
    """Tell of rounds that are in the checkpoint and that nobody was told of."""
    told = {event["round"] for event in run.events()}
    with storage_errors(run.path):
        for event in events:
            if event.round not in told:
                run.append(event)
        run.note(done=events[-1].round)


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
