import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.audit.verify import NOT_ANCHORED, verify_ledger
from federation.canonical import canonical_json
from federation.ledger.filter import BudgetPolicy
from federation.ledger.keys import SiteKey


def verdict_on(site):
    return verify_ledger(
        site.path, trust=site.trust, receipts=site.receipts, closings=site.closings
    )


def problems(site):
    verdict = verdict_on(site)
    assert verdict.ok == (not verdict.problems)
    return "; ".join(verdict.problems)


def test_an_honest_ledger_is_verified(site):
    verdict = verdict_on(site)
    assert verdict.ok
    assert verdict.summary == "verified"
    assert (verdict.site, verdict.population) == ("hospital-a", "brains")
    assert (verdict.charges, verdict.releases, verdict.refusals) == (3, 3, {"approval_used_up": 1})
    assert verdict.rdp_epsilon == pytest.approx(verdict.spent_epsilon, rel=1e-9)
    assert 0 < verdict.pld.value < verdict.spent_epsilon < 8.0
    assert verdict.notes == ()


def test_without_trust_it_is_only_consistent(site):
    verdict = verify_ledger(site.path)
    assert verdict.consistent
    assert not verdict.ok
    assert verdict.summary == "consistent, identity unknown"


def test_without_receipts_the_tail_is_not_anchored(site):
    verdict = verify_ledger(site.path, trust=site.trust)
    assert verdict.ok
    assert NOT_ANCHORED in verdict.notes


def test_trust_by_name(site):
    mine, fingerprint = site.path, site.key.fingerprint
    assert verify_ledger(mine, trust={"hospital-a": fingerprint}).ok
    other = {"hospital-a": "SHA256:" + "A" * 43, "lab": fingerprint}
    assert "trusted with another key" in verify_ledger(mine, trust=other).problems[0]
    elsewhere = verify_ledger(mine, trust={"lab": fingerprint, "ward": fingerprint})
    assert not elsewhere.ok and elsewhere.identity == "trusted"
    assert "'hospital-a', and its key is trusted as lab, ward" in elsewhere.problems[0]
    both = {"lab": fingerprint, "hospital-a": fingerprint}
    assert verify_ledger(mine, trust=both).ok
    assert verify_ledger(mine, trust={"lab": fingerprint, fingerprint: fingerprint}).ok
    nobody = verify_ledger(mine, trust={"lab": "SHA256:" + "A" * 43})
    assert "not among the trusted keys" in nobody.problems[0]


def leaves(value, path=()):
    """Every field of a record, however deep."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, (*path, name))
    elif isinstance(value, list) and value:
        for position, part in enumerate(value):
            yield from leaves(part, (*path, position))
    else:
        yield path, value


def mutated(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.99
    if isinstance(value, str):
        return value[:-1] + ("1" if value[-1:] != "1" else "2")
    return "x" if value is None else None


def with_leaf(record, path, new):
    if not path:
        return new
    inner = with_leaf(record[path[0]], path[1:], new)
    if isinstance(record, list):
        return [*record[: path[0]], inner, *record[path[0] + 1 :]]
    return {**record, path[0]: inner}


def all_mutations(site):
    for seq, record in enumerate(site.values):
        for path, value in leaves(record):
            yield seq, path, with_leaf(record, path, mutated(value))


def test_every_mutated_field_of_every_record_is_found(site):
    honest, count = site.values, 0
    for seq, path, record in all_mutations(site):
        site.write([*honest[:seq], record, *honest[seq + 1 :]])
        assert verify_ledger(site.path, trust=site.trust).problems, (seq, path)
        count += 1
    assert count > 120


def test_every_mutated_field_is_found_even_if_the_site_signs_everything_anew(site):
    """What others hold pins every record up to the closing."""
    honest = site.values
    for seq, path, record in all_mutations(site):
        if path[0] in ("seq", "previous", "hash", "signature"):
            continue
        site.rewrite([*honest[:seq], record, *honest[seq + 1 :]])
        assert problems(site), (seq, path)
        site.write(honest)
    assert not problems(site)


@pytest.mark.parametrize("keep", range(1, 11))
def test_a_dropped_tail_is_found_with_what_others_hold(site, keep):
    site.write(site.values[:keep])
    assert "records are missing" in problems(site)
    assert verify_ledger(site.path, trust=site.trust).ok  # this is why receipts are asked for


def test_a_charge_removed_with_the_chain_rebuilt_is_found(site):
    values = site.values
    del values[3:5]
    per_round = values[3]["body"]["totals"]
    number = 1
    for value in values[3:]:  # a forger who keeps the books straight
        if value["kind"] == "release":
            value["body"]["charge_seq"] -= 2
        if value["kind"] == "charge":
            value["body"]["totals"] = [number * t / 2 for t in per_round]
            number += 1
    site.rewrite(values)
    assert verify_ledger(site.path, trust=site.trust).ok
    found = problems(site)
    assert "receipt of hospital-a (run run-1, round 0" in found
    assert "closing of hospital-a" in found


def test_records_in_another_order_are_found(site):
    values = site.values
    values[3], values[5] = values[5], values[3]
    site.write(values)
    assert "does not follow" in problems(site)


def test_a_replayed_record_is_found(site):
    values = site.values
    site.write([*values, values[2]])
    assert "random bits were used before" in problems(site)


def test_a_replayed_charge_with_the_chain_rebuilt_is_found(site):
    values = site.values
    again = {**values[3], "salt": "0" * 32}
    site.rewrite([*values, again])
    assert "charged before" in problems(site)


def test_another_key_is_found(site, tmp_path):
    other = SiteKey.create(tmp_path / "other")
    site.rewrite(site.values, other)
    assert "not signed with the key of the genesis" in problems(site)
    values = site.values
    values[0]["body"]["public_key"] = other.public_bytes.hex()
    site.rewrite(values, other)
    assert "not among the trusted keys" in problems(site)


def test_an_event_understated_by_one_percent_is_found_without_receipts(site):
    values = site.values
    values[3]["body"]["event"]["noise_multiplier"] *= 1.01
    site.rewrite(values)
    found = verify_ledger(site.path, trust=site.trust).problems
    assert any("not what was approved" in problem for problem in found)
    assert any("not those of dp-accounting" in problem for problem in found)


def test_one_total_altered_is_found_without_receipts(site):
    values = site.values
    values[3]["body"]["totals"][1] *= 1 - 1e-8
    site.rewrite(values)
    found = verify_ledger(site.path, trust=site.trust).problems
    assert found == ("record 3: its totals are not those of dp-accounting",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}\n",
        b"\x00\xff" * 5000,
        b"x" * 200000,
        b"[" * 65000 + b"\n",
        b"\n" * 500,
        b'{"seq":1e999}\n',
        b'{"seq":NaN}\n',
        b"9" * 5000 + b"\n",
        b"null\n",
        b"\r\n",
    ],
)
def test_junk_becomes_a_problem(tmp_path, content):
    path = tmp_path / "junk.jsonl"
    path.write_bytes(content)
    verdict = verify_ledger(path, trust=set())
    assert verdict.problems
    assert not verdict.ok
    canonical_json(verdict.to_json())


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_missing_file_becomes_a_problem(tmp_path, name):
    assert "no readable ledger" in verify_ledger(tmp_path / name).problems[0]


HOSTILE_EVENTS = [
    {"sampling_rate": 0},
    {"noise_multiplier": 1e-300},
    {"steps": 10**30},
    {"steps": 10**4000},
    {"noise_multiplier": -1.0},
    {"noise_multiplier": 0.01, "steps": 10**9},
    {"noise_multiplier": 0.21, "steps": 10**6},
    {"noise_multiplier": 1e6, "steps": 10**9},
    {"sampling_rate": 1e-300, "noise_multiplier": 0.01},
    {"kind": "free"},
]


@pytest.mark.parametrize("event", HOSTILE_EVENTS)
def test_hostile_numbers_become_problems_and_do_not_hang(site, event):
    values = site.values
    for value in values:
        if value["body"].get("event"):
            value["body"]["event"] |= event
    site.rewrite(values)
    started = time.monotonic()
    assert problems(site)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "policy", [{"orders": [2, 3, 10**6]}, {"epsilon": 1e308}, {"delta": 0.0}, {"orders": []}]
)
def test_hostile_policies_become_problems(site, policy):
    values = site.values
    values[0]["body"]["policy"] |= policy
    site.rewrite(values)
    assert problems(site)


def test_the_largest_policy_that_is_allowed_does_not_hang(site):
    orders = list(range(1009, 1025))
    values = site.values
    values[0]["body"]["policy"] |= {"orders": orders, "order_deltas": [1e-7] * 16}
    site.rewrite(values)
    assert problems(site)


def test_a_line_that_a_killed_write_left_is_a_problem_with_a_way_out(site):
    with site.path.open("ab") as file:
        file.write(b'{"at":')
    assert "let the site open its ledger once" in problems(site)


def test_a_ledger_started_anew_with_the_same_key_is_found(site):
    values = site.values[:1]
    values[0]["salt"] = "0" * 32
    site.rewrite(values)
    assert "started anew" in problems(site)


def test_a_withheld_receipt_is_noted(site):
    verdict = verify_ledger(site.path, trust=site.trust, receipts=site.receipts[1:])
    assert "1 release without a receipt here" in verdict.notes


def test_records_after_the_newest_receipt_are_noted(site):
    verdict = verify_ledger(site.path, trust=site.trust, receipts=site.receipts)
    assert verdict.notes == ("2 records after the newest that others hold: not anchored",)


def test_a_clock_that_went_back_is_noted(site):
    values = site.values
    values[4]["at"] = "1999-01-01T00:00:00Z"
    site.rewrite(values)
    verdict = verify_ledger(site.path, trust=site.trust)
    assert verdict.ok
    assert "record 4: the site's clock went back" in verdict.notes


def test_a_time_that_no_calendar_has_is_found(site):
    values = site.values
    values[4]["at"] = "2026-13-01T00:00:00Z"
    site.rewrite(values)
    found = verify_ledger(site.path, trust=site.trust).problems
    assert found[0] == "line 5: a record: at: expected a UTC time that the calendar has"


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_byte_is_found(site, data):
    whole = site.path.read_bytes()
    changed = bytearray(whole)
    position = data.draw(st.integers(0, len(whole) - 1))
    changed[position] ^= data.draw(st.integers(1, 255))
    site.path.write_bytes(changed)
    try:
        assert problems(site)
    finally:
        site.path.write_bytes(whole)


def test_epsilon_agrees_with_the_filter_to_1e_9(site):
    verdict = verify_ledger(site.path)
    policy = BudgetPolicy.of(8.0, 1e-5)
    assert verdict.policy == policy
    stated = [v["body"]["totals"] for v in site.values if v["kind"] == "charge"][-1]
    assert list(verdict.totals) == pytest.approx(stated, rel=1e-9)


@pytest.mark.parametrize(
    ("module", "also"),
    [("federation.audit.verify", {"models", "data_adapters"}), ("federation.cli.audit", set())],
)
def test_verification_needs_no_training_software(module, also):
    """The command mounts the board's report, which reads experiments: no more than that."""
    heavy = {"torch", "opacus", "flwr", "mlflow", "monai"} | also
    code = f"import sys; import {module}; sys.exit(' '.join({heavy!r} & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
