"""Whole-slide images: one level of a tiled plane; highdicom puts the tiles together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.dicom_frames import Frame
from data_adapters.dicom_headers import Instance, floats, integer, items, read_header
from data_adapters.dicom_volume import VolumeGeometry
from data_adapters.reasons import Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# The whole level is in memory once; past this it is refused rather than tried.
MAX_BYTES = 1 << 31
# A level is fine enough up to this share above what was asked for.
_SPACING_TOLERANCE = 1.01
_KEPT = {8: np.uint8, 16: np.uint16}


def slide_geometry(series: Sequence[Instance], spacing_mm: float | None = None) -> VolumeGeometry:
    """Return the grid of one level: a single plane, in the slide's coordinates.

    Args:
        spacing_mm: The coarsest level that is still finer is meant; the finest without it.

    Raises:
        Unusable: UNSUPPORTED_OBJECT, NO_GEOMETRY, TOO_LARGE or UNSUPPORTED_PIXELS.
    """
    level, header = slide_level(series, spacing_mm)
    _check(level, header)
    return VolumeGeometry(
        frames=(Frame(level, 0, None, None, None, None, level.slope, level.intercept),),
        affine_lps=_affine(header),
        shape_zyx=(1, *_matrix(header)),
        frame_of_reference=level.frame_of_reference,
        coordinates="SLIDE",
        planar=True,
    )


def read_slide(geometry: VolumeGeometry) -> NDArray[Any]:
    """Return the level as (channel, 1, y, x): R, G, B, or one grey channel.

    Raises:
        Unusable: UNDECODABLE_PIXELS.
    """
    level = geometry.frames[0].instance
    try:
        pixels_yxc = _opened(level).get_total_pixel_matrix(
            dtype=_KEPT[level.pixel_format[0]],
            apply_real_world_transform=False,
            apply_modality_transform=False,
            apply_presentation_lut=False,
            apply_icc_profile=False,
        )
    except Exception as error:  # the text may quote the header
        raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None
    if pixels_yxc.ndim == 2:
        pixels_yxc = pixels_yxc[..., None]
    image_czyx: NDArray[Any] = np.ascontiguousarray(np.moveaxis(pixels_yxc, -1, 0)[:, None])
    return image_czyx


def _opened(level: Instance) -> Any:
    """Not highdicom's lazy reading: it prints what is wrong with a file, values and all."""
    import highdicom
    from pydicom import dcmread

    return highdicom.Image.from_dataset(dcmread(level.path), copy=False)


def slide_level(series: Sequence[Instance], spacing_mm: float | None) -> "tuple[Instance, Dataset]":
    """Return the file of the level to read, with its header; labels and overviews are no levels.

    Raises:
        Unusable: UNSUPPORTED_OBJECT: no file holds a level, or several hold the one that is meant.
            NO_GEOMETRY.
    """
    levels = [instance for instance in series if "VOLUME" in instance.image_type]
    if not levels:
        raise Unusable("UNSUPPORTED_OBJECT", "A slide's label or overview")
    headers = [_header(level) for level in levels]
    spacings = [max(_spacing(header)) for header in headers]
    finest = min(spacings)
    limit = finest if spacing_mm is None else spacing_mm * _SPACING_TOLERANCE
    wanted = max(mm for mm in spacings if mm <= max(limit, finest))
    places = [place for place, mm in enumerate(spacings) if _is_one_level(mm, wanted)]
    if len(places) > 1:
        name = "A slide with several files of one level (focal planes, optical paths or parts)"
        raise Unusable("UNSUPPORTED_OBJECT", name)
    return levels[places[0]], headers[places[0]]


def _is_one_level(one_mm: float, other_mm: float) -> bool:
    return max(one_mm, other_mm) <= min(one_mm, other_mm) * _SPACING_TOLERANCE


def _header(level: Instance) -> "Dataset":
    try:
        return read_header(level.path)[0]
    except Exception:  # it was read before, so the file has changed; the text may quote it
        raise Unusable("UNREADABLE_FILE") from None


def _affine(header: "Dataset") -> NDArray[np.float64]:
    """Return the affine to the slide's coordinates in mm (PS3.3 C.8.12.2.1.1, C.8.12.4.1.3)."""
    orientation = floats(header, "ImageOrientationSlide", 6)
    origins = items(header, "TotalPixelMatrixOriginSequence")
    keywords = ("XOffsetInSlideCoordinateSystem", "YOffsetInSlideCoordinateSystem")
    origin = [floats(item, keyword, 1) for item in origins[:1] for keyword in keywords]
    if orientation is None or not origin or any(value is None for value in origin):
        raise Unusable("NO_GEOMETRY")
    row, column = np.reshape(orientation, (2, 3))
    dy_mm, dx_mm = _spacing(header)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([np.cross(column, row), column * dy_mm, row * dx_mm], axis=1)
    affine[:2, 3] = np.ravel([value or () for value in origin])
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine)) == 0:
        raise Unusable("NO_GEOMETRY")
    return affine


def _spacing(header: "Dataset") -> tuple[float, ...]:
    for group in items(header, "SharedFunctionalGroupsSequence"):
        for measures in items(group, "PixelMeasuresSequence"):
            spacing = floats(measures, "PixelSpacing", 2)
            if spacing is not None and np.all(np.isfinite(spacing)) and min(spacing) > 0:
                return spacing
    raise Unusable("NO_GEOMETRY")


def _check(level: Instance, header: "Dataset") -> None:
    planes = integer(header, "TotalPixelMatrixFocalPlanes", 1)
    if planes != 1 or len(items(header, "OpticalPathSequence")) > 1:
        name = f"{level.object_name} with several focal planes or optical paths"
        raise Unusable("UNSUPPORTED_OBJECT", name)
    if level.pixel_format[0] not in _KEPT or level.samples not in (1, 3):
        raise Unusable("UNSUPPORTED_PIXELS", f"{level.pixel_format[0]} bits")
    rows, columns = _matrix(header)
    if rows * columns * level.samples * level.pixel_format[0] // 8 > MAX_BYTES:
        raise Unusable("TOO_LARGE", f"{MAX_BYTES >> 30} GiB")


def _matrix(header: "Dataset") -> tuple[int, int]:
    return (
        integer(header, "TotalPixelMatrixRows", 0),
        integer(header, "TotalPixelMatrixColumns", 0),
    )
