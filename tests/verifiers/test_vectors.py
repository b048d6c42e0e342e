"""The committed vectors: both verifiers reach the verdict that is written down beside each."""

import ast
import json
import sys
from pathlib import Path

import pytest

from tests.verifiers.verdicts import SCRIPT, ours, second

ROOT = Path(__file__).parents[2]
GRAMMAR = SCRIPT.with_name("grammar.txt")
FOLDER = Path(__file__).parent / "vectors"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def files_of(vector: dict) -> dict[str, list[Path]]:
    parts = {"paths": "ledgers", "receipts": "receipts", "closings": "closings"}
    return {part: [FOLDER / name for name in vector.get(key, ())] for part, key in parts.items()}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("verifier", [second, ours], ids=["second", "ours"])
def test_a_vector_gets_the_verdict_it_is_due(name, verifier):
    vector = EXPECTED[name]
    said = verifier(files_of(vector), vector["trust"])
    if said[-1:] == ["problems"]:  # beside the ledgers: nobody but a site accuses the site
        assert vector["verdict"] == "contradicted"
    elif isinstance(vector["verdict"], list):
        assert said == vector["verdict"]
    else:
        assert said == [vector["verdict"]] * len(vector["ledgers"])


def test_every_file_of_the_folder_belongs_to_a_vector():
    parts = [files_of(vector).values() for vector in EXPECTED.values()]
    used = {path.name for part in parts for paths in part for path in paths}
    assert used == {path.name for path in FOLDER.glob("*.json*")} - {"expected.json"}


def test_a_closing_under_a_rotated_key_is_among_those_in_order():
    ledger = (FOLDER / "untouched.jsonl").read_text().splitlines()
    closings = json.loads((FOLDER / "untouched.closings.json").read_text())
    first = json.loads(ledger[0])["body"]["public_key"]
    assert {closing["public_key"] == first for closing in closings} == {True, False}


def test_all_three_verdicts_are_among_them():
    each = (vector["verdict"] for vector in EXPECTED.values())
    verdicts = {word for said in each for word in ([said] if isinstance(said, str) else said)}
    assert verdicts == {"contradicted", "verified", "consistent, identity unknown"}


def test_its_length_is_told_with_that_of_the_grammar_it_reads():
    """Under 200 lines alone would hide what the script leaves to a file."""
    verifier, grammar = (len(p.read_text().splitlines()) for p in (SCRIPT, GRAMMAR))
    for page, between in (("README.md", " and an"), ("docs/ledger/format.md", ", with an")):
        told = f"{verifier} lines{between} {grammar}-line grammar"
        assert told in (ROOT / page).read_text(), page


def test_the_second_verifier_is_short_and_shares_no_code():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 200
    tops = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            tops.add(node.module.split(".")[0])
    assert tops - set(sys.stdlib_module_names) == {"cryptography", "dp_accounting"}
