"""A run as the hub carries it out: who takes part, each round, scores, the end; and going on.

It takes replies one at a time, however many sites there are; yields the same bits in whatever order
they arrive; never averages fewer than were declared; and goes on after a crash from where it was.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from federation.algorithms import fedavg
from federation.checkpoint import Checkpoint, RunState, storage_errors
from federation.cohort import Cohort, CohortPolicy
from federation.errors import FederationError
from federation.flower import wire
from federation.flower.cohort import (
    addressed,
    ask_who_takes_part,
    found_again,
    wait_for_nodes,
)
from federation.flower.collecting import Answers, Collector, ask_all
from federation.flower.refusals import NO_REPLY, explain
from federation.flower.spool import Spool
from federation.flower.training_round import RoundRules, TrainingRound
from federation.flower.validation import checked_closing
from federation.messages import (
    CloseRequest,
    DescribeRequest,
    Description,
    EvaluateRequest,
    RoundFinished,
    TrainRequest,
    Weights,
)
from models.weights import Array, weights_digest

_log = logging.getLogger("cohortium.hub")
Watcher = Callable[[RoundFinished], None]

# Longest wait for what takes a site no time: its statement, and its last one. In seconds.
_QUICK_S = 600.0


class HubRun:
    """One run over all sites that take part: ``begin``, then ``carry_out``, then ``finish``.

    Attributes:
        state: How far the run has come, with its events, receipts and cohort.
        weights: From which training goes on.
        closings: What sites countersigned at the end, as JSON values.

    Args:
        state: Of a run that goes on, or a new one's.
        weights: What it goes on from.
        checkpoint: Where it is kept; ``state`` and ``weights`` are what is in there.
        min_sites: Fewer valid updates are too few for a round; ``policy`` says what then.
        ema_decay: Of the moving average of the rounds' models, which is what is scored.
        retries: Lost rounds that each site has agreed to pay for once more.
        attempt: What every round begins with.
        on_event: Called after each round.
        timeout_s: Longest wait for the answers to one question, in seconds, where ``policy`` gives
            none.
    """

    def __init__(  # noqa: PLR0913 - one complete run, all by keyword
        self,
        *,
        state: RunState,
        weights: Weights,
        checkpoint: Checkpoint,
        min_sites: int,
        policy: CohortPolicy | None = None,
        ema_decay: float = 0.0,
        retries: int = 0,
        attempt: int = 1,
        on_event: Watcher | None = None,
        timeout_s: float = 3600.0,
    ) -> None:
        if min_sites < 1:
            raise ValueError(f"min_sites is {min_sites}; give at least 1.")
        self.state = state
        self.weights = weights
        self.closings: list[dict[str, Any]] = []
        self._checkpoint = checkpoint
        self._policy = CohortPolicy() if policy is None else policy
        self.timeout_s = self._policy.deadline_s or timeout_s
        self._rules = RoundRules(retries, self._policy.max_update_norm)
        self._min_sites = min_sites
        self._ema_decay = ema_decay
        self._attempt = attempt
        self._on_event = on_event

    @property
    def descriptions(self) -> tuple[Description, ...]:
        """Statements of the sites that take part, in name order."""
        return () if self.state.cohort is None else tuple(self.state.cohort.sites.values())

    @property
    def model(self) -> Weights:
        """The average of the rounds' models; before the first round, the weights as they came."""
        return dict(self._stored_model)

    @property
    def _stored_model(self) -> Mapping[str, Array]:
        average = self._checkpoint.average
        return self.weights if average is None else average

    # A run.

    def keep_start(self) -> None:
        """Make a new run durable, before any site hears of it: approvals are for one run id."""
        self._checkpoint.put("weights", 0, self.weights)
        self._checkpoint.save(self.state)

    def stop(self, why: str) -> None:
        """Note that no round will come any more. Before anybody took part, one still can."""
        if self.state.cohort is not None:
            self.state.ended = why
            self._checkpoint.save(self.state)

    def begin(self, grid: Grid) -> None:
        """Find out who takes part and score the first weights: round 0. Or go on.

        Raises:
            FederationError: Fewer sites than ``min_sites`` take part. Nothing was charged.
        """
        cohort = self.state.cohort = found_again(grid, self.join(grid))
        if not self.state.events and self.state.unscored is None:
            self._note_round(0, tuple(cohort.names.values()), cohort.refused)
        if self.state.unscored is not None:
            self._score(grid)

    def carry_out(self, grid: Grid, rounds: int) -> None:
        """Train, until ``rounds`` rounds are done.

        Raises:
            FederationError: A round had too few sites, and the policy is not to skip it; or every
                round was skipped.
        """
        for number in range(self.state.round + 1, rounds + 1):
            self._train(grid, number)
            self._score(grid)
        if rounds and not self.state.num_completed:
            raise FederationError(
                f"Each of the {rounds} rounds was skipped for want of {self._min_sites} sites: "
                "the model was never trained. Look at the sites, or lower algorithm.min_sites."
            )

    def finish(self, grid: Grid) -> None:
        """Show every site everybody's newest head, and keep what they countersign.

        A site that does not answer loses nothing of the model: its statement is missing. The same
        if nothing can be asked at all: nobody's model is lost for a statement.
        """
        if self.state.cohort is None:
            return
        try:
            self._close(grid, self.state.cohort)
        except Exception:
            _log.exception("The closing round failed.")

    def _close(self, grid: Grid, cohort: Cohort) -> None:
        state = self.state
        model = weights_digest(self._stored_model)
        request = CloseRequest(state.experiment_digest, state.run, state.heads, model)
        content = wire.encode_close_request(request)
        kind = f"{MessageType.QUERY}.{wire.CLOSE}"
        timeout_s = min(_QUICK_S, self.timeout_s)
        messages = addressed(
            grid, cohort.sites, content, kind, round_number=state.round, timeout_s=timeout_s
        )
        answers = ask_all(grid, messages, cohort.names, timeout_s=timeout_s)
        for node_id, site in cohort.sites.items():
            try:
                if node_id in answers.by_node:
                    reply = wire.decode_close_reply(answers.by_node[node_id])
                    self.closings.append(checked_closing(request, site, reply))
            except FederationError as error:
                answers.refuse(node_id, error)
        if answers.refused:
            _log.warning("No closing statement from %s.", dict(answers.refused))

    # Training.

    def _train(self, grid: Grid, number: int) -> None:
        cohort = self.join(grid)
        training = self.new_round(number)
        with training.spool:
            # No name for the messages: each holds the model's bytes until it is sent.
            collector = Collector(grid, timeout_s=self.timeout_s)
            self._ask(grid, training, collector, cohort.sites)
            self._take_all(grid, training, collector)
            self._wait_for_more(grid, training, collector)
            self.end_round(number, training)

    def new_round(self, number: int) -> TrainingRound:
        """Return a round that nobody was asked for yet."""
        state = self.state
        request = TrainRequest(
            state.experiment_digest, state.run, number, self._attempt, self.weights, state.heads
        )
        spool = Spool(self._checkpoint.folder / "spool")
        return TrainingRound(request, spool, rules=self._rules, repeats=state.repeats)

    def _ask(
        self, grid: Grid, training: TrainingRound, collector: Collector, nodes: Iterable[int]
    ) -> None:
        timeout_s = collector.seconds_left
        collector.ask(training.messages(grid, self._known_cohort(), nodes, timeout_s=timeout_s))

    def _take_all(self, grid: Grid, training: TrainingRound, collector: Collector) -> None:
        """Take what comes; where that is too little, wait for sites that went away meanwhile."""
        self._take_what_comes(grid, training, collector)
        while self._min_sites - len(collector.left) <= len(training.updates) < self._min_sites:
            back = collector.wait_for_return()
            if not back:
                return
            self._ask(grid, training, collector, back)
            self._take_what_comes(grid, training, collector)

    def _take_what_comes(self, grid: Grid, training: TrainingRound, collector: Collector) -> None:
        for node_id, content in collector:
            lost = training.take(node_id, content)
            # A message without time is none to Flower, and a charge at the site.
            if lost and collector.seconds_left:
                self._ask(grid, training, collector, [node_id])

    def _wait_for_more(self, grid: Grid, training: TrainingRound, collector: Collector) -> None:
        for _ in range(self._num_waits):
            if len(training.updates) >= self._min_sites:
                return
            collector.wait_until(self._policy.wait_s)
            nodes = [*training.late(), *self._newly_joined(grid, collector.seconds_left)]
            _log.warning("Too few updates; %d sites are asked again.", len(nodes))
            self._ask(grid, training, collector, nodes)
            self._take_all(grid, training, collector)
            if len(training.updates) < self._min_sites:
                wait_for_nodes(grid, collector)

    @property
    def _num_waits(self) -> int:
        return self._policy.waits if self._policy.below_minimum == "wait" else 0

    def _newly_joined(self, grid: Grid, timeout_s: float) -> list[int]:
        """Ask those who do not take part yet; return the nodes that do from now on."""
        before = self._known_cohort()
        self.state.cohort = self._ask_who_takes_part(grid, timeout_s, before)
        return [node_id for node_id in self.state.cohort.sites if node_id not in before.sites]

    def end_round(self, number: int, training: TrainingRound) -> None:
        """Average, or skip; in either case make durable what the next request is made of.

        Raises:
            FederationError: Too few are valid; it names who is missing and why.
        """
        cohort, state = self._known_cohort(), self.state
        state.receipts += [training.receipts[site] for site in sorted(training.receipts)]
        state.repeats = training.repeats
        returned, refused = tuple(sorted(training.updates)), {**cohort.refused, **training.refused}
        enough = len(returned) >= self._min_sites
        if not enough and self._policy.below_minimum != "skip":
            details = {**cohort.details, **training.details}
            raise FederationError(
                self._too_few(f"Round {number}", "an update", (returned, refused, details))
            )
        if enough:
            self._average(number, training)
        self._note_round(number, returned, refused, skipped=not enough)

    def _average(self, number: int, training: TrainingRound) -> None:
        with storage_errors(self._checkpoint.folder):
            self.weights = fedavg.server_step(self.weights, training.updates)
        training.let_go()
        self._checkpoint.put("weights", number, self.weights)
        if self._ema_decay:
            before = self._checkpoint.average
            average = fedavg.average_step(
                self.weights if before is None else before,
                self.weights,
                decay=self._ema_decay,
                num_averaged=self.state.num_averaged,
            )
            self._checkpoint.put("average", number, average)
        self.state.num_averaged += 1

    def _note_round(
        self,
        number: int,
        returned: tuple[str, ...],
        refused: Mapping[str, str],
        *,
        skipped: bool = False,
    ) -> None:
        state = self.state
        state.round = number
        state.unscored = RoundFinished(
            number,
            returned,
            {site: code for site, code in refused.items() if code != NO_REPLY},
            scores={},
            receipts=tuple(r for r in state.receipts if r["round"] == number),
            late=tuple(sorted(site for site, code in refused.items() if code == NO_REPLY)),
            outcome="skipped" if skipped else "completed",
            num_declared=self._policy.num_sites,
        )
        self._checkpoint.save(state)

    # Scores.

    def _score(self, grid: Grid) -> None:
        names, messages = self._known_cohort().names, self.to_score(grid, self.state.round)
        self.take_scores(ask_all(grid, messages, names, timeout_s=self.timeout_s))

    def to_score(self, grid: Grid, number: int) -> list[Message]:
        """Return what asks sites to score the model on their public subjects.

        Not those that were late in this round: the next one would wait for them twice. Nor those
        that have said that they have no public subjects: weights would travel for nothing.
        """
        late = () if self.state.unscored is None else self.state.unscored.late
        not_asked = {*late, *self._without_public}
        nodes = [n for n, site in self._known_cohort().sites.items() if site.site not in not_asked]
        if not nodes:
            return []
        state, model = self.state, self._stored_model
        request = EvaluateRequest(state.experiment_digest, state.run, number, model)
        content, kind = wire.encode_evaluate_request(request), MessageType.EVALUATE
        return addressed(grid, nodes, content, kind, round_number=number, timeout_s=self.timeout_s)

    @property
    def _without_public(self) -> set[str]:
        """Return who has answered with no scores at all in this run: a site's word for the run."""
        return {site for event in self.state.events for site, s in event.scores.items() if not s}

    def take_scores(self, answers: Answers) -> None:
        """Note the scores and close the round. A missing score ends nothing."""
        names, state = self._known_cohort().names, self.state
        late = () if state.unscored is None else state.unscored.late
        scores: dict[str, Mapping[str, float]] = {
            site: {} for site in self._without_public if site not in late
        }
        for node_id, content in answers.by_node.items():
            try:
                scores[names[node_id]] = wire.decode_evaluate_reply(content).scores
            except FederationError as error:
                answers.refuse(node_id, error)
        missing = {site: code for site, code in answers.refused.items() if site not in scores}
        if missing:
            _log.warning("Round %d: no scores from %s.", state.round, missing)
        if state.unscored is None:
            raise RuntimeError("A round was scored before it was trained.")
        event = replace(state.unscored, scores={site: scores[site] for site in sorted(scores)})
        state.events.append(event)
        state.unscored = None
        self._checkpoint.save(state)
        if self._on_event is not None:
            self._on_event(event)

    # Who takes part.

    def join(self, grid: Grid) -> Cohort:
        """Return who takes part; ask, the first time.

        Raises:
            FederationError: Fewer sites than the minimum do. Nothing was charged.
        """
        if self.state.cohort is None:
            self.state.cohort = self._enough_sites(grid)
        return self.state.cohort

    def _enough_sites(self, grid: Grid) -> Cohort:
        cohort = self._ask_who_takes_part(grid, min(_QUICK_S, self.timeout_s))
        for _ in range(self._num_waits):
            if len(cohort.sites) >= self._min_sites:
                break
            waiting = Collector(grid, timeout_s=self._policy.wait_s)
            wait_for_nodes(grid, waiting)
            cohort = self._ask_who_takes_part(grid, self._policy.wait_s, cohort)
        if len(cohort.sites) < self._min_sites:
            found = (tuple(cohort.names.values()), cohort.refused, cohort.details)
            text = self._too_few("Before round 1", "a description", found)
            raise FederationError(f"{text} Then go on with this run: approvals are for its id.")
        return cohort

    def _ask_who_takes_part(
        self, grid: Grid, timeout_s: float, known: Cohort | None = None
    ) -> Cohort:
        request = DescribeRequest(self.state.experiment_digest, self.state.run)
        return ask_who_takes_part(
            grid, request, policy=self._policy, timeout_s=timeout_s, known=known
        )

    def _known_cohort(self) -> Cohort:
        if self.state.cohort is None:
            raise RuntimeError("A round was aggregated before it was configured.")
        return self.state.cohort

    def _too_few(
        self,
        when: str,
        what: str,
        found: tuple[tuple[str, ...], Mapping[str, str], Mapping[str, str]],
    ) -> str:
        returned, refused, details = found
        return (
            f"{when}: {len(returned)} of {len(returned) + len(refused)} sites returned {what}, "
            f"and this run needs {self._min_sites}. The model was left as it was. "
            f"{explain(refused, details)}"
        ).rstrip()
