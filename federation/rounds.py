"""What a site does with each request: gate, charge, open the data, train, release, reply."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from data_adapters.errors import DataError
from data_adapters.manifest import Manifest
from data_adapters.subjects import SubjectDataset
from federation.errors import FederationError, LedgerError, Refused
from federation.evidence import SelfAudits
from federation.experiment import Experiment
from federation.ledger.ledger import Charge, RoundKey
from federation.ledger.receipts import Receipt
from federation.ledger.upkeep import conclude
from federation.messages import (
    CloseReply,
    CloseRequest,
    DescribeRequest,
    Description,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)
from federation.privacy.plan import PrivacyPlan, make_plan
from federation.privacy.random import Randomness, SecureRandomness, randomness_told
from federation.scoring import score
from federation.site import Part, Site
from federation.site_data import Ingested
from federation.software import installed_versions
from federation.training import (
    default_device,
    open_dataset,
    require_fitting_weights,
    require_trainable,
    train_locally,
)
from federation.usage import remember_model
from models.errors import ModelError
from models.weights import weights_to_bytes


def _require_fitting(experiment: Experiment, request: TrainRequest) -> None:
    """Try the network's behaviour (once in a process) and the weights, before any charge."""
    try:
        require_trainable(experiment)
        require_fitting_weights(experiment, request.weights)
    except ModelError as error:
        raise Refused("invalid_request", str(error)) from error


@dataclass(frozen=True)
class _Opened:
    """A data set with what decided who and what is in it."""

    manifest: Manifest
    left_out: frozenset[str]
    dataset: SubjectDataset


@dataclass(frozen=True)
class _Work:
    """A round that was charged."""

    experiment: Experiment
    plan: PrivacyPlan
    request: TrainRequest
    randomness: Randomness


class LocalRounds:
    """Answers a hub's requests with one site's data. Implements ``messages.SiteRounds``.

    Args:
        halted: Whether the operator has stopped the site: a round then ends at its next step.
        hub_key: Of the hub whose requests these are: approvals must name it. None on one machine.
        randomness: Makes the source of one round's sampling and noise. What any other source than
            the default has touched is marked in the ledger, which then never verifies.
    """

    def __init__(
        self,
        site: Site,
        *,
        hub_key: str | None = None,
        halted: Callable[[], bool] = lambda: False,
        randomness: Callable[[], Randomness] = SecureRandomness,
    ) -> None:
        self._site = site
        self._hub_key = hub_key
        self._halted = halted
        self._randomness = randomness
        self._one_round = threading.Lock()
        # Of each experiment and part the newest: what is in memory of an older one is let go.
        self._datasets: dict[tuple[str, Part], _Opened] = {}

    def describe(self, request: DescribeRequest) -> Description:
        """Reserve the whole run in the ledger, and return the site's public statement.

        Raises:
            Refused: ``not_approved``, ``approval_used_up``, ``behind``.
        """
        with self._failures_stay_here("describe"):
            now = self._site.ingested()
            self._approved(request.experiment_digest, now)
            self._site.ledger.reserve(request.experiment_digest, request.run)
            return self._site.describe(request.experiment_digest, now["protected"])

    def train(self, request: TrainRequest) -> TrainReply:
        """Charge the ledger, then train, then release; the same request gets the same bytes.

        Raises:
            Refused: A policy code before protected data is opened, ``round_failed`` after.
        """
        # One round at a time: the same request again, while it is computed, waits for its bytes.
        with self._failures_stay_here(f"round {request.round}"), self._one_round:
            payload, receipt = self._charged_update(request)
        return TrainReply(payload=payload, receipt=receipt.to_json())

    def evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        """Score the weights on public subjects; protected data is not opened.

        Raises:
            Refused: ``not_approved``.
        """
        with self._failures_stay_here("evaluate"):
            now = self._site.ingested()
            experiment = self._approved(request.experiment_digest, now)
            if not self._site.has_public:
                return EvaluateReply(scores={})
            public = self._dataset(experiment, "public", now)
            return EvaluateReply(scores=score(experiment, request.weights, public))

    def close(self, request: CloseRequest) -> CloseReply:
        """End a run in the ledger and countersign the heads that the hub shows.

        Raises:
            Refused: ``not_approved``, ``equivocation``.
        """
        with self._failures_stay_here("close"):
            try:
                closing = conclude(
                    self._site.ledger,
                    request.run,
                    request.experiment_digest,
                    heads=request.heads,
                    model_digest=request.model_digest,
                )
            except Refused:
                remember_model(self._site, request.run, request.model_digest)
                raise
        return CloseReply(closing.to_json())

    def _approved(self, experiment_digest: str, now: Ingested) -> Experiment:
        return self._site.approved(experiment_digest, now, hub_key=self._hub_key)

    def _charged_update(self, request: TrainRequest) -> tuple[bytes, Receipt]:
        ledger = self._site.ledger
        key = RoundKey(request.run, request.round, request.attempt)
        sent = ledger.resend(key, request_digest=request.digest())
        if sent is not None:
            return sent
        # Before all that can refuse it otherwise: two requests under one key are never left out.
        ledger.require_one_meaning(key, request.digest(), request.experiment_digest)
        now = self._site.ingested()
        experiment = self._approved(request.experiment_digest, now)
        plan = make_plan(experiment)
        _require_fitting(experiment, request)
        # A table of consent that cannot be read, or images that are not those that were approved,
        # stop the round before anybody pays for it. No voxel is read here.
        protected = self._dataset(experiment, "protected", now)
        charge = ledger.charge(
            key,
            request_digest=request.digest(),
            experiment_digest=request.experiment_digest,
            plan_digest=plan.digest(),
            event=plan.round_event,
            heads=request.heads,
            foreseen=experiment.algorithm.foresees(request.round, request.attempt),
        )
        stored = ledger.stored_release(charge)
        if stored is None:
            source = self._randomness()
            work = _Work(experiment, plan, request, source)
            with self._lost_if_it_fails(charge):
                payload = self._train_charged(work, protected)
            versions = installed_versions() | randomness_told(source)
            return payload, ledger.release(charge, payload, versions=versions)
        return stored

    @contextmanager
    def _lost_if_it_fails(self, charge: Charge) -> Iterator[None]:
        """Record at once that nothing will leave for a charge; it stands all the same."""
        try:
            yield
        except BaseException:
            try:
                self._site.ledger.lose(charge)
            except LedgerError:
                self._site.log_failure("the record of a lost round")
            raise

    def _require_going_on(self, experiment_digest: str) -> None:
        """Stop a round in its next step once the site was halted or the approval withdrawn.

        Raises:
            FederationError: It was. From outside this looks like any other failure.
        """
        if self._halted():
            raise FederationError("The site was stopped by its operator, and the round with it.")
        if self._site.ledger.approval_for(experiment_digest, used_up=True) is None:
            raise FederationError("The approval was withdrawn, and the round was stopped.")

    @contextmanager
    def _failures_stay_here(self, what: str) -> Iterator[None]:
        """Turn anything that goes wrong into ``round_failed``; its text stays in the site's log."""
        try:
            yield
        except Refused:
            raise
        except Exception as error:
            self._site.log_failure(what)
            raise Refused("round_failed", f"see {self._site.log_path}") from error

    def _train_charged(self, work: "_Work", protected: SubjectDataset) -> bytes:
        """Open protected data. From here on every failure looks the same from outside."""
        request, log = work.request, self._site.log_failure
        audits = SelfAudits(self._site.config.state, log, site=self._site.name)
        audit = audits.open(
            request.experiment_digest,
            request.run,
            work.plan,
            work.randomness,
            num_subjects=len(protected),
            device=default_device(),
        )
        update = train_locally(
            work.experiment,
            work.plan,
            request.weights,
            protected,
            randomness=work.randomness,
            on_failure=log,
            audit=audit,
            before_step=lambda: self._require_going_on(request.experiment_digest),
        )
        if audit is not None:
            audits.keep(request.experiment_digest, request.run, audit)
        return weights_to_bytes(update)

    def _dataset(self, experiment: Experiment, part: Part, now: Ingested) -> SubjectDataset:
        """Return one part as it is now: no voxel is read, and nobody who is left out is in it.

        Args:
            now: The manifests that the approval was checked against.

        Raises:
            Refused: ``not_approved``: images that are read where they lie are not those of ``now``.
        """
        opened = self._opened(experiment, part, now)
        try:
            opened.dataset.look_again()
        except DataError as error:
            self._site.log_failure(f"the look at the {part} images before a round")
            raise Refused("not_approved", f"{error} See {self._site.log_path}") from error
        return opened.dataset

    def _opened(self, experiment: Experiment, part: Part, now: Ingested) -> _Opened:
        # By content: after a withdrawal, a new scan or the end of somebody's consent the next round
        # sees the data as it is.
        place, manifest = (experiment.digest(), part), now[part]
        left_out = self._site.left_out(experiment.data_use, part, manifest)
        kept = self._datasets.get(place)
        if kept is None or (kept.manifest, kept.left_out) != (manifest, left_out):
            dataset = open_dataset(
                experiment, self._site, part, manifest=manifest, without=left_out
            )
            kept = self._datasets[place] = _Opened(manifest, left_out, dataset)
        return kept
