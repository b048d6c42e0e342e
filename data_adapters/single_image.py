"""One image by its path, for whoever shows it: no site, no cache, no labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.data.image_reader import ImageReader
from numpy.typing import NDArray

from data_adapters.errors import DataError
from data_adapters.monai_readers import DicomReader, NiftiReader, OmeZarrReader
from data_adapters.ome_zarr_stamps import GROUP_FILES

_Read = tuple[NDArray[np.float32], NDArray[np.float64]]
Image = tuple[NDArray[np.float32], NDArray[np.float64], bool]


def read_image(paths: Sequence[Path], num_channels: int) -> Image:
    """Read one image: of each channel a path, or all channels from one OME-Zarr.

    NIfTI, OME-Zarr, and a folder, file or DICOMDIR with one DICOM image.

    Returns:
        image_czyx, its affine to RAS+ millimetres with columns z, y, x, and whether it is a plane.

    Raises:
        DataError: It cannot be used, or has another number of channels.
    """
    if len(paths) == 1 and num_channels > 1 and _is_zarr(paths[0]):
        parts = [_read(paths[0], OmeZarrReader(channel=n)) for n in range(num_channels)]
    elif len(paths) == num_channels:
        parts = [_read(path) for path in paths]
    else:
        raise DataError(
            f"{len(paths)} paths for {num_channels} channels. Name one for each channel, in the "
            "experiment's order, or one OME-Zarr that holds them all."
        )
    affine = parts[0][1]
    same = [p[0].shape == parts[0][0].shape and np.allclose(p[1], affine) for p in parts]
    if not all(same):
        raise DataError("The channels lie on different grids. Resample them onto one first.")
    image = np.stack([part for part, _ in parts])
    return image, affine, image.shape[1] == 1


def _read(path: Path, reader: ImageReader | None = None) -> _Read:
    if not path.exists():
        raise DataError(f"There is no image at {path}. Correct the path.")
    reader = reader or _reader_of(path)
    array, meta = reader.get_data(reader.read(path))
    affine = np.asarray(meta["affine"])
    if array.ndim == 2:
        array, affine = array[None], affine[:, [2, 0, 1, 3]]
    if array.ndim != 3:
        raise DataError(f"{path} has {array.ndim} axes. An image with one channel is needed.")
    return array.astype(np.float32), affine


def _reader_of(path: Path) -> ImageReader:
    if path.name.endswith((".nii", ".nii.gz")):
        return NiftiReader()
    return OmeZarrReader() if _is_zarr(path) else DicomReader()


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in GROUP_FILES)
