"""Killed while a run closes, a key or copy is replaced, ledgers merge: each can be done again."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
# What each must have been died at.
DURABLE = {
    "close_run": {"write ledger", "fsync ledger", "write mark", "replace mark"},
    "replace_key": {"write ledger", "fsync ledger", "replace site-key"},
    "recover": {"write ledger", "fsync ledger", "replace mark"},
    "merge": {"write ledger", "fsync ledger"},
}


def test_a_kill_at_each_durable_call_of_a_ledgers_upkeep_forgets_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.e2e.kills.upkeep", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    for action, calls in DURABLE.items():
        assert set(found["died"][action]) >= calls, (action, found["died"][action])
