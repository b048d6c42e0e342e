import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from federation.canonical import canonical_json, digest
from federation.errors import Refused
from federation.ledger.filter import BudgetPolicy, PoissonGaussian
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger, RoundKey
from federation.ledger.receipts import Receipt
from federation.ledger.records import NO_RECORD

EXPERIMENT, PLAN = digest("experiment"), digest("plan")
EVENT = PoissonGaussian(sampling_rate=0.25, noise_multiplier=1.575, steps=5)


@dataclass
class Site:
    """A site after a short run: its ledger, and the receipts that others keep."""

    path: Path
    key: SiteKey
    receipts: list[Receipt] = field(default_factory=list)

    @property
    def trust(self):
        return {self.key.fingerprint}

    @property
    def values(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def write(self, values) -> None:
        self.path.write_bytes(b"".join(canonical_json(value) + b"\n" for value in values))

    def rewrite(self, values, key: SiteKey | None = None) -> None:
        """Number, chain, hash and sign the records anew, as only the key's owner can."""
        from federation.ledger.records import _SIGNED_AS

        previous, written = NO_RECORD, []
        for seq, value in enumerate(values):
            content = {k: v for k, v in value.items() if k not in ("hash", "signature")}
            content |= {"seq": seq, "previous": previous}
            previous = digest(content)
            signature = (key or self.key).sign(_SIGNED_AS + previous.encode()).hex()
            written.append({**content, "hash": previous, "signature": signature})
        self.write(written)


def run(folder: Path, *, site="hospital-a", rounds=3) -> Site:
    """Charge and release ``rounds`` rounds, and be refused once."""
    key = SiteKey.create(folder)
    policy = BudgetPolicy.of(8.0, 1e-5)
    ledger = Ledger.create(folder / "ledger.jsonl", key, policy, "brains", site=site)
    ledger.approve(
        EXPERIMENT,
        PLAN,
        event=EVENT,
        rounds=rounds,
        attempts=rounds,
        approver="Dr. Rivera",
        commitment=digest("data"),
    )
    receipts = [ledger.release(charge(ledger, n), b"update %d" % n) for n in range(rounds)]
    with pytest.raises(Refused):
        charge(ledger, rounds)
    return Site(ledger.path, key, receipts)


def charge(ledger, n):
    return ledger.charge(
        RoundKey("run-1", n, 0),
        request_digest=digest(n),
        experiment_digest=EXPERIMENT,
        plan_digest=PLAN,
        event=EVENT,
    )


@pytest.fixture
def make_site():
    return run


@pytest.fixture
def site(tmp_path) -> Site:
    return run(tmp_path)
