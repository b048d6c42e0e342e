"""Killed at any moment of a round, a site has charged for whatever it sent, and goes on.

``pytest -s tests/e2e/kills`` prints how often each phase of a round was hit; ``--junitxml`` keeps
it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# What a round writes; each of these must have been died at.
DURABLE = {
    "write ledger",
    "fsync ledger",
    "write mark",
    "fsync mark",
    "replace mark",
    "write update",
    "fsync update",
    "replace update",
    "fsync outbox",
    "replace receipt",
    "note reading",
    "send",
}


def kills(folder, *how):
    command = [sys.executable, "-m", "tests.e2e.kills.program", str(folder), *how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for name, times in found["phases"].items():
        sys.stdout.write(f"{name}: {times}\n")
    return found


@pytest.mark.slow
def test_a_kill_at_each_durable_call_of_a_round_costs_one_charge_and_leaks_none(
    tmp_path, record_property
):
    found = kills(tmp_path, "points")
    record_property("phases", found["phases"])
    assert found["wrong"] == []
    assert set(found["points"]["fresh"]) >= DURABLE
    assert "ftruncate ledger" in found["points"]["torn"]
    # A lost round: a loss and a refusal are written, then a new attempt is charged.
    assert found["points"]["charged"].count("write ledger") == 4
    assert found["points"]["released"] == ["mkdir state folder", "send"]
    assert all(found["phases"].values()), found["phases"]


@pytest.mark.slow
def test_two_hundred_kills_at_random_times_of_a_round_leak_none(tmp_path, record_property):
    found = kills(tmp_path, "random", "200")
    record_property("phases", found["phases"])
    assert found["wrong"] == []
    assert found["kills"] >= 200
    assert all(found["phases"].values()), found["phases"]
