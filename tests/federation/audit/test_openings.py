"""A commitment to data, opened to an auditor and recomputed."""

import json
from dataclasses import replace
from hashlib import sha256

import pytest
from typer.testing import CliRunner

from federation.audit.verify import verify_ledgers
from federation.canonical import digest
from federation.cli.audit import app
from federation.ledger.openings import Opening
from tests.federation.audit.conftest import EXPERIMENT

ROOT, NONCE = digest("manifest"), "5a" * 32
COMMITMENT = f"sha256:{sha256(bytes.fromhex(NONCE) + ROOT.encode()).hexdigest()}"


@pytest.fixture
def opened(make_site, tmp_path):
    return make_site(tmp_path, commitment=COMMITMENT)


def opening(**changes) -> Opening:
    return replace(Opening("hospital-a", EXPERIMENT, NONCE, ROOT), **changes)


def claim(report):
    (verdict,) = report.verdicts
    return next((c.status, c.why) for c in verdict.claims if c.what == "commitment to the data")


def test_an_opening_that_fits_makes_the_claim_recomputed(opened):
    report = verify_ledgers([opened.path], trust=opened.trust, openings=[opening()])
    assert report.ok
    status, why = claim(report)
    assert status == "recomputed" and ROOT[:19] in why


@pytest.mark.parametrize("changed", [{"nonce": "5b" * 32}, {"root": digest("other data")}])
def test_an_opening_that_does_not_fit_contradicts_the_claim_and_accuses_no_ledger(opened, changed):
    report = verify_ledgers([opened.path], trust=opened.trust, openings=[opening(**changed)])
    assert claim(report)[0] == "contradicted"
    assert report.verdicts[0].ok and not report.ok
    assert "does not give the commitment" in report.problems[0]


def test_an_opening_of_something_else_is_noted(opened):
    elsewhere = [opening(site="lab"), opening(experiment_digest=digest("other"))]
    report = verify_ledgers([opened.path], trust=opened.trust, openings=elsewhere)
    assert report.ok and claim(report)[0] == "signed"
    assert report.notes == ("2 openings of no approval in a ledger here",)


def test_the_command_reads_the_file_and_refuses_another(opened, tmp_path):
    path = tmp_path / "opening.json"
    path.write_text(json.dumps(opening().to_json()))
    arguments = ["verify", "--trust", opened.key.fingerprint, "--opening", str(path)]
    done = CliRunner().invoke(app, [*arguments, str(opened.path), "--json"])
    assert done.exit_code == 0 and "opened to 1 data set" in done.output
    path.write_text("[]")
    done = CliRunner().invoke(app, [*arguments, str(opened.path)])
    assert done.exit_code == 2 and "opens no commitment" in done.stderr


def test_the_boards_page_says_what_was_opened(opened, tmp_path):
    path, page = tmp_path / "opening.json", tmp_path / "report.html"
    arguments = ["report", "--trust", opened.key.fingerprint, str(opened.path), "--out", str(page)]
    path.write_text(json.dumps(opening().to_json()))
    done = CliRunner().invoke(app, [*arguments, "--opening", str(path)])
    assert done.exit_code == 0 and "opened to 1 data set" in page.read_text()
    path.write_text(json.dumps(opening(root=digest("other data")).to_json()))
    done = CliRunner().invoke(app, [*arguments, "--opening", str(path)])
    assert done.exit_code == 1 and "does not give the commitment" in done.output
