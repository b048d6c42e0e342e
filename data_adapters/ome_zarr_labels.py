"""Label images of OME-Zarr: values to classes when they are read, and checked once before."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.blocks import blocks
from data_adapters.nearest import unmapped_values
from data_adapters.ome_zarr_images import OpenedImage, check_size, open_level
from data_adapters.ome_zarr_metadata import Grid, ImageMetadata, Level, read_metadata
from data_adapters.reasons import Unusable
from data_adapters.zarr_places import read_attributes
from data_adapters.zarr_voxels import Selection, Stored, ZarrVoxels

GRID_TOLERANCE_VOXELS = 0.05
# Values below this are looked up in a table as long as the largest of them.
TABLE_SIZE = 2**16
# In such a table; 255 may also be a class, then the values are looked at again.
UNKNOWN = 255
SHOWN = 5
# More values than a classification has: these are objects.
MANY = 20
_NONE_KNOWN: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True)
class ClassTable:
    """Label value to class index.

    Args:
        values: Pairs of value and class; 0 is always among them.
        interior: Of every value above 0, in place of ``values``: an instance mask.
    """

    values: tuple[tuple[int, int], ...]
    interior: int | None = None

    @classmethod
    def of(cls, values: Mapping[int, int]) -> "ClassTable":
        """Return the table of semantic labels; 0 is background."""
        return cls(tuple(sorted({0: 0, **values}.items())))

    @property
    def known(self) -> tuple[int, ...]:
        """Return the values that have a class of their own; none of an instance mask."""
        return tuple(value for value, _ in self.values)

    def unknown(self, labels: NDArray[Any]) -> set[int]:
        """Return the values in ``labels`` that are in no class."""
        if self.interior is not None:
            below = labels[labels < 0] if labels.dtype.kind == "i" else labels[:0]
            return {int(value) for value in np.unique(below)}
        if self._looked_up(labels).max(initial=0) != UNKNOWN:
            return set()
        return set(np.unique(labels).tolist()) - {value for value, _ in self.values}

    def apply(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the classes, uint8.

        Raises:
            Unusable: UNMAPPED_LABEL.
        """
        if self.interior is not None:
            return self._interior(labels)
        classes = self._looked_up(labels)
        if classes.max(initial=0) == UNKNOWN:
            refuse_unmapped(self.unknown(labels), self.known)
        return classes

    def takes_all_of(self, dtype: np.dtype[Any]) -> bool:
        """Say whether every value of this type has a class, so that none needs a look."""
        return self.interior is not None and dtype.kind != "i"

    def _interior(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        refuse_unmapped(self.unknown(labels), ())
        return (labels != 0).view(np.uint8) * np.uint8(self.interior or 0)

    def _looked_up(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the classes, with UNKNOWN where there is none (but it may also be a class)."""
        table = _dense(self.values)
        if len(table) and labels.dtype == np.uint8:
            translated = labels.tobytes().translate(table[:256].tobytes())
            return np.frombuffer(bytearray(translated), np.uint8).reshape(labels.shape)
        if len(table) and _fits(labels):
            return table.take(labels)
        present, places = np.unique(labels, return_inverse=True)
        known = dict(self.values)
        classes = [known.get(int(value), UNKNOWN) for value in present]
        return np.asarray(classes, dtype=np.uint8)[places.reshape(labels.shape)]


@lru_cache(maxsize=16)
def _dense(values: tuple[tuple[int, int], ...]) -> NDArray[np.uint8]:
    """Return classes by value, or nothing where a value does not fit such a table."""
    if any(not 0 <= value < TABLE_SIZE for value, _ in values):
        return np.empty(0, dtype=np.uint8)
    table = np.full(TABLE_SIZE, UNKNOWN, dtype=np.uint8)
    for value, index in values:
        table[value] = index
    return table


def _fits(labels: NDArray[Any]) -> bool:
    if labels.dtype in (np.uint8, np.uint16, np.bool_):
        return True
    return bool(labels.min(initial=0) >= 0 and labels.max(initial=0) < TABLE_SIZE)


def refuse_unmapped(values: set[int], known: Collection[int]) -> None:
    """Refuse labels that are in no class.

    Args:
        known: Values that are; none of instance masks.

    Raises:
        Unusable: UNMAPPED_LABEL, naming a few.
    """
    if not values:
        return
    shown = unmapped_values(sorted(values)[:SHOWN], known)
    if len(values) > MANY:
        shown += f" and {len(values) - SHOWN} more (are they objects? then use `instances`)"
    elif len(values) > SHOWN:
        shown += ", ..."
    raise Unusable("UNMAPPED_LABEL", shown)


class ClassVoxels:
    """uint8 class indices (z, y, x) of a label image, mapped as they are read; a ``Voxels``."""

    dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __init__(self, labels: ZarrVoxels, table: ClassTable) -> None:
        self.place = labels.place
        self._labels = labels
        self._table = table
        self._meaning = hashlib.sha256(repr(table).encode()).hexdigest()
        self.shape = labels.shape
        self.chunk_shape = labels.chunk_shape

    def __getitem__(self, region: tuple[slice, ...]) -> NDArray[np.uint8]:
        """Read one region.

        Raises:
            Unusable: UNDECODABLE_PIXELS, UNREACHABLE or UNMAPPED_LABEL.
        """
        return self._table.apply(self._labels[region])

    def region_stamp(self, region: tuple[slice, ...]) -> str:
        """Return what changes when a file behind the region changes; empty where not known."""
        stamp = self._labels.region_stamp(region)
        return f"{stamp}:{self._meaning}" if stamp else ""

    def objects(self) -> list[str] | None:
        """Return the names of what holds the labels; see ``ZarrVoxels.objects``."""
        return self._labels.objects()

    def check(self, known: Mapping[int, str] = _NONE_KNOWN) -> None:
        """Look at every label once, block by block.

        Args:
            known: Number of each block that was looked at before to its ``region_stamp``.

        Raises:
            Unusable: UNMAPPED_LABEL, naming values of the first blocks that have some.
        """
        if self._table.takes_all_of(self._labels.dtype):
            return
        unknown: set[int] = set()
        for number, region in enumerate(blocks(self.shape)):
            if known.get(number) and known[number] == self.region_stamp(region):
                continue
            unknown |= self._table.unknown(self._labels[region])
            if len(unknown) > MANY:
                break
        refuse_unmapped(unknown, self._table.known)


def open_labels(image: OpenedImage, name: str, table: ClassTable, unit: str | None) -> ClassVoxels:
    """Open the level of a labels group that lies on the image's grid; ``check`` it before use.

    Args:
        name: Of the group below ``labels``.
        unit: Of axes that state none, where the image's state none either.

    Raises:
        Unusable: NO_LABELS, LABEL_SHAPE, LABEL_GRID, LABEL_TYPE, and those of the metadata.
    """
    place = image.metadata.place.child(f"labels/{name}")
    if read_attributes(place) is None:
        raise Unusable("NO_LABELS")
    metadata = read_metadata(place)
    level, stored = _same_shape(metadata, image)
    if np.dtype(stored.dtype).kind not in "iub":
        raise Unusable("LABEL_TYPE", stored.dtype)
    stated = image.metadata.unit_of("y") or unit
    _check_same_grid(metadata.grid(level, planar=image.planar, unit=stated), image)
    check_size(stored)
    time = image.time if stored.size("t") > 1 else 0
    return ClassVoxels(ZarrVoxels(stored, Selection(time, None, stored.dtype)), table)


def _same_shape(metadata: ImageMetadata, image: OpenedImage) -> tuple[Level, Stored]:
    wanted = [image.stored.size(axis) for axis in "tzyx"]
    for level in metadata.levels:
        stored = open_level(metadata, level)
        if [stored.size(axis) for axis in "tzyx"] == wanted and stored.size("c") == 1:
            return level, stored
    raise Unusable("LABEL_SHAPE")


def _check_same_grid(labels: Grid, image: OpenedImage) -> None:
    """Both corners must agree to a fraction of a voxel; a plane's place along z means nothing."""
    first = 1 if image.planar else 0
    scale = np.asarray(image.grid.scale_mm)
    near = np.subtract(labels.translation_mm, image.grid.translation_mm)
    steps = np.subtract(labels.scale_mm, image.grid.scale_mm)
    far = near + steps * (np.asarray(image.voxels.shape[1:]) - 1)
    worst = np.maximum(np.abs(near / scale), np.abs(far / scale))[first:].max()
    if worst > GRID_TOLERANCE_VOXELS:
        raise Unusable("LABEL_GRID")
