"""The benchmark works, at sizes that say nothing about speed; and it notices wrong voxels."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.bench_data import PARTS
from tests.benchmarks.patch_peers import PEERS
from tests.benchmarks.patch_readers import READERS, one_by_one
from tests.benchmarks.patch_regions import endless, every_chunk, to_check
from tests.benchmarks.patches import check
from tests.benchmarks.sizes import TINY
from tests.benchmarks.volumes import Volume

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_tiny_run_measures_every_row_and_all_rows_give_the_same_voxels(tmp_path):
    """Each row compares its voxels with those that were written, and ends the run if one differs.

    In a process of its own: tensorstore, which other tests have used here, aborts after a fork.
    """
    report = tmp_path / "report.json"
    asked = ("--tiny", "--folder", tmp_path, "--json", report)
    command = [sys.executable, "-m", "tests.benchmarks.bench_data", *map(str, asked)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    plain, sharded, *others = json.loads(report.read_text())["sections"]
    assert 2 + len(others) == len(PARTS) + 1
    every = (*READERS, *PEERS)
    assert [row["name"] for row in plain["records"]] == [reader.name for reader in every]
    assert len(sharded["records"]) == sum(reader.sharded for reader in every)
    for reader, row in zip(every, plain["records"], strict=True):
        for pattern in reader.patterns:
            rates = [found["rate"] for found in row[pattern].values() if found]
            assert len(rates) == (2 if reader.kind == "whole" else 3)
            assert min(rates) > 0
    for section in others:
        assert section["records"] and section["title"] in ran.stdout


def test_wrong_voxels_are_noticed(tmp_path):
    truth = np.arange(TINY.side**3, dtype=np.uint16).reshape((TINY.side,) * 3)
    np.save(tmp_path / "volume.npy", truth)
    volume = Volume(tmp_path / "volume.npy", tmp_path, tmp_path, rechunk=False)
    right = one_by_one(lambda region: truth[region].astype(np.float32))
    check(right(iter(to_check(TINY))), volume, TINY)
    shifted = one_by_one(lambda region: np.roll(truth, 1, axis=2)[region])
    with pytest.raises(AssertionError):
        check(shifted(iter(to_check(TINY))), volume, TINY)


def test_patches_lie_inside_and_aligned_ones_are_a_chunk_each():
    for pattern, step in (("random", 1), ("aligned", TINY.patch)):
        for region in islice(endless(pattern, TINY), 200):
            for part in region:
                assert part.start % step == 0
                assert 0 <= part.start < part.stop == part.start + TINY.patch <= TINY.side
    assert len(set(map(str, every_chunk(TINY)))) == (TINY.side // TINY.patch) ** 3
