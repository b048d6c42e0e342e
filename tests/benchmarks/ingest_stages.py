"""Part 2b: taking a DICOM series in, stage by stage, beside the bare write of the same array."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tests.benchmarks.dicom_series import SUBJECTS, Series, source_of
from tests.benchmarks.processes import evict, in_fresh_process, warm
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.tables import Section, seconds
from tests.benchmarks.volumes import pseudonym

# What a worker imports before and while it reads a DICOM series.
IMPORTED = (
    "data_adapters.staging",
    "data_adapters.dicom",
    "highdicom.spatial",
    "ome_zarr_models.v05.multiscales",
    "pydicom.pixels.decoders",
    "tensorstore",
)
STAGES = ("headers, gate", "read", "digest", "cache write", "publish")
WHOLE = ("1 worker", "2 workers", "1 worker, cold")
BARE = "bare cache write"
Record = dict[str, Any]


def measure_ingest(all_series: list[Series], sizes: Sizes, folder: Path) -> Section:
    """Return the table of all syntaxes."""
    records = [_record(series, sizes, folder) for series in all_series]
    start_s = in_fresh_process(starting, 2)
    z, y, x = sizes.series_zyx
    return Section(
        title=f"Ingest of a CT series of {z} x {y} x {x} int16: seconds a series",
        columns=("syntax", *STAGES, "sum", BARE, *WHOLE),
        records=tuple(records),
        lines=tuple(_line(record) for record in records),
        notes=(
            "Stages: best of several. read: by the decoder's process, through a pipe to this one; "
            "its start is in the columns of workers alone.",
            "publish: sync to disk and rename.",
            f"{BARE}: tensorstore, same array, chunks and codec, nothing else.",
            f"workers: ingest() as a whole, {len(SUBJECTS)} series at once, divided by "
            f"{len(SUBJECTS)}. Starting 2 worker processes takes {start_s:.1f} s of it, once in an "
            "ingest of any length.",
            *_ratios(records),
        ),
    )


def _record(series: Series, sizes: Sizes, folder: Path) -> Record:
    warm(series.source)
    record: Record = {"name": series.syntax}
    record |= in_fresh_process(stages, series, sizes, folder / "stages")
    for name, workers, cold in zip(WHOLE, (1, 2, 1), (False, False, True), strict=True):
        record[name] = in_fresh_process(whole, series, folder / "whole", workers, cold)
    return record


def stages(series: Series, sizes: Sizes, folder: Path) -> dict[str, float]:
    """Time each stage by itself."""
    from data_adapters.cache import prepare_cache, publish, temporary_path, write_pixels
    from data_adapters.decoding import DECODERS, USUAL
    from data_adapters.dicom import discover_dicom
    from data_adapters.digests import Names, measure
    from data_adapters.zarr_store import LEVEL

    source = source_of(series)
    names = Names(source.class_names(), source.target_names(), source.channel_names())
    prepare_cache(folder)
    found, discovery = _best(lambda: discover_dicom(source), sizes)
    # As ingest reads: in the decoder's process, which takes a second to start, once. Not counted.
    DECODERS.read(discovery.candidates[0], names, USUAL)
    read, scan = _best(lambda: DECODERS.read(discovery.candidates[0], names, USUAL), sizes)
    digest, measured = _best(lambda: measure(scan, names), sizes)

    def write() -> Path:
        path = temporary_path(folder)
        write_pixels(path, scan, names, measured)
        return path

    written, path = _best(write, sizes)
    metadata = json.loads((path / LEVEL / "zarr.json").read_text())
    bare, _ = _best(lambda: bare_write(folder / "bare", scan.image_czyx, metadata), sizes)
    start = perf_counter()
    publish(folder, [(folder / "scans" / "final", path)])
    published = perf_counter() - start
    shutil.rmtree(folder)
    # Discovery looks at all subjects; everything else is one series.
    times = (found / len(SUBJECTS), read, digest, written, published)
    return dict(zip(STAGES, times, strict=True)) | {"sum": sum(times), BARE: bare}


def _best(function: Callable[[], Any], sizes: Sizes) -> tuple[float, Any]:
    """Return the best time of a function, and what it returned last."""
    began, best, result = perf_counter(), float("inf"), None
    while result is None or perf_counter() - began < sizes.least_s / 2:
        start = perf_counter()
        result = function()
        best = min(best, perf_counter() - start)
    return best, result


def bare_write(path: Path, array_czyx: np.ndarray, metadata: Record) -> bool:
    """Write an array by tensorstore alone, in chunks and with codecs like those of the cache."""
    import tensorstore

    like = {key: metadata[key] for key in ("shape", "data_type", "chunk_grid", "codecs")}
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path), "file_io_sync": False},
        "metadata": like,
        "create": True,
        "delete_existing": True,
    }
    tensorstore.open(spec).result().write(array_czyx).result()
    return True


def starting(workers: int) -> float:
    """Return how long worker processes take to start and import what reading needs."""
    start = perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_import, range(workers)):
            pass
    return perf_counter() - start


def _import(_: int) -> None:
    for package in IMPORTED:
        import_module(package)


def whole(series: Series, folder: Path, workers: int, cold: bool) -> float:
    """Return seconds a series of ingest() as training sites run it."""
    from data_adapters.ingest import ingest

    _import(0)
    if cold:
        evict(series.source)
    start = perf_counter()
    report = ingest(source_of(series), folder, pseudonymise=pseudonym, workers=workers)
    passed = perf_counter() - start
    shutil.rmtree(folder)
    if len(report.manifest.scans) != len(SUBJECTS):
        raise RuntimeError(f"{len(report.manifest.scans)} scans, not {len(SUBJECTS)}")
    return passed / len(SUBJECTS)


def _line(record: Record) -> tuple[str, ...]:
    return (record["name"], *(seconds(record.get(key)) for key in (*STAGES, "sum", BARE, *WHOLE)))


def _ratios(records: list[Record]) -> list[str]:
    return [
        f"{record['name']}: all stages take {record['sum'] / record[BARE]:.1f} times the "
        f"{BARE}; without reading, {(record['sum'] - record['read']) / record[BARE]:.1f} times."
        for record in records
    ]
