"""Arrays of a Zarr store that are read region by region, with axes in the order used here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters import zarr_remote
from data_adapters.blocks import whole
from data_adapters.ome_zarr_stamps import ARRAY_FILES, ChunkFiles, chunk_files
from data_adapters.reasons import Unusable
from data_adapters.zarr_places import Place, ZarrFormat
from data_adapters.zarr_store import as_float32, open_store

ORDER = ("c", "z", "y", "x")
# Of a remote image with more, asking for each would take longer than it saves.
MOST_OBJECTS = 100_000


@dataclass(frozen=True)
class Stored:
    """An array as its store describes it; nothing of it is read yet.

    Args:
        axes: Names in array order, of t, c, z, y, x.
        chunk: Along each axis, the least that is decoded.
        grain: Along each axis, what one file holds: a chunk, or a shard of several.
    """

    place: Place
    zarr_format: ZarrFormat
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    grain: tuple[int, ...]
    store: Any = field(repr=False, compare=False)

    def size(self, axis: str) -> int:
        """Return the size along one axis; 1 where there is no such axis."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def num_bytes(self, axes: Sequence[str], sizes: Sequence[int]) -> int:
        """Return the bytes of some of the array's voxels as they are stored."""
        chosen = [size for axis, size in zip(self.axes, sizes, strict=True) if axis in axes]
        return int(np.prod(chosen, dtype=object)) * np.dtype(self.dtype).itemsize


def open_stored(
    place: Place, zarr_format: ZarrFormat, axes: tuple[str, ...], names: tuple[str, ...]
) -> Stored:
    """Open an array and look at its metadata.

    Args:
        axes: In array order, of t, c, z, y, x.
        names: What the group calls them. Zarr v3 arrays name their axes, too: the same, or the
            metadata contradicts itself (OME-Zarr 0.5, "dimension_names").

    Raises:
        Unusable: UNDECODABLE_PIXELS, UNREACHABLE, UNSUPPORTED_PIXELS or INVALID_METADATA.
    """
    store = _open(place, zarr_format)
    if store.ndim != len(axes) or 0 in store.shape:
        raise Unusable("INVALID_METADATA")
    pairs = zip(store.domain.labels, names, strict=True)
    if any(label not in ("", name) for label, name in pairs):
        raise Unusable("INVALID_METADATA")
    layout = store.chunk_layout
    return Stored(
        place=place,
        zarr_format=zarr_format,
        axes=axes,
        shape=tuple(store.shape),
        dtype=_numpy_name(store.dtype),
        chunk=tuple(layout.read_chunk.shape),
        grain=tuple(layout.write_chunk.shape),
        store=store,
    )


def _open(place: Place, zarr_format: ZarrFormat) -> Any:
    timeout = zarr_remote.METADATA_TIMEOUT_S if place.remote else None
    try:
        store = open_store(place.kvstore(), zarr_format, timeout)
        # Zarr arrays can grow; here an index beyond the end is a mistake.
        return store.resolve(fix_resizable_bounds=True).result(timeout=timeout)
    except (ValueError, OSError) as error:
        raise _unusable(place, error) from None


def _unusable(place: Place, error: Exception) -> Unusable:
    """Keep tensorstore's own text out: it quotes paths."""
    if place.remote:
        return zarr_remote.unreachable(error)
    return Unusable("UNDECODABLE_PIXELS", type(error).__name__)


def _numpy_name(dtype: Any) -> str:
    try:
        return str(np.dtype(dtype.numpy_dtype).name)
    except (TypeError, ValueError):
        raise Unusable("UNSUPPORTED_PIXELS", "that numpy does not know") from None


@dataclass(frozen=True)
class Selection:
    """What is taken of an array.

    Args:
        time: Index along t, where there is such an axis.
        channels: Indices along c that the result's first axis has; None for a result without
            that axis, made from index 0.
        dtype: Of the result.
    """

    time: int
    channels: tuple[int, ...] | None
    dtype: str


class ZarrVoxels:
    """(c, z, y, x), or (z, y, x), of an array on disk or behind a URL; a ``types.Voxels``.

    It is opened again in each process that reads it: pickling leaves the open store behind.

    Args:
        stored: Its store is used as it is opened.
    """

    def __init__(self, stored: Stored, selection: Selection) -> None:
        self.place = stored.place
        self._zarr_format = stored.zarr_format
        self._axes = stored.axes
        self._selection = selection
        self._names = ORDER if selection.channels is not None else ORDER[1:]
        self._files = None if stored.place.remote else _files_of(stored)
        self._grain = stored.grain
        self._timeout_s = zarr_remote.PIXELS_TIMEOUT_S if stored.place.remote else None
        self.shape = self._arranged(stored.shape)
        self.chunk_shape = self._arranged(stored.chunk)
        self.dtype: np.dtype[Any] = np.dtype(selection.dtype)
        self._view: Any = _view(stored.store, stored.axes, selection)
        self._converted: Any = None

    def __getitem__(self, region: tuple[slice, ...]) -> NDArray[Any]:
        """Read one region; nothing more than the chunks it touches is decoded.

        Raises:
            Unusable: UNDECODABLE_PIXELS, or UNREACHABLE.
            IndexError: The region is not inside.
        """
        return self._read(self._opened()[region])

    def float32(self, region: tuple[slice, ...]) -> NDArray[np.float32]:
        """Read one region, converted. Raises as reading it unconverted."""
        if self._converted is None:
            self._converted = as_float32(self._opened())
        return self._read(self._converted[region])

    def region_stamp(self, region: tuple[slice, ...]) -> str:
        """Return what changes when a file behind the region changes; empty where not known."""
        return (
            self._files.stamp(self._touched(region), repr(self._selection)) if self._files else ""
        )

    def objects(self) -> list[str] | None:
        """Return the names of what holds the array and its voxels; None where not known.

        Raises:
            Unusable: UNREACHABLE.
        """
        files = chunk_files(self.place, self._zarr_format, self._grain)
        touched = self._touched(whole(self.shape))
        if files is None or files.num_names(touched) > MOST_OBJECTS:
            return None
        return [*ARRAY_FILES, *files.names(touched)]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_view": None, "_converted": None}

    def _opened(self) -> Any:
        if self._view is None:
            store = _open(self.place, self._zarr_format)
            self._view = _view(store, self._axes, self._selection)
        return self._view

    def _read(self, part: Any) -> NDArray[Any]:
        try:
            values: NDArray[Any] = part.read().result(self._timeout_s)
        except (ValueError, OSError) as error:
            raise _unusable(self.place, error) from None
        return values

    def _arranged(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        by_name = dict(zip(self._axes, sizes, strict=True))
        if self._selection.channels is not None:
            by_name["c"] = min(by_name.get("c", 1), len(self._selection.channels))
        return tuple(by_name.get(name, 1) for name in self._names)

    def _touched(self, region: tuple[slice, ...]) -> list[Sequence[int]]:
        channels = self._selection.channels or (0,)
        parts = dict(zip(self._names, region, strict=True))
        touched: dict[str, Sequence[int]] = {
            name: range(parts[name].start, parts[name].stop) for name in ORDER[1:]
        }
        touched["t"] = (self._selection.time,)
        touched["c"] = channels[parts["c"]] if "c" in parts else channels
        return [touched[axis] for axis in self._axes]


def _files_of(stored: Stored) -> ChunkFiles | None:
    return chunk_files(stored.place, stored.zarr_format, stored.grain)


def _view(store: Any, axes: tuple[str, ...], selection: Selection) -> Any:
    """Arrange a store once, so that each read is one indexing of it."""
    import tensorstore

    index: list[Any] = [slice(None)] * len(axes)
    left = list(axes)
    if "t" in axes:
        index[axes.index("t")] = selection.time
        left.remove("t")
    if "c" in axes:
        channels = selection.channels
        index[axes.index("c")] = 0 if channels is None else _as_slice(channels)
        if channels is None:
            left.remove("c")
    names = ORDER if selection.channels is not None else ORDER[1:]
    view = store[tuple(index)]
    view = view.transpose([left.index(name) for name in names if name in left])
    view = view[tuple(slice(None) if name in left else tensorstore.newaxis for name in names)]
    view = view[tensorstore.d[:].translate_to[0]]
    if np.dtype(view.dtype.numpy_dtype) != np.dtype(selection.dtype):
        view = tensorstore.cast(view, selection.dtype)
    return view


def _as_slice(channels: tuple[int, ...]) -> Any:
    """A run of channels stays a slice, which tensorstore reads faster than a list of indices."""
    first, step = channels[0], 1
    if channels == tuple(range(first, first + len(channels), step)):
        return slice(first, first + len(channels))
    return list(channels)
