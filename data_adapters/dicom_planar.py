"""Projections (CR, DX, MG and the like): a plane with a spacing, and no place in the patient."""

from collections.abc import Sequence

import numpy as np

from data_adapters.dicom_frames import frames_of
from data_adapters.dicom_headers import Instance
from data_adapters.dicom_volume import VolumeGeometry
from data_adapters.reasons import Unusable

# PS3.3 C.7.6.1.1.1: where a letter of PatientOrientation points, LPS. Of two letters (such as FL)
# the first is the main direction.
_DIRECTIONS = {
    "L": (1.0, 0.0, 0.0),
    "R": (-1.0, 0.0, 0.0),
    "P": (0.0, 1.0, 0.0),
    "A": (0.0, -1.0, 0.0),
    "H": (0.0, 0.0, 1.0),
    "F": (0.0, 0.0, -1.0),
}
_FRONTAL = ("L", "F")


def planar_geometry(series: Sequence[Instance], spacing_mm: float | None = None) -> VolumeGeometry:
    """Return the plane of one projection, as a grid with one slice.

    Rows run to the patient's Left and columns to the Foot unless PatientOrientation says
    otherwise; the origin and the step between slices (1 mm) mean nothing.

    Args:
        spacing_mm: Declared at the site, for headers without one.

    Raises:
        Unusable: UNSUPPORTED_OBJECT or NO_GEOMETRY.
    """
    (instance,) = series
    if instance.num_frames != 1:
        raise Unusable("UNSUPPORTED_OBJECT", f"{instance.object_name} with several frames")
    if instance.shape_yx is None:
        raise Unusable("NO_GEOMETRY")
    row, column = (np.array(_DIRECTIONS[letter]) for letter in _letters(instance))
    dy_mm, dx_mm = _spacing(instance, spacing_mm)
    affine = np.eye(4)
    affine[:3, 0] = np.cross(column, row)
    affine[:3, 1] = column * dy_mm
    affine[:3, 2] = row * dx_mm
    return VolumeGeometry(
        frames=frames_of((instance,)),
        affine_lps=affine,
        shape_zyx=(1, *instance.shape_yx),
        frame_of_reference=instance.frame_of_reference,
        coordinates="NONE",
        planar=True,
    )


def _letters(instance: Instance) -> tuple[str, str]:
    letters = tuple(text[:1] for text in instance.patient_orientation)
    if len(letters) != 2 or any(letter not in _DIRECTIONS for letter in letters):
        return _FRONTAL
    row, column = letters
    parallel = np.dot(_DIRECTIONS[row], _DIRECTIONS[column]) != 0
    return _FRONTAL if parallel else (row, column)


def _spacing(instance: Instance, declared_mm: float | None) -> tuple[float, ...]:
    spacing = instance.spacing_yx_mm
    if spacing is None and declared_mm is not None:
        return (declared_mm, declared_mm)
    if spacing is None or not np.all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise Unusable("NO_GEOMETRY")
    return spacing
