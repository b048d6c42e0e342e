"""One row: seconds, memory and agreement of one method on one case, in its own process."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch

from data_adapters.prepare import Record
from tests.benchmarks.private_methods import (
    METHODS,
    Setting,
    Step,
    Watch,
    flat,
    make_setting,
)
from tests.benchmarks.private_networks import TINY, Case

WARM_UP = 2


def write_reference(case: Case, device: str, folder: Path) -> float:
    """Write the clipped sums of subjects and of images; return the clip norm.

    All in float64. The norm is the median over subjects, so that half of them are clipped.
    """
    setting = make_setting(case, inf, Watch(device), torch.float64)
    clip_norm = median(clipped_sum(setting, setting.records, inf)[0])
    for unit, records in (("subjects", setting.records), ("images", _images(setting.records))):
        torch.save(clipped_sum(setting, records, clip_norm)[1], folder / unit)
    return clip_norm


def _images(records: Sequence[Record]) -> list[Record]:
    pairs = [pair for r in records for pair in zip(r.images, r.labels, strict=True)]
    return [Record(image.unsqueeze(0), label.unsqueeze(0)) for image, label in pairs]


def clipped_sum(
    setting: Setting, records: Sequence[Record], clip_norm: float
) -> tuple[list[float], torch.Tensor]:
    """Return each record's norm and the clipped sum, by hand: what rows must agree with."""
    norms, total = [], torch.zeros(())
    for record in records:
        loss = setting.losses(setting.network, [record]).mean()
        gradient = flat(torch.autograd.grad(loss, setting.parameters))
        norms.append(float(gradient.norm()))
        total = total + gradient * min(1.0, clip_norm / norms[-1])
    return norms, total


def measure_row(
    name: str, case: Case, clip_norm: float, folder: Path, watch: Watch, least_s: float
) -> dict[str, Any]:
    """Return what one method takes on one case. Call it in a fresh process."""
    # Opacus hooks the first layer too, whose input needs no gradient; torch says so at each step.
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    method = next(method for method in METHODS if method.name == name)
    # What a first step of any size makes, such as pools of threads, belongs to no row.
    method.start(make_setting(replace(TINY[case.kind], num_images=2), clip_norm, watch))()
    before = _allocated(watch.device)
    setting = make_setting(case, clip_norm, watch)
    step = method.start(setting)
    difference = _difference(step, setting, folder / method.clips)
    for _ in range(WARM_UP):
        step()
    seconds, noise_s = _best(step, watch, least_s)
    return {
        "seconds": seconds,
        "noise_seconds": noise_s,
        "peak_bytes": max(0, _peak(watch.device) - before),
        "difference": difference,
    }


def exact_difference(
    name: str, case: Case, clip_norm: float, folder: Path, watch: Watch
) -> float | None:
    """Return a row's difference when the network and its images are float64.

    In float32 rounding may put a value on the other side of a ReLU's bend or make another voxel
    the maximum, and the gradient jumps: what is computed is the same only if this is small.
    """
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    method = next(method for method in METHODS if method.name == name)
    setting = make_setting(case, clip_norm, watch, torch.float64)
    return _difference(method.start(setting), setting, folder / method.clips)


def _difference(step: Step, setting: Setting, reference: Path) -> float | None:
    """Return the largest difference of a coordinate of the clipped sum, in clip norms.

    Takes one step; None where nothing is clipped.
    """
    watch = setting.watch
    watch.copies = reference.exists()
    step()
    watch.copies, found, watch.sums = False, watch.sums, None
    if found is None:
        return None
    difference = (found - torch.load(reference, weights_only=True)).abs().max()
    return float(difference) / setting.clip_norm


def _best(step: Step, watch: Watch, least_s: float) -> tuple[float, float]:
    """Return the seconds of the fastest step, and those of its noise and update."""
    taken, start = [], watch.now()
    while not taken or watch.now() - start < least_s:
        taken.append(_take(step, watch))
    return min(taken)


def _take(step: Step, watch: Watch) -> tuple[float, float]:
    watch.middle_s, start = None, watch.now()
    step()
    end = watch.now()
    return end - start, 0.0 if watch.middle_s is None else end - watch.middle_s


def _allocated(device: str) -> int:
    """Return bytes in use now: of the GPU, or of this process without the pages of its code."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return _status_bytes("RssAnon")


def _peak(device: str) -> int:
    """Return the most that was ever in use."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status_bytes("VmHWM") - _status_bytes("RssFile") - _status_bytes("RssShmem")


def _status_bytes(field: str) -> int:
    """Linux, proc_pid_status(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; the benchmark needs Linux.")
