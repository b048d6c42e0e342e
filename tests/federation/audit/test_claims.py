"""What a board reads first: each claim, and how far it is shown."""

import pytest

from federation.audit.claims import CLAIMS
from federation.audit.verify import verify_ledger
from federation.ledger.bounds import declared_bounds
from tests.federation.audit.conftest import EVENT


def statuses(site, **named):
    verdict = verify_ledger(site.path, **named)
    assert [claim.what for claim in verdict.claims] == list(CLAIMS.values())
    return {claim.what: (claim.status, claim.why) for claim in verdict.claims}


def held(site):
    return {"receipts": site.receipts, "closings": site.closings}


def test_with_everything_given_only_times_and_noise_are_asserted(site):
    found = statuses(site, trust=site.trust, **held(site))
    assert {what: status for what, (status, _) in found.items()} == {
        "chain whole": "recomputed",
        "identity of the signer": "signed",
        "epsilon spent": "recomputed",
        "every order's total": "recomputed",
        "each update that left was charged": "recomputed",
        "newest records are there": "signed",
        "commitment to the data": "signed",
        "times": "asserted",
        "who approved, on what basis": "signed",
        "noise was drawn": "asserted",
    }


def test_a_ledger_alone_says_much_less(site):
    found = statuses(site)
    by_status = {what for what, (status, _) in found.items() if status == "recomputed"}
    assert by_status == {"chain whole", "epsilon spent", "every order's total"}
    assert found["newest records are there"][1].startswith("tail not anchored")
    assert (
        "without receipts, what left is the site's word"
        in (found["each update that left was charged"][1])
    )
    assert "pass --trust" in found["identity of the signer"][1]


def test_records_after_what_others_hold_leave_the_tail_asserted(site):
    status, why = statuses(site, trust=site.trust, receipts=site.receipts)[
        "newest records are there"
    ]
    assert status == "asserted"
    assert why.startswith("tail not anchored: 2 records after those pinned by 3 receipts")


def test_who_approved_is_named_with_the_basis(make_site, tmp_path):
    named = {"second_approver": "Dr. Okafor", "legal_basis": "GDPR Art. 9(2)(j)"}
    site = make_site(tmp_path, **named, ethics_reference="EC 2026/114")
    why = statuses(site)["who approved, on what basis"][1]
    assert why == "Dr. Rivera and Dr. Okafor, on GDPR Art. 9(2)(j), EC 2026/114"


def changed_total(values):
    values[3]["body"]["totals"][0] *= 0.99


def changed_event(values):
    values[3]["body"]["event"]["steps"] += 1


def changed_charges(values):
    values[1]["body"]["charges"] = values[2]["body"]["charges"] = 2


def insecure(values):
    values[4]["body"]["versions"] = {"randomness": "insecure-test"}


def freed(values):
    values[4]["body"]["charge_seq"] = 5


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (changed_total, "every order's total"),
        (changed_event, "who approved, on what basis"),
        (changed_charges, "who approved, on what basis"),
        (insecure, "noise was drawn"),
        (freed, "each update that left was charged"),
    ],
)
def test_a_problem_contradicts_the_claim_that_it_is_about(site, change, what):
    values = site.values
    change(values)
    site.rewrite(values)
    found = statuses(site, trust=site.trust)
    assert found[what][0] == "contradicted"
    assert found["chain whole"][0] == "recomputed"


def test_a_limit_that_was_passed_contradicts_epsilon(site):
    values = site.values
    values[0]["body"]["policy"] |= {"epsilon": 1.0}
    site.rewrite(values)
    found = statuses(site, trust=site.trust)
    assert found["epsilon spent"][0] == "contradicted"
    assert "passes the limit epsilon 1" in found["epsilon spent"][1]


def test_nothing_is_shown_by_records_that_are_broken_themselves(site):
    values = site.values
    values[3]["signature"] = "00" * 64
    site.write(values)
    found = statuses(site, trust=site.trust, **held(site))
    assert found["chain whole"][0] == "contradicted"
    assert {status for what, (status, _) in found.items() if what != "chain whole"} == {"asserted"}
    assert found["epsilon spent"][1].endswith("; but the records themselves are contradicted")


def test_an_unknown_key_contradicts_the_identity(site):
    found = statuses(site, trust={"SHA256:" + "A" * 43})
    assert found["identity of the signer"][0] == "contradicted"
    assert found["commitment to the data"][0] == "asserted"


@pytest.mark.parametrize("how", ["exact", "rounded", "withheld"])
def test_counts_that_leave_state_the_replace_one_figure_beside(make_site, tmp_path, how):
    site = make_site(tmp_path, leaves=("update", f"counts: {how}"), event=EVENT)
    verdict = verify_ledger(site.path, trust=site.trust)
    told = [note for note in verdict.notes if note.startswith("counts may leave")]
    if how != "withheld":
        assert 1.2 * verdict.pld.value < verdict.replace_one.value
        assert f"epsilon by PLD is {verdict.replace_one.value:.4g}" in told[0]
        assert verdict.to_json()["replace_one_epsilon"] == verdict.replace_one.value
    else:
        assert verdict.replace_one is None and told == []


@pytest.mark.parametrize(("high", "large"), [(316, False), (317, True), (None, False)])
def test_a_delta_too_large_for_the_declared_bounds_is_told(make_site, tmp_path, high, large):
    bounds = () if high is None else (declared_bounds(40, high),)
    site = make_site(tmp_path, leaves=("update", *bounds), event=EVENT)
    verdict = verify_ledger(site.path, trust=site.trust)
    assert verdict.policy.delta == 1e-5 and not verdict.problems
    told = [note for note in verdict.notes if "above 1/N^2" in note]
    assert [f"for the {high} subjects" in note for note in told] == [True] * large
