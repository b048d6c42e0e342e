"""Affines between array axes (z, y, x) and patient space, in millimetres.

Column k of an affine is the step along array axis k; the last column is the centre of voxel 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# DICOM's patient axes run to the Left and Posterior (PS3.3 C.7.6.2.1.1), RAS+ to Right, Anterior.
RAS_FROM_LPS: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
# Cosine between two axes; 0.3 degrees, for DICOM positions are rounded decimal text.
ORTHOGONAL_TOLERANCE = 5e-3


def axis_steps(affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the spacing along each array axis in mm, and the unit directions as columns.

    Raises:
        ValueError: A step is zero or not finite, or two axes are not perpendicular.

    >>> spacing_mm, directions = axis_steps(np.diag([3.0, 2.0, 1.0, 1.0]))
    >>> spacing_mm.tolist()
    [3.0, 2.0, 1.0]
    """
    steps = affine[:3, :3]
    spacing_mm = np.linalg.norm(steps, axis=0)
    if not np.all(np.isfinite(affine)) or not np.all(spacing_mm > 0):
        raise ValueError("the affine has a step that is zero or not finite")
    directions = steps / spacing_mm
    if not np.allclose(directions.T @ directions, np.eye(3), atol=ORTHOGONAL_TOLERANCE):
        raise ValueError("the affine is sheared: its axes are not perpendicular")
    return spacing_mm, directions


def axis_aligned_parts(
    affine_ras: NDArray[np.float64],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return (scale, translation) in (z, y, x) order, in mm, of an affine without rotation.

    Raises:
        ValueError: The affine rotates, flips or permutes axes.

    >>> axis_aligned_parts(zyx_affine((3.0, 2.0, 1.0), (30.0, 20.0, 10.0)))
    ((3.0, 2.0, 1.0), (30.0, 20.0, 10.0))
    """
    scale: NDArray[Any] = np.asarray([affine_ras[2, 0], affine_ras[1, 1], affine_ras[0, 2]])
    translation = (float(affine_ras[2, 3]), float(affine_ras[1, 3]), float(affine_ras[0, 3]))
    parts = (float(scale[0]), float(scale[1]), float(scale[2]))
    if np.any(scale <= 0) or not np.allclose(affine_ras, zyx_affine(parts, translation), atol=1e-9):
        raise ValueError(
            "OME-Zarr 0.5 holds scale and translation only: the affine must not rotate or flip. "
            "Resample the image onto RAS axes first."
        )
    return parts, translation


def zyx_affine(
    scale_mm: tuple[float, float, float], translation_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return the RAS affine of an array whose axes are z (superior), y (anterior), x (right).

    >>> zyx_affine((3.0, 2.0, 1.0), (30.0, 20.0, 10.0)) @ [1, 0, 0, 1]
    array([10., 20., 33.,  1.])
    """
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = scale_mm
    affine[:3, 3] = translation_mm[::-1]
    affine[3, 3] = 1.0
    return affine
