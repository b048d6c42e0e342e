"""Plane and volume geometry from DICOM headers by the standard's equations, in plain numpy.

Written apart from ``data_adapters``, from PS3.3 alone: the table must not repeat its mistakes.
Frames are (position, orientation, spacing) in LPS millimetres.
"""

from dataclasses import dataclass

import numpy as np

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class RefusedError(Exception):
    """The facts do not allow this file to be read as an image."""

    def __init__(self, codes):
        super().__init__(codes)
        self.codes = codes


@dataclass(frozen=True)
class Plane:
    """One frame's Image Plane attributes.

    Args:
        position: ImagePositionPatient: centre of the first voxel, LPS mm.
        right: First three values of ImageOrientationPatient: along a row, column index grows.
        down: Last three: along a column, row index grows.
        spacing: PixelSpacing: between rows, between columns, mm (PS3.3 10.7.1.3).
    """

    position: np.ndarray
    right: np.ndarray
    down: np.ndarray
    spacing: tuple[float, float]

    @property
    def stacking(self):
        """The direction that makes (slice, down, right) right-handed: head to foot if axial.

        highdicom.spatial orders volume positions so (handedness RIGHT_HANDED, convention DR).
        """
        return np.cross(self.down, self.right)


def plane_of(position, orientation, spacing):
    """Return a plane, or refuse it."""
    if not (_numbers(position, 3) and _numbers(orientation, 6) and _numbers(spacing, 2)):
        raise RefusedError("NO_GEOMETRY")
    values = np.asarray(orientation, dtype=float)
    right, down = values[:3], values[3:]
    lengths = np.linalg.norm(right), np.linalg.norm(down)
    if min(spacing) <= 0 or not np.allclose(lengths, 1, atol=1e-2):
        raise RefusedError("NO_GEOMETRY")
    return Plane(
        np.asarray(position, dtype=float),
        right / lengths[0],
        down / lengths[1],
        (float(spacing[0]), float(spacing[1])),
    )


def _numbers(values, count):
    return values is not None and len(values) == count and np.isfinite([*map(float, values)]).all()


def affine_ras(plane, step_mm):
    """Equation C.7.6.2.1-1 with a third axis; columns for (z, y, x), then RAS."""
    affine = np.eye(4)
    affine[:3, 0] = plane.stacking * step_mm
    affine[:3, 1] = plane.down * plane.spacing[0]
    affine[:3, 2] = plane.right * plane.spacing[1]
    affine[:3, 3] = plane.position
    return RAS_FROM_LPS @ affine


def lone_affine(plane, between_slices, thickness):
    """Return (affine, code that a refusal may have) of one slice.

    The step is SpacingBetweenSlices or SliceThickness. A plane without either still has a place:
    it may be given with a step of 1 mm that means nothing, or refused.
    """
    for value in (between_slices, thickness):
        if value not in (None, "") and float(value) > 0:
            return affine_ras(plane, float(value)), ""
    return affine_ras(plane, 1.0), "NO_GEOMETRY"


def check_one_orientation(planes):
    """All planes of a stack are parallel and on one grid."""
    first = planes[0]
    for other in planes[1:]:
        same = (
            np.allclose(first.right, other.right, atol=1e-3)
            and np.allclose(first.down, other.down, atol=1e-3)
            and np.allclose(first.spacing, other.spacing, rtol=1e-3)
        )
        if not same:
            raise RefusedError("MIXED_GEOMETRY")


def stack(planes, *, gaps_are_empty=False, step_mm=None):
    """Return (order of planes, place of each along z, affine) of an evenly spaced stack.

    Args:
        gaps_are_empty: Planes that are left out hold nothing (segmentations); else they miss.
        step_mm: Where the header states it.
    """
    check_one_orientation(planes)
    along = np.array([plane.position @ planes[0].stacking for plane in planes])
    order = np.argsort(along)
    gaps = np.diff(along[order])
    if gaps.min() < 1e-3:
        raise RefusedError("DUPLICATE_SLICES")
    step = step_mm or gaps.min()
    places = np.rint((along[order] - along[order[0]]) / step).astype(int)
    if not np.allclose(gaps, np.diff(places) * step, atol=0.01 * step + 1e-3):
        raise RefusedError("IRREGULAR_SPACING")
    if not gaps_are_empty and (np.diff(places) > 1).any():
        raise RefusedError("MISSING_SLICES")
    measured = (along[order[-1]] - along[order[0]]) / places[-1]
    _check_sideways([planes[i] for i in order], measured, places)
    return order, places, affine_ras(planes[order[0]], measured)


def _check_sideways(planes, step, places):
    """Gantry tilt: positions leave the line along the normal."""
    for plane, place in zip(planes, places, strict=True):
        expected = planes[0].position + planes[0].stacking * step * place
        if np.linalg.norm(plane.position - expected) > 0.05 * step + 1e-2:
            raise RefusedError("IRREGULAR_SPACING")


# PS3.3 C.7.6.1.1.1: the direction that PatientOrientation's letters point to, in LPS.
DIRECTIONS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0)}
DIRECTIONS |= {"H": (0, 0, 1), "F": (0, 0, -1)}


def radiograph_affine(spacing, patient_orientation):
    """A projection has a plane and no place: position 0, z step 1 mm (a decision of ours)."""
    letters = [*(patient_orientation or ())][:2]
    if len(letters) < 2 or any(letter not in DIRECTIONS for letter in letters):
        letters = ["L", "F"]
    right, down = (np.array(DIRECTIONS[letter], dtype=float) for letter in letters)
    plane = Plane(np.zeros(3), right, down, (float(spacing[0]), float(spacing[1])))
    return affine_ras(plane, 1.0)
