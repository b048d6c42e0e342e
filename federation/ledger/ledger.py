"""A site's account of what its subjects have lost: charged first, durable, never refunded.

One ledger per protected population, across all experiments. An approval holds budget for one run;
the run reserves it whole before its first round. The order of a round is charge (durable), open
protected data, train, keep the update in the outbox, record the release, send. Killed anywhere in
between, the charge stays: the account can be too high, never too low.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from federation.errors import LedgerError, PrivacyBudgetError, Refused
from federation.ledger.book import Book
from federation.ledger.chain import create_file
from federation.ledger.decisions import does_not_fit, equivocation, why_not_reserved, why_refused
from federation.ledger.entries import Charge, Declaration, RoundKey, Terms, Work, note_body
from federation.ledger.filter import BudgetPolicy, Event, FilterState
from federation.ledger.high_water import MarkFile
from federation.ledger.keys import SiteKey
from federation.ledger.outbox import Outbox
from federation.ledger.receipts import Receipt
from federation.ledger.records import FORMAT, NO_RECORD, Record, now
from federation.ledger.signed_chain import SignedChain

__all__ = ["Charge", "Ledger", "RoundKey", "Terms"]

# Past this many refused requests further ones are still refused, but no longer recorded.
MAX_REFUSALS = 10_000


class Ledger:
    """An open ledger. Make one with ``create`` or ``open``; threads and processes may share it."""

    def __init__(self, path: Path, key: SiteKey, mark: Path | None, *, recovering: bool) -> None:
        self.chain = SignedChain(path, key, MarkFile(mark) if mark else None)
        self.outbox = Outbox(path.parent / "outbox")
        with self.chain.locked() as book:
            if not recovering:
                self.outbox.require_known(book.charges.values())
                self.chain.require_not_behind()

    @classmethod
    def create(  # noqa: PLR0913 - the last three are named
        cls,
        path: Path,
        key: SiteKey,
        policy: BudgetPolicy,
        population: str,
        *,
        site: str | None = None,
        declaration: Declaration | None = None,
        mark: Path | None = None,
    ) -> "Ledger":
        """Start the ledger of a protected population; its budget is fixed from here on.

        Args:
            population: Public name of the data set.
            site: Public name of the site, which receipts carry; ``population`` by default.
            declaration: That the population is of no human subjects. It is there from the start
                or never: the file appears with it.
            mark: File on separate storage that keeps how far the ledger has come.

        Raises:
            LedgerError: The file exists, or a mark of one: a ledger is never reset.
        """
        if mark is not None and MarkFile(mark).read() is not None:
            raise LedgerError(
                f"{mark} is the high-water mark of an earlier ledger, and {path} is not there. "
                "Restore the ledger from backup; a new one would forget what was spent."
            )
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
        made = cls(path, key, mark, recovering=False)
        made.start_mark()
        return made

    @classmethod
    def open(
        cls, path: Path, key: SiteKey, *, mark: Path | None = None, recovering: bool = False
    ) -> "Ledger":
        """Open a ledger: check every record and add everything up again.

        Args:
            recovering: Open an older copy, too, to look at it and to ``recover``.

        Raises:
            LedgerError: It is missing, damaged, another site's, or an older copy.
        """
        return cls(path, key, mark, recovering=recovering)

    def close(self) -> None:
        """Close the file."""
        self.chain.close()

    # What the operator decides.

    def approve(self, terms: Terms) -> Record:
        """Permit one run of an experiment, and return the record.

        Its charges are held: other approvals must fit beside them. A newer approval of the same
        experiment replaces the older one.

        Raises:
            PrivacyBudgetError: They do not fit what is left. The refusal is recorded.
        """
        whole = terms.event.times(terms.charges)
        with self.chain.locked() as book:
            if not book.fits(whole, terms.experiment_digest, now()):
                self._refuse(terms.experiment_digest, "budget", of=terms)
                raise PrivacyBudgetError(does_not_fit(book, terms))
            return self.chain.append("approval", terms.to_json())

    def refuse(self, experiment_digest: str, *, by: str, reason: str) -> Record:
        """Record that the operator does not permit an experiment.

        Raises:
            LedgerError: It is approved: withdraw that.
        """
        with self.chain.locked() as book:
            if book.open_approval(experiment_digest):
                raise LedgerError("The experiment is approved here. Withdraw the approval instead.")
            return self._refuse(experiment_digest, "operator", by=by, reason=reason)

    def withdraw(self, experiment_digest: str, *, by: str, reason: str) -> Record:
        """End an approval. What was charged stays charged; what was held is free again.

        Raises:
            LedgerError: There is no open approval.
        """
        with self.chain.locked() as book:
            if book.open_approval(experiment_digest) is None:
                raise LedgerError("There is no open approval of this experiment to withdraw.")
            body = {"experiment_digest": experiment_digest, "by": by, "reason": reason}
            return self.chain.append("withdrawal", body)

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
        with self.chain.locked() as book:
            for earlier in book.notes:
                if earlier.seq > after and dict(earlier.body) == body:
                    return earlier
            return self.chain.append("note", body)

    # A round.

    def reserve(self, experiment_digest: str, run: str) -> None:
        """Take up an approval for one run, whole, before its first round; repeating it is safe.

        Raises:
            Refused: ``not_approved``, or ``approval_used_up``: another run has taken it up, or
                ``budget``: the whole run fits no longer.
        """
        at = now()
        with self.chain.locked() as book:
            self.require_current()
            refusal = why_not_reserved(book, experiment_digest, run, at)
            if refusal is not None:
                raise refusal
            self._reserve(book, experiment_digest, run, at)

    def charge(  # noqa: PLR0913 - all but one are named
        self,
        key: RoundKey,
        *,
        request_digest: str,
        experiment_digest: str,
        plan_digest: str,
        event: Event,
        heads: Mapping[str, str] | None = None,
        foreseen: bool = True,
    ) -> Charge:
        """Charge one round, durably, before protected data is opened.

        Args:
            heads: By site, the newest head that the hub has a receipt for, this site's too.
            foreseen: Whether the experiment has this round and attempt.

        Raises:
            Refused: ``not_approved`` (no approval, or not of this plan and event, or expired),
                ``approval_used_up``, ``budget``, ``equivocation`` (the key came before with other
                content), ``lost`` (charged before, never released: the hub needs a new attempt).
                Recorded, once per key and code. So is ``behind`` where the hub shows a head that
                is not here; where the mark does, nothing is recorded.
        """
        work = Work(key, request_digest, experiment_digest, plan_digest, event)
        with self.chain.locked() as book:
            self.require_current()
            at = now()
            refusal = why_refused(book, work, at, heads=heads or {}, foreseen=foreseen)
            if refusal is not None:
                self._record_refusal(book, work, refusal.code, work)
                raise refusal
            earlier = book.charges.get(key)
            if earlier is not None:
                return replace(earlier, replay=True)
            self._reserve(book, experiment_digest, key.run, at)
            more = {"heads": dict(heads or {}), "totals": book.totals_after([event])}
            self.chain.append("charge", {**work.to_json(), **more}, at=at)
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
            LedgerError: The ledger does not hold this charge, or holds it as lost.
        """
        with self.chain.locked() as book:
            _require_charged(book, charge)
            if charge.seq not in book.releases and _ended(book, charge):
                self._lose(book, charge.seq)
                raise LedgerError("The approval has ended meanwhile: nothing leaves for this.")
            if charge.seq in book.losses:
                raise LedgerError("This charge was recorded as lost: nothing leaves for it.")
            if charge.seq not in book.releases:
                body = {
                    "charge_seq": charge.seq,
                    "update_digest": self.outbox.put_payload(charge, payload),
                    "versions": dict(versions or {}),
                }
                self.chain.append("release", body, at=self._untold())
            return self._receipt(book, charge)

    def resend(self, key: RoundKey, *, request_digest: str) -> tuple[bytes, Receipt] | None:
        """Return what was released for exactly this request before; None if nothing was.

        Neither new data nor other software nor the end of the run change what has left once. After
        a withdrawal nothing of the runs before it is sent again, whatever is approved later.
        """
        with self.chain.locked() as book:
            charge = book.charges.get(key)
            if charge is None or charge.work.request_digest != request_digest:
                return None
            if charge.seq not in book.releases or key.run in book.withdrawn:
                return None
            return self.stored_release(charge)

    def require_one_meaning(self, key: RoundKey, request_digest: str, experiment: str) -> None:
        """Refuse a key that was charged for another request, whatever else is wrong with this one.

        Raises:
            Refused: ``equivocation``, recorded once per key; ``behind``, ``not_approved``.
        """
        with self.chain.locked() as book:
            earlier = book.charges.get(key)
            if earlier is not None and earlier.work.request_digest != request_digest:
                self.require_current()
                asked = replace(
                    earlier.work, request_digest=request_digest, experiment_digest=experiment
                )
                self._record_refusal(book, asked, "equivocation", None)
                raise equivocation()

    def lose(self, charge: Charge) -> None:
        """Record that nothing leaves for a charge, nor ever will. The charge stands.

        Raises:
            LedgerError: The ledger does not hold this charge.
        """
        with self.chain.locked() as book:
            _require_charged(book, charge)
            self._lose(book, charge.seq)

    def stored_release(self, charge: Charge) -> tuple[bytes, Receipt] | None:
        """Return the payload and receipt of a charge, or None if nothing was released for it.

        Raises:
            LedgerError: The outbox lost the payload, or holds another one.
        """
        with self.chain.locked() as book:
            _require_charged(book, charge)
            release = book.releases.get(charge.seq)
            if release is None:
                return None
            self.chain.require_not_behind()
            payload = self.outbox.payload(charge, release.body["update_digest"])
            return payload, self._receipt(book, charge)

    def start_mark(self) -> None:
        """Start the high-water mark where the ledger stands, if one is kept and there is none."""
        with self.chain.locked():
            if self.chain.mark() is None:
                self.chain.keep_mark()

    # What it says.

    def fits(self, event: Event, experiment_digest: str) -> bool:
        """Tell whether ``event`` could be approved now, beside what is held for others."""
        return self._current().fits(event, experiment_digest, now())

    def promised(self, experiment_digest: str = "") -> FilterState:
        """Return what was charged, and what is held for experiments other than this one."""
        return self._current().promised(experiment_digest, at=now())

    def approval_for(self, experiment_digest: str, *, used_up: bool = False) -> Record | None:
        """Return the experiment's open approval, if it has charges left.

        Args:
            used_up: Return it without charges left, too: its replies may still be asked for again.
        """
        approval = self._current().open_approval(experiment_digest)
        if approval is None or not (used_up or approval.charges_left):
            return None
        return approval.record

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.chain.path

    @property
    def book(self) -> Book:
        """What the records add up to now. For reading."""
        return self._current()

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
    def approvals(self) -> dict[str, Record]:
        """The newest approval of each experiment, ended ones, too, by its digest."""
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
        newest = self.records[-1]
        return newest.seq, newest.hash

    @property
    def records(self) -> tuple[Record, ...]:
        """All records, oldest first."""
        self._current()
        return tuple(self.chain.records)

    def _current(self) -> Book:
        with self.chain.locked() as book:
            return book

    def require_current(self) -> None:
        """Refuse what a hub asks of an older copy, or of a ledger that was merged away.

        Raises:
            Refused: ``behind`` or ``not_approved``.
        """
        if self.chain.merged:
            raise Refused("not_approved", "the ledger was merged into another")
        try:
            self.chain.require_not_behind()
        except LedgerError as error:
            raise Refused("behind", str(error)) from error

    def _reserve(self, book: Book, experiment_digest: str, run: str, at: str) -> None:
        approval = book.approvals[experiment_digest]
        if approval.run is None:
            charges = approval.record.body["charges"]
            body = {"experiment_digest": experiment_digest, "run": run, "charges": charges}
            self.chain.append("reservation", body, at=at)

    def _lose(self, book: Book, seq: int) -> None:
        if seq not in book.releases and seq not in book.losses:
            self.chain.append("loss", {"charge_seq": seq}, at=self._untold())

    def _untold(self) -> str:
        """Return the time of the record before: how long a round took depends on who was drawn."""
        return self.chain.records[-1].at

    def _record_refusal(self, book: Book, work: Work, code: str, of: Work | None) -> None:
        """Record each refusal once per key, up to a limit: a hub cannot flood the ledger."""
        if code == "lost":
            self._lose(book, book.charges[work.key].seq)
        if (work.key, code) in book.refused:
            return
        # These are bounded by the charges that were made; others a hub could send without end.
        bounded = code in {"equivocation", "lost"}
        if len(book.refused) >= MAX_REFUSALS and not bounded:
            return
        request = {**work.key.to_json(), "request_digest": work.request_digest}
        self._refuse(work.experiment_digest, code, of=of, request=request)

    def _refuse(  # noqa: PLR0913 - all but two are named
        self,
        experiment_digest: str,
        code: str,
        *,
        of: Terms | Work | None = None,
        request: Mapping[str, Any] | None = None,
        by: str | None = None,
        reason: str | None = None,
    ) -> Record:
        body = {
            "experiment_digest": experiment_digest,
            "plan_digest": of.plan_digest if of else None,
            "event": of.event.to_json() if of else None,
            "code": code,
            "request": request,
            "by": by,
            "reason": reason,
        }
        return self.chain.append("refusal", body)

    def _receipt(self, book: Book, charge: Charge) -> Receipt:
        release = book.releases[charge.seq]
        unsigned = Receipt(
            site=book.genesis.body["site"],
            public_key=self.chain.key.public_bytes.hex(),
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
        stored = self.outbox.receipt(charge)
        if stored is not None and stored.states_the_same(unsigned):
            return stored
        if book.rotated > release.seq:
            raise LedgerError(
                f"The receipt of record {charge.seq} is gone, and the key that signed it was "
                "replaced since. Restore the outbox from backup, or let the hub ask anew."
            )
        receipt = unsigned.signed(self.chain.key)
        self.outbox.put_receipt(charge, receipt)
        return receipt


def _ended(book: Book, charge: Charge) -> bool:
    """Tell whether the approval that a charge was made under permits nothing any more."""
    approval = book.open_approval(charge.work.experiment_digest)
    return approval is None or approval.record.seq != charge.approval_seq


def _require_charged(book: Book, charge: Charge) -> None:
    known = book.charges.get(charge.key)
    if known is None or (known.seq, known.hash) != (charge.seq, charge.hash):
        raise LedgerError("This charge is not in the ledger, so nothing may be released for it.")
