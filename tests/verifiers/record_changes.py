"""Changes to records, chained and signed anew with the site's own keys: the site itself lies."""

import copy

from tests.verifiers.byte_changes import ALONE, CONTRADICTED
from tests.verifiers.forging import Forger, change, rechained, recounted
from tests.verifiers.writer import UNPROTECTED, canonical, gaussian, public, seal, sign, text_of


def _without_a_charge(forger: Forger) -> list[dict]:
    """Take out a charge and its release, and count the rest anew."""
    last = [record["seq"] for record in forger.at().records if record["kind"] == "release"][-1]
    before = [r for r in forger.records if r["kind"] == "charge" and r["seq"] < last]
    charge = forger.rng.choice(before)
    gone = [charge["seq"]]
    for record in forger.records:
        if record["kind"] in ("release", "loss") and record["body"]["charge_seq"] == charge["seq"]:
            gone.append(record["seq"])
    return [record for record in forger.records if record["seq"] not in gone]


@change(CONTRADICTED)
def charge_removed_and_all_chained_anew(forger):
    records = recounted(_without_a_charge(forger))
    forger.papers = True
    return forger.said(records)


@change(ALONE)
def charge_removed_and_papers_withheld(forger):
    return forger.said(recounted(_without_a_charge(forger)))


@change(CONTRADICTED)
def charge_removed_but_its_cost_kept(forger):
    forger.at("north", "west")
    charge = forger.some("charge", but_last=True)
    return forger.said([r for r in forger.records if r["seq"] != charge["seq"]])


def _gaussian_totals(forger: Forger) -> list[dict]:
    return [r for r in forger.at().records if any(r["body"].get("totals", ()))]


@change(CONTRADICTED)
def epsilon_understated(forger):
    for record in _gaussian_totals(forger):
        record["body"]["totals"] = [0.99 * total for total in record["body"]["totals"]]
    return forger.said()


@change(CONTRADICTED)
def one_order_altered(forger):
    totals = forger.rng.choice(_gaussian_totals(forger))["body"]["totals"]
    totals[forger.rng.randrange(len(totals))] *= 1 + forger.rng.choice((-1, 1)) * 10 ** (
        -forger.rng.uniform(1, 8)
    )
    return forger.said()


@change(CONTRADICTED)
def totals_of_another_length(forger):
    totals = forger.rng.choice(_gaussian_totals(forger))["body"]["totals"]
    totals += forger.rng.choice(([0.0], [totals[-1]], totals))
    if forger.rng.random() < 0.5:
        del totals[0 : len(totals) // 2 + 1]
    return forger.said()


@change(ALONE)
def totals_rounded_otherwise(forger):
    for record in _gaussian_totals(forger):
        near = 1 + forger.rng.uniform(-5e-11, 5e-11)
        record["body"]["totals"] = [near * total for total in record["body"]["totals"]]
    return forger.said()


def _quieter(forger: Forger) -> list[dict]:
    """Claim more noise than was drawn, everywhere the same."""
    forger.at()
    claimed = round(forger.rng.uniform(0.01, 0.5), 3)
    for record in forger.records:
        for event in (record["body"].get("event"), *record["body"].get("spends", ())):
            if event and "noise_multiplier" in event:
                event["noise_multiplier"] += claimed
    return recounted(forger.records)


@change(CONTRADICTED)
def more_noise_claimed(forger):
    records = _quieter(forger)
    forger.papers = True
    return forger.said(records)


@change(ALONE)
def more_noise_claimed_and_papers_withheld(forger):
    return forger.said(_quieter(forger))


@change(CONTRADICTED)
def charge_with_another_event_than_approved(forger):
    event = forger.at().some("charge")["body"]
    event["event"] = gaussian(0.03, 2.0, 4)
    return forger.said(recounted(forger.records))


@change(CONTRADICTED)
def charge_with_another_plan(forger):
    forger.at().some("charge")["body"]["plan_digest"] = forger.any_digest()
    return forger.said()


@change(CONTRADICTED)
def expired_approval(forger):
    charge = forger.at().some("charge")
    for record in forger.records[: charge["seq"]]:
        same = record["body"].get("experiment_digest") == charge["body"]["experiment_digest"]
        if record["kind"] == "approval" and same:
            record["body"]["expires"] = "2026-01-05T08:00:59Z"
    return forger.said()


@change(CONTRADICTED)
def clock_moved_past_expiry(forger):
    forger.at("west", "south")
    first = next(r for r in forger.records if r["kind"] == "charge")
    first["at"] = f"20{forger.rng.randrange(27, 99)}-07-01T00:00:00Z"
    return forger.said()


@change(ALONE)
def clock_moved(forger):
    record = forger.rng.choice(forger.at().records)
    record["at"] = f"2026-0{forger.rng.randrange(1, 6)}-1{forger.rng.randrange(10)}T23:59:58Z"
    return forger.said()


@change(CONTRADICTED)
def clock_moved_under_papers(forger):
    forger.at().papers = True
    papered = [r["seq"] for r in forger.records if r["kind"] in ("release", "closing")]
    forger.records[forger.rng.randrange(1, papered[-1])]["at"] = "2026-02-03T04:05:06Z"
    return forger.said()


@change(CONTRADICTED)
def clock_that_shows_no_time(forger):
    odd = ("2026-02-30T00:00:00Z", "2026-01-05T24:00:00Z", "2026-01-05 08:00:00Z", "", "now", None)
    odd += ("2026-01-05T08:00:00+00:00", "2026-1-5T08:00:00Z", "0000-01-05T08:00:00Z", 1767600000)
    odd += ("2026-01-05T08:00:00.5Z", "２０２６-01-05T08:00:00Z", "2025-02-29T00:00:00Z")
    forger.rng.choice(forger.at().records)["at"] = forger.rng.choice(odd)
    return forger.said()


@change(CONTRADICTED)
def charge_without_reservation(forger):
    forger.at("north", "west")
    gone = next(r for r in forger.records if r["kind"] == "reservation")
    return forger.said([r for r in forger.records if r["seq"] != gone["seq"]])


@change(CONTRADICTED)
def run_reserved_twice(forger):
    reservation = forger.at().some("reservation")
    forger.records.insert(reservation["seq"] + 1, forger.fresh(reservation))
    return forger.said()


@change(CONTRADICTED)
def run_named_again(forger):
    forger.at("north")
    later = [r for r in forger.records if r["kind"] == "reservation"][-1]
    later["body"]["run"] = "run-1"
    return forger.said()


@change(CONTRADICTED)
def reservation_of_another_number(forger):
    forger.at().some("reservation")["body"]["charges"] += forger.rng.choice((-1, 1, 10))
    return forger.said()


@change(CONTRADICTED)
def approval_of_fewer_charges(forger):
    forger.at("north", "west")
    first = [r for r in forger.records if r["kind"] in ("approval", "reservation")][:2]
    for record in first:
        record["body"]["charges"] = 1
    return forger.said()


@change(CONTRADICTED)
def release_without_charge(forger):
    release = forger.at().some("release")
    others = [r["seq"] for r in forger.records if r["kind"] not in ("charge",)]
    release["body"]["charge_seq"] = forger.rng.choice([*others, len(forger.records), 10**9])
    return forger.said(renumber=False)


@change(CONTRADICTED)
def released_twice(forger):
    release = forger.at().some("release", "loss")
    forger.records.insert(
        forger.rng.randrange(release["seq"], len(forger.records)) + 1, forger.fresh(release)
    )
    return forger.said([r for r in forger.records if r["kind"] != "merged"])


@change(CONTRADICTED)
def lost_after_its_release(forger):
    release = forger.at("north", "south").some("release")
    loss = forger.fresh(release) | {"kind": "loss"}
    loss["body"] = {"charge_seq": release["body"]["charge_seq"]}
    forger.records.append(loss)
    return forger.said()


@change(CONTRADICTED)
def charge_replayed(forger):
    charge = forger.at().some("charge")
    forger.records.insert(charge["seq"] + 1, forger.fresh(charge))
    return forger.said(recounted(forger.records))


@change(CONTRADICTED)
def salt_repeated(forger):
    a, b = forger.rng.sample(forger.at().records, 2)
    a["salt"] = b["salt"]
    return forger.said()


@change(CONTRADICTED)
def noise_for_tests(forger):
    versions = forger.at().some("release")["body"]["versions"]
    versions["randomness"] = "insecure-test"
    return forger.said()


@change(ALONE)
def noise_named_otherwise(forger):
    versions = forger.at().some("release")["body"]["versions"]
    versions["randomness"] = forger.rng.choice(("os", "secure", "Zufall", "insecure-test2"))
    return forger.said()


@change(CONTRADICTED)
def rotation_with_a_bad_proof(forger):
    rotation = forger.at("north").some("key_rotation")["body"]
    old = forger.book.keys[public(forger.book.first_key)]
    claim = canonical({"public_key": rotation["public_key"]})
    proofs = (sign(old, "key rotation", claim), "00" * 64, rotation["proof"][::-1])
    rotation["proof"] = forger.rng.choice(proofs)
    return forger.said(renumber=False)


@change(CONTRADICTED)
def rotation_that_is_not_followed(forger):
    """After a rotation the old key goes on signing."""
    forger.at("north")
    records = rechained(forger.book, forger.records)
    place = next(r["seq"] for r in records if r["kind"] == "key_rotation")
    late = forger.rng.randrange(place + 1, len(records))
    records[late] = seal(records[late], forger.book.first_key)
    return forger.texts(text_of(records))


@change(CONTRADICTED)
def rotation_signed_by_the_new_key(forger):
    forger.at("north")
    records = rechained(forger.book, forger.records)
    place = next(r["seq"] for r in records if r["kind"] == "key_rotation")
    new = forger.book.keys[records[place]["body"]["public_key"]]
    records[place] = seal(records[place], new)
    return forger.texts(text_of(records))


@change(CONTRADICTED)
def all_signed_by_another_key(forger):
    forger.at("south", "west")
    forger.papers = forger.rng.random() < 0.5
    key = forger.stranger()
    forger.records[0]["body"]["public_key"] = public(key)
    book = copy.copy(forger.book)
    book.first_key = key
    return forger.texts(text_of(rechained(book, forger.records)))


@change(CONTRADICTED)
def snapshot_restored(forger):
    """Back to an older copy, and on from there as if nothing had been."""
    forger.at("north", "west").papers = True
    papered = [r["seq"] for r in forger.records if r["kind"] in ("release", "closing")]
    old = forger.records[: forger.rng.randrange(1, papered[-1])]
    note = forger.fresh(forger.records[0]) | {"kind": "note"}
    note["body"] = {"what": "purge", "by": "op", "reason": "?", "experiments": []}
    return forger.said([*old, note])


@change(CONTRADICTED)
def recovery_that_spends_too_little(forger):
    spends = forger.at("south").some("recovery")["body"]["spends"]
    spends[0]["steps"] -= forger.rng.randrange(1, spends[0]["steps"])
    return forger.said(recounted(forger.records))


@change(CONTRADICTED)
def recovery_of_another_noise(forger):
    spends = forger.at("south").some("recovery")["body"]["spends"]
    spends[0] |= forger.rng.choice(({"noise_multiplier": 5.0}, {"sampling_rate": 0.001}))
    return forger.said(recounted(forger.records))


@change(CONTRADICTED)
def recovery_that_saw_less(forger):
    forger.at("south").papers = True
    body = forger.some("recovery")["body"]
    body["seen_seq"] = forger.rng.randrange(body["seen_seq"] - 1)
    after = next(r["seq"] for r in forger.records if r["kind"] == "recovery")
    return forger.said(forger.records[: after + 1])


@change(CONTRADICTED)
def recovery_left_out(forger):
    forger.at("south").papers = True
    records = [r for r in forger.records if r["kind"] != "recovery"]
    return forger.said(recounted(records))


@change(CONTRADICTED)
def charge_after_recovery_on_an_old_approval(forger):
    """The recovery comes between a reservation and its charge."""
    forger.at("south")
    recovery = forger.some("recovery")
    rest = [r for r in forger.records if r["kind"] != "recovery"]
    place = next(r["seq"] for r in rest if r["kind"] == "charge")
    held = [gaussian(steps=80), gaussian(0.1, 1.3, 30)]
    recovery["body"]["spends"] = held
    rest.insert(place, recovery)
    return forger.said(recounted(rest))


@change(CONTRADICTED)
def limit_passed(forger):
    policy = forger.at().records[0]["body"]["policy"]
    policy["epsilon"] = round(forger.rng.uniform(0, 1), 2)
    return forger.said()


@change(CONTRADICTED)
def policy_that_does_not_add_up(forger):
    policy = forger.at().records[0]["body"]["policy"]
    odd = (
        {"delta": 5e-6},
        {"orders": [2, 4, 8, 16, 64, 32]},
        {"orders": [2, 2, 4, 8, 16, 32]},
        {"order_deltas": [1e-6] * 5},
        {"orders": [1, 2, 4, 8, 16, 32]},
        {"orders": []},
        {"unit": "image"},
        {"adjacency": "replace_one"},
        {"allow_unprotected": "no"},
        {"epsilon": -1},
        {"epsilon": 1000.5},
        {"order_deltas": [0, 1e-6, 2e-6, 2e-6, 2e-6, 1e-6]},
        {"order_deltas": [-1e-6, 1e-6, 2e-6, 2e-6, 2e-6, 1e-6]},
    )
    policy |= forger.rng.choice(odd)
    return forger.said()


@change(CONTRADICTED)
def unprotected_where_it_is_not_allowed(forger):
    forger.at("west")
    forger.records[0]["body"]["policy"]["allow_unprotected"] = False
    return forger.said()


@change(CONTRADICTED)
def protected_after_an_unprotected_merge(forger):
    forger.at("north")
    first = next(r for r in forger.records if r["kind"] == "merge")
    first["body"]["spends"].append(dict(UNPROTECTED))
    return forger.said(recounted(forger.records))


@change(CONTRADICTED)
def merge_that_spends_nothing(forger):
    """North has charged none of what west was charged, and says that it merged it."""
    merge = _merge_of_west(forger)
    merge["body"]["spends"] = []
    return forger.said(recounted(forger.records))


@change(CONTRADICTED)
def merge_that_spends_a_step_too_little(forger):
    merge = _merge_of_west(forger)
    merge["body"]["spends"][0]["steps"] -= 1
    return forger.said(recounted(forger.records))


@change(CONTRADICTED)
def merge_of_another_head(forger):
    merge = _merge_of_west(forger)["body"]
    west = forger.scenario.books["west"].records
    merge |= forger.rng.choice(({"head": forger.any_digest()}, {"head_seq": 3}))
    merge |= forger.rng.choice(({}, {"head_seq": len(west) + 5}))
    return forger.said()


@change(CONTRADICTED)
def merge_into_a_laxer_budget(forger):
    _merge_of_west(forger)
    policy = forger.records[0]["body"]["policy"]
    policy |= forger.rng.choice(({"epsilon": 9.0}, {"delta": 2e-5}))
    return forger.said()


@change(CONTRADICTED)
def merge_with_one_declaration(forger):
    _merge_of_west(forger)
    forger.records[1]["body"]["what"] = "purge"
    return forger.said()


@change(CONTRADICTED)
def merge_left_out(forger):
    """West was merged into north, and north has not charged it."""
    gone = _merge_of_west(forger)["seq"]
    return forger.said(recounted([r for r in forger.records if r["seq"] != gone]))


def _merge_of_west(forger: Forger) -> dict:
    forger.at("north").needs = ("west",)
    return [r for r in forger.records if r["kind"] == "merge"][-1]


@change(CONTRADICTED)
def late_declaration(forger):
    note = forger.fresh(forger.at("north").some("note"))
    note["body"] |= {"what": "declaration"}
    place = forger.rng.randrange(2, len(forger.records))
    forger.records.insert(place, note)
    return forger.said()


@change(CONTRADICTED)
def record_after_merged(forger):
    forger.at("west")
    forger.records.append(forger.fresh(forger.some("closing", "approval", "merged")))
    return forger.said()


@change(CONTRADICTED)
def second_genesis(forger):
    forger.at("north", "south")
    place = forger.rng.randrange(1, len(forger.records) + 1)
    forger.records.insert(place, forger.fresh(forger.records[0]))
    return forger.said()


@change(CONTRADICTED)
def no_genesis(forger):
    forger.at()
    return forger.said(forger.records[1:])


@change(CONTRADICTED)
def run_closed_twice(forger):
    closing = forger.at().some("closing")
    forger.records.insert(closing["seq"] + 1, forger.fresh(closing))
    return forger.said()


@change(CONTRADICTED)
def another_run_closed(forger):
    forger.at().some("closing")["body"]["run"] = forger.rng.choice(("run-9", "run-3", "-"))
    return forger.said()


@change(CONTRADICTED)
def withdrawal_of_nothing(forger):
    withdrawal = forger.fresh(forger.at("north").some("withdrawal"))
    place = forger.rng.randrange(withdrawal["seq"] + 1, len(forger.records) + 1)
    forger.records.insert(place, withdrawal)
    return forger.said()


@change(CONTRADICTED)
def charge_after_withdrawal(forger):
    """The withdrawal of the run that goes on; it had an approval, and has none left."""
    withdrawal = forger.at("north").some("withdrawal")
    going_on = [r for r in forger.records if r["kind"] == "charge"][-1]
    withdrawal["body"]["experiment_digest"] = going_on["body"]["experiment_digest"]
    return forger.said()
