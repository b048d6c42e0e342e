"""The rules of ``docs/ledger/format.md`` over records, each broken once by the site itself.

Everything here is validly numbered, chained and signed: only the rule speaks against it.
"""

from dataclasses import replace

import pytest

from federation.audit.accounting import rdp_of_one_step
from federation.audit.replay import replay_file
from federation.audit.rules import fold
from federation.audit.verify import verify_ledger
from federation.canonical import canonical_json, digest
from federation.ledger.filter import BudgetPolicy, PoissonGaussian, Unprotected
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger, RoundKey
from federation.ledger.upkeep import conclude, recover, rotate
from tests.federation.audit.conftest import EVENT, EXPERIMENT, PLAN, charge, terms

ORDERS = BudgetPolicy.of(8.0, 1e-5).orders
STEP = rdp_of_one_step(EVENT.sampling_rate, EVENT.noise_multiplier, ORDERS)
OTHER = digest("another experiment")
ENDED = {"experiment_digest": EXPERIMENT, "by": "Dr. Rivera", "reason": "consent"}


def totals(num_charges):
    return [num_charges * EVENT.steps * cost for cost in STEP]


def problems(site):
    return verify_ledger(site.path, trust=site.trust).problems


def charge_body(site, number, **changes):
    """The next charge that the approval allows, after ``number`` of them."""
    body = site.values[site.position("charge")]["body"]
    return {**body, "round": 50 + number, "totals": totals(number + 1), **changes}


def test_a_charge_that_the_approval_allows_is_no_problem(open_site):
    open_site.with_record("charge", charge_body(open_site, 2))
    assert problems(open_site) == ()


# Rule 1


def test_a_second_genesis(site):
    site.with_record("genesis", site.values[0]["body"])
    assert problems(site) == ("record 11: a second genesis",)


def test_a_ledger_that_begins_with_something_else(site):
    site.rewrite(site.values[1:])
    assert "record 0: the first record is not a genesis" in problems(site)


def rotated(site, folder):
    new = SiteKey.create(folder / "new")
    ledger = site.open()
    rotate(ledger, new)
    ledger.close()
    return Ledger.open(site.path, new)


def test_after_a_rotation_the_new_key_signs(open_site, tmp_path):
    ledger = rotated(open_site, tmp_path)
    ledger.release(charge(ledger, 2), b"update")
    verdict = verify_ledger(open_site.path, trust=open_site.trust)
    assert verdict.ok
    assert any("its key was replaced 1 time; now SHA256:" in note for note in verdict.notes)


def test_the_old_key_signs_nothing_after_a_rotation(open_site, tmp_path):
    rotated(open_site, tmp_path).close()
    open_site.with_record("withdrawal", ENDED)
    assert problems(open_site)[-1] == "record 8: it is not signed with the key in force by then"


def test_a_rotation_that_the_new_key_did_not_agree_to(open_site, tmp_path):
    other = SiteKey.create(tmp_path / "other")
    said = {"ledger": "x", "previous": "y", "public_key": other.public_bytes.hex()}
    proof = other.sign(b"cohortium key rotation v1\0" + canonical_json(said)).hex()
    body = {"public_key": other.public_bytes.hex(), "proof": proof}
    open_site.with_record("key_rotation", body)
    assert problems(open_site) == ("record 7: the new key did not sign that it takes over",)


# Rule 2


@pytest.mark.parametrize(
    ("changes", "at", "why"),
    [
        ({"charges": 5}, 2, "it reserves other charges than were approved"),
        ({"experiment_digest": OTHER}, 2, "its experiment was not approved"),
        ({"run": "run-2"}, 3, "another run has taken up the approval"),
        ({}, 3, "its run was reserved before"),
    ],
)
def test_reservations(open_site, changes, at, why):
    body = {**open_site.values[2]["body"], **changes}
    values = open_site.values
    if at == 2:
        values[2]["body"] = body
        open_site.rewrite(values)
    else:
        open_site.with_record("reservation", body)
    assert any(why in problem for problem in problems(open_site))


# Rule 3


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"run": "run-2"}, "its run did not take up the approval"),
        ({"plan_digest": digest("other")}, "its plan or event is not what was approved"),
        ({"experiment_digest": OTHER}, "its experiment was not approved"),
        ({"round": 0}, "this round and attempt were charged before"),
        ({"totals": totals(4)}, "its totals are not those of dp-accounting"),
        ({"totals": totals(3)[:-1]}, "its totals are not those of dp-accounting"),
    ],
)
def test_a_charge_outside_of_its_approval(open_site, changes, why):
    open_site.with_record("charge", charge_body(open_site, 2, **changes))
    assert problems(open_site) == (f"record 7: {why}",)


def test_more_charges_than_approved(site):
    values = site.values
    body = charge_body(site, 3)
    site.rewrite(values[:9])  # before its run was closed
    site.with_record("charge", body)
    assert problems(site) == ("record 9: more charges than were approved",)


def test_a_charge_after_the_approval_had_expired(open_site):
    values = open_site.values
    values[1]["body"]["expires"] = "2020-01-01T00:00:00Z"
    open_site.rewrite(values)
    assert problems(open_site) == (
        "record 3: charged after its approval had expired",
        "record 5: charged after its approval had expired",
    )


def test_the_last_second_of_an_approval_is_within_it(open_site):
    values = open_site.values
    values[1]["body"]["expires"] = values[5]["at"]
    open_site.rewrite(values)
    assert problems(open_site) == ()


def test_a_charge_beyond_the_policy(open_site):
    values = open_site.values
    for value in values[1:3]:
        value["body"]["charges"] = 100
    open_site.rewrite(values)
    for number in range(2, 14):
        open_site.with_record("charge", charge_body(open_site, number))
    assert problems(open_site) == (
        "record 17: this charge passes the limit epsilon 8",
        "record 18: this charge passes the limit epsilon 8",
    )


def test_unprotected_charges_against_the_policy(open_site):
    values = open_site.values
    for value in (values[1], values[3], values[5]):
        value["body"]["event"] = {"kind": "unprotected"}
    for value in (values[3], values[5]):
        value["body"]["totals"] = [0.0] * len(ORDERS)
    open_site.rewrite(values)
    verdict = verify_ledger(open_site.path, trust=open_site.trust)
    assert verdict.problems == tuple(
        f"record {seq}: charged after or without noise, which the policy forbids" for seq in (3, 5)
    )
    assert verdict.rdp_epsilon == float("inf")
    assert verdict.to_json()["rdp_epsilon"] is None


# Rules 4 and 9


@pytest.mark.parametrize("kind", ["release", "loss"])
def test_the_end_of_a_charge_that_was_never_made(open_site, kind):
    body = {**open_site.values[4]["body"], "charge_seq": 1}
    if kind == "loss":
        body = {"charge_seq": 1}
    open_site.with_record(kind, body)
    assert "without a charge" in problems(open_site)[0]


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("release", "release", "a second release for the charge in record 7"),
        ("release", "loss", "the charge in record 7 was released before"),
        ("loss", "release", "the charge in record 7 was lost before"),
        ("loss", "loss", "the charge in record 7 was lost before"),
    ],
)
def test_a_charge_ends_once(open_site, first, second, why):
    open_site.with_record("charge", charge_body(open_site, 2))
    bodies = {
        "loss": {"charge_seq": 7},
        "release": {**open_site.values[4]["body"], "charge_seq": 7},
    }
    open_site.with_record(first, bodies[first])
    assert problems(open_site) == ()
    open_site.with_record(second, bodies[second])
    assert problems(open_site) == (f"record 9: {why}",)


# Rule 5


@pytest.mark.parametrize("end", ["withdrawal", "closing"])
def test_nothing_is_charged_or_ended_after_the_end_of_an_approval(open_site, end):
    ledger = open_site.open()
    if end == "withdrawal":
        ledger.withdraw(EXPERIMENT, by="Dr. Rivera", reason="consent")
        how = "withdrawn"
    else:
        conclude(ledger, "run-1", EXPERIMENT, heads={}, model_digest=None)
        how = "closed"
    ledger.close()
    assert problems(open_site) == ()
    again = open_site.values[-1]["body"]
    open_site.with_record("charge", charge_body(open_site, 2))
    open_site.with_record(end, again)
    assert problems(open_site) == (
        f"record 8: a charge after its approval was {how}",
        f"record 9: a {end} after its approval was {how}",
    )


def test_a_closing_of_a_run_that_took_up_nothing(open_site):
    body = {"experiment_digest": EXPERIMENT, "run": "run-2", "heads": {}, "model_digest": None}
    open_site.with_record("closing", body)
    assert problems(open_site) == ("record 7: it closes a run that did not take it up",)


# Rule 6


def recovery(open_site, **changes):
    """A recovery that spends the four charges which the approval still holds."""
    spends = [{**EVENT.to_json(), "steps": 4 * EVENT.steps}]
    seen = {"seen_seq": 40, "seen_hash": digest("gone")}
    body = {"by": "op", "reason": "restored", "spends": spends, "totals": totals(6)}
    open_site.with_record("recovery", {**body, **seen, **changes})


def test_a_recovery_spends_what_open_approvals_hold_and_ends_them(open_site):
    recovery(open_site)
    assert problems(open_site) == ()
    open_site.with_record("charge", charge_body(open_site, 6))
    assert problems(open_site) == ("record 8: a charge after its approval was ended by a recovery",)


def test_a_recovery_that_spends_a_step_too_few(open_site):
    steps = 4 * EVENT.steps - 1
    spent = [(10 + steps) * cost for cost in STEP]
    recovery(open_site, spends=[{**EVENT.to_json(), "steps": steps}], totals=spent)
    assert problems(open_site) == ("record 7: the recovery spends less than open approvals held",)


def test_a_recovery_whose_totals_forget_what_it_spends(open_site):
    recovery(open_site, totals=totals(2))
    assert problems(open_site) == ("record 7: its totals are not those of dp-accounting",)


def test_a_recovery_may_pass_the_limit_and_then_nothing_fits(open_site):
    steps = 1000
    spends = [{**EVENT.to_json(), "steps": steps}]
    recovery(open_site, spends=spends, totals=[(10 + steps) * cost for cost in STEP])
    assert problems(open_site) == ()
    open_site.with_record("approval", open_site.values[1]["body"])
    open_site.with_record("reservation", {**open_site.values[2]["body"], "run": "run-2"})
    spent = [(15 + steps) * cost for cost in STEP]
    open_site.with_record("charge", charge_body(open_site, 2, run="run-2", totals=spent))
    assert problems(open_site) == ("record 10: this charge passes the limit epsilon 8",)


def unprotected_site(tmp_path):
    key = SiteKey.create(tmp_path / "k")
    policy = BudgetPolicy.of(8.0, 1e-5, allow_unprotected=True)
    ledger = Ledger.create(tmp_path / "k" / "ledger.jsonl", key, policy, "phantoms")
    ledger.approve(terms(event=Unprotected()))
    ledger.charge(
        RoundKey("run-1", 0, 0),
        request_digest=digest(0),
        experiment_digest=EXPERIMENT,
        plan_digest=PLAN,
        event=Unprotected(),
    )
    ledger.close()
    from tests.federation.audit.conftest import Site

    return Site(ledger.path, key)


@pytest.mark.parametrize(
    ("spends", "found"),
    [
        ([{"kind": "unprotected"}], ()),
        ([], ("record 4: the recovery spends less than open approvals held",)),
    ],
)
def test_a_recovery_spends_one_unprotected_event_for_any_number_held(tmp_path, spends, found):
    site = unprotected_site(tmp_path)
    recovery(site, spends=spends, totals=[0.0] * len(ORDERS))
    assert problems(site) == found


# Rule 7


def merge(site, spends, spent):
    body = {"ledger": digest("l"), "head_seq": 3, "head": digest("h"), "by": "op", "reason": "r"}
    site.with_record("merge", {**body, "spends": spends, "totals": spent})


def test_a_merge_charges_what_another_population_lost(open_site):
    merge(open_site, [{**EVENT.to_json(), "steps": 15}], totals(5))
    verdict = verify_ledger(open_site.path, trust=open_site.trust)
    assert verdict.ok
    assert list(verdict.totals) == pytest.approx(totals(5), rel=1e-12)
    assert "1 merge charged here what shared subjects had lost elsewhere" in verdict.notes


def test_a_merge_whose_totals_forget_what_it_spends(open_site):
    merge(open_site, [EVENT.to_json()], totals(2))
    assert problems(open_site) == ("record 7: its totals are not those of dp-accounting",)


def test_nothing_follows_after_a_ledger_was_merged_into_another(open_site):
    open_site.with_record("merged", {"into": digest("other ledger")})
    verdict = verify_ledger(open_site.path, trust=open_site.trust)
    assert verdict.ok
    assert any("its budget goes on in another ledger" in note for note in verdict.notes)
    open_site.with_record("withdrawal", ENDED)
    assert problems(open_site) == ("record 8: the ledger had been merged into another before",)


# Rule 8


def test_a_new_approval_replaces_the_older_one(open_site):
    open_site.with_record("approval", open_site.values[1]["body"])
    open_site.with_record("charge", charge_body(open_site, 2))
    assert problems(open_site) == ("record 8: its run did not take up the approval",)


def test_real_recoveries_and_rotations_keep_the_rules(open_site, tmp_path):
    older = open_site.path.read_bytes()
    ledger = open_site.open()
    receipts = [*open_site.receipts, ledger.release(charge(ledger, 2), b"forgotten")]
    ledger.close()
    open_site.path.write_bytes(older)
    behind = open_site.open(recovering=True)
    recover(behind, by="op", reason="restored", receipts=receipts)
    behind.close()
    ledger = rotated(open_site, tmp_path)
    ledger.approve(terms(charges=1, experiment=OTHER))
    again = charge(ledger, 0, run="run-9", experiment=OTHER, event=EVENT)
    receipts.append(ledger.release(again, b"after"))
    verdict = verify_ledger(open_site.path, trust=open_site.trust, receipts=receipts)
    assert verdict.ok, verdict.problems
    assert verdict.totals == pytest.approx(totals(7), rel=1e-9)


def test_very_many_kinds_of_events_are_refused_rather_than_recomputed(open_site):
    from federation.audit.accounting import Spent

    spent = Spent(BudgetPolicy(8.0, 1e-5, tuple(range(1009, 1025)), (1e-7,) * 16))
    kinds = [PoissonGaussian(0.5, 10.0 + n, 1) for n in range(80)]
    assert [spent.add(kind) for kind in kinds].count(False) == len(kinds) - 61


def test_very_many_recoveries_after_very_many_approvals_take_no_longer_than_their_records(
    open_site,
):
    """Each looks at what is open, and after the first nothing is."""
    replay = replay_file(open_site.path)
    approval, body = replay.records[1], {"seen_seq": 1, "spends": [], "totals": totals(2)}
    for number in range(2000):
        named = {**approval.body, "experiment_digest": digest(number)}
        fold(replay, number, replace(approval, body=named))
    recovery_record = replace(approval, kind="recovery", body=body)
    fold(replay, 2001, recovery_record)
    assert len(replay.permits) == 2001 and replay.open_permits == {}
    assert len(replay.problems) == 1
    fold(replay, 2002, recovery_record)
    assert len(replay.problems) == 1
