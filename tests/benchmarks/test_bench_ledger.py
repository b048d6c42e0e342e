"""The benchmark works, at sizes that say nothing about speed; and its verdicts read both ways."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from federation.audit.verify import verify_ledger
from federation.ledger.ledger import Ledger
from tests.benchmarks.bench_ledger import charge_section, verify_section
from tests.benchmarks.long_ledgers import long_ledger

ROOT = Path(__file__).resolve().parents[2]


def test_a_tiny_run_measures_every_row(tmp_path):
    report = tmp_path / "report.json"
    asked = ("--lengths", 10, 30, "--charges", 3, "--verified", 40)
    command = [sys.executable, "-m", "tests.benchmarks.bench_ledger", *map(str, asked)]
    command += ["--folder", str(tmp_path), "--json", str(report)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    charges, verified = json.loads(report.read_text())["sections"]
    assert [row["records"] for row in charges["records"]] == [10, 30]
    for row in charges["records"]:
        assert all(row[name] > 0 for name in ("bare_s", "charge_s", "marked_s", "opened_s"))
    assert [row["records"] for row in verified["records"]] == [39, 39, 39]
    assert [row["receipts"] for row in verified["records"]] == [0, 18, 18]
    assert [row["by"] for row in verified["records"]] == ["first", "first", "second"]
    assert charges["title"] in ran.stdout and verified["title"] in ran.stdout


def test_a_ledger_made_at_once_is_one_like_any_other(tmp_path):
    made = long_ledger(tmp_path, 101)
    verdict = verify_ledger(
        tmp_path / "ledger.jsonl", trust={made.key.fingerprint}, receipts=made.receipts
    )
    assert verdict.ok and verdict.notes == ()
    assert (verdict.charges, verdict.releases) == (49, 49)
    assert len(Ledger.open(tmp_path / "ledger.jsonl", made.key).records) == 101


@pytest.mark.parametrize(("charge_s", "said"), [(0.002, "MET"), (0.0021, "MISSED")])
def test_half_of_the_bare_rate_is_the_aim(charge_s, said):
    row = {"records": 100, "line_bytes": 900, "bare_s": 0.001, "opened_s": 0.1}
    section = charge_section([{**row, "charge_s": charge_s, "marked_s": 0.004}])
    assert section.notes[3].endswith(f"(aim 0.5): {said}")
    assert section.lines[0][3] == "250 (0.25)"
    assert float(section.lines[0][4]) == pytest.approx(1e3 * charge_s - 1)


@pytest.mark.parametrize(("wall_s", "said"), [(60.0, "MET"), (60.1, "MISSED")])
def test_a_minute_is_the_aim(wall_s, said):
    row = {"by": "first", "records": 100_000, "receipts": 0, "wall_s": wall_s, "processor_s": 30.0}
    assert verify_section([row]).notes[0].endswith(said)
