"""Federated averaging as a Flower ``Strategy`` that never trusts a reply it did not check.

Works under Flower's own ``Strategy.start``. Beyond what stock strategies do it refuses replies
that are not finite, do not fit or do not answer the request; needs a minimum of replies;
gives sites equal weight; and yields the same bits in whatever order replies arrive.
"""

import logging
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from federation.algorithms import fedavg
from federation.errors import FederationError
from federation.flower import records, wire
from federation.flower.cohort import Answers, Cohort, addressed, ask_who_takes_part
from federation.flower.refusals import explain
from federation.flower.validation import checked_closing, checked_update
from federation.messages import (
    CloseRequest,
    DescribeRequest,
    Description,
    EvaluateRequest,
    RoundFinished,
    TrainReply,
    TrainRequest,
    Weights,
)
from models.weights import weights_digest

_log = logging.getLogger("cohortium.hub")
Watcher = Callable[[RoundFinished], None]


class CohortStrategy(Strategy):
    """One run over all sites that take part.

    Attributes:
        events: One per finished round; round 0 is the evaluation before training.
        receipts: Of every valid update that arrived, by round and site name.
        closings: What sites countersigned at the end, as JSON values.

    Args:
        run: Run id, 8 to 64 hex digits; sites bind what they charge to it.
        min_sites: A round with fewer valid updates ends the run with ``FederationError``.
        ema_decay: Of the moving average of the rounds' models, which is what is scored.
        attempt: Raised when a run repeats rounds that a site lost.
        on_event: Called after each round.
        timeout_s: Longest wait for descriptions, in seconds.
    """

    def __init__(  # noqa: PLR0913 - one complete run, all by keyword
        self,
        *,
        experiment_digest: str,
        run: str,
        min_sites: int,
        ema_decay: float = 0.0,
        attempt: int = 1,
        on_event: Watcher | None = None,
        timeout_s: float = 3600.0,
    ) -> None:
        if min_sites < 1:
            raise ValueError(f"min_sites is {min_sites}; give at least 1.")
        self._experiment_digest = experiment_digest
        self._run = run
        self._min_sites = min_sites
        self._ema_decay = ema_decay
        self._attempt = attempt
        self._on_event = on_event
        self.timeout_s = timeout_s
        self._cohort: Cohort | None = None
        self._request: TrainRequest | None = None
        self._returned: tuple[str, ...] = ()
        self._refused: dict[str, str] = {}
        self._average: Weights | None = None
        self._num_averaged = 0
        self.events: list[RoundFinished] = []
        self.receipts: list[dict[str, object]] = []
        self.closings: list[dict[str, object]] = []

    @property
    def descriptions(self) -> tuple[Description, ...]:
        """Statements of the sites that take part, in name order."""
        return () if self._cohort is None else tuple(self._cohort.sites.values())

    @property
    def model(self) -> Weights | None:
        """The average of the rounds' models; None before the first round.

        Flower's own ``Result`` has the newest weights, from which training goes on.
        """
        return self._average

    def begin(self, grid: Grid, arrays: ArrayRecord) -> None:
        """Find out who takes part and score the first weights: round 0.

        Raises:
            FederationError: Fewer sites than ``min_sites`` take part. Nothing was charged.
        """
        self._join(grid)
        self._returned = tuple(site.site for site in self.descriptions)
        messages = self.configure_evaluate(0, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(messages, timeout=self.timeout_s)
        self.aggregate_evaluate(0, replies)

    def finish(self, grid: Grid, weights: Weights) -> None:
        """Show every site everybody's newest head, and keep what they countersign.

        A site that does not answer loses nothing of the model: its statement is missing. The same
        if nothing can be asked at all: nobody's model is lost for a statement.
        """
        if self._cohort is None:
            return
        try:
            self._close(grid, self._cohort, weights)
        except Exception:
            _log.exception("The closing round failed.")

    def _close(self, grid: Grid, cohort: Cohort, weights: Weights) -> None:
        request = CloseRequest(
            self._experiment_digest, self._run, self._heads(), weights_digest(weights)
        )
        content = wire.encode_close_request(request)
        kind = f"{MessageType.QUERY}.{wire.CLOSE}"
        messages = addressed(grid, cohort.sites, content, kind, round_number=len(self.events))
        replies = grid.send_and_receive(messages, timeout=self.timeout_s)
        answers = Answers.of(replies, cohort.names)
        for node_id, site in cohort.sites.items():
            try:
                if node_id in answers.by_node:
                    reply = wire.decode_close_reply(answers.by_node[node_id])
                    self.closings.append(checked_closing(request, site, reply))
            except FederationError as error:
                answers.refuse(node_id, error)
        if answers.refused:
            _log.warning("No closing statement from %s.", dict(answers.refused))

    def _heads(self) -> dict[str, str]:
        """Return the newest head of each site that there is a receipt for."""
        return {str(receipt["site"]): str(receipt["head_after"]) for receipt in self.receipts}

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,  # noqa: ARG002 - Flower's signature
        grid: Grid,
    ) -> list[Message]:
        """Ask every site of the cohort for an update of these weights."""
        cohort = self._join(grid)
        self._request = TrainRequest(
            self._experiment_digest,
            self._run,
            server_round,
            self._attempt,
            records.to_weights(arrays),
            self._heads(),
        )
        content = wire.encode_train_request(self._request)
        return addressed(grid, cohort.sites, content, MessageType.TRAIN, round_number=server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the valid updates.

        Raises:
            FederationError: Fewer than ``min_sites`` are valid; it names who is missing and why.
        """
        cohort, request = self._asked()
        answers = Answers.of(replies, cohort.names)
        updates = self._valid_updates(cohort, request, answers)
        self._refused = {**cohort.refused, **answers.refused}
        self._returned = tuple(sorted(updates))
        if len(updates) < self._min_sites:
            details = {**cohort.details, **answers.details}
            raise FederationError(self._too_few(f"Round {server_round}", "an update", details))
        weights = fedavg.server_step(request.weights, updates)
        self._take_into_average(weights)
        return records.from_weights(weights), MetricRecord({"num_sites": len(updates)})

    def configure_evaluate(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,  # noqa: ARG002 - Flower's signature
        grid: Grid,
    ) -> list[Message]:
        """Ask every site of the cohort to score the model on its public subjects.

        That is the average of the rounds' models; before the first round, these weights.
        """
        cohort = self._join(grid)
        model = records.to_weights(arrays) if self._average is None else self._average
        request = EvaluateRequest(self._experiment_digest, self._run, server_round, model)
        content = wire.encode_evaluate_request(request)
        return addressed(
            grid, cohort.sites, content, MessageType.EVALUATE, round_number=server_round
        )

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord:
        """Collect the scores and close the round. A missing score ends nothing."""
        cohort = self._known_cohort()
        answers = Answers.of(replies, cohort.names)
        scores: dict[str, Mapping[str, float]] = {}
        for node_id, content in answers.by_node.items():
            try:
                scores[cohort.names[node_id]] = wire.decode_evaluate_reply(content).scores
            except FederationError as error:
                answers.refuse(node_id, error)
        if answers.refused:
            _log.warning("Round %d: no scores from %s.", server_round, dict(answers.refused))
        self._finish(server_round, {site: scores[site] for site in sorted(scores)})
        return _flat(scores)

    def summary(self) -> None:
        """Log what this strategy asks for (part of Flower's contract)."""
        _log.info("Equal weights, at least %d sites a round.", self._min_sites)

    def _take_into_average(self, weights: Weights) -> None:
        before = weights if self._average is None else self._average
        self._average = fedavg.average_step(
            before, weights, decay=self._ema_decay, num_averaged=self._num_averaged
        )
        self._num_averaged += 1

    def _join(self, grid: Grid) -> Cohort:
        if self._cohort is None:
            request = DescribeRequest(self._experiment_digest, self._run)
            cohort = ask_who_takes_part(grid, request, timeout_s=self.timeout_s)
            self._returned = tuple(cohort.names.values())
            self._refused = dict(cohort.refused)
            if len(cohort.sites) < self._min_sites:
                text = self._too_few("Before round 1", "a description", cohort.details)
                raise FederationError(text)
            self._cohort = cohort
        return self._cohort

    def _known_cohort(self) -> Cohort:
        if self._cohort is None:
            raise RuntimeError("A round was aggregated before it was configured.")
        return self._cohort

    def _asked(self) -> tuple[Cohort, TrainRequest]:
        if self._request is None:
            raise RuntimeError("A round was aggregated before it was configured.")
        return self._known_cohort(), self._request

    def _valid_updates(
        self, cohort: Cohort, request: TrainRequest, answers: Answers
    ) -> dict[str, Weights]:
        """Read the replies in site order; note who is refused, and keep receipts of the rest."""
        updates: dict[str, Weights] = {}
        for node_id, site in cohort.sites.items():
            content = answers.by_node.get(node_id)
            if content is None:
                continue
            try:
                reply = wire.decode_train_reply(content)
                updates[site.site] = checked_update(request, site, reply)
            except FederationError as error:
                answers.refuse(node_id, error)
            else:
                self._keep_receipt(reply)
        return updates

    def _keep_receipt(self, reply: TrainReply) -> None:
        self.receipts.append(dict(reply.receipt))

    def _too_few(self, when: str, what: str, details: Mapping[str, str]) -> str:
        num_asked = len(self._returned) + len(self._refused)
        return (
            f"{when}: {len(self._returned)} of {num_asked} sites returned {what}, and this run "
            f"needs {self._min_sites}. The model was left as it was. "
            f"{explain(self._refused, details)}"
        ).rstrip()

    def _finish(self, server_round: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        receipts = tuple(r for r in self.receipts if r["round"] == server_round)
        event = RoundFinished(server_round, self._returned, dict(self._refused), scores, receipts)
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)


def _flat(scores: Mapping[str, Mapping[str, float]]) -> MetricRecord:
    """Return ``site/score`` metrics, for Flower's own result."""
    return MetricRecord(
        {
            f"{site}/{name}": value
            for site, values in scores.items()
            for name, value in values.items()
        }
    )
