"""A run as a Flower ``Strategy``, for code that wants one; ``hub_run`` does the work."""

import logging
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from federation.flower import records
from federation.flower.collecting import Answers, contents
from federation.flower.hub_run import HubRun
from federation.flower.training_round import TrainingRound

_log = logging.getLogger("cohortium.hub")


class CohortStrategy(Strategy):
    """Works under Flower's own loop too, which holds all replies of a round and repeats no loss.

    Args:
        run: Its weights are what training begins with; ``start`` puts its own in their place.
    """

    def __init__(self, run: HubRun) -> None:
        self.run = run
        self._training: TrainingRound | None = None

    def start(  # noqa: PLR0913, PLR0917 - Flower's signature
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,  # noqa: ARG002
        evaluate_config: ConfigRecord | None = None,  # noqa: ARG002
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,  # noqa: ARG002
    ) -> Result:
        """Carry the run out in our own loop: one reply in memory, lost rounds repeated."""
        self.run.timeout_s = timeout
        self.run.weights = records.to_weights(initial_arrays)
        self.run.begin(grid)
        self.run.carry_out(grid, num_rounds)
        result = Result(records.from_weights(self.run.weights))
        for event in self.run.state.events:
            result.train_metrics_clientapp[event.round] = MetricRecord(
                {"num_sites": len(event.returned)}
            )
            result.evaluate_metrics_clientapp[event.round] = _flat(event.scores)
        return result

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,  # noqa: ARG002 - Flower's signature
        grid: Grid,
    ) -> list[Message]:
        """Ask every site of the cohort for an update of these weights."""
        cohort = self.run.join(grid)
        self.run.weights = records.to_weights(arrays)
        self._training = self.run.new_round(server_round)
        return self._training.messages(grid, cohort, cohort.sites, timeout_s=self.run.timeout_s)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the valid updates.

        Raises:
            FederationError: Too few are valid; it names who is missing and why.
        """
        if self._training is None:
            raise RuntimeError("A round was aggregated before it was configured.")
        with self._training.spool:
            for node_id, content in contents(replies):
                self._training.take(node_id, content)
            self.run.end_round(server_round, self._training)
        num_sites = len(self._training.updates)
        return records.from_weights(self.run.weights), MetricRecord({"num_sites": num_sites})

    def configure_evaluate(
        self,
        server_round: int,
        arrays: ArrayRecord,  # noqa: ARG002 - the run has them
        config: ConfigRecord,  # noqa: ARG002 - Flower's signature
        grid: Grid,
    ) -> list[Message]:
        """Ask every site of the cohort to score the model on its public subjects."""
        self.run.join(grid)
        return self.run.to_score(grid, server_round)

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002 - the run knows
        replies: Iterable[Message],
    ) -> MetricRecord:
        """Collect the scores and close the round."""
        names = {} if self.run.state.cohort is None else self.run.state.cohort.names
        self.run.take_scores(Answers.of(contents(replies), names))
        return _flat(self.run.state.events[-1].scores)

    def summary(self) -> None:
        """Log what this strategy asks for (part of Flower's contract)."""
        _log.info("Equal weights, a minimum of sites a round.")


def _flat(scores: Mapping[str, Mapping[str, float]]) -> MetricRecord:
    """Return ``site/score`` metrics, for Flower's own result."""
    return MetricRecord(
        {
            f"{site}/{name}": value
            for site, values in scores.items()
            for name, value in values.items()
        }
    )
