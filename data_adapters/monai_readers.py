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

from data_adapters.dicom_alone import read_alone
from data_adapters.dicom_pixels import use_gpu_decoders
from data_adapters.errors import DataError
from data_adapters.lengths import MILLIMETRES_IN, millimetres
from data_adapters.nifti_volume import read_header
from data_adapters.ome_zarr_images import Wanted, read_volume
from data_adapters.reasons import Unusable
from data_adapters.zarr_places import Place
from data_adapters.zarr_remote import is_url, mended_url, shown_url

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
        has_channels = arrays[0].ndim == 4
        meta: dict[str, Any] = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(arrays[0].shape[-3:]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0 if len(arrays) > 1 or has_channels else "no_channel",
        }
        if len(arrays) == 1:
            return arrays[0], meta
        return (np.concatenate(arrays) if has_channels else np.stack(arrays)), meta

    def _read_checked(self, path: Path) -> Volume:
        try:
            return self._read_one(path)
        except Unusable as reason:
            refused = reason.at(str(path))
            raise DataError(f"{path}: {refused.sentence} {refused.remedy}", refused.code) from None

    def _read_one(self, path: Path) -> Volume:
        raise NotImplementedError


class DicomReader(_VolumeReader):
    """Reads the one image of a folder, file or DICOMDIR as real-world values (float32).

    Single-frame series, enhanced multi-frame files and projections give (z, y, x); whole-slide
    images give (channel, 1, y, x). A segmentation without an image gives its segment numbers.
    Where nvImageCodec is installed and has a GPU, it decodes; a site's ingest decodes on the CPU,
    in a process that is kept from devices.

    Args:
        spacing: Millimetres, or text such as ``"0.65 um"``: of projections whose header has none;
            of whole-slide images, the coarsest level that is no coarser.

    Raises:
        ValueError: A spacing that is no length.
    """

    def __init__(self, *, spacing: float | str | None = None) -> None:
        self._spacing_mm = None if spacing is None else float(millimetres(spacing))

    def _read_one(self, path: Path) -> Volume:
        use_gpu_decoders()
        return read_alone(path, self._spacing_mm)


class NiftiReader(_VolumeReader):
    """Reads a NIfTI image as real-world values, float32 (z, y, x); refuses what a site refuses."""

    def _read_one(self, path: Path) -> Volume:
        header = read_header(path)
        image = header.image().astype(np.float32)
        return image * np.float32(header.slope) + np.float32(header.intercept), header.affine_ras


class OmeZarrReader(_VolumeReader):
    """Reads one level, channel and time point of an OME-Zarr 0.4 or 0.5 image, or of a URL.

    Images without a z axis give (y, x), the others (z, y, x).

    Args:
        level: 0 is the finest.
        channel: A name from the omero metadata, or an index.
        time: Needed where there are several time points.
        spacing: In place of ``level``, millimetres or text such as ``"0.65 um"``: the coarsest
            level that is no coarser.
        unit: Of spatial axes that state none.

    Raises:
        ValueError: Both a level and a spacing, or values that cannot be.
    """

    def __init__(
        self,
        level: int | None = None,
        channel: int | str = 0,
        *,
        time: int | None = None,
        spacing: float | str | None = None,
        unit: str | None = None,
    ) -> None:
        if level is not None and spacing is not None:
            raise ValueError("give a level or a spacing, not both")
        if min(level or 0, time or 0, channel if isinstance(channel, int) else 0) < 0:
            raise ValueError("level, channel and time count from 0")
        if unit is not None and unit not in MILLIMETRES_IN:
            raise ValueError(f"unit is one of {', '.join(MILLIMETRES_IN)}")
        spacing_mm = None if spacing is None else float(millimetres(spacing))
        self._wanted = Wanted((channel,), time, spacing_mm, unit, level or 0)

    def read(self, data: Sequence[PathLike] | PathLike, **_: Any) -> list[Volume]:
        """Return (array, affine) of each path or URL.

        Raises:
            DataError: The image cannot be used; ``code`` says why.
        """
        paths = [data] if isinstance(data, str | os.PathLike) else data
        return [self._opened(os.fspath(path)) for path in paths]

    def _opened(self, path: str) -> Volume:
        name = mended_url(path)
        try:
            return read_volume(Place(name), self._wanted)
        except Unusable as reason:
            where = shown_url(name) if is_url(name) else name
            refused = reason.at(where)
            message = f"{where}: {refused.sentence} {refused.remedy}"
            raise DataError(message, refused.code) from None
