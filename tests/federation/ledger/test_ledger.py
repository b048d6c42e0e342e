import os
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.canonical import digest, digest_bytes
from federation.errors import LedgerError, PrivacyBudgetError, Refused
from federation.ledger.filter import BudgetPolicy, PoissonGaussian, Unprotected
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger, RoundKey
from federation.ledger.records import Record, parse_record
from federation.ledger.upkeep import merge
from tests.federation.ledger.conftest import EXPERIMENT, World


def refusals(world):
    return [r.body["code"] for r in world.ledger.records if r.kind == "refusal"]


def refuse(world, code, **kwargs):
    with pytest.raises(Refused) as caught:
        world.charge(**kwargs)
    assert caught.value.code == code


def test_a_round_is_charged_then_released_and_reads_back_after_reopening(world):
    world.approve()
    charge = world.charge()
    assert world.ledger.stored_release(charge) is None
    receipt = world.ledger.release(charge, b"update")
    again = world.reopened()
    assert world.kinds() == ["genesis", "approval", "reservation", "charge", "release"]
    assert again.stored_release(charge) == (b"update", receipt)
    assert (again.head, again.state, again.policy) == (
        world.ledger.head,
        world.ledger.state,
        world.ledger.policy,
    )
    assert receipt.head_after == world.ledger.head[1]
    assert receipt.update_digest == digest_bytes(b"update")
    assert (receipt.site, world.ledger.population) == ("hospital-a", "brains")


def test_the_charge_is_on_disk_before_charge_returns(world):
    world.approve()
    charge = world.charge()
    assert charge.hash.encode() in world.ledger.path.read_bytes()


def test_the_same_request_again_gets_the_same_bytes_without_a_second_charge(world):
    world.approve()
    first = world.charge()
    receipt = world.ledger.release(first, b"update")
    before = world.ledger.path.read_bytes()
    again = world.charge()
    assert again.replay
    assert not first.replay
    assert world.ledger.stored_release(again) == (b"update", receipt)
    assert world.ledger.path.read_bytes() == before


def test_the_first_release_decides(world):
    world.approve()
    charge = world.charge()
    receipt = world.ledger.release(charge, b"update")
    assert world.ledger.release(charge, b"another") == receipt
    assert world.ledger.stored_release(charge) == (b"update", receipt)


def test_a_receipt_file_that_was_lost_comes_back_identical(world):
    world.approve()
    charge = world.charge()
    world.ledger.release(charge, b"update")
    (path,) = (world.folder / "outbox").glob("*.receipt.json")
    text = path.read_bytes()
    path.unlink()
    world.reopened().stored_release(charge)
    assert path.read_bytes() == text


def test_a_changed_payload_is_not_sent(world):
    world.approve()
    charge = world.charge()
    world.ledger.release(charge, b"update")
    (path,) = (world.folder / "outbox").glob("*.update")
    path.write_bytes(b"other")
    with pytest.raises(LedgerError, match="not the update that was released"):
        world.ledger.stored_release(charge)
    path.unlink()
    with pytest.raises(LedgerError, match="cannot be read"):
        world.ledger.stored_release(charge)


def test_without_approval_nothing_is_charged(world):
    refuse(world, "not_approved")
    assert world.ledger.spent_epsilon == 0.0


@pytest.mark.parametrize("noise", [1.574, 1.576])
def test_another_event_than_the_approved_is_not_approved(world, noise):
    world.approve()
    refuse(world, "not_approved", event=PoissonGaussian(0.25, noise, 5))


def test_another_plan_than_the_approved_is_not_approved(world):
    world.approve()
    refuse(world, "not_approved", plan=digest("another plan"))


def test_an_approval_is_used_up_after_its_attempts(world):
    world.approve(charges=3)
    for attempt in range(3):
        world.charge(attempt=attempt)
    refuse(world, "approval_used_up", attempt=3)
    assert world.ledger.approval_for(digest("experiment")) is None
    assert world.ledger.approval_for(digest("experiment"), used_up=True) is not None


def test_a_calibrated_run_finishes_every_round_and_one_more_is_refused(world):
    with pytest.raises(PrivacyBudgetError):
        world.approve(charges=13)
    world.approve(charges=12)
    for round_ in range(12):
        world.charge(round_)
    spent = world.ledger.spent_epsilon
    refuse(world, "approval_used_up", round_=12)
    assert 7.9 < spent == world.ledger.spent_epsilon <= 8.0
    with pytest.raises(PrivacyBudgetError):
        world.approve(charges=1)


def test_the_same_key_with_other_content_is_equivocation(world):
    world.approve()
    charge = world.charge()
    world.ledger.release(charge, b"update")
    refuse(world, "equivocation", request="other weights")
    refuse(world, "equivocation", plan=digest("another plan"))
    assert world.charge().replay


def test_a_charge_that_was_never_released_is_lost_and_a_new_attempt_works(world):
    world.approve()
    world.charge()
    refuse(world, "lost")
    world.ledger.release(world.charge(attempt=1), b"update")
    assert world.kinds().count("charge") == 2
    assert world.kinds().count("loss") == 1


def test_nothing_is_released_for_a_charge_that_was_recorded_as_lost(world):
    world.approve()
    charge = world.charge()
    world.ledger.lose(charge)
    world.ledger.lose(charge)
    with pytest.raises(LedgerError, match="recorded as lost"):
        world.ledger.release(charge, b"update")
    assert world.kinds().count("loss") == 1
    assert world.reopened().spent_epsilon == world.ledger.spent_epsilon > 0


def test_a_released_charge_is_not_lost_any_more(world):
    world.approve()
    charge = world.charge()
    world.ledger.release(charge, b"update")
    world.ledger.lose(charge)
    assert "loss" not in world.kinds()


def test_identical_refusals_are_recorded_once_also_after_reopening(world):
    for _ in range(5):
        refuse(world, "not_approved")
    world.ledger = world.reopened()
    refuse(world, "not_approved")
    refuse(world, "not_approved", round_=2)
    assert refusals(world) == ["not_approved"] * 2


def test_an_approval_that_does_not_fit_is_refused_and_recorded(world):
    with pytest.raises(PrivacyBudgetError, match="do not fit what is left"):
        world.approve(charges=13)
    assert refusals(world) == ["budget"]
    assert world.ledger.approval_for(digest("experiment")) is None


def test_approvals_reserve_their_rounds_until_they_are_charged(world):
    world.approve(charges=8)
    with pytest.raises(PrivacyBudgetError):
        world.approve(charges=5, experiment=digest("second"))
    world.approve(charges=4, experiment=digest("second"))
    for round_ in range(8):
        world.charge(round_)
    with pytest.raises(PrivacyBudgetError):
        world.approve(charges=1, experiment=digest("third"))


def test_a_newer_approval_replaces_the_reservation_of_the_same_experiment(world):
    world.approve(charges=12)
    world.charge()
    world.approve(charges=11)
    with pytest.raises(PrivacyBudgetError):
        world.approve(charges=12)


@pytest.mark.parametrize(
    "terms",
    [
        {"charges": 0},
        {"charges": -1},
        {"expires": "tomorrow"},
        {"expires": "2027-02-29T00:00:00Z"},
        {"leaves": ("a\nb",)},
        {"author": "me"},
    ],
)
def test_senseless_approvals_are_refused(world, terms):
    with pytest.raises(ValueError, match=r"expected|number"):
        world.approve(**terms)
    assert world.kinds() == ["genesis"]


def test_unprotected_experiments_are_refused_by_default(world):
    with pytest.raises(PrivacyBudgetError):
        world.approve(event=Unprotected())


def test_unprotected_charges_stand_in_the_ledger_as_infinite(tmp_path, world):
    policy = BudgetPolicy.of(8.0, 1e-5, allow_unprotected=True)
    world.ledger = Ledger.create(tmp_path / "lax.jsonl", world.key, policy, "brains")
    world.approve(event=Unprotected())
    world.charge(event=Unprotected())
    assert world.reopened().spent_epsilon == float("inf")


@pytest.mark.parametrize("run", ["", "a b", "../x", "x" * 65, "\n"])
def test_malformed_keys_are_refused(run):
    with pytest.raises(ValueError, match="letters"):
        RoundKey(run, 0, 0)


def test_a_release_needs_a_charge_of_this_ledger(tmp_path, world):
    world.approve()
    charge = world.charge()
    other = Ledger.create(tmp_path / "other.jsonl", world.key, world.ledger.policy, "brains")
    with pytest.raises(LedgerError, match="not in the ledger"):
        other.release(charge, b"update")


def test_a_ledger_is_never_reset(world):
    with pytest.raises(LedgerError, match="never reset"):
        Ledger.create(world.ledger.path, world.key, world.ledger.policy, "brains")


def test_a_missing_or_empty_ledger_is_refused(tmp_path, world):
    with pytest.raises(LedgerError, match="There is no ledger"):
        Ledger.open(tmp_path / "none.jsonl", world.key)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(LedgerError, match="no complete record"):
        Ledger.open(tmp_path / "empty.jsonl", world.key)


def test_another_sites_ledger_is_refused(tmp_path, world):
    with pytest.raises(LedgerError, match="signed with another key than this site's"):
        Ledger.open(world.ledger.path, SiteKey.create(tmp_path / "other"))


@pytest.mark.parametrize("tail", [b"{", b"\x00" * 500, b'{"at":"2026-01-01T00:00:00Z","body":{'])
def test_a_torn_last_line_is_cut_off(world, tail):
    world.approve()
    charge = world.charge()
    whole = world.ledger.path.read_bytes()
    with world.ledger.path.open("ab") as file:
        file.write(tail)
    again = world.reopened()
    assert world.ledger.path.read_bytes() == whole
    again.release(charge, b"update")
    assert world.reopened().stored_release(charge)[0] == b"update"


def test_every_cut_of_the_file_opens_to_a_past_that_was_durable(world):
    """A cut within the newest line is a write that was killed; here nothing was released yet."""
    world.approve()
    world.charge()
    whole = world.ledger.path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole), 97):
        world.ledger.path.write_bytes(whole[:cut])
        world.reopened().close()
        kept = world.ledger.path.read_bytes()
        assert whole.startswith(kept)
        assert kept.endswith(b"\n")


def test_a_cut_before_a_charge_whose_update_is_in_the_outbox_is_refused(world):
    world.approve()
    before = world.ledger.path.read_bytes()
    world.ledger.release(world.charge(), b"update")
    world.ledger.path.write_bytes(before)
    with pytest.raises(LedgerError, match="older copy"):
        world.reopened()


def test_a_changed_byte_stops_the_ledger(world):
    world.approve()
    world.charge()
    whole = world.ledger.path.read_bytes()
    for position in range(5, len(whole), 211):
        changed = bytearray(whole)
        changed[position] ^= 1
        world.ledger.path.write_bytes(changed)
        if changed[-1:] == b"\n":
            with pytest.raises(LedgerError, match="restore it from backup"):
                world.reopened()


def test_a_ledger_replaced_while_open_is_not_written_to(world):
    whole = world.ledger.path.read_bytes()
    world.ledger.path.unlink()
    with pytest.raises(LedgerError, match="deleted or replaced"):
        world.approve()
    world.ledger.path.write_bytes(whole)
    with pytest.raises(LedgerError, match="deleted or replaced"):
        world.approve()


def test_a_ledger_cut_short_while_open_is_not_written_to(world):
    world.approve()
    os.truncate(world.ledger.path, 700)
    with pytest.raises(LedgerError, match="shorter"):
        world.charge()


def test_a_full_disk_charges_nothing_and_leaves_the_ledger_whole(world, monkeypatch):
    world.approve()
    before = world.ledger.path.read_bytes()

    def full(descriptor, data):
        real(descriptor, data[:100])
        raise OSError(28, "No space left on device")

    real = os.write
    monkeypatch.setattr("federation.ledger.chain.os.write", full)
    with pytest.raises(LedgerError, match="Nothing was charged"):
        world.charge()
    monkeypatch.undo()
    assert world.ledger.path.read_bytes() == before
    world.charge()
    world.reopened()


def test_files_are_for_their_owner_only(world):
    world.approve()
    world.ledger.release(world.charge(), b"update")
    for path in (world.ledger.path, *(world.folder / "outbox").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_is_asked_the_budget_holds_and_reopening_changes_nothing(
    world, tmp_path_factory, data
):
    folder = tmp_path_factory.mktemp("model")
    ledger = Ledger.create(folder / "l.jsonl", world.key, BudgetPolicy.of(8.0, 1e-5), "brains")
    world.ledger, charges = ledger, 0
    world.approve(charges=12)
    for _ in range(data.draw(st.integers(1, 25))):
        try:
            charge = world.charge(
                data.draw(st.integers(0, 12)),
                attempt=data.draw(st.integers(0, 2)),
                request=data.draw(st.sampled_from(["a", "b"])),
            )
            charges += not charge.replay
            if data.draw(st.booleans()):
                ledger.release(charge, b"update")
        except Refused:
            pass
    again = Ledger.open(ledger.path, world.key)
    assert again.spent_epsilon == ledger.spent_epsilon <= 8.0
    assert again.state == ledger.state
    assert sum(r.kind == "charge" for r in again.records) == charges <= 12


def test_an_expired_approval_holds_no_budget_and_is_still_paid_for_by_a_recovery(world):
    world.approve(expires="2020-01-01T00:00:00Z")
    assert world.ledger.fits(world.event.times(12), digest("another"))
    world.approve(experiment=digest("another"))
    assert world.ledger.promised("").steps == {(0.25, 1.575): 60}
    assert set(world.ledger.book.unfinished()) == {EXPERIMENT, digest("another")}
    assert world.ledger.book.promised().steps == {(0.25, 1.575): 120}


def test_a_run_that_fits_no_longer_is_refused_whole_before_its_first_round(world, tmp_path):
    world.approve(charges=8)
    key = SiteKey.create(tmp_path / "b")
    other = Ledger.create(tmp_path / "b" / "ledger.jsonl", key, world.ledger.policy, "archive")
    beside = World(tmp_path / "b", key, other, world.event)
    beside.approve(charges=8)
    for number in range(8):
        beside.charge(number)
    merge(world.ledger, other, by="a", reason="b")
    with pytest.raises(Refused, match="whole run") as caught:
        world.ledger.reserve(EXPERIMENT, "run-1")
    assert caught.value.code == "budget"
    with pytest.raises(Refused, match="whole run"):
        world.charge()
    assert world.kinds()[-2:] == ["merge", "refusal"]


def test_of_two_runs_that_fit_one_by_one_the_first_is_reserved(world, tmp_path):
    for experiment in (EXPERIMENT, digest("another")):
        world.approve(charges=5, experiment=experiment)
    key = SiteKey.create(tmp_path / "b")
    other = Ledger.create(tmp_path / "b" / "ledger.jsonl", key, world.ledger.policy, "archive")
    beside = World(tmp_path / "b", key, other, world.event)
    beside.approve(charges=5)
    for number in range(5):
        beside.charge(number)
    merge(world.ledger, other, by="a", reason="b")
    world.ledger.reserve(EXPERIMENT, "run-1")
    with pytest.raises(Refused, match="whole run"):
        world.ledger.reserve(digest("another"), "run-2")


def test_totals_that_the_site_itself_signed_anew_are_not_believed_when_it_opens(world):
    """A cached total is never trusted: every one is recomputed from the records."""
    world.approve()
    world.charge()
    *before, last = world.ledger.path.read_bytes().splitlines(keepends=True)
    record = parse_record(last[:-1])
    body = {**record.body, "totals": [total / 2 for total in record.body["totals"]]}
    made = {"seq": record.seq, "kind": "charge", "previous": record.previous, "at": record.at}
    changed = Record.signed(world.key, body=body, **made)
    world.ledger.close()
    world.ledger.path.write_bytes(b"".join([*before, changed.line]))
    with pytest.raises(LedgerError, match="its totals are not those of the records"):
        world.reopened()


def test_how_long_a_round_took_stands_nowhere_in_the_ledger(world, monkeypatch):
    """It depends on how many subjects were drawn."""
    world.approve()
    times = iter(f"2999-01-01T00:00:{second:02}Z" for second in range(60))
    monkeypatch.setattr("federation.ledger.ledger.now", lambda: next(times))
    monkeypatch.setattr("federation.ledger.records.now", lambda: next(times))
    world.ledger.release(world.charge(1), b"update")
    world.ledger.lose(world.charge(2))
    at = {record.kind: record.at for record in world.ledger.records[-4:]}
    charged = [record.at for record in world.ledger.records if record.kind == "charge"]
    assert (at["release"], at["loss"]) == tuple(charged)
    assert charged[0] != charged[1]
