"""One array onto the grid of another, by world coordinates."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of a voxel: grids whose corners agree this closely are one grid.
SAME_GRID_VOXELS = 0.01


def same_grid(
    affine: NDArray[np.float64],
    shape_zyx: tuple[int, ...],
    other: NDArray[np.float64],
    other_shape_zyx: tuple[int, ...],
) -> bool:
    """Return whether voxels of one index lie at one place in both grids."""
    if tuple(shape_zyx) != tuple(other_shape_zyx):
        return False
    far = np.array([*shape_zyx, 1.0])
    finest_mm = np.linalg.norm(affine[:3, :3], axis=0).min()
    moved_mm = np.abs(affine - other) * far
    return bool(moved_mm.sum(axis=1).max() <= SAME_GRID_VOXELS * finest_mm)


def onto_grid(  # noqa: PLR0913 - two grids, and two options that are named
    array_zyx: NDArray[Any],
    affine: NDArray[np.float64],
    to_affine: NDArray[np.float64],
    to_shape_zyx: tuple[int, int, int],
    *,
    nearest: bool = False,
    outside: float = 0.0,
) -> NDArray[Any]:
    """Return the array's values at another grid's voxel centres.

    Args:
        affine: Of the array, indices to mm; ``to_affine`` is of the other grid, in the same space.
        nearest: Keep values and their type, as for labels; else linear, float32.
        outside: What lies beyond the array.

    >>> ramp = np.arange(4.0).reshape(1, 1, 4)
    >>> half = np.diag([1.0, 1.0, 0.5, 1.0])
    >>> onto_grid(ramp, np.eye(4), half, (1, 1, 7)).ravel()
    array([0. , 0.5, 1. , 1.5, 2. , 2.5, 3. ], dtype=float32)
    """
    from scipy.ndimage import affine_transform

    between = np.linalg.inv(affine) @ to_affine
    resampled: NDArray[Any] = affine_transform(
        array_zyx,
        between[:3, :3],
        offset=between[:3, 3],
        output_shape=to_shape_zyx,
        output=array_zyx.dtype if nearest else np.float32,
        order=0 if nearest else 1,
        mode="constant",
        cval=outside,
    )
    return resampled
