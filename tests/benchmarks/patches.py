"""Part 1: patches of a large volume, every reader beside a memory-mapped array."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np

from tests.benchmarks.patch_peers import PEERS
from tests.benchmarks.patch_readers import LIMIT, READERS, Patches, Reader, Stream
from tests.benchmarks.patch_regions import PATTERNS, endless, every_chunk, to_check
from tests.benchmarks.processes import evict, in_fresh_process, stays_in_memory, warm
from tests.benchmarks.sizes import MIB, Sizes
from tests.benchmarks.tables import Section, rate, verdict
from tests.benchmarks.volumes import Volume, Volumes

# Of issue 3: share of the memory-mapped rate, and times the best of MONAI + zarr-python.
LEAST_OF_LIMIT, LEAST_OF_PEERS = 0.6, 5.0
STATES = ("fits", "exceeds", "cold")
Record = dict[str, Any]
# By pattern: patches a second, and their share of the raw limit's.
Rates = dict[str, dict[str, float]]


def measure_patches(volumes: Volumes, sizes: Sizes) -> list[Section]:
    """Return one table for each layout."""
    kept = stays_in_memory(volumes.plain.npy)
    readers = (*READERS, *PEERS)
    sharded = tuple(reader for reader in readers if reader.sharded)
    plain = _Layout(f"{sizes.patch}^3 chunks", volumes.plain, readers)
    shards = _Layout(f"{sizes.shard}^3 shards of them", volumes.sharded, sharded)
    return [_section(layout, volumes, sizes, kept) for layout in (plain, shards)]


@dataclass(frozen=True)
class _Layout:
    name: str
    volume: Volume
    readers: tuple[Reader, ...]


def _section(layout: _Layout, volumes: Volumes, sizes: Sizes, kept: bool) -> Section:
    records = _records(layout, volumes, sizes)
    return Section(
        title=f"Patches of {sizes.patch}^3 a second (and share of the raw limit) from "
        f"{sizes.side}^3 uint16, OME-Zarr 0.5, blosc-zstd, {layout.name}, "
        f"compressed {layout.volume.ratio():.1f}x",
        columns=("float32 patches", *(f"{p}, {state}" for p in PATTERNS for state in STATES)),
        records=tuple(records),
        lines=tuple(_line(record) for record in records),
        notes=(*_explained(sizes, kept), *_verdicts(records)),
    )


def _records(layout: _Layout, volumes: Volumes, sizes: Sizes) -> list[Record]:
    """Measure all readers cold first: files are brought back into memory only once."""
    volume = layout.volume
    colds = [in_fresh_process(cold_rates, r, volumes, volume, sizes) for r in layout.readers]
    warm(*volumes.everything())
    warms = [in_fresh_process(warm_rates, r, volume, sizes) for r in layout.readers]
    return [
        _record(*found, limit=colds[0]) for found in zip(layout.readers, warms, colds, strict=True)
    ]


def _record(reader: Reader, warms: tuple[Rates, Rates], cold: Rates, *, limit: Rates) -> Record:
    record: Record = {"name": reader.name, "kind": reader.kind, "stored": reader.stored}
    fits, exceeds = warms
    for pattern in reader.patterns:
        share = cold[pattern]["rate"] / limit[pattern]["rate"]
        found = (fits[pattern], exceeds.get(pattern), cold[pattern] | {"share": share})
        record[pattern] = dict(zip(STATES, found, strict=True))
    return record


def warm_rates(reader: Reader, volume: Volume, sizes: Sizes) -> tuple[Rates, Rates]:
    """Return rates, files being in memory, where the volume fits and where it does not.

    Without a cache of chunks, its size changes nothing.
    """
    fits = _rates(reader, volume, sizes, sizes.roomy_bytes)
    if reader.kind == "whole":
        return fits, {}
    return fits, _rates(reader, volume, sizes, sizes.narrow_bytes) if reader.bounded else fits


def _rates(reader: Reader, volume: Volume, sizes: Sizes, cache_bytes: int) -> Rates:
    stream = reader.open(volume, cache_bytes)
    check(stream(iter(to_check(sizes))), volume, sizes)
    if reader.bounded:
        _exhaust(stream(every_chunk(sizes)))
    limit = LIMIT.open(volume, 0)
    found = {}
    for pattern in reader.patterns:
        before = _best_rate(limit, pattern, sizes, windows=1)
        best = _best_rate(stream, pattern, sizes, windows=sizes.windows)
        # Before and after, not between: loaders go on working in the background.
        after = _best_rate(limit, pattern, sizes, windows=1)
        found[pattern] = {"rate": best, "share": best / max(before, after)}
    return found


def check(patches: Patches, volume: Volume, sizes: Sizes) -> None:
    """Compare voxels with the array that was written."""
    truth = np.load(volume.npy, mmap_mode="r")
    for region, patch in islice(patches, len(to_check(sizes))):
        if not np.array_equal(np.asarray(patch), truth[region]):
            raise AssertionError(f"other voxels than were written at {region}")


def _best_rate(stream: Stream, pattern: str, sizes: Sizes, *, windows: int) -> float:
    patches = stream(endless(pattern, sizes))
    next(patches)
    best = max(_rate(patches, sizes.window_s) for _ in range(windows))
    patches.close()
    return best


def _rate(patches: Patches, window_s: float) -> float:
    num, start = 0, perf_counter()
    while (passed := perf_counter() - start) < window_s or not num:
        next(patches)
        num += 1
    return num / passed


def cold_rates(reader: Reader, volumes: Volumes, volume: Volume, sizes: Sizes) -> Rates:
    """Return the rate of the first patches, opening included, with no file in memory."""
    for package in reader.packages:
        import_module(package)
    found = {}
    for pattern in reader.patterns:
        evict(*volumes.everything())
        start = perf_counter()
        stream = reader.open(volume, sizes.roomy_bytes)
        regions = islice(endless(pattern, sizes, seed=2), sizes.num_cold)
        _exhaust(islice(stream(regions), sizes.num_cold))
        found[pattern] = {"rate": sizes.num_cold / (perf_counter() - start)}
    return found


def _exhaust(patches: Iterable[Any]) -> None:
    for _ in patches:
        pass


def _line(record: Record) -> tuple[str, ...]:
    mark = {"whole": " [1]", "by hand": " [2]"}.get(record["kind"], "")
    cells = [record["name"] + mark]
    for pattern in PATTERNS:
        for state in STATES:
            found = record.get(pattern, {}).get(state) or {}
            cells.append(rate(found.get("rate"), found.get("share")))
    return tuple(cells)


def _explained(sizes: Sizes, kept: bool) -> list[str]:
    roomy, narrow = sizes.roomy_bytes / MIB, sizes.narrow_bytes / MIB
    notes = [
        f"fits: the declared cache ({roomy:.3g} MiB) holds the volume "
        f"({sizes.volume_bytes / MIB:.3g} MiB), and every chunk was read once. "
        f"exceeds: a cache of {narrow:.3g} MiB. Files are in the page cache in both.",
        f"cold: the first {sizes.num_cold} patches after opening, files dropped from the page "
        "cache. The raw limit is stored uncompressed, so that cold it has more to fetch.",
        "Each row is compared with the array that was written, voxel by voxel, and timed between "
        f"two timings of the raw limit ({LIMIT.name}), in a process of its own.",
        "[1] keeps the whole decoded volume in memory, and reads all of it before its first patch.",
        "[2] neither library's: a cache of chunks that its user has to write.",
    ]
    if kept:
        notes.append("This file system keeps evicted pages: nothing here is really cold.")
    return notes


def _verdicts(records: list[Record]) -> list[str]:
    lines = []
    for record in records:
        if record["kind"] != "ours" or record["stored"]:
            continue
        name = f"{record['name']}, random and aligned, fits:"
        own = [record[pattern]["fits"]["share"] for pattern in PATTERNS]
        lines.append(verdict(f"{name} share of {LIMIT.name}", own, LEAST_OF_LIMIT))
        for kind, what, least in (
            ("peer", "the best of MONAI + zarr-python", LEAST_OF_PEERS),
            ("whole", "the best with the volume in memory [1]", None),
            ("by hand", "the cache written by hand [2]", None),
        ):
            best = _best_shares(records, kind)
            if best:
                values = [share / other for share, other in zip(own, best, strict=True)]
                lines.append(verdict(f"{name} times {what}", values, least))
    return lines


def _best_shares(records: list[Record], kind: str) -> list[float]:
    """Return the best share of each pattern among the rows of one kind; empty without any."""
    rows = [record for record in records if record["kind"] == kind]
    return [max(r[p]["fits"]["share"] for r in rows if p in r) for p in PATTERNS if rows]
