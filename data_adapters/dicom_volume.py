"""Slices of one series to one grid, from headers alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from data_adapters.dicom_frames import Frame
from data_adapters.dicom_headers import Instance
from data_adapters.dicom_objects import PHYSICAL
from data_adapters.geometry import ORTHOGONAL_TOLERANCE
from data_adapters.reasons import Unusable

# Slices of one series repeat orientation and spacing as text; differences below this are rounding.
ORIENTATION_TOLERANCE = 1e-4
# 1 - cosine of the angle between slice steps and their normal; past it lies gantry tilt.
PERPENDICULAR_TOLERANCE = ORTHOGONAL_TOLERANCE**2 / 2


@dataclass(frozen=True)
class VolumeGeometry:
    """Frames in geometric order, and the LPS affine of the (z, y, x) array they make.

    Args:
        coordinates: Of ``affine_lps``: the patient's, those of a microscope slide, or NONE for a
            projection, which has no place in the patient.
        planar: A single plane whose step to a next slice means nothing.
    """

    frames: tuple[Frame, ...]
    affine_lps: NDArray[np.float64]
    shape_zyx: tuple[int, int, int]
    frame_of_reference: str
    coordinates: str = "PATIENT"
    planar: bool = False

    @property
    def is_projection(self) -> bool:
        """Return whether the plane has no place of its own in the patient."""
        return self.coordinates == "NONE"


def volume_geometry(frames: Sequence[Frame]) -> VolumeGeometry:
    """Return the even grid on which the slices lie.

    Raises:
        Unusable: NO_GEOMETRY, MIXED_GEOMETRY, DUPLICATE_SLICES, MISSING_SLICES,
            IRREGULAR_SPACING or SHEARED_GEOMETRY.
    """
    if not frames:
        raise Unusable("NO_PIXELS")
    first, shape_yx = frames[0], frames[0].instance.shape_yx
    for frame in frames:
        _check_like(frame, first)
    ordered = _in_order(frames)
    if first.orientation is None or first.spacing_yx_mm is None or shape_yx is None:
        raise Unusable("NO_GEOMETRY")
    affine = np.eye(4)
    step = _slice_step(ordered)
    affine[:3, 0] = _normal(first) if step is None else step
    affine[:3, 1] = np.multiply(first.orientation[3:], first.spacing_yx_mm[0])
    affine[:3, 2] = np.multiply(first.orientation[:3], first.spacing_yx_mm[1])
    affine[:3, 3] = ordered[0].position_mm
    shape_zyx = (len(ordered), *shape_yx)
    return VolumeGeometry(
        ordered, affine, shape_zyx, first.instance.frame_of_reference, planar=step is None
    )


def _check_like(frame: Frame, first: Frame) -> None:
    numbers = (frame.position_mm, frame.orientation, frame.spacing_yx_mm)
    if frame.instance.shape_yx is None or any(n is None for n in numbers):
        raise Unusable("NO_GEOMETRY")
    if not np.all(np.isfinite(sum((tuple(n) for n in numbers if n is not None), ()))):
        raise Unusable("NO_GEOMETRY")
    if min(frame.spacing_yx_mm or (0,)) <= 0:
        raise Unusable("NO_GEOMETRY")
    # Equal tuples are the rule; comparing numbers costs a hundred times as much.
    if frame is first or frame.orientation != first.orientation:
        _check_perpendicular(frame)
    if (
        frame.instance.shape_yx != first.instance.shape_yx
        or frame.instance.frame_of_reference != first.instance.frame_of_reference
        or not _close(frame.orientation, first.orientation)
        or not _close(frame.spacing_yx_mm, first.spacing_yx_mm)
    ):
        raise Unusable("MIXED_GEOMETRY")


def _check_perpendicular(frame: Frame) -> None:
    row, column = np.reshape(frame.orientation or (), (2, 3))
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-3):
        raise Unusable("SHEARED_GEOMETRY")


def _close(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    if one is None or other is None:
        return False
    if one == other:
        return True
    return bool(np.allclose(one, other, rtol=ORIENTATION_TOLERANCE, atol=ORIENTATION_TOLERANCE))


def _in_order(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    from highdicom.spatial import get_volume_positions

    positions = [list(frame.position_mm or ()) for frame in frames]
    orientation = list(frames[0].orientation or ())
    if len({tuple(position) for position in positions}) < len(positions):
        raise Unusable("DUPLICATE_SLICES")
    regular = partial(get_volume_positions, positions, orientation)
    _, places = regular(perpendicular_tol=PERPENDICULAR_TOLERANCE)
    if places is None:
        spacing, _ = regular(
            perpendicular_tol=PERPENDICULAR_TOLERANCE, allow_missing_positions=True
        )
        raise Unusable("IRREGULAR_SPACING" if spacing is None else "MISSING_SLICES")
    by_place = dict(zip(places, frames, strict=True))
    return tuple(by_place[place] for place in range(len(frames)))


def _slice_step(ordered: tuple[Frame, ...]) -> NDArray[np.float64] | None:
    """Return the mean step from slice to slice in mm.

    A single slice has only its thickness; without one it is a plane, and None is returned.
    """
    first, last = ordered[0], ordered[-1]
    if len(ordered) > 1:
        return np.subtract(last.position_mm or (), first.position_mm or ()) / (len(ordered) - 1)
    if not first.slice_step_mm or not np.isfinite(first.slice_step_mm):
        return None
    return _normal(first) * abs(first.slice_step_mm)


def _normal(frame: Frame) -> NDArray[np.float64]:
    """highdicom's order is right-handed in (slice, down, right): slices run along column x row."""
    row, column = np.reshape(frame.orientation or (), (2, 3))
    return np.cross(column, row)


def check_pixels(series: Sequence[Instance]) -> None:
    """Refuse by name what the pixel reader would misread.

    Raises:
        Unusable: COLOUR_IMAGE, NONLINEAR_VALUES or MIXED_PIXELS.
    """
    for instance in series:
        if instance.samples != 1 or instance.photometric == "PALETTE COLOR":
            raise Unusable("COLOUR_IMAGE")
        if instance.has_value_table:
            raise Unusable("NONLINEAR_VALUES")
        if (instance.pixel_format, instance.photometric) != (
            series[0].pixel_format,
            series[0].photometric,
        ):
            raise Unusable("MIXED_PIXELS")


def scaling(frame: Frame) -> tuple[float, float]:
    """Return (slope, intercept) from stored to real values, with the greyscale upright.

    MONOCHROME1 shows low values bright (PS3.3 C.7.6.3.1.2). Where values are no physical
    quantity, the image is turned so that bright is high: stored values count down from the
    largest one, which slope and intercept can say.

    Raises:
        Unusable: NOT_FINITE.
    """
    slope, intercept = frame.slope, frame.intercept
    instance = frame.instance
    if instance.photometric == "MONOCHROME1" and instance.public_modality not in PHYSICAL:
        allocated, stored, _, signed = instance.pixel_format
        largest = -1 if signed == 1 else 2 ** (stored if stored > 0 else allocated) - 1
        slope, intercept = -slope, intercept + slope * largest
    if not np.isfinite(slope) or not np.isfinite(intercept):
        raise Unusable("NOT_FINITE")
    return slope, intercept
