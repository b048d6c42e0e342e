"""OME-Zarr 0.5 groups on disk: metadata built by ome-zarr-models, chunks by tensorstore.

ome_zarr's writers go through dask and build pyramids, which costs more than the data of a small
scan; here one scan is one chunk, and the metadata still passes the models' validation.
"""

import ctypes
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_adapters.blocks import blocks
from data_adapters.types import Voxels

LEVEL = "0"
OME_VERSION = "0.5"
MAX_CHUNK_VOXELS = 64**3
# malloc.h of glibc; mallopt(3).
_M_ARENA_MAX = -8
# Decoded chunks that one process keeps.
DECODED_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ZarrImage:
    """Where an array lies: axis names, one unit, and scale and translation in that unit."""

    axes: tuple[str, ...]
    unit: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]

    def without_channels(self) -> "ZarrImage":
        """Return where labels lie: the same place, without a leading channel axis."""
        if self.axes[0] != "c":
            return self
        return ZarrImage(self.axes[1:], self.unit, self.scale[1:], self.translation[1:])


def write_zarr_image(  # noqa: PLR0913
    path: Path,
    image: Voxels,
    geometry: ZarrImage,
    *,
    name: str,
    labels: Mapping[str, Voxels],
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write an image group with a labels group inside, both at one resolution.

    Args:
        path: Must not exist.
        image: Axes as in ``geometry``. What lies on disk is copied block by block.
        name: Of the image, in its metadata.
        attributes: JSON written beside the OME metadata, under keys of the caller's own.

    Raises:
        FileExistsError: ``path`` exists.
    """
    path.mkdir(parents=True)
    ome = {"version": OME_VERSION, "multiscales": [_multiscale(geometry, name)]}
    _write_group(path, {"ome": ome, **(attributes or {})})
    _write_array(path / LEVEL, image, geometry.axes)
    if not labels:
        return
    listing = {"ome": {"version": OME_VERSION, "labels": sorted(labels)}}
    _write_group(path / "labels", listing)
    for label_name, array in labels.items():
        _write_labels(path / "labels" / label_name, array, geometry)


def _write_labels(path: Path, array: Voxels, geometry: ZarrImage) -> None:
    path.mkdir()
    geometry = geometry.without_channels()
    ome = {
        "version": OME_VERSION,
        "multiscales": [_multiscale(geometry, path.name)],
        "image-label": {"source": {"image": "../../"}},
    }
    _write_group(path, {"ome": ome})
    _write_array(path / LEVEL, array, geometry.axes)


def _multiscale(geometry: ZarrImage, name: str) -> dict[str, Any]:
    from ome_zarr_models.v05.axes import Axis
    from ome_zarr_models.v05.multiscales import Dataset, Multiscale

    multiscale = Multiscale(
        name=name,
        axes=[
            Axis(name=axis, type="channel")
            if axis == "c"
            else Axis(name=axis, type="space", unit=geometry.unit)
            for axis in geometry.axes
        ],
        datasets=(
            Dataset.build(path=LEVEL, scale=geometry.scale, translation=geometry.translation),
        ),
    )
    dumped: dict[str, Any] = multiscale.model_dump(mode="json", exclude_none=True)
    return dumped


def _write_group(path: Path, attributes: Mapping[str, Any]) -> None:
    """Zarr v3 core: a group is its zarr.json."""
    path.mkdir(exist_ok=True)
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (path / "zarr.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def _write_array(path: Path, array: Voxels, axes: tuple[str, ...]) -> None:
    import tensorstore

    spec = {
        "driver": "zarr3",
        "kvstore": {**file_store(path), "file_io_sync": False},
        "metadata": {
            "shape": list(array.shape),
            "data_type": array.dtype.name,
            "dimension_names": list(axes),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": chunk_shape(array.shape)},
            },
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 1}},
            ],
            "fill_value": 0,
        },
        "create": True,
    }
    store = tensorstore.open(spec).result()
    if isinstance(array, np.ndarray):
        store.write(array).result()
        return
    for region in blocks(array.shape):
        store[region].write(array[region]).result()


def chunk_shape(shape: tuple[int, ...]) -> list[int]:
    """Return one chunk for a small scan, cubes of 64 for a large one, squares of 512 for a plane.

    Axes in front of the last three (channels) have a chunk for each index.

    >>> chunk_shape((8, 64, 80)), chunk_shape((2, 200, 512, 512)), chunk_shape((1, 900, 400))
    ([8, 64, 80], [1, 64, 64, 64], [1, 512, 400])
    """
    front, (z, y, x) = [1] * (len(shape) - 3), shape[-3:]
    if z * y * x <= MAX_CHUNK_VOXELS:
        return [*front, z, y, x]
    side = 512 if z == 1 else 64
    return [*front, min(z, 64), min(y, side), min(x, side)]


def open_array(path: Path, zarr_format: Literal[2, 3] = 3) -> Any:
    """Return a tensorstore of an existing array on this machine."""
    return open_store(file_store(path), zarr_format)


def file_store(path: Path) -> dict[str, Any]:
    """Return tensorstore's description of a folder of this machine; it refuses ``..`` in names."""
    plain = path.resolve() if ".." in path.parts else path
    return {"driver": "file", "path": f"{plain}/"}


def open_store(
    kvstore: Mapping[str, Any], zarr_format: Literal[2, 3], timeout_s: float | None = None
) -> Any:
    """Return a tensorstore of an existing array; its decoded chunks go to the shared cache.

    tensorstore is imported here and not above: it starts threads, and aborts in a child that is
    forked after that. Worker processes are to be spawned.

    Raises:
        ValueError: It is not there or no array that can be read (tensorstore's text quotes paths).
        TimeoutError: A remote store does not answer.
    """
    import tensorstore

    spec = {
        "driver": "zarr3" if zarr_format == 3 else "zarr",
        "kvstore": kvstore,
        # What was cached before this open is checked against the file once, not at each read.
        "recheck_cached_data": "open",
        "recheck_cached_metadata": "open",
    }
    future = tensorstore.open(spec, open=True, read=True, context=_shared_context())
    return future.result(timeout=timeout_s)


def as_float32(store: Any) -> Any:
    """Return a view of a tensorstore that converts while it reads."""
    import tensorstore

    return tensorstore.cast(store, tensorstore.float32)


def limit_decoded_cache(num_bytes: int) -> None:
    """Set how much decoded pixels this process keeps, for arrays that are opened from now on.

    Args:
        num_bytes: 0 keeps none. The default is ``DECODED_CACHE_BYTES``.
    """
    _CACHE.num_bytes = num_bytes
    _CACHE.context = None


class _Cache:
    """One cache of decoded chunks for the whole process, made at its first use."""

    num_bytes = DECODED_CACHE_BYTES
    context: Any = None


_CACHE = _Cache()


def _shared_context() -> Any:
    import tensorstore

    if _CACHE.context is None:
        _free_in_one_place()
        pool = {"total_bytes_limit": _CACHE.num_bytes}
        _CACHE.context = tensorstore.Context({"cache_pool": pool})
    return _CACHE.context


def _free_in_one_place() -> None:
    """Let glibc keep freed memory for all threads together.

    Each thread that decodes chunks would otherwise keep what it freed for itself, and a process
    would grow by that beyond its cache (docs/decisions/0014). Other C libraries do not know it.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def group_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a Zarr v3 group. Raises OSError, or ValueError if damaged."""
    document = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    attributes: dict[str, Any] = document["attributes"]
    return attributes
