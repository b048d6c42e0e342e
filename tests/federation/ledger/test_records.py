import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.canonical import canonical_json
from federation.ledger.receipts import Receipt
from federation.ledger.records import MAX_LINE_BYTES, parse_record


@pytest.fixture
def charge_line(world):
    world.approve()
    world.charge()
    return world.ledger.records[-1].line.rstrip(b"\n")


def test_a_line_reads_back(world, charge_line):
    record = parse_record(charge_line)
    assert record == world.ledger.records[-1]
    assert record.line == charge_line + b"\n"
    assert record.hash_matches()
    assert record.signed_by(world.key.public_bytes)


def test_equal_bodies_have_unguessable_hashes(world):
    first, second = world.approve(), world.approve()
    assert first.body == second.body
    assert first.salt != second.salt
    assert len(bytes.fromhex(first.salt)) == 16


def test_another_text_of_the_same_record_is_refused(charge_line):
    for line in (b" " + charge_line, charge_line.replace(b":", b": ", 1), charge_line + b"\r"):
        with pytest.raises(ValueError, match="canonical"):
            parse_record(line)


def test_unknown_and_missing_keys_are_refused(charge_line):
    value = json.loads(charge_line)
    del value["salt"]
    with pytest.raises(ValueError, match="exactly the keys"):
        parse_record(canonical_json(value))
    with pytest.raises(ValueError, match="exactly the keys"):
        parse_record(canonical_json({**json.loads(charge_line), "extra": 1}))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-Infinity", "1" * 5000])
def test_numbers_that_are_none_are_refused(charge_line, number):
    line = charge_line.replace(
        b'"noise_multiplier":1.575', b'"noise_multiplier":' + number.encode()
    )
    assert line != charge_line
    with pytest.raises(ValueError, match=r"finite numbers|is a number from"):
        parse_record(line)


@pytest.mark.parametrize("line", [b"", b"\x00" * 64, b"\xff\xfe", b"[]", b"null", b"[" * 60_000])
def test_junk_is_refused(line):
    with pytest.raises(ValueError):
        parse_record(line)


def test_a_line_too_long_is_refused():
    with pytest.raises(ValueError, match="longer than"):
        parse_record(b"x" * (MAX_LINE_BYTES + 1))


@given(junk=st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_value_error(junk):
    with pytest.raises(ValueError):
        parse_record(junk)


def test_a_receipt_reads_back_and_any_change_breaks_it(world):
    world.approve()
    receipt = world.ledger.release(world.charge(), b"update", versions={"torch": "2.13"})
    values = json.loads(json.dumps(receipt.to_json()))
    assert Receipt.from_json(values) == receipt
    assert receipt.verify()
    assert receipt.fingerprint == world.key.fingerprint
    for name, value in values.items():
        changed = {
            "event": {**receipt.event.to_json(), "steps": 4},
            "versions": {"torch": "2.14"},
        }.get(name, value + 1 if isinstance(value, int) else _flipped(value))
        assert not Receipt.from_json({**values, name: changed}).verify(), name


def test_a_receipt_tells_no_counts_and_no_times(world):
    world.approve()
    receipt = world.ledger.release(world.charge(), b"update")
    stated = set(receipt.to_json())
    assert not stated & {"at", "salt", "num_subjects", "batch_size"}
    assert world.ledger.records[-1].at not in json.dumps(receipt.to_json())


@pytest.mark.parametrize("value", [None, [], {}, {"site": 1}])
def test_malformed_receipts_are_refused(value):
    with pytest.raises(ValueError, match="a receipt has exactly the keys"):
        Receipt.from_json(value)


def _flipped(text):
    if not isinstance(text, str):
        return text
    return text[:-1] + ("0" if text[-1] != "0" else "1")
