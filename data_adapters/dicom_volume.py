"""One single-frame series to one volume: geometry from headers alone, then pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.dicom_headers import Instance
from data_adapters.geometry import ORTHOGONAL_TOLERANCE
from data_adapters.reasons import Unusable

# Slices of one series repeat orientation and spacing as text; differences below this are rounding.
ORIENTATION_TOLERANCE = 1e-4
# 1 - cosine of the angle between slice steps and their normal; past it lies gantry tilt.
PERPENDICULAR_TOLERANCE = ORTHOGONAL_TOLERANCE**2 / 2
KEPT_TYPES = {
    "int8": np.int16,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "float32": np.float32,
}


@dataclass(frozen=True)
class VolumeGeometry:
    """Instances in geometric order, and the LPS affine of the (z, y, x) array they make."""

    ordered: tuple[Instance, ...]
    affine_lps: NDArray[np.float64]
    shape_zyx: tuple[int, int, int]
    frame_of_reference: str


def volume_geometry(series: Sequence[Instance]) -> VolumeGeometry:
    """Return the even grid on which the slices lie.

    Raises:
        Unusable: NO_GEOMETRY, MIXED_GEOMETRY, DUPLICATE_SLICES, MISSING_SLICES,
            IRREGULAR_SPACING or SHEARED_GEOMETRY.
    """
    first = series[0]
    for instance in series:
        _check_like(instance, first)
    ordered = _in_order(series)
    if first.orientation is None or first.spacing_yx_mm is None or first.shape_yx is None:
        raise Unusable("NO_GEOMETRY")
    affine = np.eye(4)
    affine[:3, 0] = _slice_step(ordered)
    affine[:3, 1] = np.multiply(first.orientation[3:], first.spacing_yx_mm[0])
    affine[:3, 2] = np.multiply(first.orientation[:3], first.spacing_yx_mm[1])
    affine[:3, 3] = ordered[0].position_mm
    shape_zyx = (len(ordered), *first.shape_yx)
    return VolumeGeometry(ordered, affine, shape_zyx, first.frame_of_reference)


def _check_like(instance: Instance, first: Instance) -> None:
    numbers = (instance.position_mm, instance.orientation, instance.spacing_yx_mm)
    if instance.shape_yx is None or any(n is None or not np.all(np.isfinite(n)) for n in numbers):
        raise Unusable("NO_GEOMETRY")
    if min(instance.spacing_yx_mm or (0,)) <= 0:
        raise Unusable("NO_GEOMETRY")
    row, column = np.reshape(instance.orientation or (), (2, 3))
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-3):
        raise Unusable("SHEARED_GEOMETRY")
    if (
        instance.shape_yx != first.shape_yx
        or instance.frame_of_reference != first.frame_of_reference
        or not _close(instance.orientation, first.orientation)
        or not _close(instance.spacing_yx_mm, first.spacing_yx_mm)
    ):
        raise Unusable("MIXED_GEOMETRY")


def _close(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    return (
        one is not None
        and other is not None
        and bool(np.allclose(one, other, rtol=ORIENTATION_TOLERANCE, atol=ORIENTATION_TOLERANCE))
    )


def _in_order(series: Sequence[Instance]) -> tuple[Instance, ...]:
    from highdicom.spatial import get_volume_positions

    positions = [list(instance.position_mm or ()) for instance in series]
    orientation = list(series[0].orientation or ())
    if len({tuple(position) for position in positions}) < len(positions):
        raise Unusable("DUPLICATE_SLICES")
    regular = partial(get_volume_positions, positions, orientation)
    _, places = regular(perpendicular_tol=PERPENDICULAR_TOLERANCE)
    if places is None:
        spacing, _ = regular(
            perpendicular_tol=PERPENDICULAR_TOLERANCE, allow_missing_positions=True
        )
        raise Unusable("IRREGULAR_SPACING" if spacing is None else "MISSING_SLICES")
    by_place = dict(zip(places, series, strict=True))
    return tuple(by_place[place] for place in range(len(series)))


def _slice_step(ordered: tuple[Instance, ...]) -> NDArray[np.float64]:
    """Return the mean step from slice to slice in mm; a single slice has only its thickness."""
    first, last = ordered[0], ordered[-1]
    if len(ordered) > 1:
        return np.subtract(last.position_mm or (), first.position_mm or ()) / (len(ordered) - 1)
    if not first.slice_step_mm or first.orientation is None:
        raise Unusable("NO_GEOMETRY")
    row, column = np.asarray(first.orientation[:3]), np.asarray(first.orientation[3:])
    # highdicom's order is right-handed in (slice, down, right): slices run along column x row.
    return np.cross(column, row) * abs(first.slice_step_mm)


def check_pixels(series: Sequence[Instance]) -> None:
    """Refuse by name what the pixel reader would misread.

    Raises:
        Unusable: COLOUR_IMAGE, INVERTED_GREYSCALE, NONLINEAR_VALUES, MIXED_PIXELS, NOT_FINITE.
    """
    for instance in series:
        if instance.samples != 1:
            raise Unusable("COLOUR_IMAGE")
        if instance.photometric == "MONOCHROME1":
            raise Unusable("INVERTED_GREYSCALE")
        if instance.has_value_table:
            raise Unusable("NONLINEAR_VALUES")
        if instance.pixel_format != series[0].pixel_format:
            raise Unusable("MIXED_PIXELS")
        if not np.isfinite(instance.slope) or not np.isfinite(instance.intercept):
            raise Unusable("NOT_FINITE")


def read_pixels(geometry: VolumeGeometry) -> tuple[NDArray[Any], float, float]:
    """Return (image_zyx, slope, intercept) with stored values in their own type where possible.

    Slices with slopes of their own (usual in PET) become float32 real-world values, slope 1.

    Raises:
        Unusable: UNDECODABLE_PIXELS, UNSUPPORTED_PIXELS, NOT_FINITE.
    """
    slopes = {(instance.slope, instance.intercept) for instance in geometry.ordered}
    same_scale = len(slopes) == 1
    image: NDArray[Any] | None = None
    for place, instance in enumerate(geometry.ordered):
        pixels = _pixels(instance)
        if image is None:
            kept = KEPT_TYPES[pixels.dtype.name] if same_scale else np.float32
            image = np.empty(geometry.shape_zyx, dtype=kept)
        image[place] = pixels if same_scale else pixels * instance.slope + instance.intercept
    if image is None or not np.all(np.isfinite(image)):
        raise Unusable("NOT_FINITE")
    return (image, *slopes.pop()) if same_scale else (image, 1.0, 0.0)


def _pixels(instance: Instance) -> NDArray[Any]:
    from pydicom.pixels.utils import pixel_array

    try:
        pixels: NDArray[Any] = pixel_array(instance.path, raw=True)
    except Exception as error:  # each decoder raises its own; the text may quote the header
        raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None
    if pixels.dtype.name not in KEPT_TYPES:
        raise Unusable("UNSUPPORTED_PIXELS", pixels.dtype.name)
    if pixels.shape != instance.shape_yx:
        raise Unusable("UNDECODABLE_PIXELS", "the matrix differs from the header")
    return _stored_bits(pixels, instance)


def _stored_bits(pixels: NDArray[Any], instance: Instance) -> NDArray[Any]:
    """Mask what lies above BitsStored (overlays in old files), keeping the sign (PS3.5 8.1)."""
    allocated, stored, high_bit, _ = instance.pixel_format
    if not (0 < stored < allocated <= 16 and high_bit == stored - 1):
        return pixels
    shift = allocated - stored
    return np.right_shift(np.left_shift(pixels, shift), shift)
