"""What a ledger's records add up to. Always folded from the records, never stored."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from federation.errors import LedgerError
from federation.ledger.entries import Approval, Charge, Declaration, RoundKey, Work
from federation.ledger.filter import BudgetPolicy, Event, FilterState, event_from_json
from federation.ledger.records import Record


@dataclass
class Book:
    """The state after some records, genesis first.

    Attributes:
        public_key: Of the key that signs from here on, hex.
        keys: Every key that ever signed.
        rotated: Record that put the newest of them in force.
        heads: Hashes of the releases: what receipts say of how far the ledger had come.
        approvals: The newest of each experiment, ended ones, too.
        runs: Experiment of each run that took up an approval.
        closings: Closing record of each run that ended.
        withdrawn: Runs of which nothing is sent again, whatever is approved later.
        merged_into: Ledger that this budget went on in.
    """

    genesis: Record
    policy: BudgetPolicy
    public_key: str
    keys: set[str]
    rotated: int = 0
    state: FilterState = field(default_factory=FilterState)
    approvals: dict[str, Approval] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    charges: dict[RoundKey, Charge] = field(default_factory=dict)
    charged: set[int] = field(default_factory=set)
    releases: dict[int, Record] = field(default_factory=dict)
    heads: set[str] = field(default_factory=set)
    losses: set[int] = field(default_factory=set)
    refused: set[tuple[RoundKey, str]] = field(default_factory=set)
    closings: dict[str, Record] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)
    merges: dict[str, FilterState] = field(default_factory=dict)
    merged_into: str | None = None
    declaration: Declaration | None = None
    notes: list[Record] = field(default_factory=list)

    @classmethod
    def opened(cls, genesis: Record) -> "Book":
        """Return the book of a ledger that holds only its genesis."""
        key = genesis.body["public_key"]
        return cls(genesis, BudgetPolicy.from_json(genesis.body["policy"]), key, {key})

    def apply(self, record: Record) -> None:
        """Fold one record in.

        Raises:
            LedgerError: It contradicts the records before it.
        """
        if self.merged_into is not None:
            raise LedgerError(f"Record {record.seq}: the ledger had been merged into another.")
        fold = getattr(self, f"_{record.kind}", None)
        if fold is None:
            raise LedgerError(f"Record {record.seq}: a ledger has one genesis, at its start.")
        fold(record)

    def open_approval(self, experiment_digest: str) -> Approval | None:
        """Return the experiment's newest approval unless it has ended."""
        approval = self.approvals.get(experiment_digest)
        return approval if approval is not None and approval.ended is None else None

    def fits(self, event: Event, experiment_digest: str, at: str) -> bool:
        """Tell whether ``event`` fits beside what other open approvals hold at this time."""
        return self.promised(experiment_digest, at=at).admits(self.policy, event)

    def promised(self, experiment_digest: str = "", *, at: str | None = None) -> FilterState:
        """Return the state with everything that other experiments' open approvals hold.

        Args:
            at: The present time: those that have expired hold nothing then. None counts them: an
                older copy may have been charged under them.
        """
        return self._beside(experiment_digest, at, reserved=False)

    def fits_reserved(self, approval: Approval, at: str) -> bool:
        """Tell whether all that an approval holds fits beside what other runs have taken up."""
        beside = self._beside(approval.record.body["experiment_digest"], at, reserved=True)
        return approval.held is None or beside.admits(self.policy, approval.held)

    def _beside(self, experiment_digest: str, at: str | None, *, reserved: bool) -> FilterState:
        others = (a for digest, a in self.approvals.items() if digest != experiment_digest)
        valid = (a for a in others if at is None or not a.expired(at))
        taken = (a for a in valid if a.run is not None or not reserved)
        return self.state.after_all(a.held for a in taken if a.held is not None)

    def unfinished(self) -> dict[str, FilterState]:
        """Return, by experiment, what is held, and what was charged and has no release or loss."""
        found = {
            digest: FilterState().after(approval.held)
            for digest, approval in self.approvals.items()
            if approval.held is not None
        }
        for charge in self.charges.values():
            if charge.seq not in self.releases and charge.seq not in self.losses:
                digest = charge.work.experiment_digest
                found[digest] = found.get(digest, FilterState()).after(charge.event)
        return found

    def totals_after(self, events: Iterable[Event]) -> list[float]:
        """Return every order's total once ``events`` are charged."""
        return list(self.state.after_all(events).totals(self.policy.orders))

    def _approval(self, record: Record) -> None:
        """A newer approval replaces the older one of the same experiment."""
        self.approvals[record.body["experiment_digest"]] = Approval(record)

    def _reservation(self, record: Record) -> None:
        body = record.body
        approval = self.open_approval(body["experiment_digest"])
        if approval is None or approval.run is not None or body["run"] in self.runs:
            raise LedgerError(f"Record {record.seq}: there is no approval that it could take up.")
        if body["charges"] != approval.record.body["charges"]:
            raise LedgerError(f"Record {record.seq}: it reserves another number of rounds.")
        approval.run = body["run"]
        self.runs[body["run"]] = body["experiment_digest"]

    def _charge(self, record: Record) -> None:
        work = Work.of(record.body)
        approval = self.open_approval(work.experiment_digest)
        if approval is None or not approval.permits(work) or approval.charges_left < 1:
            raise LedgerError(f"Record {record.seq}: this charge was not approved.")
        if approval.run != work.key.run:
            raise LedgerError(f"Record {record.seq}: this run was not reserved.")
        if approval.expired(record.at):
            raise LedgerError(f"Record {record.seq}: the approval had expired.")
        if work.key in self.charges:
            raise LedgerError(f"Record {record.seq}: this round was charged before.")
        if not self.state.admits(self.policy, work.event):
            raise LedgerError(f"Record {record.seq}: this charge passes the budget.")
        self._spend(record, [work.event])
        approval.used += 1
        self.charged.add(record.seq)
        self.charges[work.key] = Charge(
            work=work,
            commitment=approval.record.body["commitment"],
            seq=record.seq,
            head_before=record.previous,
            hash=record.hash,
            approval_seq=approval.record.seq,
        )

    def _release(self, record: Record) -> None:
        self.releases[self._charge_of(record)] = record
        self.heads.add(record.hash)

    def _loss(self, record: Record) -> None:
        self.losses.add(self._charge_of(record))

    def _charge_of(self, record: Record) -> int:
        seq: int = record.body["charge_seq"]
        if seq not in self.charged or seq in self.releases or seq in self.losses:
            raise LedgerError(f"Record {record.seq}: it ends nothing that was charged and open.")
        return seq

    def _refusal(self, record: Record) -> None:
        request = record.body["request"]
        if request is not None:
            self.refused.add((RoundKey.of(request), record.body["code"]))

    def _withdrawal(self, record: Record) -> None:
        self._end(record, "withdrawn")
        experiment = record.body["experiment_digest"]
        self.withdrawn |= {run for run, of in self.runs.items() if of == experiment}

    def _closing(self, record: Record) -> None:
        approval = self._end(record, "closed")
        if approval.run != record.body["run"]:
            raise LedgerError(f"Record {record.seq}: it closes a run that is not open.")
        self.closings[record.body["run"]] = record

    def _end(self, record: Record, why: str) -> Approval:
        approval = self.open_approval(record.body["experiment_digest"])
        if approval is None:
            raise LedgerError(f"Record {record.seq}: it ends an approval that is not open.")
        approval.ended = why
        return approval

    def _key_rotation(self, record: Record) -> None:
        self.public_key = record.body["public_key"]
        self.keys.add(self.public_key)
        self.rotated = record.seq

    def _recovery(self, record: Record) -> None:
        """Spend whatever could have been released since; it may pass the limit."""
        spends = [event_from_json(value) for value in record.body["spends"]]
        open_ones = [a for a in self.approvals.values() if a.held is not None]
        if (
            not FilterState()
            .after_all(spends)
            .covers(FilterState().after_all(a.held for a in open_ones if a.held is not None))
        ):
            raise LedgerError(f"Record {record.seq}: a recovery spends every open approval.")
        self._spend(record, spends)
        for approval in self.approvals.values():
            approval.ended = approval.ended or "recovered"
        # What was under way may have been released, and is paid for anew: no second release.
        self.losses |= self.charged - self.releases.keys()

    def _merge(self, record: Record) -> None:
        """Charge what another population was charged: some of its subjects are in this one."""
        spends = [event_from_json(value) for value in record.body["spends"]]
        self._spend(record, spends)
        before = self.merges.get(record.body["ledger"], FilterState())
        self.merges[record.body["ledger"]] = before.after_all(spends)

    def _merged(self, record: Record) -> None:
        self.merged_into = record.body["into"]
        for approval in self.approvals.values():
            approval.ended = approval.ended or "merged"

    def _note(self, record: Record) -> None:
        """Keep it; approvals, charges and the budget stay as they are."""
        if record.body["what"] == "declaration":
            if record.seq != 1:
                raise LedgerError(
                    f"Record {record.seq}: a declaration stands right after the genesis."
                )
            self.declaration = Declaration(record.body["by"], record.body["reason"])
        self.notes.append(record)

    def _spend(self, record: Record, events: list[Any]) -> None:
        if not _agree(record.body["totals"], self.totals_after(events)):
            raise LedgerError(f"Record {record.seq}: its totals are not those of the records.")
        self.state = self.state.after_all(events)


def _agree(stated: list[float], computed: list[float]) -> bool:
    """Allow for another machine's exp and log, which may differ in the last digits."""
    return len(stated) == len(computed) and all(
        isclose(a, b, rel_tol=1e-9, abs_tol=1e-15) for a, b in zip(stated, computed, strict=True)
    )
