from dataclasses import dataclass
from pathlib import Path

import pytest

from federation.canonical import digest
from federation.ledger.filter import BudgetPolicy, Event, PoissonGaussian
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Charge, Ledger, RoundKey, Terms

EXPERIMENT, PLAN = digest("experiment"), digest("plan")


@dataclass
class World:
    """A site with one ledger, and short names for what happens to it."""

    folder: Path
    key: SiteKey
    ledger: Ledger
    event: Event

    def approve(self, *, charges=12, experiment=EXPERIMENT, plan=PLAN, event=None, **more):
        return self.ledger.approve(
            Terms(
                experiment,
                plan,
                event or self.event,
                charges,
                commitment=digest("data"),
                approver="Dr. Rivera",
                software=digest("software"),
                **more,
            )
        )

    def charge(
        self,
        round_=1,
        *,
        attempt=0,
        request="weights",
        plan=PLAN,
        event=None,
        run="run-1",
        experiment=EXPERIMENT,
        heads=None,
    ) -> Charge:
        return self.ledger.charge(
            RoundKey(run, round_, attempt),
            request_digest=digest([request, round_]),
            experiment_digest=experiment,
            plan_digest=plan,
            event=event or self.event,
            heads=heads,
        )

    def reopened(self) -> Ledger:
        return Ledger.open(self.ledger.path, self.key)

    def kinds(self) -> list[str]:
        return [record.kind for record in self.ledger.records]


@pytest.fixture
def event() -> PoissonGaussian:
    """Five steps; twelve of these fit epsilon 8 at delta 1e-5, thirteen do not."""
    return PoissonGaussian(sampling_rate=0.25, noise_multiplier=1.575, steps=5)


@pytest.fixture
def world(tmp_path, event) -> World:
    key = SiteKey.create(tmp_path)
    policy = BudgetPolicy.of(8.0, 1e-5)
    ledger = Ledger.create(tmp_path / "ledger.jsonl", key, policy, "brains", site="hospital-a")
    return World(tmp_path, key, ledger, event)
