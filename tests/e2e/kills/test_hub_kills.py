"""Killed at any moment, a hub goes on to the very model that the released updates make."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def killed(folder, *how):
    command = [sys.executable, "-m", "tests.e2e.kills.hub", str(folder), *how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_hub_that_asks_anew_after_a_crash_is_found_out(tmp_path):
    wrong = " ".join(killed(tmp_path, "1", "forgetful")["wrong"])
    assert "released {1: 2" in wrong


@pytest.mark.slow
def test_a_kill_at_the_durable_calls_of_a_run_costs_a_charge_at_most_and_not_one_bit(tmp_path):
    found = killed(tmp_path, "6")
    assert found["wrong"] == []
    assert set(found["died"]) >= {
        "write checkpoint",
        "fsync checkpoint",
        "replace checkpoint",
        "write arrays",
        "replace arrays",
        "unlink arrays",
        "replace spooled",
    }
    # Of the sites in the same process, too.
    assert {"ledger", "update", "receipt"} <= {call.split()[-1] for call in found["died"]}
