"""Whatever happens to a ledger, in whatever order, it says what a plain account says.

``plain_model`` is that account. Every step also names the records that it may append: a refused
action appends a refusal or nothing.
"""

import shutil

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from federation.canonical import digest
from federation.errors import LedgerError, PrivacyBudgetError
from federation.ledger.filter import PoissonGaussian, Unprotected
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import RoundKey
from federation.ledger.upkeep import conclude, missing, recover, rotate
from tests.federation.ledger.model_site import (
    EVENTS,
    EXPERIMENTS,
    FUTURE,
    LIMIT,
    PAST,
    PLANS,
    WHO,
    RealSite,
    spends_of,
)
from tests.federation.ledger.plain_model import Approval, Work, steps_of
from tests.federation.ledger.second_verifier import second_verdict

numbers = st.integers(0, 2)
# Most requests are for the run of the same number, some for another one.
runs = st.sampled_from([None] * 6 + ["run-0-0", "run-1-1"])
handles = st.integers(0, 1)
expiries = st.sampled_from([None, None, None, FUTURE, PAST])
# Round and attempt; what is wrong with the request; how it goes on.
requests = st.tuples(
    st.tuples(st.integers(1, 4), st.integers(0, 1)),
    st.sampled_from(["", "", "", "", "", "", "request", "plan", "event"]),
    st.sampled_from(["release", "release", "release", "", "killed"]),
)


class Site(RealSite):
    """A real ledger with its outbox and its mark, open twice, beside a plain account."""

    def __init__(self):
        super().__init__()
        for number, charges in enumerate((6, 4, 20)):
            self.approve_one(0, number, number, charges, None)

    # What the operator does.

    @rule(
        which=handles,
        number=numbers,
        event=numbers,
        charges=st.integers(1, 7),
        late=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def approve(self, which, number, event, charges, late):
        self.approve_one(which, number, event, charges, (None, FUTURE, PAST)[late])

    def approve_one(self, which, number, event, charges, expires):
        terms = self.terms(number, PoissonGaussian(*EVENTS[event]), charges, expires)
        given = Approval(PLANS[number], EVENTS[event], charges, expired=expires == PAST)
        kinds = self.plain.approve(EXPERIMENTS[number], given)
        self.seen[f"approve: {kinds[0]}"] += 1
        with self.appends(*kinds):
            if kinds == ["approval"]:
                self.ledgers[which].approve(terms)
            else:
                with pytest.raises(PrivacyBudgetError):
                    self.ledgers[which].approve(terms)

    def approve_without_noise(self, which, number):
        with self.appends("refusal"), pytest.raises(PrivacyBudgetError):
            self.ledgers[which].approve(self.terms(number, Unprotected(), 1, None))

    @rule(
        which=handles,
        number=numbers,
        what=st.sampled_from(["no noise", "refuse", "withdraw", "rotate", "tear", "reopen"]),
        part=st.integers(1, 99),
    )
    def now_and_then(self, which, number, what, part):
        if what == "no noise":
            self.approve_without_noise(which, number)
        elif what == "rotate" and len(self.keys) < 4:
            self.rotate(which)
        elif what == "tear":
            self.tear(which, part)
        elif what == "reopen":
            with self.appends():
                self.restart()
        else:
            self.refuse_or_withdraw(which, number, withdraw=what == "withdraw")

    def refuse_or_withdraw(self, which, number, *, withdraw):
        experiment, ledger = EXPERIMENTS[number], self.ledgers[which]
        act, kind = (ledger.withdraw, "withdrawal") if withdraw else (ledger.refuse, "refusal")
        if (experiment in self.plain.open) != withdraw:
            with self.appends(), pytest.raises(LedgerError):
                act(experiment, **WHO)
            return
        with self.appends(kind):
            act(experiment, **WHO)
        self.seen[kind] += 1
        self.plain.open.pop(experiment, None)

    def rotate(self, which):
        self.keys.append(SiteKey.create(self.folder / f"key-{len(self.keys)}"))
        self.put_in_force(len(self.keys) - 1, self.ledgers[which])
        with self.appends():
            for ledger in self.ledgers:
                with pytest.raises(LedgerError, match="signed with another key"):
                    ledger.reserve(EXPERIMENTS[0], "run-0")
        self.restart()

    def put_in_force(self, number, ledger):
        with self.appends("key_rotation"):
            rotate(ledger, self.keys[number])
        self.plain.key_number = number
        self.plain.rotations += 1
        self.seen["rotation"] += 1

    # What a hub asks for.

    @rule(which=handles, number=numbers, run=runs)
    def reserve(self, which, number, run):
        experiment, run = EXPERIMENTS[number], run or self.run_of(number)
        code = self.plain.why_not_reserved(experiment, run)
        if code is not None:
            with self.refuses(code):
                self.ledgers[which].reserve(experiment, run)
            return
        with self.appends(*self.plain.reserve(experiment, run)):
            self.ledgers[which].reserve(experiment, run)

    @rule(which=handles, number=numbers, run=runs, asked=st.lists(requests, min_size=1, max_size=5))
    def ask(self, which, number, run, asked):
        """A hub asks for a few rounds of one run, in any order, not all of them properly."""
        for place, wrong, then in asked:
            approval = self.plain.open.get(EXPERIMENTS[number])
            event = approval.event if approval else EVENTS[number]
            work = Work(
                key=(run or self.run_of(number), *place),
                request="other weights" if wrong == "request" else "weights",
                experiment=EXPERIMENTS[number],
                plan=digest("another") if wrong == "plan" else PLANS[number],
                event=(event[0], event[1], event[2] + 1) if wrong == "event" else event,
            )
            self.charge(self.ledgers[which], work)
            if work.key in self.plain.charged and then == "killed":
                self.kill_before_release(self.charges[work.key])
            elif work.key in self.plain.charged and then == "release":
                self.send(self.ledgers[which], work.key, b"the update of a round")

    def run_of(self, number):
        """Return the run that took an approval up, or a name that no run has had."""
        approval = self.plain.open.get(EXPERIMENTS[number])
        return (approval and approval.run) or f"run-{number}-{len(self.plain.runs)}"

    @precondition(lambda self: self.plain.charged)
    @rule(which=handles, index=st.integers(0, 99))
    def ask_again(self, which, index):
        self.charge(self.ledgers[which], list(self.plain.charged.values())[index % self.num()])

    def num(self):
        return len(self.plain.charged)

    def charge(self, ledger, work):
        code = self.plain.why_refused(work)
        if code is not None:
            with self.refuses(code, *self.plain.refuse(work, code)):
                self.charge_of(ledger, work)
            return
        replay = work.key in self.plain.charged
        with self.appends(*self.plain.charge(work)):
            charge = self.charge_of(ledger, work)
        self.seen["replay" if replay else "charge"] += 1
        assert charge.replay == replay
        if replay:
            self.check_stored(ledger, work.key)
        else:
            self.charges[work.key] = charge
            self.truth += steps_of(work.event)

    @precondition(lambda self: self.plain.charged)
    @rule(which=handles, index=st.integers(0, 99), payload=st.binary(max_size=3))
    def release(self, which, index, payload):
        self.send(self.ledgers[which], list(self.plain.charged)[index % self.num()], payload)

    def send(self, ledger, key, payload):
        """Release, whether or not it may be: the first payload counts, once."""
        charge = self.charges[key]
        if not self.plain.may_be_released(key):
            kinds = self.plain.lose(key)
            with self.appends(*kinds), pytest.raises(LedgerError, match="nothing leaves"):
                ledger.release(charge, payload)
            assert ledger.stored_release(charge) is None
            return
        with self.appends(*self.plain.release(key, payload)):
            receipt = ledger.release(charge, payload)
        self.seen["release"] += 1
        self.keep(charge, self.plain.released[key], receipt)
        self.check_stored(ledger, key)

    def check_stored(self, ledger, key):
        payload, receipt = ledger.stored_release(self.charges[key])
        assert payload == self.plain.released[key]
        self.keep(self.charges[key], payload, receipt)

    def keep(self, charge, payload, receipt):
        """The hub keeps what it got: for one charge the same bytes and receipt, always."""
        assert self.sent.setdefault(charge.hash, payload) == payload
        assert self.receipts.setdefault(charge.hash, receipt) == receipt
        assert receipt.verify()

    @precondition(lambda self: self.plain.charged)
    @rule(which=handles, index=st.integers(0, 99))
    def lose(self, which, index):
        key = list(self.plain.charged)[index % self.num()]
        with self.appends(*self.plain.lose(key)):
            self.ledgers[which].lose(self.charges[key])

    @precondition(lambda self: self.plain.runs)
    @rule(which=handles, index=st.integers(0, 9), model=st.booleans(), wrong=st.booleans())
    def conclude(self, which, index, model, wrong):
        run = list(self.plain.runs)[-1 - index % len(self.plain.runs)]
        experiment = EXPERIMENTS[0] if wrong else self.plain.runs[run]
        content = digest("model") if model else None
        code, kinds = self.plain.conclude(experiment, run, content)

        def end():
            heads = {"another": digest("head")}
            ledger = self.ledgers[which]
            return conclude(ledger, run, experiment, heads=heads, model_digest=content)

        if code is not None:
            with self.refuses(code):
                end()
            return
        if self.plain.closed_under[run] != self.plain.rotations:
            with self.appends(), pytest.raises(LedgerError, match="earlier key"):
                end()
            return
        with self.appends(*kinds):
            closing = end()
        self.seen["closing" if kinds else "closing again"] += 1
        assert closing.verify()
        assert self.closings.setdefault(closing.head, closing) == closing

    # What happens to the machine.

    def tear(self, which, part):
        """A record was being written when the power went."""
        whole = self.path.read_bytes()
        line = whole.splitlines()[-1]
        with self.path.open("ab") as file:
            file.write(line[: 1 + len(line) * part // 100])
        if which:
            self.restart()
        assert self.ledgers[which].head[0] == len(whole.splitlines()) - 1
        assert self.path.read_bytes() == whole
        self.seen["torn"] += 1

    def kill_before_release(self, charge):
        """The update lay in the outbox, and its release was not recorded."""
        if charge.key not in [RoundKey(*key) for key in self.plain.released]:
            self.ledgers[0].outbox.put_payload(charge, b"never sent")
        self.restart()

    @precondition(
        lambda self: self.plain.charged.keys() <= {*self.plain.released, *self.plain.lost}
    )
    @rule()
    def back_up(self):
        """While no round is open: test_found_by_model has what is wrong otherwise."""
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        shutil.copytree(self.state, self.folder / "backup")
        self.backup = self.plain.copied(), dict(self.charges)

    @precondition(lambda self: self.backup is not None)
    @rule(keep_outbox=st.booleans(), with_receipts=st.booleans())
    def restore(self, keep_outbox, with_receipts):
        """An older copy of the state folder comes back; the mark is elsewhere and does not."""
        forgotten = self.records()
        newest, older = self.plain, self.backup[0].copied()
        if keep_outbox:
            shutil.copytree(self.folder / "backup", self.state, dirs_exist_ok=True)
        else:
            shutil.rmtree(self.state)
            shutil.copytree(self.folder / "backup", self.state)
        self.plain, self.charges = older, dict(self.backup[1])
        if self.records() == forgotten:
            self.plain = newest
            self.restart()
            return
        with pytest.raises(LedgerError, match=r"older copy|became shorter|deleted or replaced"):
            self.ledgers[0].reserve(EXPERIMENTS[0], "run-0")
        self.check_locked()
        self.recover(newest, [*self.receipts.values()] if with_receipts else [])

    def check_locked(self):
        """A copy that lacks something cannot be opened; opened to look at, it refuses."""
        with self.appends(), pytest.raises(LedgerError, match="older copy"):
            self.opened()
        stale = self.opened(recovering=True)
        work = Work(("run-9", 1, 0), "weights", EXPERIMENTS[0], PLANS[0], EVENTS[0])
        with self.refuses("behind"):
            self.charge_of(stale, work)
        with self.appends(), pytest.raises(LedgerError, match="older copy"):
            stale.approve(self.terms(0, PoissonGaussian(*EVENTS[2]), 1, None))
        stale.close()

    def recover(self, newest, receipts):
        held, spent = self.plain.held(expired=True), self.plain.spent
        stale = self.opened(recovering=True)
        with self.appends("recovery"):
            assert recover(stale, **WHO, receipts=receipts) is not None
        self.seen["recovery"] += 1
        spends = spends_of(self.head())
        self.plain.recover(spends)
        most = held + self.truth + newest.held(expired=True) + newest.spent
        assert spends <= most, "more was spent than anybody was promised"
        assert self.truth <= spent + spends, "something that was charged is forgotten"
        with self.appends():
            assert missing(stale, receipts) is None
        stale.close()
        for number in range(self.plain.key_number + 1, len(self.keys)):
            again = self.opened()
            self.put_in_force(number, again)
            again.close()
        self.restart()

    # What holds at any time.

    @invariant()
    def what_is_spent_is_what_the_plain_account_says(self):
        for ledger in self.ledgers:
            assert dict(ledger.state.steps) == dict(self.plain.spent)
            assert ledger.spent_epsilon == pytest.approx(self.plain.epsilon(), rel=1e-9, abs=1e-9)
        assert self.truth <= self.plain.spent

    @invariant()
    def what_is_spent_and_held_fits_the_limit(self):
        if self.plain.free:
            return
        assert self.ledgers[0].spent_epsilon <= LIMIT
        assert self.plain.epsilon(self.plain.held()) <= LIMIT
        assert self.ledgers[1].promised("").spent_epsilon(self.ledgers[1].policy) <= LIMIT

    @invariant()
    def approvals_are_open_as_the_plain_account_says(self):
        book = self.ledgers[0].book
        found = {name: book.open_approval(name) for name in EXPERIMENTS}
        told = {name: (one.run, one.charges_left) for name, one in found.items() if one}
        assert told == {name: (one.run, one.left) for name, one in self.plain.open.items()}

    @invariant()
    def every_release_has_exactly_one_charge(self):
        records = self.records()
        charged = {
            r["seq"]: tuple(r["body"][k] for k in ("run", "round", "attempt"))
            for r in records
            if r["kind"] == "charge"
        }
        assert sorted(charged.values()) == sorted(self.plain.charged)
        ended = [
            (r["body"]["charge_seq"], r["kind"])
            for r in records
            if r["kind"] in ("release", "loss")
        ]
        assert len({seq for seq, _ in ended}) == len(ended)
        assert {charged[seq] for seq, kind in ended if kind == "release"} == {*self.plain.released}
        assert {charged[seq] for seq, kind in ended if kind == "loss"} == self.plain.lost

    def teardown(self):
        try:
            self.check_papers()
        finally:
            for ledger in self.ledgers:
                ledger.close()
            shutil.rmtree(self.folder)

    def check_papers(self):
        """A reader who has the file, the first key and everything that was sent is content."""
        told = second_verdict(
            self.path,
            trust=self.keys[0].fingerprint,
            receipts=[receipt.to_json() for receipt in self.receipts.values()],
            closings=[closing.to_json() for closing in self.closings.values()],
        )
        assert told["problems"] == [], told["problems"]
        assert told["verdict"] == "verified"
        assert told["epsilon"] == pytest.approx(self.plain.epsilon(), rel=1e-9, abs=1e-9)
        assert told["charges"] == len(self.plain.charged)
        assert told["releases"] == len(self.plain.released)


OUTCOMES = {
    "approve: approval",
    "approve: refusal",
    "withdrawal",
    "refusal",
    "charge",
    "replay",
    "release",
    "closing",
    "closing again",
    "rotation",
    "torn",
    "recovery",
    "not_approved",
    "approval_used_up",
    "equivocation",
    "lost",
    "behind",
}


@pytest.mark.slow
def test_a_ledger_says_what_a_plain_account_says():
    Site.seen.clear()
    run_state_machine_as_test(
        Site,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert {name for name, times in Site.seen.items() if times} >= OUTCOMES, Site.seen
