"""What a reviewer found: copies that fall behind twice, clocks that move on, ends of approvals."""

import shutil
from dataclasses import replace

import pytest

from federation.audit.verify import verify_ledger
from federation.canonical import digest
from federation.errors import LedgerError, Refused
from federation.ledger.filter import FilterState
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger
from federation.ledger.upkeep import conclude, missing, recover


def older(world, content, *, outbox=True):
    """Put an older copy of the file in place; of the outbox everything stays, or nothing."""
    world.ledger.close()
    if not outbox:
        shutil.rmtree(world.folder / "outbox", ignore_errors=True)
    world.ledger.path.write_bytes(content)


def test_an_update_without_its_receipt_is_paid_for_by_what_was_approved(world):
    world.approve(charges=3)
    before = world.ledger.path.read_bytes()
    world.ledger.release(world.charge(), b"update")
    (path,) = (world.folder / "outbox").glob("*.receipt.json")
    path.unlink()
    older(world, before)
    with pytest.raises(LedgerError, match="older copy"):
        world.reopened()
    world.ledger = Ledger.open(world.ledger.path, world.key, recovering=True)
    assert recover(world.ledger, by="a", reason="b") is not None
    assert world.ledger.state.covers(FilterState().after(world.event))
    assert world.reopened().book.open_approval(digest("experiment")) is None


def test_an_update_whose_cost_nobody_can_tell_stays_locked(world):
    before = world.ledger.path.read_bytes()
    world.approve(charges=3)
    receipt = world.ledger.release(world.charge(), b"update")
    (path,) = (world.folder / "outbox").glob("*.receipt.json")
    path.unlink()
    older(world, before)
    world.ledger = Ledger.open(world.ledger.path, world.key, recovering=True)
    with pytest.raises(LedgerError, match="Ask the hub for its receipts"):
        recover(world.ledger, by="a", reason="b")
    with pytest.raises(LedgerError, match="older copy"):
        world.reopened()
    assert recover(world.ledger, by="a", reason="b", receipts=[receipt]) is not None
    world.reopened()


def test_what_a_first_recovery_paid_for_does_not_pay_for_a_second_loss(world):
    world.approve(charges=3)
    before = world.ledger.path.read_bytes()
    first = [world.ledger.release(world.charge(n), b"1") for n in range(3)]
    older(world, before, outbox=False)
    world.ledger = world.reopened()
    assert recover(world.ledger, by="a", reason="b", receipts=first)
    world.approve(charges=2)
    before = world.ledger.path.read_bytes()
    second = [world.ledger.release(world.charge(n, run="run-2"), b"2") for n in range(2)]
    older(world, before, outbox=False)
    world.ledger = world.reopened()
    assert missing(world.ledger, second) is not None
    recover(world.ledger, by="a", reason="b", receipts=second)
    five = FilterState().after_all(r.event for r in (*first, *second))
    assert world.ledger.state.covers(five)
    assert missing(world.ledger, second) is None


def test_an_approval_that_expires_between_the_decision_and_the_record_breaks_nothing(
    world, monkeypatch
):
    world.approve(expires="2999-01-01T00:00:00Z")
    world.ledger.reserve(digest("experiment"), "run-1")
    times = iter(["2998-12-31T23:59:59Z", *["2999-01-01T00:00:01Z"] * 9])
    for module in ("ledger", "records"):
        monkeypatch.setattr(f"federation.ledger.{module}.now", lambda: next(times))
    charge = world.charge()
    assert charge.seq == 3
    monkeypatch.undo()
    assert world.reopened().head == world.ledger.head


def test_a_record_that_contradicts_the_book_is_never_written(world):
    world.approve()
    before = world.ledger.path.read_bytes()
    with world.ledger.chain.locked(), pytest.raises(LedgerError, match="ends nothing"):
        world.ledger.chain.append("loss", {"charge_seq": 0})
    assert world.ledger.path.read_bytes() == before
    world.charge()
    assert world.reopened().head == world.ledger.head


def test_nothing_leaves_once_the_approval_was_withdrawn_or_replaced(world):
    for end in (
        lambda: world.ledger.withdraw(digest("experiment"), by="a", reason="b"),
        lambda: world.approve(charges=2),
    ):
        world.approve(charges=2)
        charge = world.charge(1, run=f"run-{world.ledger.head[0]}")
        end()
        with pytest.raises(LedgerError, match="approval has ended"):
            world.ledger.release(charge, b"update")
        assert world.kinds()[-1] == "loss"
    assert not list((world.folder / "outbox").glob("*.update"))


def test_what_has_left_is_sent_again_until_it_is_withdrawn(world):
    world.approve(charges=2)
    charge = world.charge()
    receipt = world.ledger.release(charge, b"update")
    asked = {"request_digest": charge.work.request_digest}
    assert world.ledger.resend(charge.key, **asked) == (b"update", receipt)
    assert world.ledger.resend(charge.key, request_digest=digest("other")) is None
    world.ledger.withdraw(digest("experiment"), by="a", reason="b")
    assert world.ledger.resend(charge.key, **asked) is None
    world.approve(charges=2)
    assert world.ledger.resend(charge.key, **asked) is None, "a new approval is of another run"
    assert world.reopened().resend(charge.key, **asked) is None


def test_a_hub_cannot_switch_off_the_record_of_its_equivocation(world, monkeypatch):
    monkeypatch.setattr("federation.ledger.ledger.MAX_REFUSALS", 3)
    world.approve()
    world.ledger.release(world.charge(), b"update")
    for number in range(6):
        with pytest.raises(Refused):
            world.charge(run=f"other-{number}")
    with pytest.raises(Refused, match="equivocation"):
        world.charge(request="other weights")
    codes = [r.body["code"] for r in world.ledger.records if r.kind == "refusal"]
    assert codes == ["approval_used_up"] * 3 + ["equivocation"]


def test_a_receipt_by_a_key_that_the_copy_does_not_know_is_not_taken_as_paid(world, tmp_path):
    world.approve(charges=2)
    before = world.ledger.path.read_bytes()
    receipt = world.ledger.release(world.charge(), b"update")
    new = SiteKey.create(tmp_path / "new")
    later = replace(receipt, public_key=new.public_bytes.hex(), head_after=digest("x")).signed(new)
    older(world, before, outbox=False)
    world.ledger = world.reopened()
    recover(world.ledger, by="a", reason="b", receipts=[receipt, later])
    assert world.ledger.outbox.accounted() == {receipt.head_after}


def closed(world):
    return conclude(world.ledger, "run-1", digest("experiment"), heads={}, model_digest=None)


def test_a_recovery_has_seen_the_closing_that_the_hub_has_kept(world):
    world.approve(charges=3)
    before = world.ledger.path.read_bytes()
    receipts = [world.ledger.release(world.charge(n), b"1") for n in range(2)]
    closing = closed(world)
    older(world, before, outbox=False)
    world.ledger = world.reopened()
    lost = recover(world.ledger, by="a", reason="b", receipts=receipts, closings=[closing])
    assert (lost.seen_seq, lost.seen_hash) == (closing.seq, closing.head)
    given = {"receipts": receipts, "closings": [closing]}
    assert verify_ledger(world.ledger.path, trust={world.key.fingerprint}, **given).ok
    assert missing(world.ledger, receipts, closings=[closing]) is None


def test_a_closing_alone_shows_that_records_are_gone(world):
    world.approve(charges=3)
    before = world.ledger.path.read_bytes()
    world.ledger.release(world.charge(), b"1")
    closing = closed(world)
    assert missing(world.ledger, closings=[closing]) is None
    older(world, before, outbox=False)
    world.ledger = world.reopened()
    assert missing(world.ledger) is None
    lost = recover(world.ledger, by="a", reason="b", closings=[closing])
    assert lost.spends.steps == {(0.25, 1.575): 15}
    assert world.ledger.book.open_approval(digest("experiment")) is None
    assert missing(world.ledger, closings=[closing]) is None


def test_a_closing_of_a_run_whose_cost_nobody_can_tell_asks_for_receipts(world):
    before = world.ledger.path.read_bytes()
    world.approve(charges=3)
    receipt = world.ledger.release(world.charge(), b"1")
    closing = closed(world)
    older(world, before, outbox=False)
    world.ledger = world.reopened()
    with pytest.raises(LedgerError, match="Ask the hub for its receipts"):
        missing(world.ledger, closings=[closing])
    assert missing(world.ledger, [receipt], closings=[closing]).seen_seq == closing.seq


def test_closings_that_this_site_has_not_signed_for_this_ledger_are_passed_over(world):
    world.approve(charges=3)
    before = world.ledger.path.read_bytes()
    world.charge()
    closing = closed(world)
    older(world, before, outbox=False)
    world.ledger = world.reopened()
    forged = replace(closing, seq=99)
    elsewhere = replace(closing, ledger=digest("another")).signed(world.key)
    assert missing(world.ledger, closings=[forged, elsewhere]) is None


def test_a_receipt_in_the_outbox_shows_an_older_copy_also_where_the_update_was_deleted(world):
    world.approve(charges=3)
    before = world.ledger.path.read_bytes()
    world.ledger.release(world.charge(), b"update")
    (path,) = (world.folder / "outbox").glob("*.update")
    path.unlink()
    older(world, before)
    with pytest.raises(LedgerError, match="older copy"):
        world.reopened()
    world.ledger = Ledger.open(world.ledger.path, world.key, recovering=True)
    assert recover(world.ledger, by="a", reason="b").spends.steps == {(0.25, 1.575): 15}
    assert missing(world.reopened()) is None


class TestItsOwnHeadAsTheHubShowsIt:
    """Neither mark nor outbox came through: what a run's hub has seen still tells the site."""

    @pytest.fixture
    def shown(self, world):
        world.approve(charges=3)
        before = world.ledger.path.read_bytes()
        receipt = world.ledger.release(world.charge(), b"update")
        older(world, before, outbox=False)
        world.ledger = world.reopened()
        return receipt

    def test_one_that_the_ledger_does_not_hold_stops_the_round_before_its_charge(
        self, world, shown
    ):
        heads = {world.ledger.site: shown.head_after}
        for _ in range(2):
            with pytest.raises(Refused, match="an older copy, or the hub is wrong") as refused:
                world.charge(2, heads=heads)
            assert refused.value.code == "behind"
        assert world.kinds() == ["genesis", "approval", "refusal"]
        assert verify_ledger(world.ledger.path, trust={world.key.fingerprint}).ok
        assert world.reopened().head == world.ledger.head

    def test_another_hub_is_served_and_a_recovery_pays(self, world, shown):
        world.charge(2, heads={"somebody-else": shown.head_after})
        recover(world.ledger, by="a", reason="b", receipts=[shown])
        told = verify_ledger(world.ledger.path, trust={world.key.fingerprint}, receipts=[shown])
        assert told.ok
        assert world.ledger.state.covers(FilterState().after_all([world.event] * 2))

    def test_nor_is_the_run_closed_with_it(self, world, shown):
        world.charge(2)
        heads = {world.ledger.site: shown.head_after}
        with pytest.raises(Refused) as refused:
            conclude(world.ledger, "run-1", digest("experiment"), heads=heads, model_digest=None)
        assert refused.value.code == "behind"
        assert closed(world).verify()

    def test_one_that_it_holds_is_as_good_as_none(self, world):
        world.approve(charges=3)
        receipt = world.ledger.release(world.charge(), b"update")
        heads = {world.ledger.site: receipt.head_after}
        again = world.ledger.release(world.charge(2, heads=heads), b"update")
        assert world.reopened().book.heads == {receipt.head_after, again.head_after}
