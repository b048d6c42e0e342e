"""Killed at any moment, an ingest is finished by the next one and equals an undisturbed one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_adapters.kills import KILLS

ROOT = Path(__file__).parents[2]


def kills(folder, how):
    command = [sys.executable, "-m", "tests.data_adapters.kills", str(folder), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_fifty_kills_at_random_times_leave_no_trace(tmp_path):
    found = kills(tmp_path, "random")
    assert found["kills"] >= 50
    assert found["files"] >= 30
    assert found["wrong"] == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["rechunk", "workers", "decoder"])
def test_kills_leave_no_trace_of_copies_or_of_other_processes(tmp_path, how):
    found = kills(tmp_path, how)
    assert found["kills"] >= KILLS[how]
    assert found["wrong"] == []


@pytest.mark.slow
def test_a_kill_before_each_call_that_makes_something_durable_or_visible_leaves_no_trace(tmp_path):
    found = kills(tmp_path, "points")
    assert found["points"] > 30
    assert found["wrong"] == []
