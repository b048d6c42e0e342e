from datetime import date
from pathlib import Path

import pytest

from data_adapters.errors import DataError
from federation.consent import (
    NOBODY,
    UNKNOWN_DAY,
    UNKNOWN_PURPOSE,
    ConsentTable,
    load_consents,
)
from federation.data_use import HMB, DataUse

TODAY = date(2026, 5, 4)
CANCER = DataUse(purpose="DUO:0000007", disease="MONDO:0004992", methods_development=False)
HEALTH = DataUse(purpose=HMB, methods_development=False)


def load(tmp_path, *rows, known=("a", "b", "c"), acknowledged=()):
    path = Path(tmp_path) / "consent.csv"
    path.write_text("\n".join(["subject,purpose,expires", *rows]) + "\n")
    return load_consents(
        ConsentTable(path=path),
        pseudonyms=lambda raw: frozenset(raw.split("|")) if raw else frozenset(),
        subjects=known,
        acknowledged=acknowledged,
    )


def test_only_who_consented_to_this_purpose_is_left(tmp_path):
    consents = load(tmp_path, "a,DUO:0000006,", "b,DUO:0000007 MONDO:0004992,")
    assert consents.lacking("abc", HEALTH, TODAY) == {"b", "c"}
    assert consents.lacking("abc", CANCER, TODAY) == {"c"}
    assert consents.unknown("abc") == {"c"}


def test_consent_holds_through_its_last_day(tmp_path):
    consents = load(tmp_path, "a,DUO:0000006,2026-05-04", "b,DUO:0000006,2026-05-03")
    assert consents.lacking("ab", HEALTH, TODAY) == {"b"}
    assert consents.expired("ab", TODAY) == {"b"}


def test_of_several_rows_one_that_holds_is_enough(tmp_path):
    consents = load(tmp_path, "a,DUO:0000042,2020-01-01", "a,DUO:0000006,2030-01-01")
    assert consents.lacking("a", HEALTH, TODAY) == set()
    assert consents.lacking("a", DataUse(), TODAY) == {"a"}


def test_codes_in_one_row_hold_together(tmp_path):
    consents = load(tmp_path, "a,DUO:0000006; DUO:0000018,", "b,DUO:0000006;DUO:0000021,")
    assert consents.lacking("ab", HEALTH, TODAY) == {"a", "b"}
    acknowledged = load(tmp_path, "b,DUO:0000006;DUO:0000021,", acknowledged=["DUO:0000021"])
    assert acknowledged.lacking("b", HEALTH, TODAY) == set()


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("a,DUO:0000006,31.12.2030", UNKNOWN_DAY),
        ("a,yes,", UNKNOWN_PURPOSE),
        ("a,,", UNKNOWN_PURPOSE),
        ("a,DUO:0000006;DUO:0000021,", UNKNOWN_PURPOSE),
        (",DUO:0000006,", NOBODY),
        ("a|b,DUO:0000006,", NOBODY),
    ],
)
def test_a_row_that_is_not_understood_gives_no_consent(tmp_path, row, why):
    consents = load(tmp_path, row)
    assert consents.lacking("ab", HEALTH, TODAY) == {"a", "b"}
    assert consents.num_rows_unused == {why: 1}


def test_an_identifier_that_could_be_somebody_who_is_not_here_is_clear(tmp_path):
    consents = load(tmp_path, "a|elsewhere,DUO:0000006,")
    assert consents.lacking("a", HEALTH, TODAY) == set()


def test_a_table_without_the_column_is_one_sentence(tmp_path):
    (tmp_path / "consent.csv").write_text("subject,purpose\na,DUO:0000006\n")
    with pytest.raises(DataError, match="no column 'expires'"):
        load_consents(
            ConsentTable(path=tmp_path / "consent.csv"), pseudonyms=frozenset, subjects=()
        )
