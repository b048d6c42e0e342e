"""One OME-Zarr image opened: the level, channels and time point that are wanted, lazily."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.blocks import whole
from data_adapters.geometry import zyx_affine
from data_adapters.ome_zarr_metadata import Grid, ImageMetadata, Level, read_metadata
from data_adapters.ome_zarr_stamps import holds_bytes
from data_adapters.reasons import Unusable
from data_adapters.zarr_places import Place
from data_adapters.zarr_voxels import Selection, Stored, ZarrVoxels, open_stored

# What each stored type becomes: nothing visible is lost.
KEPT_TYPES = {
    "uint8": "uint8",
    "int8": "int16",
    "uint16": "uint16",
    "int16": "int16",
    "float16": "float32",
    "float32": "float32",
    "float64": "float32",
}
# A declared shape costs nothing to write: beyond this it is a mistake or worse.
MAX_IMAGE_BYTES = 2**40
# Chunks without a file read as the fill value, so a few hundred bytes can declare all of the above,
# which takes hours to read. Beyond this size an image's files must hold one byte for so many:
# images that are mostly background, stored sparsely and compressed, stay far below.
MAX_EMPTY_BYTES = 4 * 2**30
MAX_EXPANSION = 10_000
# For those who want an array in memory.
MAX_VOLUME_BYTES = 8 * 2**30
# A chunk is decoded whole, and tensorstore aborts the process where memory is not given.
MAX_CHUNK_BYTES = 2**29


@dataclass(frozen=True)
class Wanted:
    """What is read of an image.

    Args:
        channels: Names from the omero metadata, or indices.
        time: Needed where there are several time points.
        spacing_mm: The coarsest level that is no coarser; without it, ``level``.
        unit: Of axes that state none.
        level: 0 is the finest.
    """

    channels: tuple[int | str, ...] = (0,)
    time: int | None = None
    spacing_mm: float | None = None
    unit: str | None = None
    level: int = 0


@dataclass(frozen=True)
class OpenedImage:
    """An image whose pixels are still where they were.

    Args:
        planar: Its z axis is missing, or has one plane.
        grid: With a step of 1 mm along z where it is planar.
    """

    metadata: ImageMetadata
    level: Level
    stored: Stored
    grid: Grid
    planar: bool
    time: int
    voxels: ZarrVoxels

    @property
    def affine_ras(self) -> NDArray[np.float64]:
        """Return indices (z, y, x) to RAS+ millimetres."""
        return zyx_affine(self.grid.scale_mm, self.grid.translation_mm)


def open_image(place: Place, wanted: Wanted) -> OpenedImage:
    """Open what is wanted of an image; no pixel is read.

    Raises:
        Unusable: Any reason code of this format's metadata, UNDECODABLE_PIXELS,
            UNSUPPORTED_PIXELS, TOO_LARGE, HUGE_CHUNKS, EMPTY_ARRAY, SEVERAL_TIME_POINTS,
            TIME_MISSING, CHANNEL_MISSING.
    """
    metadata = read_metadata(place)
    finest = open_level(metadata, metadata.levels[0])
    planar = finest.size("z") == 1
    level = _chosen(metadata, wanted, planar=planar)
    stored = finest if level == metadata.levels[0] else open_level(metadata, level)
    # A pyramid may halve z until one plane is left; the image is still a volume.
    grid = metadata.grid(level, planar=planar, unit=wanted.unit)
    selection = _selection(metadata, stored, wanted)
    check_size(stored, num_channels=len(wanted.channels))
    # Labels may be as sparse as they like: they have the shape of an image that is there.
    _check_present(stored)
    voxels = ZarrVoxels(stored, selection)
    return OpenedImage(metadata, level, stored, grid, planar, selection.time, voxels)


def open_level(metadata: ImageMetadata, level: Level) -> Stored:
    """Open the array of one level; its pixels are not read.

    Raises:
        Unusable: UNDECODABLE_PIXELS, UNREACHABLE, UNSUPPORTED_PIXELS or INVALID_METADATA.
    """
    return open_stored(level.array, metadata.zarr_format, metadata.axes, metadata.names)


def _chosen(metadata: ImageMetadata, wanted: Wanted, *, planar: bool) -> Level:
    if wanted.spacing_mm is not None:
        return metadata.level_for(wanted.spacing_mm, planar=planar, unit=wanted.unit)
    if wanted.level >= len(metadata.levels):
        raise Unusable("LEVEL_MISSING", str(wanted.level))
    return metadata.levels[wanted.level]


def _selection(metadata: ImageMetadata, stored: Stored, wanted: Wanted) -> Selection:
    if stored.dtype not in KEPT_TYPES:
        raise Unusable("UNSUPPORTED_PIXELS", stored.dtype)
    channels = tuple(
        _channel_index(channel, metadata.channel_names, stored.size("c"))
        for channel in wanted.channels
    )
    return Selection(_time_index(stored.size("t"), wanted.time), channels, KEPT_TYPES[stored.dtype])


def read_volume(place: Place, wanted: Wanted) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read the one wanted channel whole, with its affine to RAS+ millimetres.

    Returns:
        (z, y, x), or (y, x) without a z axis; the affine's columns follow, z last where it is
        not an axis of the array.

    Raises:
        Unusable: As ``open_image``; LEVEL_MISSING, TOO_LARGE, NOT_FINITE.
    """
    image = open_image(place, wanted)
    shape = image.voxels.shape
    num_bytes = int(np.prod(shape, dtype=object)) * image.voxels.dtype.itemsize
    if num_bytes > MAX_VOLUME_BYTES:
        raise Unusable("TOO_LARGE", f"{MAX_VOLUME_BYTES // 2**30} GiB")
    volume = image.voxels[whole(shape)][0]
    if not np.all(np.isfinite(volume)):
        raise Unusable("NOT_FINITE")
    if "z" in image.metadata.axes:
        return volume, image.affine_ras
    return volume[0], image.affine_ras[:, [1, 2, 0, 3]]


def _time_index(num_times: int, wanted: int | None) -> int:
    if wanted is None and num_times > 1:
        raise Unusable("SEVERAL_TIME_POINTS", str(num_times))
    if wanted is not None and wanted >= num_times:
        raise Unusable("TIME_MISSING", str(wanted))
    return wanted or 0


def _channel_index(channel: int | str, names: tuple[str, ...], num_channels: int) -> int:
    if isinstance(channel, int):
        if not 0 <= channel < num_channels:
            raise Unusable("CHANNEL_MISSING", str(channel))
        return channel
    found = [index for index, name in enumerate(names[:num_channels]) if name == channel]
    if len(found) != 1:
        several = " that is the only one of its name" if found else ""
        raise Unusable("CHANNEL_MISSING", repr(channel) + several)
    return found[0]


def check_size(stored: Stored, num_channels: int = 1) -> None:
    """Refuse what no machine could hold, before anything is read.

    Args:
        num_channels: That are read, of one time point.

    Raises:
        Unusable: TOO_LARGE or HUGE_CHUNKS.
    """
    if stored.num_bytes("zyx", stored.shape) * num_channels > MAX_IMAGE_BYTES:
        raise Unusable("TOO_LARGE", f"{MAX_IMAGE_BYTES // 2**40} TiB")
    # Chunks may be larger than the array they belong to.
    if stored.num_bytes("tczyx", stored.chunk) > MAX_CHUNK_BYTES:
        raise Unusable("HUGE_CHUNKS", f"{MAX_CHUNK_BYTES // 2**20} MiB")


def _check_present(stored: Stored) -> None:
    """Refuse an array that is declared, and not there. (Behind a URL nothing can be counted.)"""
    declared = stored.num_bytes("tczyx", stored.shape)
    if declared <= MAX_EMPTY_BYTES or stored.place.remote:
        return
    if not holds_bytes(stored.place, declared // MAX_EXPANSION):
        raise Unusable("EMPTY_ARRAY", f"{declared // 2**30:,} GiB")
