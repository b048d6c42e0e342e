"""Where the time of one random patch goes, with every chunk in the cache and with none."""

from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tests.benchmarks.patch_readers import open_ours
from tests.benchmarks.patch_regions import Region, endless, every_chunk
from tests.benchmarks.processes import in_fresh_process, warm
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.tables import Section
from tests.benchmarks.volumes import Volume, Volumes

NUM_PATCHES = 100
US = 1e6
Times = dict[str, float]


def measure_profile(volumes: Volumes, sizes: Sizes) -> Section:
    """Return the table of steps, for scans read in place with one file a chunk."""
    warm(*volumes.everything())
    cached = in_fresh_process(steps_when_cached, volumes.plain, sizes)
    decoded = in_fresh_process(steps_without_cache, volumes.plain, sizes)
    records = [
        {"cache": name, "step": step, "us": us, "share": us / times["whole patch"]}
        for name, times in (("all chunks cached", cached), ("no cache", decoded))
        for step, us in times.items()
    ]
    return Section(
        title=f"Where the time of one random patch of {sizes.patch}^3 goes (ours, read in place)",
        columns=("step", "cache", "us", "share of the patch"),
        records=tuple(records),
        lines=tuple(
            (r["step"], r["cache"], f"{r['us']:,.0f}", f"{r['share']:.2f}") for r in records
        ),
        notes=(
            "no cache: file reads and decompression are measured alone, in one thread; a read "
            "spreads them over the cores, so the shares may add up to more than 1.",
        ),
    )


def steps_when_cached(volume: Volume, sizes: Sizes) -> Times:
    """Take the fixed cost of a read off a whole patch; converting is part of the copying."""
    scan = open_ours(volume, sizes.roomy_bytes)
    for region in every_chunk(sizes):
        scan.image(region)
    dispatch = _us(lambda _: scan.image((slice(0, 1), slice(0, 1), slice(0, 1))), sizes)
    patch = _us(scan.image, sizes)
    return {
        "fixed cost of a read (one voxel)": dispatch,
        "putting the patch together from chunks, as float32": patch - dispatch,
        "whole patch": patch,
    }


def steps_without_cache(volume: Volume, sizes: Sizes) -> Times:
    """Read files, and decompress them, by themselves."""
    import numcodecs

    scan = open_ours(volume, 0)
    patch = _us(scan.image, sizes)
    files = _us(lambda region: [path.read_bytes() for path in _touched(volume, region)], sizes)
    both = _us(
        lambda region: [
            numcodecs.blosc.decompress(path.read_bytes()) for path in _touched(volume, region)
        ],
        sizes,
    )
    return {
        "reading the chunks' files": files,
        "decompression": both - files,
        "whole patch": patch,
    }


def _touched(volume: Volume, region: Region) -> Iterator[Path]:
    side = _chunk_side(volume)
    parts = (range(part.start // side, -(-part.stop // side)) for part in region)
    for z, y, x in product(*parts):
        yield volume.array / "c" / str(z) / str(y) / str(x)


def _chunk_side(volume: Volume) -> int:
    import json

    document = json.loads((volume.array / "zarr.json").read_text())
    return int(document["chunk_grid"]["configuration"]["chunk_shape"][0])


def _us(read: Callable[[Region], Any], sizes: Sizes) -> float:
    """Return the least mean time of a patch over several rounds, in microseconds."""
    regions = list(islice(endless("random", sizes, seed=3), NUM_PATCHES))

    def round_s() -> float:
        start = perf_counter()
        for region in regions:
            read(region)
        return perf_counter() - start

    return float(np.min([round_s() for _ in range(max(sizes.windows, 2))])) / NUM_PATCHES * US
