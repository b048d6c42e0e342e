import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.canonical import digest_bytes
from federation.errors import Refused
from federation.ledger.closings import Closing
from federation.ledger.filter import PoissonGaussian
from federation.ledger.keys import SiteKey
from federation.ledger.receipts import Receipt
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
from models.weights import weights_to_bytes

EXPERIMENT = "sha256:" + "e" * 64
RUN = "0123456789abcdef"
SOME_DIGEST = "sha256:" + "d" * 64
KEY = SiteKey(Ed25519PrivateKey.generate())


def first_weights():
    # Not in alphabetical order, and with an empty tensor.
    return {
        "unet.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a.bias": np.zeros(2, dtype=np.float32),
        "scale": np.array([2.5], dtype=np.float32),
        "none": np.zeros((0, 4), dtype=np.float32),
    }


def update_like(weights, step):
    return {name: np.full_like(array, step) for name, array in weights.items()}


@dataclass
class FakeSite:
    """A site whose every update adds ``step`` to every weight."""

    name: str
    step: float = 1.0
    change_update: Callable[[dict], dict] = lambda update: update
    change_receipt: Callable[[Receipt], Receipt] = lambda receipt: receipt
    change_closing: Callable[[Closing], Closing] = lambda closing: closing
    fails: Mapping[str, Exception] = field(default_factory=dict)
    seen: list = field(default_factory=list)

    def _begin(self, kind, request):
        self.seen.append((kind, request))
        if kind in self.fails:
            raise self.fails[kind]

    @property
    def commitment(self):
        return "sha256:" + hashlib.sha256(self.name.encode()).hexdigest()

    def describe(self, request: DescribeRequest) -> Description:
        self._begin("describe", request)
        return Description(
            site=self.name,
            public_key=KEY.public_bytes.hex(),
            commitment=self.commitment,
            dataset="simulated brains",
            source_kind="dicom",
            modality="MR",
            num_subjects="about 50",
            licence="CC0-1.0",
            data_use="DUO:0000042",
            versions={"torch": "2.13.0"},
        )

    head = SOME_DIGEST

    def receipt(self, **of):
        """A signed receipt, changed as the test wants it."""
        receipt = Receipt(
            site=self.name,
            public_key=KEY.public_bytes.hex(),
            ledger=SOME_DIGEST,
            plan_digest=SOME_DIGEST,
            event=PoissonGaussian(sampling_rate=0.25, noise_multiplier=1.42, steps=5),
            commitment=self.commitment,
            charge_seq=of["round"],
            head_before=SOME_DIGEST,
            head_after=self.head,
            versions={},
            **of,
        )
        return self.change_receipt(receipt).signed(KEY).to_json()

    def train(self, request: TrainRequest) -> TrainReply:
        self._begin("train", request)
        payload = weights_to_bytes(self.change_update(update_like(request.weights, self.step)))
        receipt = self.receipt(
            experiment_digest=request.experiment_digest,
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            request_digest=request.digest(),
            update_digest=digest_bytes(payload),
        )
        return TrainReply(payload, receipt)

    def close(self, request: CloseRequest) -> CloseReply:
        self._begin("close", request)
        closing = Closing(
            site=self.name,
            public_key=KEY.public_bytes.hex(),
            ledger=SOME_DIGEST,
            experiment_digest=request.experiment_digest,
            run=request.run,
            heads=dict(request.heads),
            model_digest=request.model_digest,
            seq=9,
            head=SOME_DIGEST,
        )
        return CloseReply(self.change_closing(closing).signed(KEY).to_json())

    def evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        self._begin("evaluate", request)
        return EvaluateReply({"dice": float(request.weights["a.bias"][0]), "dice/grey matter": 0.5})


@pytest.fixture
def weights():
    return first_weights()


@pytest.fixture
def experiment_digest():
    return EXPERIMENT


@pytest.fixture
def run_id():
    return RUN


@pytest.fixture
def site():
    """The class, to make sites with: ``site("ward-a", step=2.0)``."""
    return FakeSite


@pytest.fixture
def over():
    """Run rounds over fake sites in this process: ``over(sites, rounds=3)``."""
    from federation.flower.client_app import client_app
    from federation.flower.grid import LocalGrid
    from federation.flower.server_app import run_rounds

    def run(sites, *, rounds=1, min_sites=1, wrap=lambda grid: grid, **more):
        grid = LocalGrid({one.name: client_app(one) for one in sites})
        terms = {"experiment_digest": EXPERIMENT, "run": RUN, "weights": first_weights()}
        return run_rounds(wrap(grid), **(terms | more), rounds=rounds, min_sites=min_sites)

    return run


@dataclass
class PayingSite(FakeSite):
    """A site with a ledger in short: it pays once a key, and the same request gets the same bytes.

    Its updates are noise that depends on its name, round and attempt alone, so that a run that was
    interrupted can be compared with one that was not.

    Attributes:
        dies: Rounds in which it is killed after it has paid for the first attempt.
    """

    charges: list = field(default_factory=list)
    outbox: dict = field(default_factory=dict)
    dies: tuple[int, ...] = ()

    def train(self, request: TrainRequest) -> TrainReply:
        self._begin("train", request)
        key, digest = (request.round, request.attempt), request.digest()
        if key not in [paid for paid, _ in self.charges]:
            self.charges.append((key, digest))
            if key in [(number, 1) for number in self.dies]:
                raise Refused("lost")
            self.change_update = lambda update: self.noise(update, key)
            self.outbox[key] = super().train(request)
            self.seen.pop()
        if (key, digest) not in self.charges:
            raise Refused("equivocation")
        if key not in self.outbox:
            raise Refused("lost")
        return self.outbox[key]

    def noise(self, update, key):
        seed = [*self.name.encode(), *key]
        random = np.random.default_rng(seed)
        return {n: random.standard_normal(u.shape, np.float32) for n, u in update.items()}


@pytest.fixture
def paying_site():
    """The class: ``paying_site("ward-a", dies=(2,))``."""
    return PayingSite
