"""Ledgers of any length, made at once: real records, signed and chained, no wait for the disk."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from federation.canonical import digest
from federation.ledger.entries import RoundKey, Terms
from federation.ledger.filter import BudgetPolicy, FilterState, PoissonGaussian
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger
from federation.ledger.receipts import Receipt
from federation.ledger.records import Record

EXPERIMENT, PLAN, REQUEST = digest("experiment"), digest("plan"), digest("request")
RUN = "0123456789abcdef0123456789abcdef"
# As cheap as an event may be: the limit is never what a benchmark meets.
EVENT = PoissonGaussian(sampling_rate=0.001, noise_multiplier=100.0, steps=5)
TERMS = Terms(
    EXPERIMENT,
    PLAN,
    EVENT,
    charges=10**6,
    commitment=digest("data"),
    approver="Dr. Rivera",
    software=digest("software"),
)
POLICY = BudgetPolicy.of(8.0, 1e-5)


@dataclass
class LongLedger:
    """A ledger that is being made longer, in memory.

    Attributes:
        receipts: One for each release.
    """

    key: SiteKey
    genesis: Record
    records: list[Record] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)

    def add(self, kind: str, body: dict) -> Record:
        """Sign a record that follows the newest."""
        last = self.records[-1]
        record = Record.signed(self.key, seq=last.seq + 1, kind=kind, previous=last.hash, body=body)
        self.records.append(record)
        return record

    def receipt(self, charge: Record, release: Record) -> Receipt:
        """Return what the site gives out for a release."""
        return Receipt(
            site=self.genesis.body["site"],
            public_key=self.key.public_bytes.hex(),
            ledger=self.genesis.hash,
            experiment_digest=EXPERIMENT,
            plan_digest=PLAN,
            run=RUN,
            round=charge.body["round"],
            attempt=charge.body["attempt"],
            request_digest=REQUEST,
            event=EVENT,
            commitment=TERMS.commitment,
            charge_seq=charge.seq,
            head_before=charge.previous,
            head_after=release.hash,
            update_digest=release.body["update_digest"],
            versions=release.body["versions"],
        ).signed(self.key)


def key_of_round(number: int) -> RoundKey:
    """Name the charge after ``number`` others."""
    return RoundKey(RUN, number % 10**6, number // 10**6)


def long_ledger(folder: Path, num_records: int) -> LongLedger:
    """Write ``folder/ledger.jsonl`` with about so many records, and its key beside it.

    The run is open, and has charges left: it can go on with the real ledger.
    """
    key = SiteKey.create(folder)
    path = folder / "ledger.jsonl"
    ledger = Ledger.create(path, key, POLICY, "brains", site="hospital-a")
    ledger.approve(TERMS)
    ledger.reserve(EXPERIMENT, RUN)
    made = LongLedger(key, ledger.records[0], list(ledger.records))
    ledger.close()
    for charge, release in _rounds(made, (num_records - 3) // 2):
        made.receipts.append(made.receipt(charge, release))
    path.write_bytes(b"".join(record.line for record in made.records))
    return made


def _rounds(made: LongLedger, number: int) -> Iterator[tuple[Record, Record]]:
    state = FilterState()
    for position in range(number):
        state = state.after(EVENT)
        charge = made.add("charge", charge_body(position, list(state.totals(POLICY.orders))))
        body = {"charge_seq": charge.seq, "update_digest": REQUEST, "versions": {"cohortium": "1"}}
        yield charge, made.add("release", body)


def charge_body(number: int, totals: list[float]) -> dict:
    """Return the body of the charge after ``number`` others."""
    return {
        **key_of_round(number).to_json(),
        "request_digest": REQUEST,
        "experiment_digest": EXPERIMENT,
        "plan_digest": PLAN,
        "event": EVENT.to_json(),
        "heads": {},
        "totals": totals,
    }
