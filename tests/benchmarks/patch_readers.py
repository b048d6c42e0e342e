"""Readers of patches: raw limits, bare tensorstore, and ours. Peers are in ``patch_peers``.

A reader is opened on a volume with a declared cache, and turns regions into patches, float32
(z, y, x): what a network is given. Each opener is called in a fresh process.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.benchmarks.patch_regions import Region
from tests.benchmarks.volumes import Volume, pseudonym, source_of

Patches = Generator[tuple[Region, Any], None, None]
Stream = Callable[[Iterator[Region]], Patches]
Open = Callable[[Volume, int], Stream]


@dataclass(frozen=True)
class Reader:
    """One row of the table.

    Args:
        kind: ``raw``, ``bare``, ``ours``, ``peer``; ``whole``: a peer that keeps the decoded
            volume in memory; ``by hand``: a peer with a cache that its user has to write.
        packages: Imported before the clock starts.
        bounded: It keeps chunks up to the declared cache.
        stored: Patches are uint16 as stored; they are compared all the same.
        patterns: That it can read.
        sharded: Also measured on the sharded layout; the others do not depend on it, or have a
            neighbour that tells as much.
    """

    name: str
    kind: str
    open: Open
    packages: tuple[str, ...] = ()
    bounded: bool = False
    stored: bool = False
    patterns: tuple[str, ...] = ("random", "aligned")
    sharded: bool = True


def one_by_one(read: Callable[[Region], Any]) -> Stream:
    """Return a stream that reads in this thread, a patch at a time."""

    def stream(regions: Iterator[Region]) -> Patches:
        for region in regions:
            yield region, read(region)

    return stream


def memory_mapped(volume: Volume, _: int) -> Stream:
    """Copying out of the mapped file, then converting: quicker than converting while copying."""
    voxels = np.load(volume.npy, mmap_mode="r")
    return one_by_one(lambda region: np.array(voxels[region]).astype(np.float32))


def memory_mapped_as_stored(volume: Volume, _: int) -> Stream:
    """The barest copy there is."""
    voxels = np.load(volume.npy, mmap_mode="r")
    return one_by_one(lambda region: np.array(voxels[region]))


def bare_tensorstore(volume: Volume, cache_bytes: int) -> Stream:
    """No layer of ours. tensorstore converts while it copies, which saves a pass."""
    import tensorstore

    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(volume.array)},
        "recheck_cached_data": "open",
        "recheck_cached_metadata": "open",
    }
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    store = tensorstore.open(spec, open=True, read=True, context=context).result()
    store = tensorstore.cast(store, tensorstore.float32)
    return one_by_one(lambda region: store[region].read().result())


def bare_tensorstore_without_cache(volume: Volume, _: int) -> Stream:
    """Every patch decodes all chunks that it touches."""
    return bare_tensorstore(volume, 0)


def open_ours(volume: Volume, cache_bytes: int) -> Any:
    """Open the scan as training does."""
    from data_adapters.cache import open_scan
    from data_adapters.discover import locate
    from data_adapters.ingest import MANIFEST
    from data_adapters.manifest import Manifest
    from data_adapters.zarr_store import limit_decoded_cache

    limit_decoded_cache(cache_bytes)
    in_place = {} if volume.rechunk else locate([source_of(volume)], pseudonym)
    (entry,) = Manifest.load(volume.cache / MANIFEST).scans
    return open_scan(volume.cache, entry, in_place)


def ours(volume: Volume, cache_bytes: int) -> Stream:
    """Real-world values of a cached scan."""
    scan = open_ours(volume, cache_bytes)
    return one_by_one(lambda region: scan.image(region)[0])


def ours_as_stored(volume: Volume, cache_bytes: int) -> Stream:
    """The same without the last step, to float32."""
    stored = open_ours(volume, cache_bytes).stored_czyx
    return one_by_one(lambda region: stored[(slice(0, 1), *region)][0])


def ours_copied(volume: Volume, cache_bytes: int) -> Stream:
    """The site's own copy, whatever the layout of the source."""
    folder = volume.cache.parent / "cache-copied"
    return ours(replace(volume, cache=folder, rechunk=True), cache_bytes)


TENSORSTORE = ("tensorstore",)
OURS = (*TENSORSTORE, "data_adapters.ingest", "data_adapters.ome_zarr", "ome_zarr_models.v05.image")
LIMIT = Reader("memory-mapped numpy", "raw", memory_mapped)
READERS = (
    LIMIT,
    Reader(
        "memory-mapped numpy, left as uint16",
        "raw",
        memory_mapped_as_stored,
        stored=True,
        sharded=False,
    ),
    Reader(
        "tensorstore, no cache", "bare", bare_tensorstore_without_cache, TENSORSTORE, sharded=False
    ),
    Reader("tensorstore, cache of chunks", "bare", bare_tensorstore, TENSORSTORE, bounded=True),
    Reader("ours, read in place", "ours", ours, OURS, bounded=True),
    Reader("ours, copied into the cache", "ours", ours_copied, OURS, bounded=True, sharded=False),
    Reader(
        "ours, left as uint16",
        "ours",
        ours_as_stored,
        OURS,
        bounded=True,
        stored=True,
        sharded=False,
    ),
)
