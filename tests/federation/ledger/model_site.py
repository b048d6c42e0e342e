"""A real ledger for ``test_model``: on a disk of memory where there is one, open twice."""

import json
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis.stateful import RuleBasedStateMachine

from federation.canonical import digest
from federation.errors import Refused
from federation.ledger.filter import BudgetPolicy, PoissonGaussian
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger, RoundKey, Terms
from tests.federation.ledger.plain_model import PlainSite, Steps

LIMIT = 8.0
EXPERIMENTS = tuple(digest(f"experiment {number}") for number in range(3))
PLANS = tuple(digest(f"plan {number}") for number in range(3))
# Twelve of the first fit the limit, about as many of the second, hundreds of the third.
EVENTS = ((0.25, 1.575, 5), (0.5, 3.1, 5), (0.1, 4.0, 2))
PAST, FUTURE = "2000-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
WHO = {"by": "Dr. Rivera", "reason": "as discussed"}


def spends_of(record) -> Steps:
    total: Steps = Counter()
    for event in record["body"]["spends"]:
        total[event["sampling_rate"], event["noise_multiplier"]] += event["steps"]
    return total


class RealSite(RuleBasedStateMachine):
    """A ledger with its outbox, its mark and its keys, and the plain account of it.

    Attributes:
        truth: Steps that any charge was ever made for, forgotten ones, too.
        sent, receipts, closings: What the hub has, by the hash of the record.
    """

    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self):
        super().__init__()
        memory = Path("/dev/shm")  # there, waiting for the disk costs nothing
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.state, self.vault = self.folder / "state", self.folder / "vault"
        self.state.mkdir()
        self.vault.mkdir()
        self.keys = [SiteKey.create(self.folder / "key-0")]
        policy = BudgetPolicy.of(LIMIT, 1e-5)
        Ledger.create(self.path, self.keys[0], policy, "brains", mark=self.mark).close()
        self.plain = PlainSite(LIMIT, policy.orders, policy.order_deltas)
        self.backup = None
        self.charges = {}
        self.truth: Steps = Counter()
        self.sent, self.receipts, self.closings = {}, {}, {}
        self.ledgers = []
        self.restart()

    @property
    def path(self):
        return self.state / "ledger.jsonl"

    @property
    def mark(self):
        return self.vault / "mark.json"

    def opened(self, **how):
        return Ledger.open(self.path, self.keys[self.plain.key_number], mark=self.mark, **how)

    def restart(self):
        for ledger in self.ledgers:
            ledger.close()
        self.ledgers = [self.opened(), self.opened()]

    def records(self, path=None):
        return [json.loads(line) for line in (path or self.path).read_bytes().splitlines()]

    def head(self):
        return self.records()[-1]

    @contextmanager
    def appends(self, *kinds):
        """Nothing that was there changes, and just these records come to it."""
        before = self.path.read_bytes()
        yield
        after = self.path.read_bytes()
        assert after.startswith(before)
        new = [json.loads(line) for line in after[len(before) :].splitlines()]
        assert [record["kind"] for record in new] == list(kinds)

    @contextmanager
    def refuses(self, code, *kinds):
        self.seen[code] += 1
        with self.appends(*kinds), pytest.raises(Refused) as caught:
            yield
        assert caught.value.code == code

    def charge_of(self, ledger, work):
        return ledger.charge(
            RoundKey(*work.key),
            request_digest=digest(work.request),
            experiment_digest=work.experiment,
            plan_digest=work.plan,
            event=PoissonGaussian(*work.event),
            heads={"another": digest("head")},
        )

    def terms(self, number, event, charges, expires):
        return Terms(
            EXPERIMENTS[number],
            PLANS[number],
            event,
            charges,
            commitment=digest("data"),
            approver="Dr. Rivera",
            software=digest("software"),
            expires=expires,
        )
