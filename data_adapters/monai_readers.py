"""The same readers for ``monai.transforms.LoadImage``, without labels and without a federation.

Arrays are (z, y, x) and the affine's columns follow them, in RAS+ millimetres, as MONAI expects.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from data_adapters.dicom import image_series
from data_adapters.dicom_headers import quiet_pydicom
from data_adapters.dicom_volume import check_pixels, read_pixels, volume_geometry
from data_adapters.errors import DataError
from data_adapters.geometry import RAS_FROM_LPS, zyx_affine
from data_adapters.ome_zarr import read_image
from data_adapters.ome_zarr_metadata import read_metadata
from data_adapters.reasons import Unusable

PathLike = str | os.PathLike[Any]
Volume = tuple[NDArray[Any], NDArray[np.float64]]


class _VolumeReader(ImageReader):
    """A path in, one array with its affine out; several paths become channels in front."""

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Accept any path; ``read`` says what is wrong with it."""
        return bool(filename)

    def read(self, data: Sequence[PathLike] | PathLike, **_: Any) -> list[Volume]:
        """Return (array, affine) of each path.

        Raises:
            DataError: The scan cannot be used; the reason and the remedy are in the text.
        """
        paths = [data] if isinstance(data, str | os.PathLike) else data
        return [self._read_checked(Path(path)) for path in paths]

    def get_data(self, img: Sequence[Volume]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the array and the metadata from which MONAI makes a MetaTensor."""
        affine = img[0][1]
        arrays = [array for array, _ in img]
        if any(not np.allclose(affine, other) for _, other in img[1:]):
            raise DataError("The images lie on different grids. Resample them onto one first.")
        meta: dict[str, Any] = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(arrays[0].shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel" if len(arrays) == 1 else 0,
        }
        return (arrays[0] if len(arrays) == 1 else np.stack(arrays)), meta

    def _read_checked(self, path: Path) -> Volume:
        try:
            return self._read_one(path)
        except Unusable as reason:
            refused = reason.at(str(path))
            raise DataError(f"{path}: {refused.sentence} {refused.remedy}") from None

    def _read_one(self, path: Path) -> Volume:
        raise NotImplementedError


class DicomReader(_VolumeReader):
    """Reads the one image series of a folder, or a single file, as real-world values (float32)."""

    def _read_one(self, path: Path) -> Volume:
        with quiet_pydicom():
            series = image_series(path)
            if len(series) != 1:
                raise DataError(
                    f"{path}: {len(series)} image series where one is needed. Name a folder with "
                    "one series."
                )
            check_pixels(series[0])
            geometry = volume_geometry(series[0])
            stored, slope, intercept = read_pixels(geometry)
        real = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        return real, RAS_FROM_LPS @ geometry.affine_lps


class OmeZarrReader(_VolumeReader):
    """Reads one level and channel of an OME-Zarr 0.4 or 0.5 image.

    Args:
        level: 0 is the finest.
        channel: For (c, z, y, x) images.
    """

    def __init__(self, level: int = 0, channel: int = 0) -> None:
        self._level = level
        self._channel = channel

    def _read_one(self, path: Path) -> Volume:
        metadata = read_metadata(path)
        if not 0 <= self._level < len(metadata.levels):
            raise DataError(f"{path}: no level {self._level}; there are {len(metadata.levels)}.")
        level = metadata.levels[self._level]
        image = read_image(metadata, level, self._channel)
        return image, zyx_affine(level.scale_mm, level.translation_mm)
