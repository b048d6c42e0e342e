"""docs/privacy.md promises nothing that no test holds."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "privacy.md").read_text()


def named_tests(text):
    """Return each named test as (file, name)."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


def is_there(file, name):
    path = ROOT / file
    pattern = rf"^ *def {name}\("
    return path.is_file() and re.search(pattern, path.read_text(), re.MULTILINE) is not None


def claims(text):
    """Return the rows of the tables whose second column says what holds them."""
    rows, held = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            held = False
        elif cells[1] == "held by":
            held = True
        elif held and not set(cells[0]) <= {"-"}:
            rows.append(cells)
    return rows


@pytest.mark.parametrize(("file", "name"), sorted(set(named_tests(TEXT))))
def test_every_test_that_is_named_exists(file, name):
    assert is_there(file, name)


def test_every_claim_names_a_test():
    assert len(claims(TEXT)) > 30
    assert [claim for claim, *held in claims(TEXT) if not named_tests(held[0])] == []


def test_these_guards_fire():
    assert not is_there("tests/federation/privacy/test_docs.py", "test_that_nobody_wrote")
    assert not is_there("tests/nowhere.py", "test_x")
    table = "| claim | held by |\n|---|---|\n| safe | trust us |\n"
    assert claims(table) == [["safe", "trust us"]] and not named_tests(table)
