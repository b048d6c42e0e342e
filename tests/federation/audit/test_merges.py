"""The two ledgers of a merge, held against each other."""

import pytest

from federation.audit.verify import verify_ledgers
from federation.canonical import digest
from federation.ledger.filter import BudgetPolicy
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger
from federation.ledger.upkeep import merge, recover
from tests.federation.audit.conftest import EVENT, Site, charge, terms

NAME = "each update that left was charged"


@pytest.fixture
def pair(open_site, tmp_path) -> tuple[Site, Site]:
    """A ledger, and another of the same site that it was merged into."""
    into = empty(tmp_path / "into")
    first, second = open_site.open(), into.open()
    merge(second, first, by="Dr. Rivera", reason="same people")
    first.close()
    second.close()
    return open_site, into


def empty(folder, **more) -> Site:
    key = SiteKey.create(folder)
    path, policy = folder / "ledger.jsonl", BudgetPolicy.of(8.0, 1e-5)
    Ledger.create(path, key, policy, "all brains", site="hospital-a", **more).close()
    return Site(path, key)


def verified(*sites):
    trust = {site.key.fingerprint for site in sites}
    return verify_ledgers([site.path for site in sites], trust=trust)


def changed(site, **body):
    values = site.values
    (record,) = [value for value in values if value["kind"] == "merge"]
    record["body"] |= body
    site.rewrite(values)


def why(verdict):
    return next((c.status, c.why) for c in verdict.claims if c.what == NAME)


def test_a_merge_of_all_that_was_charged_is_verified_where_both_ledgers_are_given(pair):
    report = verified(*pair)
    assert report.ok
    assert not any("takes both ledgers" in note for v in report.verdicts for note in v.notes)


def test_a_merge_that_spends_nothing_contradicts_the_ledger_that_it_stands_in(pair):
    changed(pair[1], spends=[], totals=[0.0] * len(pair[1].values[1]["body"]["totals"]))
    report = verified(*pair)
    assert [v.summary for v in report.verdicts] == ["verified", "contradicted"]
    (problem,) = report.verdicts[1].problems
    assert "for less than that had been charged by its record 6" in problem


def test_a_merge_of_one_step_too_few_is_found(pair):
    totals = [0.9 * total for total in pair[1].values[1]["body"]["totals"]]
    changed(pair[1], spends=[{**EVENT.to_json(), "steps": 9}], totals=totals)
    report = verified(*pair)
    assert [v.summary for v in report.verdicts] == ["verified", "contradicted"]


def test_a_head_that_the_other_ledger_does_not_hold_is_a_problem_that_accuses_neither(pair):
    changed(pair[1], head=digest("another"))
    report = verified(*pair)
    assert not report.ok and all(v.ok for v in report.verdicts)
    assert "one of the two was rewritten" in report.problems[0]


def test_a_head_named_at_another_position_contradicts_the_merge(pair):
    changed(pair[1], head_seq=2)
    assert "another position" in verified(*pair).verdicts[1].problems[0]


@pytest.mark.parametrize("policy", [{"epsilon": 9.0}, {"delta": 2e-5}, {"allow_unprotected": True}])
def test_a_merge_into_a_laxer_budget_contradicts_the_ledger_that_it_stands_in(pair, policy):
    values = pair[1].values
    values[0]["body"]["policy"] |= policy
    pair[1].rewrite(values)
    ended = pair[0].values
    ended[-1]["body"]["into"] = pair[1].values[0]["hash"]
    pair[0].rewrite(ended)
    report = verified(*pair)
    assert [v.summary for v in report.verdicts] == ["verified", "contradicted"]
    assert "permits more than its subjects were promised" in report.verdicts[1].problems[0]


def test_a_merge_with_a_ledger_of_no_human_subjects_contradicts_it(pair):
    note = {"what": "declaration", "by": "a", "reason": "cell lines", "experiments": []}
    pair[1].with_record("note", note, at=1)
    report = verified(*pair)
    assert "only one is declared" in report.verdicts[1].problems[0]


def test_merged_into_a_ledger_that_has_no_merge_is_a_problem(pair):
    pair[1].write(pair[1].values[:1])
    report = verified(*pair)
    assert not report.ok and "merged away is not borne out" in report.problems[0]


def test_a_recovery_excuses_that_the_merge_is_gone(pair, tmp_path):
    other = empty(tmp_path / "marked")
    ledger = other.open()
    ledger.approve(terms(charges=2))
    ledger.close()
    backup = other.path.read_bytes()
    ledger = other.open()
    receipt = ledger.release(charge(ledger, 0), b"update")
    third = empty(tmp_path / "third")
    ended = third.open()
    merge(ledger, ended, by="a", reason="b")
    ended.close()
    ledger.close()
    other.path.write_bytes(backup)
    ledger = other.open(recovering=True)
    recover(ledger, by="a", reason="disk", receipts=[receipt])
    ledger.close()
    report = verified(other, third)
    assert not report.problems


@pytest.mark.parametrize("given", [0, 1])
def test_where_one_of_the_two_is_not_given_it_is_the_sites_word(pair, given):
    (verdict,) = (report := verified(pair[given])).verdicts
    assert report.ok
    assert any("takes both ledgers" in note for note in verdict.notes)
    receipts = pair[0].receipts
    (verdict,) = verify_ledgers([pair[given].path], receipts=receipts).verdicts
    assert why(verdict)[0] == "asserted"


def test_a_receipt_does_not_make_up_for_the_other_ledger(pair):
    (verdict,) = verify_ledgers([pair[0].path], receipts=pair[0].receipts).verdicts
    assert "only one side is here" in why(verdict)[1]
