"""Counts of tests are told at the end of a run, captured and spread over processes or not."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.counts import told

ROOT = Path(__file__).parents[1]
HOOK = "from tests.conftest import pytest_terminal_summary\n"
COUNTING = """
import pytest

@pytest.mark.parametrize("n", [1, 2])
def test_counts(record_property, n):
    record_property("phases", {"write ledger": n, "send": 0})
    record_property("verdicts", {"contradicted": 5})
    record_property("seed", 3)

def test_counts_and_fails(record_property):
    record_property("phases", {"fsync ledger": 4})
    assert False

def test_says_nothing():
    pass
"""


def summary(folder, *options):
    (folder / "conftest.py").write_text(HOOK)
    (folder / "test_it.py").write_text(COUNTING)
    # Not this project's settings, but its modules.
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout and "1 failed" in done.stdout, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two processes"])
def test_phases_and_verdicts_are_told_without_s(tmp_path, options):
    shown = summary(tmp_path, *options)
    lines = shown.splitlines()
    here = lines.index("killed in phase")
    assert sorted(lines[here + 1 : here + 4]) == [
        "  fsync ledger: 4",
        "  send: 0",
        "  write ledger: 3",
    ]
    assert "  contradicted: 10" in lines
    assert "seed" not in shown


def test_nothing_is_told_where_nothing_was_counted():
    assert list(told([("seed", 3), ("started again within the lease", True)])) == []
