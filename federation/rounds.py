"""What a site does with each request: gate, charge, open the data, train, release, reply."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from data_adapters.subjects import SubjectDataset
from federation.errors import Refused
from federation.experiment import Experiment
from federation.ledger.ledger import RoundKey
from federation.ledger.receipts import Receipt
from federation.messages import (
    DescribeRequest,
    Description,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)
from federation.privacy.plan import PrivacyPlan, make_plan
from federation.privacy.random import SecureRandomness
from federation.site import Part, Site
from federation.training import (
    open_dataset,
    require_fitting_weights,
    score,
    train_locally,
)
from models.errors import ModelError
from models.weights import weights_to_bytes


def installed_versions() -> dict[str, str]:
    """Return the versions of what made an update, for its receipt."""
    return {name: version(name) for name in ("cohortium", "torch", "monai", "opacus")}


def _require_fitting(experiment: Experiment, request: TrainRequest) -> None:
    try:
        require_fitting_weights(experiment, request.weights)
    except ModelError as error:
        raise Refused("invalid_request", str(error)) from error


class LocalRounds:
    """Answers a hub's requests with one site's data. Implements ``messages.SiteRounds``."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._datasets: dict[tuple[str, str], SubjectDataset] = {}

    def describe(self, request: DescribeRequest) -> Description:
        """Return the site's public statement.

        Raises:
            Refused: ``not_approved``.
        """
        with self._failures_stay_here("describe"):
            self._site.approved(request.experiment_digest)
            return self._site.describe(request.experiment_digest)

    def train(self, request: TrainRequest) -> TrainReply:
        """Charge the ledger, then train, then release; the same request gets the same bytes.

        Raises:
            Refused: A policy code before protected data is opened, ``round_failed`` after.
        """
        with self._failures_stay_here(f"round {request.round}"):
            payload, receipt = self._charged_update(request)
        return TrainReply(payload=payload, receipt=receipt.to_json())

    def evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        """Score the weights on public subjects; protected data is not opened.

        Raises:
            Refused: ``not_approved``.
        """
        with self._failures_stay_here("evaluate"):
            experiment = self._site.approved(request.experiment_digest)
            if not self._site.has_public:
                return EvaluateReply(scores={})
            public = self._dataset(experiment, "public")
            return EvaluateReply(scores=score(experiment, request.weights, public))

    def _charged_update(self, request: TrainRequest) -> tuple[bytes, Receipt]:
        ledger = self._site.ledger
        experiment = self._site.approved(request.experiment_digest)
        plan = make_plan(experiment)
        _require_fitting(experiment, request)
        charge = ledger.charge(
            RoundKey(request.run, request.round, request.attempt),
            request_digest=request.digest(),
            experiment_digest=request.experiment_digest,
            plan_digest=plan.digest(),
            event=plan.round_event,
        )
        stored = ledger.stored_release(charge)
        if stored is None:
            payload = self._train_charged(experiment, plan, request)
            return payload, ledger.release(charge, payload, versions=installed_versions())
        return stored

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

    def _train_charged(
        self, experiment: Experiment, plan: PrivacyPlan, request: TrainRequest
    ) -> bytes:
        """Open protected data. From here on every failure looks the same from outside."""
        update = train_locally(
            experiment,
            plan,
            request.weights,
            self._dataset(experiment, "protected"),
            randomness=SecureRandomness(),
            on_failure=self._site.log_failure,
        )
        return weights_to_bytes(update)

    def _dataset(self, experiment: Experiment, part: Part) -> SubjectDataset:
        # By content: after a withdrawal or a new scan the next round sees the data as it is.
        key = (experiment.digest(), self._site.manifest(part).root)
        if key not in self._datasets:
            self._datasets[key] = open_dataset(experiment, self._site, part)
        return self._datasets[key]
