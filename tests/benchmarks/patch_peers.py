"""MONAI with zarr-python in every configuration that seemed worth trying.

MONAI has no Zarr reader, so each of these is a few lines around both libraries, the fastest that
were found for what they do:

- zarr-python: array indexing with its defaults; with two decoding threads; with its experimental
  ``CacheStore`` (it keeps encoded chunks); with the Rust codecs of ``zarrs``, if installed.
- MONAI around that: ``Dataset`` with ``DataLoader`` (2 worker processes) and ``ThreadDataLoader``.
- MONAI with the decoded volume in memory: ``CacheDataset`` with ``Crop``, tracking metadata and
  not (``copy_cache=False``: by default each patch copies the volume), ``PatchDataset`` with
  ``RandSpatialCropSamples``, ``GridPatchDataset``.
- zarr-python with a cache of decoded chunks that the user writes.

Tried and left out, being slower than a neighbour here: concurrency of 1 and 10; a thread pool
around zarr-python; ``CacheDataset`` as it comes (7 patches a second); dask.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice, product
from typing import Any

import numpy as np

from tests.benchmarks.patch_readers import Patches, Reader, Stream, one_by_one
from tests.benchmarks.patch_regions import Region
from tests.benchmarks.volumes import Volume

WORKERS = 2
BATCH = 4
# What a loader is asked for in one epoch; the stream starts epoch after epoch.
EPOCH = 4096


def zarr_python(volume: Volume, _: int) -> Stream:
    """Plain indexing."""
    import zarr

    array = zarr.open_array(volume.array, mode="r")
    return one_by_one(lambda region: array[region].astype(np.float32))


def zarr_python_two_threads(volume: Volume, _: int) -> Stream:
    """As many decoding threads as this machine has cores."""
    import zarr

    zarr.config.set({"threading.max_workers": 2, "async.concurrency": 4})
    return zarr_python(volume, 0)


def zarr_python_cache_store(volume: Volume, cache_bytes: int) -> Stream:
    """Encoded chunks in memory: no file is opened twice, but every chunk is decoded each time."""
    import zarr
    from zarr.experimental.cache_store import CacheStore
    from zarr.storage import LocalStore, MemoryStore

    files = LocalStore(volume.array, read_only=True)
    store = CacheStore(files, cache_store=MemoryStore(), max_size=cache_bytes)
    array = zarr.open_array(store, mode="r")
    return one_by_one(lambda region: array[region].astype(np.float32))


def zarr_python_zarrs(volume: Volume, _: int) -> Stream:
    """Codecs in Rust, with its own threads."""
    import zarr
    import zarrs  # noqa: F401 - registers itself

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    return zarr_python(volume, 0)


class ReadRegion:
    """A transform from a region to a patch, (1, z, y, x); each process opens the array itself."""

    def __init__(self, volume: Volume) -> None:
        self._volume, self._array = volume, None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        import torch
        import zarr

        if self._array is None:
            self._array = zarr.open_array(self._volume.array, mode="r")
        patch = self._array[item["region"]].astype(np.float32)
        return {"patch": torch.from_numpy(patch)[None]}


def data_loader(volume: Volume, _: int) -> Stream:
    """Worker processes, forked before zarr-python starts its threads."""
    from monai.data import DataLoader, Dataset

    settings = {"batch_size": BATCH, "num_workers": WORKERS, "multiprocessing_context": "fork"}

    def load(items: list[dict[str, Any]]) -> Any:
        dataset = Dataset(items, ReadRegion(volume))
        return DataLoader(dataset, **settings)

    return _by_epoch(load)


def thread_data_loader(volume: Volume, _: int) -> Stream:
    """Worker threads."""
    from monai.data import Dataset, ThreadDataLoader

    settings = {"batch_size": BATCH, "num_workers": WORKERS, "use_thread_workers": True}

    def load(items: list[dict[str, Any]]) -> Any:
        dataset = Dataset(items, ReadRegion(volume))
        return ThreadDataLoader(dataset, **settings)

    return _by_epoch(load)


def _by_epoch(load: Callable[[list[dict[str, Any]]], Any]) -> Stream:
    def stream(regions: Iterator[Region]) -> Patches:
        while some := list(islice(regions, EPOCH)):
            waiting = iter(some)
            for batch in load([{"region": region} for region in some]):
                for patch in batch["patch"]:
                    yield next(waiting), patch[0]

    return stream


def _whole(volume: Volume, *, as_stored: bool) -> Any:
    """Return MONAI's cache of the one volume, (1, z, y, x)."""
    import torch
    import zarr
    from monai.data import CacheDataset
    from monai.transforms import Transform

    class LoadZarr(Transform):
        """MONAI caches what its own deterministic transforms give, and nothing of a function."""

        def __call__(self, path: str) -> Any:
            voxels = zarr.open_array(path, mode="r")[:]
            return torch.from_numpy(voxels if as_stored else voxels.astype(np.float32))[None]

    return CacheDataset([str(volume.array)], LoadZarr(), copy_cache=False, progress=False)


def cache_dataset(volume: Volume, _: int) -> Stream:
    """MONAI as its tutorials use it: MetaTensors, float32."""
    from monai.transforms import Crop

    cached, crop = _whole(volume, as_stored=False), Crop()
    return one_by_one(lambda region: crop(cached[0], region).contiguous()[0])


def cache_dataset_without_metadata(volume: Volume, _: int) -> Stream:
    """Plain tensors, uint16 until a patch is cut."""
    import torch
    from monai.data import set_track_meta
    from monai.transforms import Crop

    set_track_meta(False)
    cached, crop = _whole(volume, as_stored=True), Crop()
    return one_by_one(lambda region: crop(cached[0], region).to(torch.float32).contiguous()[0])


def patch_dataset(volume: Volume, _: int) -> Stream:
    """It draws the places itself; the affine tells which they were."""
    from monai.data import MetaTensor, PatchDataset
    from monai.transforms import RandSpatialCropSamples

    image = MetaTensor(_whole(volume, as_stored=False)[0])

    def stream(regions: Iterator[Region]) -> Patches:
        size = _size(next(regions))
        draw = RandSpatialCropSamples(size, num_samples=BATCH, random_size=False)
        while True:
            for patch in PatchDataset([image], draw, samples_per_image=BATCH):
                start = [int(step) for step in patch.affine[:3, 3]]
                yield _region(start, size), patch.contiguous()[0]

    return stream


def grid_patch_dataset(volume: Volume, _: int) -> Stream:
    """One patch after another, in order."""
    from monai.data import GridPatchDataset, PatchIter

    image = _whole(volume, as_stored=False)[0].numpy()

    def stream(regions: Iterator[Region]) -> Patches:
        size = _size(next(regions))
        while True:
            for patch, places in GridPatchDataset([image], PatchIter(size)):
                yield _region([int(low) for low, _ in places[1:]], size), patch[0]

    return stream


def _size(region: Region) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in region)


def _region(start: list[int], size: tuple[int, ...]) -> Region:
    z, y, x = (slice(low, low + width) for low, width in zip(start, size, strict=True))
    return z, y, x


def cache_by_hand(volume: Volume, cache_bytes: int) -> Stream:
    """Thirty lines that neither library has: decoded chunks in an ``lru_cache``."""
    import zarr

    array = zarr.open_array(volume.array, mode="r")
    sides = array.chunks
    num_chunks = max(1, cache_bytes // (int(np.prod(sides)) * array.dtype.itemsize))

    @lru_cache(num_chunks)
    def chunk(*index: int) -> Any:
        part = zip(index, sides, strict=True)
        return array[tuple(slice(i * side, (i + 1) * side) for i, side in part)]

    def read(region: Region) -> Any:
        patch = np.empty(_size(region), np.float32)
        touched = (
            range(part.start // side, -(-part.stop // side))
            for part, side in zip(region, sides, strict=True)
        )
        for index in product(*touched):
            within, into = _overlap(index, sides, region)
            patch[into] = chunk(*index)[within]
        return patch

    return one_by_one(read)


def _overlap(index: tuple[int, ...], sides: tuple[int, ...], region: Region) -> Any:
    within, into = [], []
    for number, side, part in zip(index, sides, region, strict=True):
        low, high = max(part.start, number * side), min(part.stop, (number + 1) * side)
        within.append(slice(low - number * side, high - number * side))
        into.append(slice(low - part.start, high - part.start))
    return tuple(within), tuple(into)


ZARR = ("zarr",)
MONAI = ("zarr", "torch", "monai.data", "monai.transforms")
PEERS = (
    Reader("zarr-python", "peer", zarr_python, ZARR),
    Reader("zarr-python, 2 decoding threads", "peer", zarr_python_two_threads, ZARR, sharded=False),
    Reader("zarr-python, CacheStore", "peer", zarr_python_cache_store, ZARR, bounded=True),
    Reader("MONAI Dataset + DataLoader, 2 workers", "peer", data_loader, MONAI),
    Reader("MONAI Dataset + ThreadDataLoader", "peer", thread_data_loader, MONAI, sharded=False),
    Reader("MONAI CacheDataset + Crop", "whole", cache_dataset, MONAI, sharded=False),
    Reader(
        "MONAI CacheDataset + Crop, no metadata",
        "whole",
        cache_dataset_without_metadata,
        MONAI,
        sharded=False,
    ),
    Reader(
        "MONAI PatchDataset", "whole", patch_dataset, MONAI, patterns=("random",), sharded=False
    ),
    Reader(
        "MONAI GridPatchDataset",
        "whole",
        grid_patch_dataset,
        MONAI,
        patterns=("aligned",),
        sharded=False,
    ),
    Reader("zarr-python + lru_cache of chunks", "by hand", cache_by_hand, ZARR, bounded=True),
)
if find_spec("zarrs") is not None:
    zarrs = Reader("zarr-python + zarrs codecs", "peer", zarr_python_zarrs, (*ZARR, "zarrs"))
    PEERS = (*PEERS[:3], zarrs, *PEERS[3:])
