"""Known noise protects nobody: what it has touched says so for good, and never verifies."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import federation
from federation.audit.verify import verify_ledger, verify_ledgers
from federation.cli.audit import app
from federation.ledger.receipts import Receipt
from federation.messages import TrainRequest
from federation.privacy.random import SecureRandomness, randomness_told
from federation.rounds import LocalRounds
from federation.training import initial_weights
from tests.experiments import tiny_experiment
from tests.federation.audit.conftest import charge
from tests.federation.privacy.randomness import NoNoise, SeededRandomness, seeded_rounds

MARK = {"randomness": "insecure-test"}


def request(number):
    experiment = tiny_experiment()
    weights = initial_weights(experiment)
    return TrainRequest(experiment.digest(), "ab" * 16, number, 1, weights)


def test_a_seeded_round_marks_ledger_and_receipt_and_a_secure_one_later_does_not_heal_it(
    approved_sites,
):
    site = approved_sites[0]
    seeded = seeded_rounds(site, 1).train(request(1))
    secure = LocalRounds(site).train(request(2))
    assert seeded.receipt["versions"].items() >= MARK.items()
    assert "randomness" not in secure.receipt["versions"]
    receipts = [Receipt.from_json(dict(reply.receipt)) for reply in (seeded, secure)]
    verdict = verify_ledger(site.ledger.path, trust={site.key.fingerprint}, receipts=receipts)
    assert not verdict.ok and verdict.summary == "contradicted"
    (problem,) = verdict.problems
    assert problem.startswith("1 update released with a test's randomness (insecure-test)")


def test_a_secure_round_verifies(approved_sites):
    site = approved_sites[0]
    reply = LocalRounds(site).train(request(1))
    receipt = Receipt.from_json(dict(reply.receipt))
    assert verify_ledger(site.ledger.path, trust={site.key.fingerprint}, receipts=[receipt]).ok


@pytest.fixture
def marked(open_site):
    """A ledger with two good releases and then one that a test's noise is in."""
    ledger = open_site.open()
    open_site.receipts.append(ledger.release(charge(ledger, 2), b"seeded", versions=MARK))
    ledger.close()
    return open_site


def test_verifying_a_marked_ledger_is_one_plain_sentence_and_exit_1(marked):
    done = CliRunner().invoke(app, ["verify", str(marked.path), "--trust", marked.key.fingerprint])
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "released with a test's randomness (insecure-test)" in said
    assert "they protected nobody" in said
    assert "Contradicted" in said


def test_the_mark_cannot_be_left_out_of_a_receipt_or_of_the_ledger(marked):
    *good, told = marked.receipts
    silent = replace(told, versions={}).signed(marked.key)
    report = verify_ledgers([marked.path], trust=marked.trust, receipts=[*good, silent])
    assert any("something else than the ledger" in p for p in report.verdicts[0].problems)
    values = marked.values
    values[-1]["body"]["versions"] = {}
    marked.rewrite(values)
    report = verify_ledgers([marked.path], trust=marked.trust, receipts=marked.receipts)
    assert not report.ok


def test_every_source_but_the_cryptographic_one_is_told():
    class Almost(SecureRandomness):
        pass

    assert randomness_told(SecureRandomness()) == {}
    for source in (SeededRandomness(0), NoNoise(0), Almost()):
        assert randomness_told(source) == MARK


# Keywords that have nothing to do with randomness; ``**`` (None) is not among them.
HARMLESS = {"hub_key", "halted"}


def calls_that_choose_randomness(text):
    """Return the calls of ``LocalRounds`` that name their own source."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "LocalRounds"
        and ({one.arg for one in node.keywords} - HARMLESS or len(node.args) != 1)
    ]


def test_nothing_that_ships_chooses_another_source():
    files = sorted(Path(next(iter(federation.__path__))).rglob("*.py"))
    assert len(files) > 50
    for path in files:
        text = path.read_text()
        assert not calls_that_choose_randomness(text), path
        assert "SeededRandomness" not in text, path
        assert not re.search(r"^\s*(from|import) tests\b", text, re.MULTILINE), path
    assert calls_that_choose_randomness("LocalRounds(site, randomness=SeededRandomness)") == [1]
    assert calls_that_choose_randomness("LocalRounds(site, hub_key=key, **more)") == [1]
    assert calls_that_choose_randomness("LocalRounds(site, hub_key=key, halted=stop.is_set)") == []
