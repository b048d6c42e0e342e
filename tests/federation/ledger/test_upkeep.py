"""Runs end, approvals are withdrawn, keys change, backups are restored."""

import shutil

import pytest

from federation.canonical import digest
from federation.errors import LedgerError, PrivacyBudgetError, Refused
from federation.ledger.filter import BudgetPolicy, FilterState, PoissonGaussian, Unprotected
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger
from federation.ledger.upkeep import conclude, missing, recover, rotate

MODEL = digest("model")


def end(world, run="run-1", **heads):
    return conclude(world.ledger, run, digest("experiment"), heads=heads, model_digest=MODEL)


def refused(code, act, **kwargs):
    with pytest.raises(Refused) as caught:
        act(**kwargs)
    assert caught.value.code == code


class TestReserving:
    def test_an_approval_is_for_the_first_run_that_takes_it_up(self, world):
        world.approve()
        world.ledger.reserve(digest("experiment"), "run-1")
        world.ledger.reserve(digest("experiment"), "run-1")
        refused("approval_used_up", world.charge, run="run-2")
        world.charge(run="run-1")
        assert world.kinds().count("reservation") == 1

    def test_a_run_name_is_for_one_experiment(self, world):
        world.approve(charges=2)
        world.approve(charges=2, experiment=digest("second"))
        world.ledger.reserve(digest("experiment"), "run-1")
        refused("approval_used_up", world.charge, experiment=digest("second"))

    def test_nothing_is_reserved_without_an_approval(self, world):
        with pytest.raises(Refused, match="not_approved"):
            world.ledger.reserve(digest("experiment"), "run-1")
        assert world.kinds() == ["genesis"]

    def test_an_approval_expires(self, world, monkeypatch):
        world.approve(expires="2999-01-01T00:00:00Z")
        world.charge()
        monkeypatch.setattr("federation.ledger.ledger.now", lambda: "2999-01-01T00:00:01Z")
        refused("not_approved", world.charge, round_=2)


class TestEnding:
    def test_a_closed_run_frees_what_was_left_of_it(self, world):
        world.approve()
        world.charge()
        with pytest.raises(PrivacyBudgetError):
            world.approve(charges=1, experiment=digest("second"))
        closing = end(world, other=digest("head"))
        assert closing.verify()
        assert (closing.seq, closing.head) == world.ledger.head
        assert closing.heads == {"other": digest("head")}
        world.approve(charges=11, experiment=digest("second"))
        refused("not_approved", world.charge, round_=2)

    def test_closing_again_gives_the_same_statement_and_other_content_is_refused(self, world):
        world.approve()
        world.charge()
        first, before = end(world), world.ledger.path.read_bytes()
        world.ledger = world.reopened()
        assert end(world) == first
        assert world.ledger.path.read_bytes() == before
        refused("equivocation", lambda: end(world, other=digest("head")))

    def test_withdrawing_frees_what_is_held_and_keeps_what_was_charged(self, world):
        world.approve()
        world.charge()
        spent = world.ledger.spent_epsilon
        world.ledger.withdraw(digest("experiment"), by="Dr. Rivera", reason="new vote")
        assert world.ledger.spent_epsilon == spent > 0
        assert world.ledger.promised("") == world.ledger.state
        refused("not_approved", world.charge, round_=2)
        with pytest.raises(LedgerError, match="no open approval"):
            world.ledger.withdraw(digest("experiment"), by="Dr. Rivera", reason="new vote")

    def test_an_operators_refusal_is_recorded(self, world):
        world.ledger.refuse(digest("experiment"), by="Dr. Rivera", reason="purpose unclear")
        record = world.reopened().records[-1]
        assert (record.kind, record.body["code"]) == ("refusal", "operator")
        assert (record.body["by"], record.body["reason"]) == ("Dr. Rivera", "purpose unclear")

    def test_what_is_approved_is_withdrawn_not_refused(self, world):
        world.approve()
        with pytest.raises(LedgerError, match="Withdraw"):
            world.ledger.refuse(digest("experiment"), by="a", reason="b")


class TestKeys:
    def test_a_new_key_signs_from_the_next_record_on(self, world, tmp_path):
        world.approve()
        charge = world.charge()
        receipt = world.ledger.release(charge, b"update")
        new = SiteKey.create(tmp_path / "new")
        rotate(world.ledger, new)
        with pytest.raises(LedgerError, match="signed with another key"):
            world.charge(2)
        with pytest.raises(LedgerError, match="signed with another key"):
            Ledger.open(world.ledger.path, world.key)
        world.ledger = Ledger.open(world.ledger.path, new)
        later = world.ledger.release(world.charge(2), b"another")
        assert later.public_key == new.public_bytes.hex() != receipt.public_key
        assert world.ledger.stored_release(charge) == (b"update", receipt)

    def test_a_receipt_of_an_earlier_key_that_was_lost_is_not_signed_anew(self, world, tmp_path):
        world.approve()
        charge = world.charge()
        world.ledger.release(charge, b"update")
        new = SiteKey.create(tmp_path / "new")
        rotate(world.ledger, new)
        (path,) = (world.folder / "outbox").glob("*.receipt.json")
        path.unlink()
        with pytest.raises(LedgerError, match="key that signed it was replaced"):
            Ledger.open(world.ledger.path, new).stored_release(charge)

    def test_a_run_that_was_closed_under_an_earlier_key_is_not_signed_anew(self, world, tmp_path):
        world.approve()
        world.charge()
        end(world)
        new = SiteKey.create(tmp_path / "new")
        rotate(world.ledger, new)
        world.ledger = Ledger.open(world.ledger.path, new)
        with pytest.raises(LedgerError, match="earlier key"):
            end(world)


class Restored:
    """A site with a mark on other storage, whose state folder was restored from a backup."""

    def __init__(self, folder, event, *, releases_since):
        self.state, self.vault = folder / "state", folder / "vault"
        self.state.mkdir()
        self.vault.mkdir()
        self.key = SiteKey.create(self.state)
        self.event = event
        policy = BudgetPolicy.of(8.0, 1e-5)
        self.ledger = Ledger.create(self.path, self.key, policy, "brains", mark=self.mark)
        self.receipts = []

        from tests.federation.ledger.conftest import World

        self.world = World(self.state, self.key, self.ledger, event)
        self.world.approve(charges=6)
        self.receipts.append(self.ledger.release(self.world.charge(1), b"1"))
        backup = folder / "backup"
        shutil.copytree(self.state, backup)
        for number in range(releases_since):
            charge = self.world.charge(number + 2)
            self.receipts.append(self.ledger.release(charge, b"2"))
        self.before = self.ledger.promised("")
        self.ledger.close()
        shutil.rmtree(self.state)
        shutil.copytree(backup, self.state)

    @property
    def path(self):
        return self.state / "ledger.jsonl"

    @property
    def mark(self):
        return self.vault / "mark.json"

    def opened(self, **how):
        return Ledger.open(self.path, self.key, mark=self.mark, **how)


@pytest.fixture
def restored(tmp_path, event):
    return Restored(tmp_path, event, releases_since=3)


class TestABackupThatWasRestored:
    def test_is_found_by_the_mark_and_nothing_is_charged(self, restored):
        with pytest.raises(LedgerError, match=r"older copy.*site recover"):
            restored.opened()
        world = restored.world
        world.ledger = restored.opened(recovering=True)
        before = restored.path.read_bytes()
        refused("behind", world.charge, round_=2)
        with pytest.raises(LedgerError, match="older copy"):
            world.approve()
        with pytest.raises(LedgerError, match="older copy"):
            world.ledger.note("purge", by="a", reason="b", after=0)
        assert restored.path.read_bytes() == before

    def test_goes_on_once_everything_that_was_promised_is_spent(self, restored):
        world = restored.world
        world.ledger = restored.opened(recovering=True)
        lost = recover(world.ledger, by="Dr. Rivera", reason="disk failure")
        assert lost is not None
        world.ledger = restored.opened()
        assert world.ledger.state.covers(restored.before)
        assert world.ledger.state == restored.before, "six rounds were promised, six are spent"
        refused("not_approved", world.charge, round_=2)
        world.approve(charges=6)
        world.charge(2, run="run-2")
        assert missing(world.ledger) is None

    def test_whose_forgotten_approvals_nobody_knows_spends_what_the_mark_had_seen(
        self, tmp_path, event
    ):
        site = Restored(tmp_path, event, releases_since=0)
        shutil.copytree(site.state, tmp_path / "older")
        site.world.ledger = site.opened()
        site.world.approve(charges=4, experiment=digest("second"))
        before = site.world.ledger.promised("")
        site.world.ledger.close()
        shutil.rmtree(site.state)
        shutil.copytree(tmp_path / "older", site.state)
        ledger = site.opened(recovering=True)
        recover(ledger, by="a", reason="b")
        assert ledger.state.covers(before)

    def test_without_a_mark_is_found_by_receipts_that_the_hub_kept(self, restored):
        ledger = Ledger.open(restored.path, restored.key)
        assert missing(ledger) is None
        lost = missing(ledger, restored.receipts)
        assert lost is not None
        assert lost.spends.covers(FilterState().after_all(r.event for r in restored.receipts[1:]))
        assert recover(ledger, by="a", reason="b", receipts=restored.receipts)
        assert missing(ledger, restored.receipts) is None
        assert recover(ledger, by="a", reason="b", receipts=restored.receipts) is None

    def test_counts_receipts_beyond_what_open_approvals_hold(self, tmp_path, event):
        site = Restored(tmp_path, event, releases_since=0)
        shutil.copytree(site.state, tmp_path / "older")
        site.world.ledger = site.opened()
        other = PoissonGaussian(0.5, 20.0, 7)
        site.world.approve(charges=2, experiment=digest("second"), event=other)
        charge = site.world.charge(1, run="r", experiment=digest("second"), event=other)
        receipt = site.world.ledger.release(charge, b"3")
        shutil.rmtree(site.state)
        shutil.copytree(tmp_path / "older", site.state)
        ledger = Ledger.open(site.path, site.key)
        recover(ledger, by="a", reason="b", receipts=[receipt])
        assert ledger.state.covers(FilterState().after(event.times(6)).after(other))

    def test_others_receipts_and_forged_ones_unlock_and_spend_nothing(self, restored, tmp_path):
        ledger = Ledger.open(restored.path, restored.key)
        stranger = SiteKey.create(tmp_path / "stranger")
        real = restored.receipts[-1]
        forged = type(real)(**{**real.__dict__, "public_key": stranger.public_bytes.hex()})
        broken = type(real)(**{**real.__dict__, "round": 77})
        assert missing(ledger, [forged.signed(stranger), broken]) is None


class TestTheMark:
    def test_survives_the_whole_state_folder_and_forbids_a_new_ledger(self, restored):
        shutil.rmtree(restored.state)
        key = SiteKey.create(restored.state)
        with pytest.raises(LedgerError, match="mark of an earlier ledger"):
            Ledger.create(
                restored.path, key, BudgetPolicy.of(8.0, 1e-5), "brains", mark=restored.mark
            )

    def test_that_is_gone_stops_the_ledger_until_it_is_started_anew(self, tmp_path, event):
        site = Restored(tmp_path, event, releases_since=0)
        site.mark.unlink()
        with pytest.raises(LedgerError, match=r"mark.*is gone.*--start-mark"):
            site.opened()
        site.opened(recovering=True).start_mark()
        site.opened()

    def test_whose_storage_is_not_there_stops_the_ledger(self, tmp_path, event):
        site = Restored(tmp_path, event, releases_since=0)
        shutil.rmtree(site.vault)
        with pytest.raises(LedgerError, match="is the storage mounted"):
            site.opened()

    @pytest.mark.parametrize("text", ["", "{}", "[" * 5000, '{"seq":-1}'])
    def test_that_is_damaged_stops_the_ledger(self, tmp_path, event, text):
        site = Restored(tmp_path, event, releases_since=0)
        site.mark.write_text(text)
        with pytest.raises(LedgerError, match="damaged"):
            site.opened()

    def test_is_written_before_an_update_can_leave(self, tmp_path, event, monkeypatch):
        site = Restored(tmp_path, event, releases_since=0)
        site.world.ledger = site.opened()
        charge = site.world.charge(2)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("federation.ledger.high_water.write_atomically", full)
        with pytest.raises(LedgerError, match="No space left"):
            site.world.ledger.release(charge, b"update")


def test_after_a_recovery_that_passes_the_limit_nothing_more_is_charged(world):
    ledger = world.ledger
    world.approve()
    receipts = [ledger.release(world.charge(n), b"x") for n in range(12)]
    older = ledger.path.read_bytes()[: ledger.path.read_bytes().index(b'"kind":"reservation"')]
    ledger.close()
    shutil.rmtree(world.folder / "outbox")
    ledger.path.write_bytes(older[: older.rindex(b"\n") + 1])
    world.ledger = world.reopened()
    recover(world.ledger, by="a", reason="b", receipts=receipts)
    assert world.ledger.spent_epsilon > 7.9
    with pytest.raises(PrivacyBudgetError):
        world.approve(charges=1)


def test_unprotected_rounds_do_not_fit_where_the_limit_is_passed_either(tmp_path, world):
    policy = BudgetPolicy.of(8.0, 1e-5, allow_unprotected=True)
    past = FilterState().after_all([world.event.times(13), Unprotected()])
    assert not past.admits(policy, Unprotected())
    assert FilterState().after(world.event.times(12)).admits(policy, Unprotected())


def test_unprotected_releases_that_were_forgotten_make_epsilon_infinite(tmp_path, world):
    policy = BudgetPolicy.of(8.0, 1e-5, allow_unprotected=True)
    (tmp_path / "lax").mkdir()
    world.ledger = Ledger.create(tmp_path / "lax" / "ledger.jsonl", world.key, policy, "brains")
    world.approve(event=Unprotected())
    older = world.ledger.path.read_bytes()
    receipt = world.ledger.release(world.charge(event=Unprotected()), b"x")
    shutil.rmtree(tmp_path / "lax" / "outbox")
    world.ledger.path.write_bytes(older)
    again = Ledger.open(world.ledger.path, world.key)
    recover(again, by="a", reason="b", receipts=[receipt])
    assert again.spent_epsilon == float("inf")
