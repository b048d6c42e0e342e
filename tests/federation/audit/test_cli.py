import json

import pytest
from typer.testing import CliRunner

from federation.cli.audit import app
from tests.federation.audit.conftest import EXPERIMENT, PLAN

runner = CliRunner()


@pytest.fixture
def files(site, tmp_path):
    receipts = tmp_path / "receipts.json"
    receipts.write_text(json.dumps([r.to_json() for r in site.receipts]))
    trust = tmp_path / "trust.txt"
    trust.write_text(f"# sites of the study\nhospital-a {site.key.fingerprint}  # by telephone\n")
    closings = tmp_path / "closings.json"
    closings.write_text(json.dumps([c.to_json() for c in site.closings]))
    held = ["--receipts", str(receipts), "--closings", str(closings)]
    return [str(site.path), "--trust", str(trust), *held]


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
    assert "newest records are there         asserted" in result.output


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
    assert report["format"] == "cohortium-audit-verify/2"
    assert report["ok"] is True
    (ledger,) = report["ledgers"]
    assert ledger["verdict"] == "verified"
    assert ledger["rdp_epsilon"] == pytest.approx(ledger["spent_epsilon"], rel=1e-9)
    assert ledger["fingerprint"] == site.key.fingerprint
    claims = {claim["what"]: claim["status"] for claim in ledger["claims"]}
    assert claims["epsilon spent"] == "recomputed"
    assert claims["newest records are there"] == "signed"
    assert claims["noise was drawn"] == "asserted"
    assert report["found"]["ledgers"] == [str(site.path)]


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


@pytest.mark.parametrize("option", ["--receipts", "--closings"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not JSON"),
        ("{}", "is not a JSON list"),
        ("[{}]", "entry 1: a "),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_malformed_statements_exit_2(site, tmp_path, option, text, why):
    (tmp_path / "r.json").write_text(text)
    result = verify(site.path, option, tmp_path / "r.json")
    assert result.exit_code == 2
    assert why in result.stderr


def test_a_folder_is_searched_and_says_what_it_held(site, files):
    result = verify(site.path.parent, *files[1:3])
    assert result.exit_code == 0, result.output
    assert f"Found in {site.path.parent}: 1 ledger, 1 receipts file, 1 closings file." in (
        result.output.replace("\n", "")
    )


def test_a_folder_without_a_ledger_exits_2(tmp_path):
    result = verify(tmp_path)
    assert result.exit_code == 2
    assert "Ask the sites for their ledgers" in result.stderr


def test_several_ledgers_have_their_claims_side_by_side(tmp_path, make_site):
    for name in ("hospital-a", "hospital-b"):
        make_site(tmp_path / name, site=name)
    output = verify(tmp_path).output
    lines = [line.split() for line in output.splitlines()]
    assert ["claim", "hospital-a", "hospital-b"] in lines
    assert ["times", "asserted", "asserted"] in lines
    assert "--json says what each claim rests on." in output


@pytest.mark.parametrize(
    ("verdict", "status"),
    [("no_evidence_of_violation", "asserted"), ("violation", "contradicted")],
)
def test_a_self_audit_stands_beside_the_claim_that_noise_was_drawn(
    site, files, tmp_path, verdict, status
):
    report = {"format": "cohortium-self-audit/1", "verdict": verdict, "rounds": 3}
    (tmp_path / "audit.json").write_text(json.dumps({**report, "plan_digest": PLAN}))
    result = verify(*files, "--self-audit", tmp_path / "audit.json", "--json")
    (ledger,) = json.loads(result.output)["ledgers"]
    (noise,) = [claim for claim in ledger["claims"] if claim["what"] == "noise was drawn"]
    assert noise["status"] == status
    assert f"{verdict.replace('_', ' ')} (plan {PLAN[7:15]})" in noise["why"]


def self_audit(path, verdict="violation", **more):
    report = {"format": "cohortium-self-audit/1", "verdict": verdict, "rounds": 3}
    path.write_text(json.dumps({**report, "plan_digest": PLAN, **more}))
    return path


def noise(result):
    found = json.loads(result.output)["ledgers"]
    return [c["status"] for ledger in found for c in ledger["claims"] if "noise" in c["what"]]


def test_a_violation_that_a_site_itself_has_found_is_a_problem_and_exits_1(site, files, tmp_path):
    audit = self_audit(tmp_path / "audit.json")
    result = verify(*files, "--self-audit", audit)
    assert result.exit_code == 1
    assert "a self-audit of hospital-a (audit.json) found a violation" in result.output
    done = runner.invoke(
        app,
        ["report", *files, "--self-audit", str(audit), "--out", str(tmp_path / "report.html")],
    )
    assert done.exit_code == 1 and "found a violation" in done.output
    page = (tmp_path / "report.html").read_text()
    assert "found a violation" in page and "Verified." not in page


def test_a_self_audit_accuses_the_site_that_it_names_alone(tmp_path, make_site):
    sites = [make_site(tmp_path / name, site=name) for name in ("hospital-a", "hospital-b")]
    trust = ",".join(site.key.fingerprint for site in sites)
    audit = self_audit(tmp_path / "audit.json", site="hospital-b")
    result = verify(tmp_path, "--trust", trust, "--self-audit", audit, "--json")
    assert noise(result) == ["asserted", "contradicted"] and result.exit_code == 1


def test_a_self_audit_that_names_no_site_accuses_none_of_several(tmp_path, make_site):
    sites = [make_site(tmp_path / name, site=name) for name in ("hospital-a", "hospital-b")]
    trust = ",".join(site.key.fingerprint for site in sites)
    audit = self_audit(tmp_path / "audit.json")
    result = verify(tmp_path, "--trust", trust, "--self-audit", audit, "--json")
    assert noise(result) == ["asserted"] * 2 and result.exit_code == 1
    assert "names no site" in result.output and "hospital-a or hospital-b" in result.output


def test_what_site_audit_prints_as_json_is_read(site, files, tmp_path):
    report = json.loads(self_audit(tmp_path / "one.json", "inconclusive").read_text())
    values = {"format": "cohortium-site-audit/1", "site": "hospital-a"}
    told = [{"experiment": EXPERIMENT, "runs": ["run-1"], **report}]
    (tmp_path / "site.json").write_text(json.dumps({**values, "experiments": told}))
    result = verify(*files, "--self-audit", tmp_path / "site.json", "--json")
    assert result.exit_code == 0
    assert "inconclusive" in result.output


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


def test_the_boards_report_is_a_command_beside(site, files, tmp_path):
    done = runner.invoke(app, ["report", *files, "--out", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.output
    assert "hospital-a: verified" in done.output
    assert "<!doctype html>" in (tmp_path / "report.html").read_text().lower()


def test_receipts_alone_are_checked_and_verify_nothing(site, files, tmp_path):
    """What a hub's folder holds: what left, kept by somebody else than the sites."""
    held = tmp_path / "hub"
    held.mkdir()
    for name in ("receipts.json", "closings.json"):
        (tmp_path / name).rename(held / name)
    result = verify(held, *files[1:3])
    assert result.exit_code == 1, result.output
    assert "0 ledgers, 1 receipts file, 1 closings file" in result.output
    assert f"signed ({site.key.fingerprint}, a key that you trust)" in result.output
    assert "No ledger was given, so no epsilon was recomputed" in result.output
    (one,) = json.loads(verify(held, *files[1:3], "--json").output)["unheld"]
    assert one["standing"] == "signed" and one["receipts"] == len(site.receipts)
