"""A file, folder or DICOMDIR by itself: its one image, or its one segmentation as a label map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.dicom_found import source_files
from data_adapters.dicom_headers import Instance, instance_of, quiet_pydicom, read_header
from data_adapters.dicom_images import check_kind, grid_of, read_picture
from data_adapters.dicom_labels import lone_segmentation
from data_adapters.dicom_objects import Kind
from data_adapters.dicom_series import images_of
from data_adapters.errors import DataError
from data_adapters.geometry import RAS_FROM_LPS
from data_adapters.reasons import Unusable

Volume = tuple[NDArray[Any], NDArray[np.float64]]


def read_alone(path: Path, spacing_mm: float | None = None) -> Volume:
    """Return the real values and the RAS affine of what lies at ``path``.

    Images are float32 (z, y, x), slides (channel, 1, y, x); a segmentation without an image is
    segment numbers on its own grid (``lone_segmentation``).

    Args:
        spacing_mm: Of projections whose header has none; of slides, the level to read.

    Raises:
        DataError: There is nothing at ``path``.
        Unusable: The reason code for which there is no one image. AMBIGUOUS_SERIES: there are
            several.
    """
    if not path.exists():
        raise DataError(f"There is no file or folder {path}.")
    with quiet_pydicom():
        instances = _instances(path)
        images = images_of(instances)
        if len(images) > 1:
            raise Unusable("AMBIGUOUS_SERIES", f"{len(images)} image series")
        if images:
            check_kind(images[0].instances)
            grid = grid_of(images[0].instances, spacing_mm)
            picture = read_picture(grid, real=True)
            real = picture.stored_czyx
            return (real[0] if len(real) == 1 else real), picture.affine_ras
        return _labels(instances)


def _instances(path: Path) -> list[Instance]:
    _, files, missing = source_files(path) if _is_source(path) else (path, (path,), ())
    if missing:
        raise Unusable("MISSING_FILE")
    found = [instance for file in files if (instance := _instance(file)) is not None]
    if not found:
        raise Unusable("UNREADABLE_FILE")
    return found


def _is_source(path: Path) -> bool:
    if path.is_dir():
        return True
    instance = _instance(path)
    return instance is not None and instance.kind is Kind.DIRECTORY


def _instance(path: Path) -> Instance | None:
    """Return what is needed of a file; nothing where it is no DICOM file, or damaged."""
    try:
        return instance_of(path, *read_header(path))
    except Exception:  # a damaged header can raise anything, and the text may quote it
        return None


def _labels(instances: Sequence[Instance]) -> Volume:
    segmentations = [i for i in instances if i.kind is Kind.SEGMENTATION]
    if len(segmentations) == 1:
        labels, affine_lps = lone_segmentation(segmentations[0].path)
        return labels, RAS_FROM_LPS @ affine_lps
    if segmentations:
        raise Unusable("SEVERAL_SEGMENTATIONS")
    raise Unusable("UNSUPPORTED_OBJECT", instances[0].object_name)
