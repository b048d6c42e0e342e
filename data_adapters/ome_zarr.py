"""Folders of OME-Zarr images: which are there, and reading one with its labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.geometry import zyx_affine
from data_adapters.ome_zarr_metadata import SPATIAL, ImageMetadata, Level, read_metadata
from data_adapters.reasons import Unusable
from data_adapters.sources import OmeZarrSource
from data_adapters.subject_ids import names_a_subject
from data_adapters.types import Discovery, Scan, relative
from data_adapters.zarr_store import open_array

SUFFIX = ".zarr"
# OME-Zarr does not say what kind of image it holds; DICOM's defined term for that is OT (other).
MODALITY = "OT"
KEPT_TYPES = {
    "uint8": np.uint8,
    "int8": np.int16,
    "uint16": np.uint16,
    "int16": np.int16,
    "float16": np.float32,
    "float32": np.float32,
    "float64": np.float32,
}
GRID_TOLERANCE_VOXELS = 0.05
# A scan is held in memory whole while it is taken in.
MAX_VOLUME_BYTES = 8 * 2**30


@dataclass(frozen=True)
class OmeZarrCandidate:
    """One image group with the labels group that is asked for."""

    where: str
    path: Path
    subject: str = field(repr=False)
    labels: str
    values: Mapping[int, int]
    channel: int

    def read(self) -> Scan:
        """Return the scan.

        Raises:
            Unusable: The reason code for which it is left out.
        """
        if not names_a_subject(self.subject):
            raise Unusable("NO_SUBJECT")
        metadata = read_metadata(self.path)
        level = metadata.levels[0]
        image = read_image(metadata, level, self.channel)
        return Scan(
            image_zyx=image,
            slope=1.0,
            intercept=0.0,
            labels_zyx=self._labels(level, image.shape),
            affine_ras=zyx_affine(level.scale_mm, level.translation_mm),
            subject=self.subject,
            modality=MODALITY,
        )

    def _labels(self, level: Level, shape_zyx: tuple[int, ...]) -> NDArray[np.uint8]:
        group = self.path / "labels" / self.labels
        if not group.is_dir():
            raise Unusable("NO_LABELS")
        metadata = read_metadata(group)
        for candidate in metadata.levels:
            store = _open_zyx(metadata, candidate, 0)
            if store.shape == shape_zyx:
                _check_same_grid(candidate, level, shape_zyx)
                return _classes(_pixels(store), self.values)
        raise Unusable("LABEL_SHAPE")


def discover_ome_zarr(source: OmeZarrSource) -> Discovery:
    """Look for ``<subject>/<anything>.ome.zarr`` (or ``.zarr``) below ``source.path``."""
    names = source.class_names()
    values = {value: names.index(name) for value, name in source.classes.items()}
    candidates = [
        OmeZarrCandidate(
            where=relative(path, source.path),
            path=path,
            subject=folder.name,
            labels=source.labels,
            values=values | {0: 0},
            channel=source.channel,
        )
        for folder in sorted(source.path.iterdir())
        if folder.is_dir() and folder.suffix != SUFFIX
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.suffix == SUFFIX
    ]
    loose = sum(path.suffix == SUFFIX for path in source.path.iterdir())
    notes = (
        (f"{loose} images lie beside the subject folders, not in one; passed over.",)
        if loose
        else ()
    )
    return Discovery(tuple(candidates), (), {}, notes)


def read_image(metadata: ImageMetadata, level: Level, channel: int) -> NDArray[Any]:
    """Return one channel of one level as (z, y, x), in a type that loses nothing visible.

    Raises:
        Unusable: UNDECODABLE_PIXELS, CHANNEL_MISSING, UNSUPPORTED_PIXELS, TOO_LARGE, NOT_FINITE.
    """
    store = _open_zyx(metadata, level, channel)
    stored_type = store.dtype.name
    if stored_type not in KEPT_TYPES:
        raise Unusable("UNSUPPORTED_PIXELS", stored_type)
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, refused below
        image = np.ascontiguousarray(_pixels(store), dtype=KEPT_TYPES[stored_type])
    if not np.all(np.isfinite(image)):
        raise Unusable("NOT_FINITE")
    return image


def _open_zyx(metadata: ImageMetadata, level: Level, channel: int) -> Any:
    """Return a tensorstore whose axes are z, y, x. Nothing is read yet."""
    try:
        store = open_array(level.path, metadata.zarr_format)
    except Exception as error:  # tensorstore's own types; the text quotes paths
        raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None
    if store.ndim != len(metadata.axes) or 0 in store.shape:
        raise Unusable("INVALID_METADATA")
    axes = list(metadata.axes)
    if "c" in axes:
        place = axes.index("c")
        if channel >= store.shape[place]:
            raise Unusable("CHANNEL_MISSING", str(channel))
        store = store[(slice(None),) * place + (channel,)]
        axes.remove("c")
    return store.transpose([axes.index(name) for name in SPATIAL])


def _pixels(store: Any) -> NDArray[Any]:
    # tensorstore aborts the whole process where it cannot get the memory: ask before.
    if store.size * store.dtype.numpy_dtype.itemsize > MAX_VOLUME_BYTES:
        raise Unusable("TOO_LARGE", f"{MAX_VOLUME_BYTES / 2**30:.0f} GiB")
    try:
        array: NDArray[Any] = store.read().result()
    except Exception as error:  # tensorstore's own types; the text quotes paths
        raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None
    return array


def _check_same_grid(labels: Level, image: Level, shape_zyx: tuple[int, ...]) -> None:
    """Both corners must agree to a fraction of a voxel."""
    scale = np.asarray(image.scale_mm)
    near = np.subtract(labels.translation_mm, image.translation_mm)
    far = near + np.subtract(labels.scale_mm, image.scale_mm) * (np.asarray(shape_zyx) - 1)
    if max(np.abs(near / scale).max(), np.abs(far / scale).max()) > GRID_TOLERANCE_VOXELS:
        raise Unusable("LABEL_GRID")


def _classes(labels: NDArray[Any], values: Mapping[int, int]) -> NDArray[np.uint8]:
    if labels.dtype.kind not in "iub":
        raise Unusable("LABEL_TYPE", labels.dtype.name)
    present, places = np.unique(labels, return_inverse=True)
    unmapped = sorted({int(value) for value in present} - set(values))
    if unmapped:
        shown = ", ".join(str(value) for value in unmapped[:5])
        raise Unusable("UNMAPPED_LABEL", shown + (", ..." if unmapped[5:] else ""))
    table = np.asarray([values[int(value)] for value in present], dtype=np.uint8)
    return np.ascontiguousarray(table[places.reshape(labels.shape)])
