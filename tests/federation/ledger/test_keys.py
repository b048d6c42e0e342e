import stat

import pytest

from federation.errors import LedgerError
from federation.ledger.keys import (
    SiteKey,
    fingerprint_of,
    pseudonymiser,
    split_value,
    verify_signature,
)


def test_a_key_reads_back_and_signs_the_same_bytes_the_same_way(tmp_path):
    key = SiteKey.create(tmp_path)
    again = SiteKey.load(tmp_path)
    assert SiteKey.exists(tmp_path)
    assert again.fingerprint == key.fingerprint == fingerprint_of(key.public_bytes)
    assert again.sign(b"x") == key.sign(b"x")
    assert verify_signature(key.public_bytes, b"x", key.sign(b"x"))


def test_a_signature_holds_for_its_own_bytes_and_key_only(tmp_path):
    key, other = SiteKey.create(tmp_path / "a"), SiteKey.create(tmp_path / "b")
    assert not verify_signature(key.public_bytes, b"y", key.sign(b"x"))
    assert not verify_signature(other.public_bytes, b"x", key.sign(b"x"))
    assert not verify_signature(b"short", b"x", key.sign(b"x"))
    assert not verify_signature(key.public_bytes, b"x", b"")


def test_secrets_are_for_their_owner_only_and_never_overwritten(tmp_path):
    SiteKey.create(tmp_path)
    pseudonymiser(tmp_path)
    for name in ("site-key", "pseudonym-key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    with pytest.raises(LedgerError, match="exists already"):
        SiteKey.create(tmp_path)


def test_a_key_that_others_can_read_is_refused(tmp_path):
    SiteKey.create(tmp_path)
    (tmp_path / "site-key").chmod(0o640)
    with pytest.raises(LedgerError, match="chmod 600"):
        SiteKey.load(tmp_path)


@pytest.mark.parametrize("text", ["", "xyz", "ab" * 31])
def test_a_damaged_key_is_refused(tmp_path, text):
    SiteKey.create(tmp_path)
    (tmp_path / "site-key").write_text(text)
    with pytest.raises(LedgerError, match="from backup"):
        SiteKey.load(tmp_path)


def test_a_missing_key_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="There is no key"):
        SiteKey.load(tmp_path)


def test_pseudonyms_are_stable_within_a_site_and_unlinkable_between_sites(tmp_path):
    here, again, there = (pseudonymiser(tmp_path / name) for name in ("a", "a", "b"))
    assert here("MRN-1") == again("MRN-1") != here("MRN-2")
    assert here("MRN-1") != there("MRN-1")
    assert len(here("MRN-1")) == 32
    assert "MRN" not in here("MRN-1")


def test_split_values_are_fixed_and_spread_evenly(tmp_path):
    value = split_value(tmp_path)
    values = [value(f"s{i}") for i in range(2000)]
    assert values == [split_value(tmp_path)(f"s{i}") for i in range(2000)]
    assert all(0 <= v < 1 for v in values)
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.03)
