import json

import pytest
from typer.testing import CliRunner

from federation.cli.audit import app

runner = CliRunner()


@pytest.fixture
def files(site, tmp_path):
    receipts = tmp_path / "receipts.json"
    receipts.write_text(json.dumps([r.to_json() for r in site.receipts]))
    trust = tmp_path / "trust.txt"
    trust.write_text(f"# sites of the study\nhospital-a {site.key.fingerprint}  # by telephone\n")
    return [str(site.path), "--trust", str(trust), "--receipts", str(receipts)]


def verify(*arguments):
    return runner.invoke(app, ["verify", *map(str, arguments)])


def test_an_honest_ledger_exits_0(files):
    result = verify(*files)
    assert result.exit_code == 0, result.output
    assert "Verified." in result.output
    assert "does not prove that noise was drawn" in result.output
    assert "if nothing had been chosen adaptively" in result.output


def test_a_fingerprint_serves_as_trust(site):
    result = verify(site.path, "--trust", site.key.fingerprint)
    assert result.exit_code == 0
    assert "tail not anchored: pass --receipts" in result.output


def test_without_trust_it_exits_1(site):
    result = verify(site.path)
    assert result.exit_code == 1
    assert "Consistent, identity unknown" in result.output


def test_a_dropped_tail_exits_1(site, files):
    site.write(site.values[:4])
    result = verify(*files)
    assert result.exit_code == 1
    assert "records are missing" in result.output
    assert "Contradicted" in result.output


def test_json_is_versioned(site, files):
    result = verify(*files, "--json")
    report = json.loads(result.output)
    assert report["format"] == "cohortium-audit-verify/1"
    assert report["ok"] is True
    (ledger,) = report["ledgers"]
    assert ledger["verdict"] == "verified"
    assert ledger["rdp_epsilon"] == pytest.approx(ledger["spent_epsilon"], rel=1e-9)
    assert ledger["fingerprint"] == site.key.fingerprint


def test_a_missing_ledger_exits_1(tmp_path):
    result = verify(tmp_path / "none.jsonl")
    assert result.exit_code == 1
    assert "no readable ledger" in result.output


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hospital-a\n", "line 1: expected a site's name once"),
        ("hospital-a SHA256:short\n", "line 1: 'SHA256:short' is not a fingerprint"),
        ("# nobody\n", "names no site"),
        (f"a SHA256:{'A' * 43}\na SHA256:{'B' * 43}\n", "line 2: expected a site's name once"),
        ("\udcff", "is not text"),
    ],
)
def test_a_malformed_trust_file_exits_2_and_names_the_line(site, tmp_path, text, why):
    (tmp_path / "trust.txt").write_text(text, errors="surrogateescape")
    result = verify(site.path, "--trust", tmp_path / "trust.txt")
    assert result.exit_code == 2
    assert why in result.stderr


def test_a_missing_trust_file_exits_2(site, tmp_path):
    result = verify(site.path, "--trust", tmp_path / "none")
    assert result.exit_code == 2
    assert "There is no readable trust file" in result.stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not JSON"),
        ("{}", "is not a JSON list"),
        ("[{}]", "entry 1: a receipt has exactly the keys"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_malformed_receipts_exit_2(site, tmp_path, text, why):
    (tmp_path / "r.json").write_text(text)
    result = verify(site.path, "--receipts", tmp_path / "r.json")
    assert result.exit_code == 2
    assert why in result.stderr


def test_no_ledger_exits_2():
    assert verify().exit_code == 2


def test_words_in_a_ledger_are_never_markup(tmp_path, make_site):
    site = make_site(tmp_path / "x", site="[red]evil[/red]")
    result = verify(site.path)
    assert "[red]evil[/red]" in result.output.replace("\n", "").replace(" ", "")


def test_help_teaches_by_example():
    result = verify("--help")
    assert "cohortium audit verify --trust" in result.output
    assert "Exit status" in result.output
