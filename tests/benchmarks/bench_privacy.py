"""`python -m tests.benchmarks.bench_privacy`: what privacy of subjects costs."""

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console

from models.build import num_parameters
from tests.benchmarks.private_measure import exact_difference, measure_row, write_reference
from tests.benchmarks.private_methods import CLOCKS, METHODS, Method, Watch
from tests.benchmarks.private_networks import FULL, IMAGE_COUNTS, TINY, Case
from tests.benchmarks.private_tables import Row, section
from tests.benchmarks.processes import MeasurementError, in_fresh_process
from tests.benchmarks.tables import Section

LIBRARIES = ("torch", "opacus", "monai", "numpy")
LEAST_S, TINY_LEAST_S = 3.0, 0.0


def main() -> None:
    """Measure and print."""
    asked = _arguments()
    console = Console(width=asked.width)
    # Imported once; each row is forked from there. Nothing has computed or touched a GPU by then.
    preloaded = ["tests.benchmarks.private_measure"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preloaded)
    start, sections, machine = perf_counter(), [], _machine(asked.device)
    console.print(machine, highlight=False)
    for each in _sections(asked):
        each.show(console)
        sections.append(each)
        console.print(f"{perf_counter() - start:.0f} s since the start.\n", highlight=False)
    if asked.json:
        document = {
            "machine": machine,
            "seconds": perf_counter() - start,
            "sections": [each.document() for each in sections],
        }
        asked.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _sections(asked: Any) -> Iterator[Section]:
    for kind in asked.cases:
        case = (TINY if asked.tiny else FULL)[kind]
        if asked.subjects:
            case = case.with_subjects(asked.subjects)
        rows = [row for count in asked.images for row in _rows(case.with_images(count), asked)]
        last = kind == asked.cases[-1]
        yield section(case, rows, num_parameters(case.network()), explained=last)


def _rows(case: Case, asked: Any) -> list[Row]:
    """Return a row for each method; if they are repeated, they take turns and the best counts."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="bench-privacy-") as name:
        clip_norm = in_fresh_process(write_reference, case, asked.device, Path(name))
        for _ in range(asked.repeats):
            for method in METHODS:
                before = rows.get(method.name)
                row = _row(method, case, asked, clip_norm, Path(name), first=before is None)
                rows[method.name] = row.better_of(before)
    return list(rows.values())


def _row(
    method: Method, case: Case, asked: Any, clip_norm: float, folder: Path, *, first: bool
) -> Row:
    least_s = TINY_LEAST_S if asked.tiny else LEAST_S
    asks = (method.name, case, clip_norm, folder, Watch(asked.device, asked.clock))
    try:
        exact = in_fresh_process(exact_difference, *asks) if first else None
        found = in_fresh_process(measure_row, *asks, least_s)
        return Row(method.name, case.num_images, **found, exact_difference=exact)
    except MeasurementError as error:
        if not method.name.startswith("Opacus"):
            raise
        # A peer that refuses a network is a finding.
        return Row(method.name, case.num_images, error=str(error).strip().splitlines()[-1])


def _arguments() -> Any:
    parser = argparse.ArgumentParser(prog="bench_privacy", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes: shows that it works")
    parser.add_argument("--cases", nargs="+", choices=list(FULL), default=list(FULL))
    parser.add_argument("--images", nargs="+", type=int, default=list(IMAGE_COUNTS))
    parser.add_argument("--subjects", type=int, help="of a step, in place of each case's own")
    parser.add_argument("--repeats", type=int, default=1, help="of each row, in turns; best counts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="processor: for a machine that others use, with OMP_NUM_THREADS=1; CPU only",
    )
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    parser.add_argument("--width", type=int, default=120, help="of the tables, in characters")
    return parser.parse_args()


def _machine(device: str) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}"
    busy = f"{os.getloadavg()[0]:.1f} processes running on average in the last minute"
    gpu = f", {_gpu_name()}" if device == "cuda" else ""
    return f"{threads}{gpu}, {busy}; {libraries}"


def _gpu_name() -> str:
    """Ask in another process: this one stays without a CUDA context."""
    return in_fresh_process(torch.cuda.get_device_name, 0)


if __name__ == "__main__":
    main()
