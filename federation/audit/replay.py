"""Read a ledger that nobody vouches for, record by record, and say what is wrong with it.

Written apart from ``federation.ledger.ledger`` on purpose: only the format, the signature check
and the names of events are shared, and every cost comes from dp-accounting.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path
from typing import Any

from federation.audit.accounting import epsilon_of_totals, rdp_of_one_step
from federation.ledger.filter import BudgetPolicy, PoissonGaussian, event_from_json
from federation.ledger.records import MAX_LINE_BYTES, NO_RECORD, Record, parse_record

_MAX_PROBLEMS = 100
_MAX_NOTES = 20
_MAX_TERMS = 1_000_000
_AGREEMENT = 1e-9
# dp-accounting takes the log of a sum near one: this much of each step's cost is its rounding.
_ROUNDING_OF_A_STEP = 2e-15


@dataclass
class Replay:
    """What a file says, and every problem found on the way.

    Attributes:
        hashes: Of each record that could be read, by line number from 0.
        approvals: The newest approval of each experiment, with the charges made under it.
        charges: Each charge record with its approval, by position.
        releases: Each release record by the position of its charge.
        totals: Rényi divergence at each of the policy's orders, by dp-accounting.
        declaration: By whom, and why, the population was said to be of no human subjects.
        noted: What else the site recorded, by kind; it costs nothing.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    genesis: Record | None = None
    policy: BudgetPolicy | None = None
    head: Record | None = None
    hashes: dict[int, str] = field(default_factory=dict)
    approvals: dict[str, tuple[Record, Counter[str]]] = field(default_factory=dict)
    charges: dict[int, tuple[Record, Record | None]] = field(default_factory=dict)
    releases: dict[int, Record] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    declaration: tuple[str, str] | None = None
    noted: Counter[str] = field(default_factory=Counter)
    num_unprotected: int = 0
    steps: Counter[tuple[float, float]] = field(default_factory=Counter)
    totals: tuple[float, ...] = ()
    _keys: set[tuple[str, int, int]] = field(default_factory=set)
    _salts: set[str] = field(default_factory=set)

    @property
    def rdp_epsilon(self) -> float:
        """Smallest epsilon over the orders by dp-accounting, without unprotected charges."""
        return epsilon_of_totals(self.totals, self.policy) if self.policy else 0.0

    def problem(self, text: str) -> None:
        """Keep the first hundred; a hostile file has no more to say after that."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text)

    def note(self, text: str) -> None:
        """Keep the first few."""
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(text)

    def take(self, seq: int, line: bytes) -> None:
        """Check one line and fold it in."""
        try:
            record = parse_record(line)
        except ValueError as error:
            self.problem(f"line {seq + 1}: {error}")
            return
        self._check_chain(seq, record)
        self._check_seal(seq, record)
        self.hashes[seq] = record.hash
        self.head = record
        self._fold(seq, record)

    def _check_chain(self, seq: int, record: Record) -> None:
        previous = self.hashes.get(seq - 1) if seq else NO_RECORD
        if record.seq != seq:
            self.problem(f"record {seq}: it is numbered {record.seq}")
        if previous is not None and record.previous != previous:
            self.problem(f"record {seq}: it does not follow the record before it")
        if record.salt in self._salts:
            self.problem(f"record {seq}: its random bits were used before")
        self._salts.add(record.salt)
        if self.head is not None and record.at < self.head.at:
            self.note(f"record {seq}: the site's clock went back")

    def _check_seal(self, seq: int, record: Record) -> None:
        if not record.hash_matches():
            self.problem(f"record {seq}: its hash is not that of its content")
        if seq == 0 and record.kind == "genesis":
            self.genesis, self.policy = record, BudgetPolicy.from_json(record.body["policy"])
            self.totals = (0.0,) * len(self.policy.orders)
        if self.genesis is None:
            return
        if not record.signed_by(bytes.fromhex(self.genesis.body["public_key"])):
            self.problem(f"record {seq}: it is not signed with the key of the genesis record")

    def _fold(self, seq: int, record: Record) -> None:
        if record.kind == "genesis":
            if seq:
                self.problem(f"record {seq}: a second genesis")
        elif self.genesis is None:
            if seq == 0:
                self.problem("record 0: the first record is not a genesis")
        elif record.kind == "approval":
            self.approvals[record.body["experiment_digest"]] = (record, Counter())
        elif record.kind == "refusal":
            self.refusals[record.body["code"]] += 1
        elif record.kind == "release":
            self._release(seq, record)
        elif record.kind == "note":
            self._note(seq, record)
        else:
            self._charge(seq, record)

    def _note(self, seq: int, record: Record) -> None:
        """Count it. It changes no approval, charge or total, however many there are."""
        self.noted[record.body["what"]] += 1
        if record.body["what"] != "declaration":
            return
        if seq != 1:
            self.problem(f"record {seq}: a declaration stands right after the genesis or nowhere")
        self.declaration = (record.body["by"], record.body["reason"])

    def _release(self, seq: int, record: Record) -> None:
        charged = record.body["charge_seq"]
        if charged not in self.charges:
            self.problem(f"record {seq}: an update was released without a charge")
        if charged in self.releases:
            self.problem(f"record {seq}: a second release for the charge in record {charged}")
        self.releases.setdefault(charged, record)

    def _charge(self, seq: int, record: Record) -> None:
        body = record.body
        key = (body["run"], body["round"], body["attempt"])
        if key in self._keys:
            self.problem(f"record {seq}: this round and attempt were charged before")
        self._keys.add(key)
        self.charges[seq] = (record, self._approval_of(seq, body))
        self._add_cost(seq, body)

    def _approval_of(self, seq: int, body: Any) -> Record | None:
        approval, used = self.approvals.get(body["experiment_digest"], (None, Counter()))
        if approval is None:
            self.problem(f"record {seq}: its experiment was not approved")
            return None
        used["charges"] += 1
        if used["charges"] > approval.body["attempts"]:
            self.problem(f"record {seq}: more charges than were approved")
        terms = ("plan_digest", "event")
        if any(body[name] != approval.body[name] for name in terms):
            self.problem(f"record {seq}: its plan or event is not what was approved")
        return approval

    def _add_cost(self, seq: int, body: Any) -> None:
        policy, event = self.policy, event_from_json(body["event"])
        if policy is None:
            return
        if isinstance(event, PoissonGaussian):
            self._add_steps(seq, event, policy)
        else:
            self.num_unprotected += 1
        if self.num_unprotected and not policy.allow_unprotected:
            self.problem(f"record {seq}: charged after or without noise, which the policy forbids")
        if self.rdp_epsilon > policy.epsilon * (1 + _AGREEMENT):
            self.problem(f"record {seq}: this charge passes the limit epsilon {policy.epsilon:g}")
        if not self._agrees(body["totals"]):
            self.problem(f"record {seq}: its totals are not those of dp-accounting")

    def _add_steps(self, seq: int, event: PoissonGaussian, policy: BudgetPolicy) -> None:
        if (len(self.steps) + 1) * sum(policy.orders) > _MAX_TERMS:
            self.problem(f"record {seq}: too many different events to recompute in reasonable time")
            return
        self.steps[event.sampling_rate, event.noise_multiplier] += event.steps
        step = rdp_of_one_step(event.sampling_rate, event.noise_multiplier, policy.orders)
        self.totals = tuple(
            total + event.steps * cost for total, cost in zip(self.totals, step, strict=True)
        )

    def _agrees(self, stated: list[float]) -> bool:
        tolerance = _ROUNDING_OF_A_STEP * (1 + self.steps.total())
        return len(stated) == len(self.totals) and all(
            isclose(a, b, rel_tol=_AGREEMENT, abs_tol=tolerance)
            for a, b in zip(stated, self.totals, strict=True)
        )


def replay_file(path: Path) -> Replay:
    """Read a whole file. Whatever is in it, the answer is a ``Replay``."""
    replay = Replay()
    try:
        for seq, line in enumerate(_lines(path, replay)):
            replay.take(seq, line)
    except OSError as error:
        replay.problem(f"there is no readable ledger {path} ({error.strerror})")
    if not replay.hashes and not replay.problems:
        replay.problem("the file holds no record, so it is not a ledger")
    return replay


def _lines(path: Path, replay: Replay) -> Iterator[bytes]:
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if line.endswith(b"\n"):
                yield line[:-1]
            elif len(line) > MAX_LINE_BYTES:
                replay.problem("a line is too long to be a record; the rest was not read")
                return
            else:
                replay.problem(
                    "the last line is incomplete. A killed write leaves such a line: let the "
                    "site open its ledger once, which cuts it off, and ask for the file again"
                )
