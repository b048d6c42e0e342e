"""Writes ledgers, receipts and closings from docs/ledger/format.md alone, honest or not.

Nothing here checks anything, and nothing here is imported from the project: the verifiers are
held to it. Keys and salts come from a `random.Random`, so that a failure can be repeated.
"""

import base64
import copy
import functools
import hashlib
import json
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, rdp

ZERO = "sha256:" + "0" * 64
START = datetime(2026, 1, 5, 8, tzinfo=UTC)
UNPROTECTED = {"kind": "unprotected"}
POLICY = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "orders": [2, 4, 8, 16, 32, 64],
    "order_deltas": [1e-6, 1e-6, 2e-6, 2e-6, 2e-6, 1e-6],
    "unit": "subject",
    "adjacency": "add_or_remove_one",
    "allow_unprotected": False,
}


def canonical(value) -> bytes:
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def digest(value) -> str:
    return "sha256:" + hashlib.sha256(canonical(value)).hexdigest()


def new_key(rng: random.Random) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def sign(key: Ed25519PrivateKey, what: str, message: bytes) -> str:
    return key.sign(f"cohortium {what} v1".encode() + b"\0" + message).hex()


def signed(paper: dict, what: str, key: Ed25519PrivateKey) -> dict:
    """Return a receipt or closing, signed anew."""
    bare = {name: value for name, value in paper.items() if name != "signature"}
    return {**bare, "signature": sign(key, what, canonical(bare))}


def gaussian(sampling_rate=0.05, noise_multiplier=1.1, steps=20) -> dict:
    return {
        "kind": "poisson_gaussian",
        "sampling_rate": sampling_rate,
        "noise_multiplier": noise_multiplier,
        "steps": steps,
    }


@functools.lru_cache
def step_cost(sampling_rate, noise_multiplier, orders) -> tuple[float, ...]:
    step = PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier))
    return tuple(rdp.RdpAccountant(list(orders)).compose(step).rdp.tolist())


def added(totals: list[float], events: list[dict], orders: list[int]) -> list[float]:
    """Return the totals after these events."""
    for event in events:
        if event["kind"] != "unprotected":
            costs = step_cost(event["sampling_rate"], event["noise_multiplier"], tuple(orders))
            totals = [t + event["steps"] * c for t, c in zip(totals, costs, strict=True)]
    return totals


@dataclass
class Book:
    """One ledger while it is written, and the papers its site gave out."""

    site: str
    population: str
    rng: random.Random
    policy: dict = field(default_factory=lambda: copy.deepcopy(POLICY))
    records: list[dict] = field(default_factory=list)
    receipts: list[dict] = field(default_factory=list)
    closings: list[dict] = field(default_factory=list)
    keys: dict[str, Ed25519PrivateKey] = field(default_factory=dict)
    minutes: int = 0

    def __post_init__(self):
        self.key = self.first_key = self.know(new_key(self.rng))
        self.totals = [0.0] * len(self.policy["orders"])
        self.plans: dict[str, dict] = {}
        body = {"site": self.site, "population": self.population, "policy": self.policy}
        self.add("genesis", format="cohortium-ledger/2", public_key=public(self.key), **body)

    def know(self, key):
        self.keys[public(key)] = key
        return key

    @property
    def head(self) -> str:
        return self.records[-1]["hash"] if self.records else ZERO

    @property
    def name(self) -> str:
        return self.records[0]["hash"]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.first_key)

    def any_digest(self) -> str:
        return "sha256:" + self.rng.randbytes(32).hex()

    def add(self, kind: str, **body) -> dict:
        self.minutes += 1
        record = {
            "seq": len(self.records),
            "kind": kind,
            "at": f"{START + timedelta(minutes=self.minutes):%Y-%m-%dT%H:%M:%SZ}",
            "salt": self.rng.randbytes(16).hex(),
            "previous": self.head,
            "body": body,
        }
        self.records.append(seal(record, self.key))
        return self.records[-1]

    def approve(self, experiment: str, event: dict, charges: int, **changes) -> dict:
        body = {
            "experiment_digest": experiment,
            "plan_digest": self.any_digest(),
            "event": event,
            "charges": charges,
            "commitment": self.any_digest(),
            "approver": "Dr. Åse Lund",
            "second_approver": None,
            "author": fingerprint(self.first_key),
            "hub_key": None,
            "ethics_reference": "2025-417",
            "legal_basis": None,
            "expires": "2026-06-30T00:00:00Z",
            "algorithm": "fedavg",
            "epsilon": 2.5,
            "leaves": ["update", "count of steps"],
            "software": self.any_digest(),
        }
        self.plans[experiment] = body | changes
        return self.add("approval", **self.plans[experiment])

    def reserve(self, experiment: str, run: str) -> dict:
        charges = self.plans[experiment]["charges"]
        return self.add("reservation", experiment_digest=experiment, run=run, charges=charges)

    def charge(self, experiment: str, run: str, place: tuple[int, int], heads=None) -> dict:
        plan = self.plans[experiment]
        self.totals = added(self.totals, [plan["event"]], self.policy["orders"])
        return self.add(
            "charge",
            experiment_digest=experiment,
            plan_digest=plan["plan_digest"],
            event=plan["event"],
            run=run,
            round=place[0],
            attempt=place[1],
            request_digest=self.any_digest(),
            heads=heads or {},
            totals=self.totals,
        )

    def release(self, charge: dict) -> dict:
        versions = {"cohortium": "0.1.0", "randomness": "os"}
        update = {"update_digest": self.any_digest(), "versions": versions}
        release = self.add("release", charge_seq=charge["seq"], **update)
        self.receipts.append(receipt(self, charge, release))
        return release

    def lose(self, charge: dict) -> dict:
        return self.add("loss", charge_seq=charge["seq"])

    def refuse(self, experiment: str, code: str, **changes) -> dict:
        body = {"experiment_digest": experiment, "plan_digest": None, "event": None, "code": code}
        unsaid = {"request": None, "by": None, "reason": None}
        return self.add("refusal", **(body | unsaid | changes))

    def withdraw(self, experiment: str) -> dict:
        reason = "the committee asked for it"
        return self.add("withdrawal", experiment_digest=experiment, by="Dr. Lund", reason=reason)

    def close(self, experiment: str, run: str, heads=None, model=None) -> dict:
        body = {"experiment_digest": experiment, "run": run, "heads": heads or {}}
        record = self.add("closing", **body, model_digest=model)
        paper = {"site": self.site, "public_key": public(self.key), "ledger": self.name}
        place = {"seq": record["seq"], "head": record["hash"]}
        self.closings.append(signed({**paper, **record["body"], **place}, "closing", self.key))
        return record

    def rotate(self) -> dict:
        key = self.know(new_key(self.rng))
        claim = {"ledger": self.name, "previous": self.head, "public_key": public(key)}
        proof = sign(key, "key rotation", canonical(claim))
        record = self.add("key_rotation", public_key=public(key), proof=proof)
        self.key = key
        return record

    def recover(self, seen: dict, spends: list[dict]) -> dict:
        self.totals = added(self.totals, spends, self.policy["orders"])
        who = {"by": "operator", "reason": "restored from last night's copy"}
        place = {"seen_seq": seen["seq"], "seen_hash": seen["hash"]}
        return self.add("recovery", **who, **place, spends=spends, totals=self.totals)

    def merge(self, other: str, head: dict, spends: list[dict]) -> dict:
        self.totals = added(self.totals, spends, self.policy["orders"])
        place = {"ledger": other, "head_seq": head["seq"], "head": head["hash"]}
        who = {"by": "operator", "reason": "subjects in both"}
        return self.add("merge", **who, **place, spends=spends, totals=self.totals)

    def note(self, what: str, experiments=()) -> dict:
        who = {"by": "operator", "reason": "shown at the board"}
        return self.add("note", what=what, **who, experiments=list(experiments))


def fingerprint(key: Ed25519PrivateKey) -> str:
    raw = hashlib.sha256(key.public_key().public_bytes_raw()).digest()
    return "SHA256:" + base64.b64encode(raw).decode().rstrip("=")


def seal(record: dict, key: Ed25519PrivateKey) -> dict:
    """Return a record with its hash and signature."""
    core = {k: record[k] for k in ("seq", "kind", "at", "salt", "previous", "body")}
    core = copy.deepcopy(core)
    head = digest(core)
    return {**core, "hash": head, "signature": sign(key, "ledger record", head.encode())}


def receipt(book: Book, charge: dict, release: dict) -> dict:
    body, experiment = charge["body"], charge["body"]["experiment_digest"]
    told = ("experiment_digest", "plan_digest", "run", "round", "attempt", "request_digest")
    paper = {
        "site": book.site,
        "public_key": public(book.key),
        "ledger": book.name,
        **{name: body[name] for name in (*told, "event")},
        "commitment": book.plans[experiment]["commitment"],
        "charge_seq": charge["seq"],
        "head_before": charge["previous"],
        "head_after": release["hash"],
        "update_digest": release["body"]["update_digest"],
        "versions": release["body"]["versions"],
    }
    return signed(paper, "receipt", book.key)


def text_of(records: list[dict]) -> bytes:
    return b"".join(canonical(record) + b"\n" for record in records)


def write(path: Path, records: list[dict]) -> Path:
    path.write_bytes(text_of(records))
    return path
