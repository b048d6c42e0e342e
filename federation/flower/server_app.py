"""A run of an experiment: as a function over any ``Grid``, and as a Flower ``ServerApp``."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from federation.errors import FederationError
from federation.flower import records
from federation.flower.strategy import CohortStrategy, Watcher
from federation.messages import Description, RoundFinished, Weights

DEFAULT_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        weights: The model after the last round: the average of the rounds' models.
        events: Round 0 (before training) and one per round.
        receipts: Of every update that was averaged, as JSON values, by round and site name.
        descriptions: Of the sites that took part, in name order.
        closings: What they countersigned at the end, as JSON values, in name order.
    """

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

    def __init__(self, message: str, strategy: CohortStrategy) -> None:
        super().__init__(message)
        self.events = tuple(strategy.events)
        self.receipts = tuple(strategy.receipts)
        self.descriptions = strategy.descriptions
        self.closings = tuple(strategy.closings)


def run_rounds(  # noqa: PLR0913 - one complete run, all by keyword
    grid: Grid,
    *,
    experiment_digest: str,
    run: str,
    weights: Weights,
    rounds: int,
    min_sites: int,
    ema_decay: float = 0.0,
    on_event: Watcher | None = None,
    attempt: int = 1,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> RunResult:
    """Train ``weights`` for ``rounds`` rounds over the sites behind ``grid``.

    Args:
        run: Run id, 8 to 64 hex digits.
        ema_decay: Of the moving average of the rounds' models; 0 takes the newest.
        timeout_s: Longest wait for the replies to one question, in seconds.

    Raises:
        RunStoppedError: A round had fewer than ``min_sites`` valid updates.
    """
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}; give 0 or more.")
    strategy = CohortStrategy(
        experiment_digest=experiment_digest,
        run=run,
        min_sites=min_sites,
        ema_decay=ema_decay,
        attempt=attempt,
        on_event=on_event,
        timeout_s=timeout_s,
    )
    try:
        _start(strategy, grid, records.from_weights(weights), rounds)
    except FederationError as error:
        strategy.finish(grid, strategy.model or weights)
        raise RunStoppedError(str(error), strategy) from error
    trained = dict(weights) if strategy.model is None else strategy.model
    strategy.finish(grid, trained)
    return RunResult(
        trained,
        tuple(strategy.events),
        tuple(strategy.receipts),
        strategy.descriptions,
        tuple(strategy.closings),
    )


def server_app(*, on_result: Callable[[RunResult], None], **run: Any) -> ServerApp:
    """Return a Flower app that calls ``run_rounds`` with these arguments.

    Flower's apps return nothing; ``on_result`` is told what the run left behind.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        on_result(run_rounds(grid, **run))

    return app


def _start(strategy: CohortStrategy, grid: Grid, arrays: ArrayRecord, rounds: int) -> None:
    with quiet_flower():
        strategy.begin(grid, arrays)
        strategy.start(grid, arrays, num_rounds=rounds, timeout=strategy.timeout_s)


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
