"""`python -m tests.benchmarks.bench_data`: the whole comparison, a table for each part."""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from tests.benchmarks.processes import prepare
from tests.benchmarks.sizes import FULL, TINY, Sizes
from tests.benchmarks.tables import Section

PARTS = ("patches", "profile", "reading", "ingest", "memory")
LIBRARIES = ("numpy", "tensorstore", "zarr", "monai", "pydicom", "torch")


def main() -> None:
    """Measure and print."""
    asked = _arguments()
    console = Console(width=asked.width)
    sizes = TINY if asked.tiny else FULL
    prepare()
    start, sections, machine = perf_counter(), [], _machine()
    console.print(machine, highlight=False)
    with tempfile.TemporaryDirectory(prefix="bench-data-", dir=asked.folder) as folder:
        for section in _sections(asked.parts, Path(folder), sizes):
            section.show(console)
            sections.append(section)
            console.print(f"{perf_counter() - start:.0f} s since the start.\n", highlight=False)
    passed = perf_counter() - start
    if asked.json:
        document = {
            "machine": machine,
            "seconds": passed,
            "sections": [section.document() for section in sections],
        }
        asked.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _sections(parts: list[str], folder: Path, sizes: Sizes) -> Iterator[Section]:
    from tests.benchmarks.dicom_reading import measure_reading
    from tests.benchmarks.dicom_series import write_all_series
    from tests.benchmarks.ingest_stages import measure_ingest
    from tests.benchmarks.memory import measure_memory
    from tests.benchmarks.patch_profile import measure_profile
    from tests.benchmarks.patches import measure_patches
    from tests.benchmarks.processes import in_fresh_process
    from tests.benchmarks.volumes import write_volumes

    if {"patches", "profile", "memory"} & set(parts):
        volumes = in_fresh_process(write_volumes, folder, sizes)
        if "patches" in parts:
            yield from measure_patches(volumes, sizes)
        if "profile" in parts:
            yield measure_profile(volumes, sizes)
        if "memory" in parts:
            yield measure_memory(volumes, sizes)
    if {"reading", "ingest"} & set(parts):
        series = in_fresh_process(write_all_series, folder, sizes)
        if "reading" in parts:
            yield measure_reading(series, sizes)
        if "ingest" in parts:
            yield measure_ingest(series, sizes, folder)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(prog="bench_data", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes: shows that it works")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    parser.add_argument("--folder", type=Path, help="where data is written; not a tmpfs")
    parser.add_argument("--width", type=int, default=150, help="of the tables, in characters")
    return parser.parse_args()


def _machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    # Readers with several threads lose more than others where cores are busy with something else.
    busy = f"{os.getloadavg()[0]:.1f} processes running on average in the last minute"
    return f"{os.cpu_count()} cores, {platform.machine()}, {busy}; {libraries}"


if __name__ == "__main__":
    main()
