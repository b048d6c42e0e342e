"""The grid that patches are cut from, and which stored voxels a part of it needs. Torch-free.

It is the grid that ``prepare_scan`` resamples a whole scan to: axes along (superior, anterior,
right), the first voxel on the scan's own outermost one. Since its axes are the scan's, turned and
stretched, every axis can be looked at by itself.
"""

from dataclasses import dataclass
from math import frexp
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data_adapters.cache import CachedScan

# Spacings that differ by less are the same.
SAME_SPACING = 0.01
# Where another axis is resampled, MONAI's Spacing still keeps one that differs by no more (its
# AFFINE_TOL, in mm).
_KEPT_MM = 1e-3
# That tolerance is wider than a microscope's spacings. Finer ones are scaled up first, by a power
# of two, which rounds nothing.
_FINE_MM = 0.25

Index = tuple[int, int, int]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Grid:
    """A scan at the experiment's spacing.

    Attributes:
        axes: For each grid axis, the scan's array axis that runs along it.
        flipped: For each grid axis, whether the array axis runs the other way.
        sizes: Stored voxels along each grid axis.
        steps: Stored voxels from one grid voxel to the next; 1 where nothing is resampled.
        shape: Grid voxels.
    """

    axes: Index
    flipped: tuple[bool, bool, bool]
    sizes: Index
    steps: tuple[float, float, float]
    shape: Index

    @property
    def is_stored(self) -> bool:
        """Tell whether grid voxels are stored voxels."""
        return self.steps == (1.0, 1.0, 1.0)

    def along_grid(self, stored: tuple[_T, _T, _T]) -> tuple[_T, _T, _T]:
        """Return one thing for each stored axis in the order of the grid's axes."""
        s, a, r = self.axes
        return stored[s], stored[a], stored[r]

    def from_stored(self, voxel: Index) -> Index:
        """Return the grid voxel nearest to a stored one."""
        z, y, x = (
            round((size - 1 - v if flipped else v) / step)
            for v, size, flipped, step in zip(
                self.along_grid(voxel), self.sizes, self.flipped, self.steps, strict=True
            )
        )
        return z, y, x


def grid_of(scan: CachedScan, spacing_mm_zyx: tuple[float, float, float]) -> Grid:
    """Return the grid of one scan at a spacing.

    Args:
        spacing_mm_zyx: Along S, A, R; of a planar scan along its own axes, the first ignored.
    """
    axes, flipped = _turned(scan)
    spacing_mm = np.linalg.norm(scan.affine_ras[:3, :3], axis=0)
    present = np.array([spacing_mm[axis] for axis in axes])
    wanted = np.array(spacing_mm_zyx)
    if scan.planar:
        wanted[0] = present[0]
    same = np.allclose(present, wanted, rtol=SAME_SPACING, atol=0.0)
    kept_mm = _KEPT_MM / magnification(scan.affine_ras)
    # Compared as MONAI compares: at this boundary another order of sums would round otherwise.
    kept = (wanted - kept_mm <= present) & (present <= wanted + kept_mm)
    steps = np.ones(3) if same else np.where(kept, 1.0, wanted / present)
    sizes = np.array([scan.shape_zyx[axis] for axis in axes])
    shape = np.rint((sizes - 1) / steps + 1).astype(int)
    z, y, x = (float(step) for step in steps)
    return Grid(axes, flipped, _three(sizes), (z, y, x), _three(shape))


def magnification(affine: npt.NDArray[np.float64]) -> float:
    """Return the power of two that brings the finest step above ``_FINE_MM``; 1 if it is.

    >>> magnification(np.diag([3.0, 2.0, 1.0, 1.0])), magnification(np.diag([1.0, 1e-3, 1e-3, 1.0]))
    (1.0, 512.0)
    """
    finest = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    return 1.0 if finest >= _FINE_MM else 2.0 ** -frexp(finest)[1]


def _turned(scan: CachedScan) -> tuple[Index, tuple[bool, bool, bool]]:
    """Return which array axes run along S, A, R, and which of them run the other way."""
    from nibabel.orientations import io_orientation

    if scan.planar:
        return (0, 1, 2), (False, False, False)
    # For each array axis: 0, 1 or 2 for R, A, S; and 1, or -1 where it runs to L, P or I.
    orientation = io_orientation(scan.affine_ras)
    s, a, r = (int(np.flatnonzero(orientation[:, 0] == towards)[0]) for towards in (2, 1, 0))
    down = orientation[:, 1] < 0
    return (s, a, r), (bool(down[s]), bool(down[a]), bool(down[r]))


def _three(values: npt.NDArray[np.int64]) -> Index:
    z, y, x = (int(value) for value in values)
    return z, y, x


@dataclass(frozen=True)
class Reach:
    """What a run of grid voxels needs along one axis.

    Attributes:
        low: For each grid voxel inside the scan, the stored voxel before it, counted from
            ``first``. float64 weights say how far it lies towards ``high``.
        first, end: The stored voxels from the first needed to past the last.
        before, after: Grid voxels outside the scan.
    """

    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    first: int
    end: int
    before: int
    after: int

    @property
    def nearest(self) -> npt.NDArray[np.int64]:
        """Return the nearest stored voxel, counted from ``first``."""
        nearest: npt.NDArray[np.int64] = np.where(self.weights > 0.5, self.high, self.low)
        return nearest


def reach_of(grid: Grid, axis: int, origin: int, length: int) -> Reach:
    """Return what grid voxels from ``origin`` on need along a grid axis, as the grid counts."""
    size, step = grid.sizes[axis], grid.steps[axis]
    start, stop = max(origin, 0), min(origin + length, grid.shape[axis])
    # The last grid voxel may lie a little past the last stored one: its border value is taken.
    places = np.clip(np.arange(start, stop) * step, 0, size - 1)
    low, high = np.floor(places).astype(np.int64), np.ceil(places).astype(np.int64)
    first = int(low[0])
    return Reach(
        low=low - first,
        high=high - first,
        weights=places - low,
        first=first,
        end=int(high[-1]) + 1,
        before=start - origin,
        after=origin + length - stop,
    )


def stored_region(grid: Grid, reaches: tuple[Reach, Reach, Reach]) -> tuple[slice, ...]:
    """Return the part of the stored array, along its own axes, that holds what is needed."""
    region = [slice(0)] * 3
    for axis, flipped, size, reach in zip(
        grid.axes, grid.flipped, grid.sizes, reaches, strict=True
    ):
        start, stop = reach.first, reach.end
        region[axis] = slice(size - stop, size - start) if flipped else slice(start, stop)
    return tuple(region)
