"""What others keep of a ledger finds out a site, or a hub, that rewrites its past."""

import dataclasses

import pytest

from federation.audit.verify import verify_ledger, verify_ledgers
from federation.canonical import digest
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger
from federation.ledger.upkeep import conclude, recover, rotate
from tests.federation.audit.conftest import EVENT, EXPERIMENT, charge, terms


def verdict_on(site, **changes):
    held = {"receipts": site.receipts, "closings": site.closings, **changes}
    return verify_ledger(site.path, trust=site.trust, **held)


def problems(site, **changes):
    return "; ".join(verdict_on(site, **changes).problems)


def beside(site, **changes):
    """Problems that are nobody's ledger's: only what a site has signed accuses it."""
    held = {"receipts": site.receipts, "closings": site.closings, **changes}
    report = verify_ledgers([site.path], trust=site.trust, **held)
    assert report.verdicts[0].ok and not report.ok
    return "; ".join(report.problems)


def test_a_receipt_with_a_bad_signature_is_found_and_accuses_nobody(site):
    site.receipts[0] = dataclasses.replace(site.receipts[0], round=7)
    assert "not validly signed" in beside(site)


def test_a_receipt_by_a_stranger_that_names_the_ledger_is_found_and_accuses_nobody(site, tmp_path):
    stranger = SiteKey.create(tmp_path / "stranger")
    named = {"public_key": stranger.public_bytes.hex(), "site": "somebody-else"}
    forged = dataclasses.replace(site.receipts[0], **named).signed(stranger)
    assert "somebody else signs" in beside(site, receipts=[*site.receipts, forged])


def test_receipts_of_a_site_whose_ledger_was_not_given_are_checked_for_themselves(
    site, make_site, tmp_path
):
    other = make_site(tmp_path / "b", site="lab")
    trust = site.trust | other.trust
    both = [*site.receipts, *other.receipts]
    together = verify_ledgers([site.path, other.path], trust=trust, receipts=both)
    assert together.ok and not together.notes
    alone = verify_ledgers([site.path], trust=trust, receipts=both)
    assert alone.ok
    (note,) = alone.notes
    assert note.startswith(f"3 receipts of lab: signed ({other.key.fingerprint}, a key that you ")
    assert note.endswith("not held against its ledger, which was not given")
    (lab,) = verify_ledgers([site.path], trust=site.trust, receipts=both).unheld
    assert (lab.site, lab.standing, lab.receipts, lab.closings) == ("lab", "asserted", 3, 0)


class TestWithoutAnyLedger:
    """A hub's folder holds receipts and closings, and no ledger."""

    def test_nothing_is_verified_and_every_signature_is_checked(self, site):
        held = {"receipts": site.receipts, "closings": site.closings}
        report = verify_ledgers([], trust=site.trust, **held)
        assert not report.ok and not report.problems
        (one,) = report.unheld
        counts = (len(site.receipts), len(site.closings))
        assert (one.receipts, one.closings) == counts and min(counts) > 0
        assert one.standing == "signed" and one.ledger == site.receipts[0].ledger
        assert report.to_json()["unheld"] == [one.to_json()]

    def test_a_name_is_held_against_the_trust_file(self, site):
        name, key = site.receipts[0].site, site.key.fingerprint
        for trust, standing in (
            ({name: key}, "signed"),
            ({key: key}, "signed"),
            ({"another": key}, "asserted"),
            ({name: "SHA256:" + "a" * 43}, "asserted"),
            (None, "asserted"),
        ):
            (one,) = verify_ledgers([], trust=trust, receipts=site.receipts).unheld
            assert one.standing == standing

    def test_a_bad_signature_and_two_updates_for_one_charge_are_found(self, site):
        forged = dataclasses.replace(site.receipts[0], round=7)
        assert "not validly signed" in verify_ledgers([], receipts=[forged]).problems[0]
        other = {"update_digest": digest("another"), "charge_seq": 99}
        again = dataclasses.replace(site.receipts[0], **other).signed(site.key)
        report = verify_ledgers([], trust=site.trust, receipts=[*site.receipts, again])
        (problem,) = report.problems
        assert "signed another update under this key" in problem


def test_a_ledger_under_another_key_in_place_of_the_one_that_receipts_name_is_found(
    site, make_site, tmp_path
):
    replaced = make_site(tmp_path / "b", site=site.receipts[0].site)
    report = verify_ledgers([replaced.path], trust=replaced.trust, receipts=site.receipts)
    assert not report.ok
    assert "3 receipts of hospital-a: of another ledger than the one given" in report.problems[0]


def test_two_ledgers_of_one_population_are_found_even_if_both_are_shown(site, make_site, tmp_path):
    second = make_site(tmp_path / "b", site=site.receipts[0].site)
    trust = site.trust | second.trust
    both = [*site.receipts, *second.receipts]
    report = verify_ledgers([site.path, second.path], trust=trust, receipts=both)
    assert not report.ok
    assert [v.summary for v in report.verdicts] == ["contradicted"] * 2
    assert "a population has one budget" in report.verdicts[0].problems[0]


def test_a_forged_receipt_is_called_unsigned(site, make_site, tmp_path):
    other = make_site(tmp_path / "b", site="lab")
    forged = dataclasses.replace(other.receipts[0], site=site.receipts[0].site)
    receipts = [*site.receipts, forged]
    report = verify_ledgers([site.path], trust=site.trust, receipts=receipts)
    assert [p for p in report.problems if "not validly signed" in p] == list(report.problems)
    assert not report.ok


# Receipts


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plan_digest", digest("other")),
        ("request_digest", digest("other")),
        ("commitment", digest("other")),
        ("update_digest", digest("other")),
        ("head_before", digest("other")),
        ("versions", {"cohortium": "0"}),
        ("round", 7),
        ("charge_seq", 5),
        ("event", dataclasses.replace(EVENT, steps=4)),
    ],
)
def test_a_receipt_that_the_site_signed_and_that_states_something_else(site, name, value):
    changed = dataclasses.replace(site.receipts[0], **{name: value}).signed(site.key)
    found = verdict_on(site, receipts=[changed]).problems
    assert len(found) == 1
    assert "it states something else than the ledger" in found[0]


def test_a_receipt_under_another_name(site):
    changed = dataclasses.replace(site.receipts[0], site="lab").signed(site.key)
    assert "it gives the site another name" in problems(site, receipts=[changed])


def test_a_receipt_for_another_ledger_under_this_key(site):
    changed = dataclasses.replace(site.receipts[0], ledger=digest("another")).signed(site.key)
    assert "for another ledger; was the ledger started anew?" in problems(site, receipts=[changed])


def test_a_receipt_for_what_the_ledger_calls_lost(open_site):
    ledger = open_site.open()
    kept = charge(ledger, 2)
    receipt = ledger.release(kept, b"it did leave")
    ledger.close()
    values = open_site.values
    values[-1] |= {"kind": "loss", "body": {"charge_seq": kept.seq}}
    open_site.rewrite(values)
    assert verdict_on(open_site).ok
    assert "nothing left for this charge" in problems(open_site, receipts=[receipt])


def test_a_receipt_is_by_the_key_in_force_at_its_release(open_site, tmp_path):
    new = SiteKey.create(tmp_path / "new")
    ledger = open_site.open()
    rotate(ledger, new)
    ledger.close()
    ledger = Ledger.open(open_site.path, new)
    later = ledger.release(charge(ledger, 2), b"update")
    ledger.close()
    assert verdict_on(open_site, receipts=[*open_site.receipts, later]).ok
    for receipt, key in ((open_site.receipts[0], new), (later, open_site.key)):
        wrong = dataclasses.replace(receipt, public_key=key.public_bytes.hex()).signed(key)
        assert "the key that was in force" in problems(open_site, receipts=[wrong])


# Recoveries


@pytest.fixture
def restored(open_site):
    """A site that lost two rounds with its disk, and what the hub still has of them."""
    older = open_site.path.read_bytes()
    ledger = open_site.open()
    lost = [ledger.release(charge(ledger, n), b"update %d" % n) for n in (2, 3)]
    closing = conclude(ledger, "run-1", EXPERIMENT, heads={}, model_digest=None)
    ledger.close()
    open_site.path.write_bytes(older)
    open_site.receipts += lost
    open_site.closings = [closing]
    return open_site


def recovered(site, receipts):
    ledger = site.open(recovering=True)
    assert recover(ledger, by="op", reason="disk failed", receipts=receipts) is not None
    ledger.close()


def test_a_restored_ledger_is_found_by_receipts_and_closings_until_it_recovers(restored):
    found = verdict_on(restored).problems
    assert sum("records are missing" in problem for problem in found) == 3
    recovered(restored, restored.receipts)
    assert verdict_on(restored, closings=()).ok


def test_a_recovery_excuses_only_what_it_has_seen(restored):
    recovered(restored, restored.receipts)
    values = restored.values
    values[-1]["body"]["seen_seq"] = restored.receipts[3].charge_seq - 1
    restored.rewrite(values)
    assert "round 3, attempt 0): the ledger does not hold" in problems(restored, closings=())


def test_a_closing_that_was_lost_is_excused_by_a_recovery_that_has_seen_it(restored):
    recovered(restored, restored.receipts)
    assert "closing of hospital-a" in problems(restored)
    values = restored.values
    values[-1]["body"]["seen_seq"] = restored.closings[0].seq
    restored.rewrite(values)
    assert verdict_on(restored).ok


def test_receipts_of_lost_records_cost_no_more_than_recoveries_spent(restored):
    recovered(restored, restored.receipts)
    (ahead,) = restored.receipts[2:3]
    more = [
        dataclasses.replace(ahead, round=60 + n, update_digest=digest(n)).signed(restored.key)
        for n in range(2)
    ]
    excused = [
        dataclasses.replace(r, head_after=digest(r.round)).signed(restored.key) for r in more
    ]
    within = [*restored.receipts, *excused]
    assert verdict_on(restored, receipts=within, closings=()).ok  # four charges were held
    beyond = dataclasses.replace(excused[0], round=70, head_after=digest("b")).signed(restored.key)
    found = problems(restored, receipts=[*within, beyond], closings=())
    assert "recoveries spent less than what receipts of lost records say" in found


def test_the_same_receipt_twice_is_one(restored):
    recovered(restored, restored.receipts)
    assert verdict_on(restored, receipts=restored.receipts * 3, closings=()).ok


# Closings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run", "run-2"),
        ("heads", {"lab": digest("x")}),
        ("model_digest", digest("x")),
        ("seq", 9),
        ("experiment_digest", digest("x")),
    ],
)
def test_a_closing_that_states_something_else(site, name, value):
    changed = dataclasses.replace(site.closings[0], **{name: value}).signed(site.key)
    assert "it states something else than the ledger" in problems(site, closings=[changed])


def test_a_closing_whose_record_is_gone(site):
    site.write(site.values[:-1])
    assert "closing of hospital-a (run run-1): the ledger does not hold" in problems(site)


def test_a_closing_that_is_not_signed_accuses_nobody(site):
    changed = dataclasses.replace(site.closings[0], run="run-2")
    assert "not validly signed" in beside(site, closings=[changed])


def test_a_closing_is_by_the_key_in_force_at_its_record(site, tmp_path):
    new = SiteKey.create(tmp_path / "new")
    ledger = site.open()
    rotate(ledger, new)
    ledger.close()
    assert verdict_on(site).ok
    named = {"public_key": new.public_bytes.hex()}
    again = dataclasses.replace(site.closings[0], **named).signed(new)
    assert "the key that was in force" in problems(site, closings=[again])


# Between ledgers


@pytest.fixture
def pair(make_site, tmp_path):
    """Two sites; the second was shown the newest release of the first."""
    first = make_site(tmp_path / "a", site="hospital-a")
    shown = {"hospital-a": first.receipts[1].head_after}
    second = make_site(tmp_path / "b", site="hospital-b", heads=shown)
    return first, second


def verify_pair(pair, *, receipts=()):
    first, second = pair
    both = [first.path, second.path]
    return verify_ledgers(both, trust=first.trust | second.trust, receipts=receipts)


def test_a_head_that_another_site_was_shown_anchors_what_came_before_it(pair):
    report = verify_pair(pair)
    assert report.ok
    first, second = report.verdicts
    tail = next(claim for claim in first.claims if claim.what == "newest records are there")
    assert "4 records after those pinned by 1 shown head" in tail.why
    assert "tail not anchored: pass --receipts and --closings that others kept" in second.notes


def test_a_site_that_rewrites_what_others_were_shown_is_found_with_its_receipt(pair):
    first, _ = pair
    values = first.values
    values[6]["body"]["update_digest"] = digest("another update")
    first.rewrite(values)
    report = verify_pair(pair, receipts=first.receipts[1:2])
    assert [v.summary for v in report.verdicts] == ["contradicted", "verified"]
    found = "; ".join(report.verdicts[0].problems)
    assert "hospital-b was shown a head of it that it does not hold any more" in found


def test_a_rewriting_that_only_heads_show_is_a_problem_that_accuses_nobody(pair):
    first, _ = pair
    values = first.values
    values[6]["body"]["update_digest"] = digest("another update")
    first.rewrite(values)
    report = verify_pair(pair)
    assert all(v.ok for v in report.verdicts) and not report.ok
    (problem,) = report.problems
    assert "hospital-a or the hub rewrote the past" in problem
    assert first.receipts[1].head_after in problem


def test_a_head_that_nobody_can_vouch_for_accuses_nobody(make_site, tmp_path):
    first = make_site(tmp_path / "a", site="hospital-a")
    second = make_site(tmp_path / "b", site="hospital-b", heads={"hospital-a": digest("made up")})
    report = verify_pair((first, second), receipts=first.receipts)
    assert all(v.ok for v in report.verdicts) and not report.ok
    assert report.problems[0].startswith("1 head of hospital-a, shown to others, in no ledger")


def test_a_head_of_a_site_whose_ledger_is_not_given_says_nothing(pair):
    _, second = pair
    report = verify_ledgers([second.path], trust=second.trust)
    assert report.ok and report.notes == ()


def test_a_head_that_was_lost_is_excused_by_the_recovery(restored, make_site, tmp_path):
    shown = {"hospital-a": restored.receipts[3].head_after}
    other = make_site(tmp_path / "b", site="hospital-b", heads=shown)
    report = verify_pair((restored, other), receipts=restored.receipts)
    assert "its past was rewritten" in "; ".join(report.verdicts[0].problems)
    recovered(restored, restored.receipts)
    report = verify_pair((restored, other), receipts=restored.receipts)
    assert report.ok
    assert "lost when it fell behind, or the hub's word alone" in report.notes[0]


def test_two_copies_of_one_ledger_that_part_ways_contradict_each_other(open_site, tmp_path):
    older = open_site.path.read_bytes()
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(older)
    ledger = open_site.open()
    ledger.release(charge(ledger, 2), b"update")
    ledger.close()
    paths = [open_site.path, copy]
    assert verify_ledgers(paths, trust=open_site.trust).ok  # one is the beginning of the other
    new, newer = open_site.path.read_bytes(), open_site.path
    newer.write_bytes(older)
    ledger = open_site.open(recovering=True)
    ledger.approve(terms(charges=1, experiment=digest("other")))
    ledger.close()
    copy.write_bytes(new)
    report = verify_ledgers(paths, trust=open_site.trust)
    assert [v.summary for v in report.verdicts] == ["contradicted"] * 2
    assert "goes on otherwise" in report.verdicts[0].problems[0]
