"""A site's account of what its subjects have lost: charged first, durable, never refunded.

One ledger per protected population, across all experiments. The order of a round is charge
(durable), open protected data, train, keep the update in the outbox, record the release, send.
Killed anywhere in between, the charge stays: the account can be too high, never too low.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from federation.errors import LedgerError, PrivacyBudgetError, Refused
from federation.ledger.book import (
    Approval,
    Book,
    Charge,
    Declaration,
    RoundKey,
    Work,
    note_body,
)
from federation.ledger.chain import ChainFile, create_file
from federation.ledger.filter import BudgetPolicy, Event, FilterState, Unprotected
from federation.ledger.keys import SiteKey
from federation.ledger.outbox import Outbox
from federation.ledger.receipts import Receipt
from federation.ledger.records import FORMAT, NO_RECORD, Record, parse_record

__all__ = ["Charge", "Ledger", "RoundKey"]

# Past this many refused requests further ones are still refused, but no longer recorded.
MAX_REFUSALS = 10_000


class Ledger:
    """An open ledger. Make one with ``create`` or ``open``; threads and processes may share it."""

    def __init__(self, path: Path, key: SiteKey) -> None:
        self._file = ChainFile(path)
        self._key = key
        self._outbox = Outbox(path.parent / "outbox")
        self._records: list[Record] = []
        self._book: Book | None = None
        with self._file.locked():
            self._outbox.require_known(self._refresh().charges.values())

    @classmethod
    def create(  # noqa: PLR0913 - the last two are named
        cls,
        path: Path,
        key: SiteKey,
        policy: BudgetPolicy,
        population: str,
        *,
        site: str | None = None,
        declaration: Declaration | None = None,
    ) -> "Ledger":
        """Start the ledger of a protected population; its budget is fixed from here on.

        Args:
            population: Public name of the data set.
            site: Public name of the site, which receipts carry; ``population`` by default.
            declaration: That the population is of no human subjects. It is there from the start
                or never: the file appears with it.

        Raises:
            LedgerError: The file exists. A ledger is never reset.
        """
        body = {
            "format": FORMAT,
            "site": population if site is None else site,
            "population": population,
            "public_key": key.public_bytes.hex(),
            "policy": policy.to_json(),
        }
        genesis = Record.signed(key, seq=0, kind="genesis", previous=NO_RECORD, body=body)
        lines = genesis.line
        if declaration is not None:
            told = declaration.to_json()
            lines += Record.signed(key, seq=1, kind="note", previous=genesis.hash, body=told).line
        create_file(path, lines)
        return cls(path, key)

    @classmethod
    def open(cls, path: Path, key: SiteKey) -> "Ledger":
        """Open a ledger: check every record and add everything up again.

        Raises:
            LedgerError: It is missing, damaged, or another site's.
        """
        return cls(path, key)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def approve(  # noqa: PLR0913
        self,
        experiment_digest: str,
        plan_digest: str,
        *,
        event: Event,
        rounds: int,
        attempts: int,
        approver: str,
        commitment: str,
    ) -> Record:
        """Permit an experiment to charge ``event`` once a round, and return the record.

        The rounds are reserved: other approvals must fit beside them. Repeats of lost rounds,
        ``attempts - rounds`` of them, are permitted and pay from whatever is left by then.
        A newer approval of the same experiment replaces the older one.

        Args:
            event: What one round costs.
            attempts: Most charges, repeats of lost rounds included.

        Raises:
            PrivacyBudgetError: The rounds do not fit what is left. The refusal is recorded.
        """
        what = {
            "experiment_digest": experiment_digest,
            "plan_digest": plan_digest,
            "event": event.to_json(),
        }
        terms = {
            "rounds": rounds,
            "attempts": attempts,
            "approver": approver,
            "commitment": commitment,
        }
        if not 1 <= rounds <= attempts:
            raise ValueError(f"expected 1 <= rounds <= attempts, got {rounds} and {attempts}")
        with self._file.locked():
            book = self._refresh()
            if not book.fits(event.times(rounds), experiment_digest):
                self._append("refusal", {**what, "code": "budget", "request": None})
                raise PrivacyBudgetError(self._does_not_fit(book, rounds, event))
            return self._append("approval", {**what, **terms})

    def fits(self, event: Event, experiment_digest: str) -> bool:
        """Tell whether ``event`` could be approved now, beside what is reserved for others."""
        return self._current().fits(event, experiment_digest)

    def promised(self, experiment_digest: str) -> FilterState:
        """Return what was charged, and what is reserved for experiments other than this one."""
        return self._current().promised(experiment_digest)

    def approval_for(self, experiment_digest: str, *, used_up: bool = False) -> Record | None:
        """Return the experiment's newest approval, if it has charges left.

        Args:
            used_up: Return it without charges left, too: its replies may still be asked for again.
        """
        approval = self._current().approvals.get(experiment_digest)
        if approval is None or not (used_up or approval.charges_left):
            return None
        return approval.record

    def charge(
        self,
        key: RoundKey,
        *,
        request_digest: str,
        experiment_digest: str,
        plan_digest: str,
        event: Event,
    ) -> Charge:
        """Charge one round, durably, before protected data is opened.

        Raises:
            Refused: ``not_approved`` (no approval, or not of this plan and event),
                ``approval_used_up``, ``budget``, ``equivocation`` (the key came before with other
                content), ``lost`` (charged before, never released: the hub needs a new attempt).
                Recorded, once per key and code.
        """
        work = Work(key, request_digest, experiment_digest, plan_digest, event)
        with self._file.locked():
            book = self._refresh()
            refusal = _why_refused(book, work)
            if refusal is not None:
                self._record_refusal(book, work, refusal.code)
                raise refusal
            earlier = book.charges.get(key)
            if earlier is not None:
                return replace(earlier, replay=True)
            totals = book.totals_after(event)
            self._append("charge", {**work.to_json(), "totals": totals})
            return book.charges[key]

    def release(
        self, charge: Charge, payload: bytes, *, versions: Mapping[str, str] | None = None
    ) -> Receipt:
        """Keep an update in the outbox, record its release, and return the receipt to send.

        The first call decides: a later one for the same charge changes nothing and returns the
        same receipt.

        Args:
            versions: Of the software that made the update; part of the receipt.

        Raises:
            LedgerError: The ledger does not hold this charge.
        """
        with self._file.locked():
            book = self._refresh()
            _require_charged(book, charge)
            if charge.seq not in book.releases:
                body = {
                    "charge_seq": charge.seq,
                    "update_digest": self._outbox.put_payload(charge, payload),
                    "versions": dict(versions or {}),
                }
                self._append("release", body)
            return self._receipt(book, charge)

    def note(
        self, what: str, *, by: str, reason: str, experiments: Sequence[str] = (), after: int
    ) -> Record:
        """Record an exclusion or a purge: it costs nothing, and auditors can read it.

        Repeating it is safe: a note with the same content that came later than record ``after``
        is returned as it stands.

        Args:
            by, reason: 1 to 200 printable characters; no identifiers.
            experiments: Digests of those that were approved on the data as they were before.

        Raises:
            ValueError: A text or digest has the wrong form.
        """
        body = note_body(what, by=by, reason=reason, experiments=experiments)
        with self._file.locked():
            for earlier in self._refresh().notes:
                if earlier.seq > after and dict(earlier.body) == body:
                    return earlier
            return self._append("note", body)

    def stored_release(self, charge: Charge) -> tuple[bytes, Receipt] | None:
        """Return the payload and receipt of a charge, or None if nothing was released for it.

        Raises:
            LedgerError: The outbox lost the payload, or holds another one.
        """
        with self._file.locked():
            book = self._refresh()
            _require_charged(book, charge)
            release = book.releases.get(charge.seq)
            if release is None:
                return None
            payload = self._outbox.payload(charge, release.body["update_digest"])
            return payload, self._receipt(book, charge)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._file.path

    @property
    def policy(self) -> BudgetPolicy:
        """The lifetime budget, fixed at genesis."""
        return self._current().policy

    @property
    def site(self) -> str:
        """The site's name, as receipts carry it."""
        return str(self._current().genesis.body["site"])

    @property
    def population(self) -> str:
        """The protected population's public name."""
        return str(self._current().genesis.body["population"])

    @property
    def declaration(self) -> Declaration | None:
        """Who declared the population to be of no human subjects, and why; None for most."""
        return self._current().declaration

    @property
    def notes(self) -> tuple[Record, ...]:
        """What the site recorded beside training, oldest first."""
        return tuple(self._current().notes)

    @property
    def approvals(self) -> dict[str, Record]:
        """The newest approval of each experiment, by its digest."""
        return {name: approval.record for name, approval in self._current().approvals.items()}

    @property
    def state(self) -> FilterState:
        """What was charged so far."""
        return self._current().state

    @property
    def spent_epsilon(self) -> float:
        """The filter's state as one number; infinite after an unprotected charge."""
        return self.state.spent_epsilon(self.policy)

    @property
    def head(self) -> tuple[int, str]:
        """Position and hash of the newest record."""
        self._current()
        newest = self._records[-1]
        return newest.seq, newest.hash

    @property
    def records(self) -> tuple[Record, ...]:
        """All records, oldest first."""
        self._current()
        return tuple(self._records)

    def _current(self) -> Book:
        with self._file.locked():
            return self._refresh()

    def _refresh(self) -> Book:
        """Fold in what other processes appended."""
        for line in self._file.new_lines():
            self._take(line)
        if self._book is None:
            raise LedgerError(
                f"{self._file.path} holds no complete record, so it is not a ledger. Restore it "
                "from backup; a new one would forget what was spent."
            )
        return self._book

    def _take(self, line: bytes) -> None:
        seq = len(self._records)
        try:
            record = parse_record(line)
            self._require_chained(record)
            self._fold(record)
        except (ValueError, LedgerError) as error:
            raise LedgerError(
                f"{self._file.path}, line {seq + 1}: {str(error).rstrip('.')}. The file was "
                "damaged or changed; restore it from backup. Nothing is charged until then."
            ) from error

    def _require_chained(self, record: Record) -> None:
        previous = self._records[-1].hash if self._records else NO_RECORD
        if (record.seq, record.previous) != (len(self._records), previous):
            raise LedgerError("The record does not follow the one before it.")
        if not record.hash_matches():
            raise LedgerError("The record's hash is not that of its content.")
        if not record.signed_by(self._key.public_bytes):
            raise LedgerError("The record was not signed with this site's key.")

    def _fold(self, record: Record) -> None:
        if self._book is not None:
            self._book.apply(record)
        elif record.kind == "genesis" and record.body["public_key"] == self._key.public_bytes.hex():
            self._book = Book.opened(record)
        else:
            raise LedgerError("The first record is not this site's genesis.")
        self._records.append(record)

    def _append(self, kind: str, body: Mapping[str, Any]) -> Record:
        previous = self._records[-1]
        record = Record.signed(
            self._key, seq=previous.seq + 1, kind=kind, previous=previous.hash, body=body
        )
        self._file.append(record.line)
        self._refresh()
        return record

    def _record_refusal(self, book: Book, work: Work, code: str) -> None:
        """Record each refusal once per key, up to a limit: a hub cannot flood the ledger."""
        if (work.key, code) in book.refused or len(book.refused) >= MAX_REFUSALS:
            return
        what = work.to_json()
        names = ("run", "round", "attempt", "request_digest")
        request = {name: what.pop(name) for name in names}
        self._append("refusal", {**what, "code": code, "request": request})

    def _receipt(self, book: Book, charge: Charge) -> Receipt:
        release = book.releases[charge.seq]
        unsigned = Receipt(
            site=book.genesis.body["site"],
            public_key=self._key.public_bytes.hex(),
            ledger=book.genesis.hash,
            experiment_digest=charge.work.experiment_digest,
            plan_digest=charge.work.plan_digest,
            run=charge.key.run,
            round=charge.key.round,
            attempt=charge.key.attempt,
            request_digest=charge.work.request_digest,
            event=charge.event,
            commitment=charge.commitment,
            charge_seq=charge.seq,
            head_before=charge.head_before,
            head_after=release.hash,
            update_digest=release.body["update_digest"],
            versions=dict(release.body["versions"]),
        )
        receipt = unsigned.signed(self._key)
        self._outbox.put_receipt(charge, receipt)
        return receipt

    def _does_not_fit(self, book: Book, rounds: int, event: Event) -> str:
        policy, spent = book.policy, book.state.spent_epsilon(book.policy)
        if isinstance(event, Unprotected):
            return (
                f"{book.genesis.body['population']}: the experiment has privacy kind 'none' "
                "(epsilon infinite) and this site's policy forbids it. Nothing was read or sent. "
                "Use privacy kind 'subject_dp'."
            )
        return (
            f"{book.genesis.body['population']}: {rounds} rounds of this experiment do not fit "
            f"what is left: the filter stands at epsilon {spent:.2f} of "
            f"{policy.epsilon:g} at delta={policy.delta:g}, beside what other approvals have "
            "reserved. Nothing was read or sent. Lower rounds or steps, or raise the noise."
        )


def _why_refused(book: Book, work: Work) -> Refused | None:
    """Return the refusal of this work, or None if it may be charged or sent again."""
    earlier = book.charges.get(work.key)
    if earlier is not None:
        return _why_not_again(book, earlier, work)
    return _why_not_charged(book, book.approvals.get(work.experiment_digest), work)


def _why_not_again(book: Book, earlier: Charge, work: Work) -> Refused | None:
    if earlier.work != work:
        return Refused("equivocation", "this run, round and attempt came with other content")
    if earlier.seq not in book.releases:
        return Refused("lost", "this attempt was charged but never released; ask for a new one")
    return None


def _why_not_charged(book: Book, approval: Approval | None, work: Work) -> Refused | None:
    if approval is None or not approval.permits(work):
        return Refused("not_approved", "no approval of this experiment with this plan and event")
    if approval.charges_left < 1:
        return Refused("approval_used_up", "every charge that was approved has been made")
    if not book.state.admits(book.policy, work.event):
        limit = f"epsilon {book.policy.epsilon:g} at delta={book.policy.delta:g}"
        return Refused("budget", f"this round would pass the site's limit of {limit}")
    return None


def _require_charged(book: Book, charge: Charge) -> None:
    known = book.charges.get(charge.key)
    if known is None or (known.seq, known.hash) != (charge.seq, charge.hash):
        raise LedgerError("This charge is not in the ledger, so nothing may be released for it.")
