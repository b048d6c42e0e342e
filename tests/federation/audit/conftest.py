import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from federation.canonical import canonical_json, digest
from federation.errors import Refused
from federation.ledger.closings import Closing
from federation.ledger.filter import BudgetPolicy, PoissonGaussian
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger, RoundKey, Terms
from federation.ledger.receipts import Receipt
from federation.ledger.records import _SIGNED_AS, NO_RECORD
from federation.ledger.upkeep import conclude

EXPERIMENT, PLAN = digest("experiment"), digest("plan")
EVENT = PoissonGaussian(sampling_rate=0.25, noise_multiplier=1.575, steps=5)


@dataclass
class Site:
    """A site after a short run: its ledger, and what others keep of it."""

    path: Path
    key: SiteKey
    receipts: list[Receipt] = field(default_factory=list)
    closings: list[Closing] = field(default_factory=list)

    @property
    def trust(self):
        return {self.key.fingerprint}

    @property
    def values(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def position(self, kind: str, number=0) -> int:
        return [v["seq"] for v in self.values if v["kind"] == kind][number]

    def write(self, values) -> None:
        self.path.write_bytes(b"".join(canonical_json(value) + b"\n" for value in values))

    def rewrite(self, values, key: SiteKey | None = None) -> None:
        """Number, chain, hash and sign the records anew, as only the key's owner can."""
        previous, written = NO_RECORD, []
        for seq, value in enumerate(values):
            content = {k: v for k, v in value.items() if k not in ("hash", "signature")}
            content |= {"seq": seq, "previous": previous}
            previous = digest(content)
            signature = (key or self.key).sign(_SIGNED_AS + previous.encode()).hex()
            written.append({**content, "hash": previous, "signature": signature})
        self.write(written)

    def open(self, **named) -> Ledger:
        return Ledger.open(self.path, self.key, **named)

    def with_record(self, kind, body, at: int | None = None) -> None:
        """Put a record in, validly chained and signed; at the end by default."""
        values = self.values
        position = len(values) if at is None else at
        salt = f"{len(values):032x}"
        new = {"kind": kind, "at": values[-1]["at"], "salt": salt, "body": body}
        self.rewrite([*values[:position], new, *values[position:]])


def terms(*, charges=3, experiment=EXPERIMENT, plan=PLAN, event=EVENT, **more) -> Terms:
    given = {
        "approver": "Dr. Rivera",
        "commitment": digest("data"),
        "software": digest("software"),
    }
    return Terms(experiment, plan, event, charges, **{**given, **more})


def run(folder: Path, *, site="hospital-a", rounds=3, heads=None, **more) -> Site:
    """Charge and release ``rounds`` rounds, be refused once, and close the run."""
    key = SiteKey.create(folder)
    ledger = Ledger.create(
        folder / "ledger.jsonl", key, BudgetPolicy.of(8.0, 1e-5), "brains", site=site
    )
    ledger.approve(terms(charges=rounds, **more))
    receipts = [
        ledger.release(charge(ledger, n, heads=heads), b"update %d" % n) for n in range(rounds)
    ]
    with pytest.raises(Refused):
        charge(ledger, rounds)
    closing = conclude(ledger, "run-1", EXPERIMENT, heads=heads or {}, model_digest=None)
    ledger.close()
    return Site(ledger.path, key, receipts, [closing])


def charge(ledger, n, *, run="run-1", experiment=EXPERIMENT, plan=PLAN, event=EVENT, heads=None):
    return ledger.charge(
        RoundKey(run, n, 0),
        request_digest=digest(n),
        experiment_digest=experiment,
        plan_digest=plan,
        event=event,
        heads=heads,
    )


@pytest.fixture
def make_site():
    return run


@pytest.fixture
def site(tmp_path) -> Site:
    return run(tmp_path)


@pytest.fixture
def open_site(tmp_path) -> Site:
    """The same, before its run is closed and with charges left."""
    key = SiteKey.create(tmp_path)
    ledger = Ledger.create(
        tmp_path / "ledger.jsonl", key, BudgetPolicy.of(8.0, 1e-5), "brains", site="hospital-a"
    )
    ledger.approve(terms(charges=6))
    receipts = [ledger.release(charge(ledger, n), b"update %d" % n) for n in range(2)]
    ledger.close()
    return Site(ledger.path, key, receipts)
