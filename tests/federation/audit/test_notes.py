"""What a site notes beside training is told to the auditor, and hides nothing from him."""

from federation.audit.verify import verify_ledger
from federation.ledger.entries import Declaration
from federation.ledger.filter import BudgetPolicy
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger


def verdict(site):
    return verify_ledger(
        site.path, trust=site.trust, receipts=site.receipts, closings=site.closings
    )


def with_note(site, position, body=None):
    """Put a note, validly signed, before the record at ``position``."""
    body = body or {"what": "purge", "by": "op", "reason": "end", "experiments": []}
    site.with_record("note", body, at=position)


def append(site, **note):
    ledger = Ledger.open(site.path, site.key)
    ledger.note("exclusion", **({"by": "op", "reason": "withdrawn", "after": 0} | note))
    ledger.close()


def test_a_note_is_told_and_costs_nothing(site):
    before = verdict(site)
    append(site)
    after = verdict(site)
    assert after.ok
    assert (after.totals, after.charges) == (before.totals, before.charges)
    assert "the site recorded, beside training: 1 exclusion" in after.notes


def test_very_many_notes_crowd_out_no_other_note(site):
    for number in range(40):
        append(site, reason=f"number {number}")
    notes = verdict(site).notes
    assert "40 records after the newest that others hold: not anchored" in notes
    assert sum("exclusion" in note for note in notes) == 1


def test_a_charge_turned_into_a_note_is_found_by_the_receipt(site):
    values = site.values
    position = next(v["seq"] for v in values if v["kind"] == "charge")
    body = {"what": "purge", "by": "op", "reason": "nothing here", "experiments": []}
    values[position] = {**values[position], "kind": "note", "body": body}
    site.rewrite(values)
    found = "; ".join(verdict(site).problems)
    assert "released without a charge" in found
    assert "records are missing" in found


def test_a_note_slipped_in_before_a_receipt_is_found(site):
    with_note(site, 2)
    assert "records are missing" in "; ".join(verdict(site).problems)


def test_a_declaration_slipped_in_afterwards_is_found_without_receipts(site):
    with_note(site, 3, Declaration("Nobody", "not people").to_json())
    found = verify_ledger(site.path, trust=site.trust).problems
    assert any("right after the genesis or nowhere" in problem for problem in found)


def test_a_declaration_is_told_with_name_and_reason(tmp_path):
    key = SiteKey.create(tmp_path)
    policy = BudgetPolicy.of(8.0, 1e-5, allow_unprotected=True)
    said = Declaration("Dr A. Example", "water phantoms")
    ledger = Ledger.create(tmp_path / "l.jsonl", key, policy, "phantoms", declaration=said)
    found = verify_ledger(ledger.path, trust={key.fingerprint})
    assert found.ok
    assert "declared to be of no human subjects by Dr A. Example: water phantoms" in found.notes
