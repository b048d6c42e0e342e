"""Worker processes: in order, one dies alone, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_adapters.cache import prepare_cache
from data_adapters.digests import Names
from data_adapters.reasons import Unusable
from data_adapters.staging import BLOCKS, Staged, Task
from data_adapters.types import Scan
from data_adapters.workers import stage_all

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fake:
    """A candidate whose reading does what its name says."""

    where: str
    subject: str = "P-1"

    def fingerprint(self):
        return ""

    def read(self):
        if self.where == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.where == "refuse":
            raise Unusable("COLOUR_IMAGE")
        if self.where == "wait":
            time.sleep(600)
        image = np.full((1, 2, 3, 4), int(self.where), np.int16)
        return Scan(image, (1.0,), (0.0,), np.eye(4), "P-1", "MR")


def tasks(cache, *names):
    prepare_cache(cache)
    (cache / BLOCKS).mkdir(exist_ok=True)
    return [Task(Fake(name), name, Names(("background", "a")), cache) for name in names]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(tmp_path, workers):
    given = tasks(tmp_path, "3", "refuse", "1", "2", "5", "4")
    results = list(stage_all(given, workers))
    assert [task for task, _ in results] == given
    assert isinstance(results[0][1], Staged)
    assert results[1][1].code == "COLOUR_IMAGE"


def test_a_scan_that_kills_its_reader_costs_itself_only(tmp_path):
    results = {
        task.candidate.where: result
        for task, result in stage_all(tasks(tmp_path, "1", "crash", "2", "3"), 2)
    }
    assert results["crash"].code == "READER_DIED"
    assert all(isinstance(results[name], Staged) for name in "123")


def test_workers_do_not_outlive_a_parent_that_was_killed(tmp_path):
    program = (
        "from tests.data_adapters.test_workers import *\n"
        "if __name__ == '__main__':\n"
        f"    list(stage_all(tasks(Path({str(tmp_path)!r}), 'wait', 'wait'), 2))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script], env=environment)
    try:
        workers = _children(parent.pid, at_least=2)
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []


def _children(pid, at_least):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = psutil.Process(pid).children(recursive=True)
        # The first child is multiprocessing's resource tracker, which ends by itself.
        busy = [child for child in found if "spawn_main" in " ".join(child.cmdline())]
        if len(busy) >= at_least:
            time.sleep(2)  # until each has its watcher
            return busy
        time.sleep(0.1)
    raise AssertionError("the workers did not start")
