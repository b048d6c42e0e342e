"""The benchmark works, at sizes that say nothing about speed; and it notices wrong sums."""

import json
import subprocess
import sys
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import torch

from federation import steps
from tests.benchmarks.batched_gradients import loop_gradients
from tests.benchmarks.private_measure import _difference, clipped_sum
from tests.benchmarks.private_methods import (
    BASELINE,
    METHODS,
    SHIPPED,
    PathFailedError,
    Watch,
    _ours,
    make_setting,
    segment_means,
)
from tests.benchmarks.private_networks import TINY
from tests.benchmarks.private_tables import Row, at_most, verdicts

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_tiny_run_measures_every_row_and_all_rows_clip_to_the_same_sum(tmp_path):
    report = tmp_path / "report.json"
    asked = ("--tiny", "--images", "2", "--json", report)
    command = [sys.executable, "-m", "tests.benchmarks.bench_privacy", *map(str, asked)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    sections = json.loads(report.read_text())["sections"]
    assert len(sections) == len(TINY)
    for section in sections:
        assert section["title"] in ran.stdout
        rows = {row["name"]: row for row in section["records"]}
        assert list(rows) == [method.name for method in METHODS]
        assert all(row["error"] is None and row["seconds"] > 0 for row in rows.values())
        assert rows.pop(BASELINE)["difference"] is None
        for name, row in rows.items():
            assert row["exact_difference"] < 1e-5, name
            assert row["difference"] < 1e-3, name


def setting_of(kind="densenet", clip_norm=1.0):
    return make_setting(replace(TINY[kind], num_images=2), clip_norm, Watch("cpu"))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_sum_that_is_wrong_in_one_coordinate_is_noticed(tmp_path):
    setting = setting_of()
    total = clipped_sum(setting, setting.records, 1.0)[1]
    torch.save(total, tmp_path / "right")
    total[7] += 0.01
    torch.save(total, tmp_path / "wrong")
    start = next(method.start for method in METHODS if method.name == "Opacus hooks")
    assert _difference(start(setting), setting, tmp_path / "right") < 1e-5
    setting = setting_of()
    found = _difference(start(setting), setting, tmp_path / "wrong")
    assert found == pytest.approx(0.01, abs=1e-5)


def test_the_reference_is_the_hand_clipped_sum_of_the_engines_gradients():
    setting = setting_of()
    gradients = loop_gradients(setting.network, setting.parameters, setting.records, setting.losses)
    rows = torch.cat([gradient.flatten(1).double() for gradient in gradients], dim=1)
    norms, total = clipped_sum(setting, setting.records, inf)
    assert norms == pytest.approx(rows.norm(dim=1).tolist())
    torch.testing.assert_close(total, rows.sum(0))
    clip_norm = sorted(norms)[1]
    clipped = rows * (clip_norm / rows.norm(dim=1)).clamp(max=1.0).unsqueeze(1)
    torch.testing.assert_close(clipped_sum(setting, setting.records, clip_norm)[1], clipped.sum(0))


def test_a_batched_row_that_would_go_on_one_by_one_stops(monkeypatch):
    """Patched back afterwards: a row's process ends, this one goes on."""
    monkeypatch.setattr(steps, "gradients_of", steps.gradients_of)
    monkeypatch.setattr(steps, "SubjectOptimizer", steps.SubjectOptimizer)

    def broken(*asks):
        raise ValueError("no such layer")

    step = _ours(setting_of(), path=broken)
    with pytest.raises(PathFailedError, match="broken failed: no such layer"):
        step()


def test_the_shipped_row_is_the_shipped_step_also_after_a_batched_row(monkeypatch):
    shipped = steps.gradients_of
    monkeypatch.setattr(steps, "gradients_of", shipped)
    monkeypatch.setattr(steps, "SubjectOptimizer", steps.SubjectOptimizer)
    for method in METHODS[1:3]:
        method.start(setting_of())()
    assert steps.gradients_of is not shipped
    METHODS[1].start(setting_of())
    assert (METHODS[1].name, steps.gradients_of) == (SHIPPED, shipped)


def test_subjects_of_different_sizes_get_means_and_not_sums():
    of_images = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])
    assert segment_means(of_images, [2, 1]).tolist() == [[2.0, 0.0], [5.0, 6.0]]


def test_verdicts_compare_the_shipped_row_with_the_one_of_the_same_number_of_images():
    rows = [
        Row(BASELINE, 1, seconds=1.0, noise_seconds=0.0, peak_bytes=100),
        Row(SHIPPED, 1, seconds=1.7, noise_seconds=0.5, peak_bytes=300),
        Row("Opacus hooks", 1, seconds=9.0, noise_seconds=0.0, peak_bytes=900),
        Row(BASELINE, 4, seconds=2.0, noise_seconds=0.0, peak_bytes=100),
        Row(SHIPPED, 4, seconds=2.7, noise_seconds=0.5, peak_bytes=101),
    ]
    one, four, memory = verdicts(rows)
    assert one.endswith(
        "time 1.70x of non-private (aim 1.75x): MET (1.20x before noise and update)"
    )
    assert "4 images a subject" in four and "1.35x" in four and "MISSED" in four
    assert memory.endswith("memory 1.01x of non-private (aim 1x): MISSED")
    assert at_most("time", 1.3, 1.3).endswith("MET")


def test_repeats_keep_the_fastest_time_the_least_memory_and_the_largest_difference():
    first = Row("a", 1, seconds=2.0, noise_seconds=0.1, peak_bytes=5, difference=1e-7)
    second = Row("a", 1, seconds=1.0, noise_seconds=0.2, peak_bytes=9, difference=0.0)
    assert second.better_of(first) == replace(second, peak_bytes=5, difference=1e-7)
    failed = Row("a", 1, error="refused")
    assert failed.better_of(first) is failed
