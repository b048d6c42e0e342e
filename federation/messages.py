"""What travels between hub and site, as plain values. ``federation.flower.wire`` encodes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from federation.canonical import digest
from federation.data_use import NOT_STATED
from models.weights import weights_digest

Weights = dict[str, npt.NDArray[np.float32]]

REFUSAL_CODES = (
    "invalid_request",
    "not_approved",
    "approval_used_up",
    "budget",
    "equivocation",
    "not_from_hub",
    "expired",
    "lost",
    "behind",
    "round_failed",
)


@dataclass(frozen=True)
class DescribeRequest:
    """Ask a site for its public statement about the data set of an approved experiment."""

    experiment_digest: str
    run: str

    def digest(self) -> str:
        """Digest of every field."""
        return digest({"experiment": self.experiment_digest, "run": self.run})


@dataclass(frozen=True)
class Description:
    """What a site says about itself: public by declaration, or released as its policy allows.

    Attributes:
        commitment: SHA-256 of a nonce and the data set's root, fresh per experiment.
        num_subjects: Text, as the policy releases it: "48", "about 50" or "withheld".
        public_key: The site's Ed25519 key, hex.
        data_use: Codes of the Data Use Ontology, see ``data_use.public_terms``.
    """

    site: str
    public_key: str
    commitment: str
    dataset: str
    source_kind: str
    modality: str
    num_subjects: str
    licence: str
    data_use: str = NOT_STATED
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainRequest:
    """One round's work for one site. ``attempt`` counts repeats of a round that was lost.

    Attributes:
        heads: By site, the newest head of its ledger that the hub has a receipt for. Each site
            writes them down, so that one that rewrites its past is found by the others.
    """

    experiment_digest: str
    run: str
    round: int
    attempt: int
    weights: Weights
    heads: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """Digest of every field, the weights' names, shapes and bytes included; made once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return digest(
            {
                "experiment": self.experiment_digest,
                "run": self.run,
                "round": self.round,
                "attempt": self.attempt,
                "weights": weights_digest(self.weights),
                "heads": dict(self.heads),
            }
        )


@dataclass(frozen=True)
class TrainReply:
    """The update (local minus global weights) exactly as the outbox keeps it, and its receipt.

    Attributes:
        payload: safetensors bytes, see ``models.weights``.
        receipt: A ``federation.ledger.receipts.Receipt`` as JSON values.
    """

    payload: bytes
    receipt: Mapping[str, Any]


@dataclass(frozen=True)
class EvaluateRequest:
    """Score these weights on the subjects that the site declares public."""

    experiment_digest: str
    run: str
    round: int
    weights: Mapping[str, npt.NDArray[np.float32]]

    def digest(self) -> str:
        """Digest of every field, the weights' names, shapes and bytes included; made once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return digest(
            {
                "experiment": self.experiment_digest,
                "run": self.run,
                "round": self.round,
                "weights": weights_digest(self.weights),
            }
        )


@dataclass(frozen=True)
class EvaluateReply:
    """Scores on public subjects only, for example ``{"dice": 0.7, "dice/grey matter": 0.72}``.

    Empty where the site declares no public subjects; it is then not asked again in this run.
    """

    scores: Mapping[str, float]


@dataclass(frozen=True)
class CloseRequest:
    """Tell a site that a run is over, and show it everybody's newest heads.

    Attributes:
        model_digest: Of the final weights (``models.weights.weights_digest``).
    """

    experiment_digest: str
    run: str
    heads: Mapping[str, str]
    model_digest: str

    def digest(self) -> str:
        """Digest of every field."""
        return digest(
            {
                "experiment": self.experiment_digest,
                "run": self.run,
                "heads": dict(self.heads),
                "model": self.model_digest,
            }
        )


@dataclass(frozen=True)
class CloseReply:
    """What a site countersigned: a ``federation.ledger.closings.Closing`` as JSON values."""

    closing: Mapping[str, Any]


@dataclass(frozen=True)
class RoundFinished:
    """Told to whoever watches a run, after each round (round 0: before any training).

    Attributes:
        returned: Sites whose updates are valid; averaged, unless the round was skipped.
        refused: Site to code: it declined, or its reply failed validation.
        scores: By site, of the model as the round left it.
        receipts: Of this round's updates, as JSON values.
        late: Sites that gave no answer in time.
        outcome: ``skipped``: too few returned, and the model was left as it was.
        num_declared: How many sites the experiment is meant for, where it says so.
    """

    round: int
    returned: tuple[str, ...]
    refused: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]
    receipts: tuple[Mapping[str, Any], ...] = ()
    late: tuple[str, ...] = ()
    outcome: Literal["completed", "skipped"] = "completed"
    num_declared: int | None = None

    @property
    def num_sites(self) -> int:
        """Return how many sites there should have been: those declared, or all that are known."""
        return max(len(self.returned) + len(self.refused) + len(self.late), self.num_declared or 0)

    @property
    def lacks_sites(self) -> bool:
        """Tell whether the round changed the model without some of its sites."""
        return self.outcome == "completed" and len(self.returned) < self.num_sites


class SiteRounds(Protocol):
    """What a client app needs of a site. Each method raises ``Refused`` to decline."""

    def describe(self, request: DescribeRequest) -> Description:
        """Return the site's public statement."""
        ...

    def train(self, request: TrainRequest) -> TrainReply:
        """Return the noised update of one round."""
        ...

    def evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        """Return scores on the site's public subjects."""
        ...

    def close(self, request: CloseRequest) -> CloseReply:
        """End a run in the ledger and countersign the heads that were shown."""
        ...
