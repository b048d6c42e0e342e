"""A run of an experiment: as a function over any ``Grid``, and as a Flower ``ServerApp``."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from federation.checkpoint import Checkpoint, RunState
from federation.cohort import CohortPolicy
from federation.errors import CheckpointError, FederationError, StorageError
from federation.flower.hub_run import HubRun, Watcher
from federation.messages import Description, RoundFinished, Weights

DEFAULT_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        run: Run id.
        weights: The model after the last round: the average of the rounds' models.
        events: Round 0 (before training) and one per round.
        receipts: Of every update that was averaged, as JSON values, by round and site name.
        descriptions: Of the sites that took part, in name order.
        closings: What they countersigned at the end, as JSON values, in name order.
    """

    run: str
    weights: Weights
    events: tuple[RoundFinished, ...]
    receipts: tuple[dict[str, Any], ...]
    descriptions: tuple[Description, ...]
    closings: tuple[dict[str, Any], ...] = ()


class RunStoppedError(FederationError):
    """A run ended before its last round.

    Attributes:
        events: Of the rounds that finished.
        receipts: Of the valid updates that arrived, averaged or not: sites have paid for them.
        descriptions: Of the sites that took part.
        closings: What they countersigned at its end.
    """

    def __init__(self, message: str, run: HubRun) -> None:
        super().__init__(message)
        self.events = tuple(run.state.events)
        self.receipts = tuple(run.state.receipts)
        self.descriptions = run.descriptions
        self.closings = tuple(run.closings)


def run_rounds(  # noqa: PLR0913 - one complete run, all by keyword
    grid: Grid,
    *,
    experiment_digest: str,
    run: str,
    weights: Weights,
    rounds: int,
    min_sites: int,
    policy: CohortPolicy | None = None,
    ema_decay: float = 0.0,
    retries: int = 0,
    on_event: Watcher | None = None,
    attempt: int = 1,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    checkpoint: Checkpoint | None = None,
    state: RunState | None = None,
) -> RunResult:
    """Train ``weights`` for ``rounds`` rounds over the sites behind ``grid``.

    Args:
        run: Run id, 8 to 64 hex digits.
        policy: Deadline, and what becomes of a round with fewer than ``min_sites`` valid updates.
        ema_decay: Of the moving average of the rounds' models; 0 takes the newest.
        retries: Lost rounds that each site has agreed to pay for once more.
        timeout_s: Longest wait for the replies to one question, in seconds.
        checkpoint: Where the run is kept after each round. Without it a run that dies is over.
        state: Of a run that goes on; it and ``weights`` are from ``Checkpoint.load``. What was
            asked before is asked again, and sites answer with what they had sent.

    Raises:
        RunStoppedError: A round had fewer than ``min_sites`` valid updates.
        StorageError, CheckpointError: The disk is full, or these are other sites than the run began
            with; it has not ended.
    """
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}; give 0 or more.")
    with _kept(checkpoint) as kept:
        hub_run = HubRun(
            state=RunState(run, experiment_digest) if state is None else state,
            weights=weights,
            checkpoint=kept,
            min_sites=min_sites,
            policy=policy,
            ema_decay=ema_decay,
            retries=retries,
            attempt=attempt,
            on_event=on_event,
            timeout_s=timeout_s,
        )
        del weights  # the run lets go of them after its first round
        if state is None:
            hub_run.keep_start()
        return _carried_out(hub_run, grid, rounds)


def server_app(*, on_result: Callable[[RunResult], None], **run: Any) -> ServerApp:
    """Return a Flower app that calls ``run_rounds`` with these arguments.

    Flower's apps return nothing; ``on_result`` is told what the run left behind.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        on_result(run_rounds(grid, **run))

    return app


def _carried_out(run: HubRun, grid: Grid, rounds: int) -> RunResult:
    try:
        with quiet_flower():
            run.begin(grid)
            run.carry_out(grid, rounds)
    except (StorageError, CheckpointError):
        # No end of the run: it goes on once that is put right.
        raise
    except FederationError as error:
        run.stop(str(error))
        run.finish(grid)
        raise RunStoppedError(str(error), run) from error
    run.finish(grid)
    return RunResult(
        run.state.run,
        run.model,
        tuple(run.state.events),
        tuple(run.state.receipts),
        run.descriptions,
        tuple(run.closings),
    )


@contextmanager
def _kept(checkpoint: Checkpoint | None) -> Iterator[Checkpoint]:
    """Give this checkpoint, or one that does not outlive the run."""
    if checkpoint is not None:
        yield checkpoint
        return
    with TemporaryDirectory(prefix="cohortium-run-") as place, Checkpoint(Path(place)) as made:
        yield made


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Keep Flower's progress lines off the terminal; its warnings still show."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
