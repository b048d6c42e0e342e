"""What a site does with each request: gate, charge, open the data, train, release, reply."""

import logging
from importlib.metadata import version

from data_adapters.subjects import SubjectDataset
from federation.errors import Refused
from federation.experiment import Experiment
from federation.ledger.ledger import RoundKey
from federation.messages import (
    DescribeRequest,
    Description,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)
from federation.privacy.plan import make_plan
from federation.privacy.random import SecureRandomness
from federation.site import Part, Site
from federation.training import open_dataset, score, train_locally
from models.weights import weights_to_bytes

log = logging.getLogger("cohortium.site")


def installed_versions() -> dict[str, str]:
    """Return the versions of what made an update, for its receipt."""
    return {name: version(name) for name in ("cohortium", "torch", "monai", "opacus")}


class LocalRounds:
    """Answers a hub's requests with one site's data. Implements ``messages.SiteRounds``."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._datasets: dict[tuple[str, Part], SubjectDataset] = {}

    def describe(self, request: DescribeRequest) -> Description:
        """Return the site's public statement.

        Raises:
            Refused: ``not_approved``.
        """
        self._site.approved(request.experiment_digest)
        return self._site.describe(request.experiment_digest)

    def train(self, request: TrainRequest) -> TrainReply:
        """Charge the ledger, then train, then release; the same request gets the same bytes.

        Raises:
            Refused: A policy code before protected data is opened, ``round_failed`` after.
        """
        ledger = self._site.ledger
        key = RoundKey(request.run, request.round, request.attempt)
        experiment = self._site.approved(request.experiment_digest)
        plan = make_plan(experiment)
        charge = ledger.charge(
            key,
            request_digest=request.digest(),
            experiment_digest=request.experiment_digest,
            plan_digest=plan.digest(),
            event=plan.round_event,
        )
        stored = ledger.stored_release(charge)
        if stored is None:
            payload = self._train_charged(experiment, request)
            ledger.release(charge, payload, versions=installed_versions())
            stored = ledger.stored_release(charge)
        if stored is None:
            raise Refused("round_failed", "the outbox did not keep the update")
        payload, receipt = stored
        return TrainReply(payload=payload, receipt=receipt.to_json())

    def evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        """Score the weights on public subjects; protected data is not opened.

        Raises:
            Refused: ``not_approved``.
        """
        experiment = self._site.approved(request.experiment_digest)
        if not self._site.has_public:
            return EvaluateReply(scores={})
        return EvaluateReply(
            scores=score(experiment, request.weights, self._dataset(experiment, "public"))
        )

    def _train_charged(self, experiment: Experiment, request: TrainRequest) -> bytes:
        """Open protected data. From here on every failure looks the same from outside."""
        try:
            update = train_locally(
                experiment,
                make_plan(experiment),
                request.weights,
                self._dataset(experiment, "protected"),
                randomness=SecureRandomness(),
            )
            return weights_to_bytes(update)
        except Exception as error:
            log.exception("round %d failed after protected data was opened", request.round)
            raise Refused("round_failed", type(error).__name__) from error

    def _dataset(self, experiment: Experiment, part: Part) -> SubjectDataset:
        key = (experiment.digest(), part)
        if key not in self._datasets:
            self._datasets[key] = open_dataset(experiment, self._site, part)
        return self._datasets[key]
