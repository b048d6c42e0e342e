"""Where patches lie: drawn for training, one after another for scoring.

Positions depend on one scan and on uniforms that are given; the global generator is never used.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import numpy as np
import numpy.typing as npt

from data_adapters.cache import CachedScan
from data_adapters.grids import Grid, Index
from data_adapters.inputs import PatchInput

# Uniforms that a patch takes: scan; centred on a label or not; z, y, x; which labelled voxel.
UNIFORMS_PER_PATCH = 6
# Scoring looks at no more patches of one scan; of more, at this many, evenly spread.
MOST_SCORED = 512
# Labels are counted and searched in parts of this size, one of which is in memory at a time.
_LABEL_PART_ZYX = (64, 64, 64)
_LABEL_PART_PLANE = (1, 512, 512)

Floats = npt.NDArray[np.float64]
Region = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Foreground:
    """How many labelled voxels each part of a scan has: all that is kept of its labels.

    Attributes:
        sums: Labelled voxels up to and with each part.
    """

    parts: tuple[Region, ...]
    sums: tuple[int, ...]

    @property
    def total(self) -> int:
        """Return how many voxels of the scan are labelled."""
        return self.sums[-1]

    def voxel(self, scan: CachedScan, uniform: float) -> Index:
        """Return a labelled voxel, each as likely as any other; reads one part of the labels."""
        rank = min(int(uniform * self.total), self.total - 1)
        number = bisect_right(self.sums, rank)
        part = self.parts[number]
        labels = scan.labels(part)
        before = self.sums[number - 1] if number else 0
        inside = np.unravel_index(np.flatnonzero(labels)[rank - before], labels.shape)
        z, y, x = (int(at) + along.start for at, along in zip(inside, part, strict=True))
        return z, y, x


def find_foreground(scan: CachedScan) -> Foreground:
    """Count the labelled voxels of a scan, part by part.

    Raises:
        DataError: The scan has no voxel labels.
    """
    sizes = _LABEL_PART_PLANE if scan.planar else _LABEL_PART_ZYX
    parts = tuple(_parts(scan.shape_zyx, sizes))
    counts = (int(np.count_nonzero(scan.labels(part))) for part in parts)
    return Foreground(parts, tuple(accumulate(counts)))


def _parts(shape: Index, sizes: Index) -> Iterator[Region]:
    starts = (range(0, length, size) for length, size in zip(shape, sizes, strict=True))
    for z, y, x in product(*starts):
        yield tuple(  # type: ignore[misc] # three of them
            slice(start, min(start + size, length))
            for start, size, length in zip((z, y, x), sizes, shape, strict=True)
        )


def draw_origin(
    scan: CachedScan,
    grid: Grid,
    inputs: PatchInput,
    uniforms: Floats,
    foreground: Foreground | None = None,
) -> Index:
    """Return where one patch starts on the scan's grid.

    Args:
        uniforms: Five of them in (0, 1); as many whatever the scan, so that no scan shifts what
            another draws.
        foreground: Of this scan, where the experiment wants patches centred on labels.
    """
    if foreground and foreground.total and uniforms[0] < inputs.foreground:
        centre = grid.from_stored(foreground.voxel(scan, float(uniforms[4])))
        return _around(centre, grid.shape, inputs.shape_zyx)
    if inputs.aligned and grid.is_stored:
        return _aligned(scan, grid, inputs.shape_zyx, uniforms[1:4])
    z, y, x = (
        int(u * (size - length + 1)) if size >= length else -((length - size) // 2)
        for u, size, length in zip(uniforms[1:4], grid.shape, inputs.shape_zyx, strict=True)
    )
    return z, y, x


def _around(centre: Index, shape: Index, patch: Index) -> Index:
    """Return the origin that has ``centre`` in the middle, or as near as the scan allows."""
    z, y, x = (
        min(max(at - length // 2, 0), size - length) if size >= length else -((length - size) // 2)
        for at, size, length in zip(centre, shape, patch, strict=True)
    )
    return z, y, x


def _aligned(scan: CachedScan, grid: Grid, patch: Index, uniforms: Floats) -> Index:
    chunks = grid.along_grid(scan.chunk_zyx)
    places = []
    for size, chunk, length, flipped, uniform in zip(
        grid.sizes, chunks, patch, grid.flipped, uniforms, strict=True
    ):
        starts = aligned_starts(size, chunk, length)
        start = starts[int(uniform * len(starts))]
        places.append(size - length - start if flipped and size >= length else start)
    z, y, x = places
    return z, y, x


def aligned_starts(size: int, chunk: int, length: int) -> Sequence[int]:
    """Return where patches may start along one stored axis so that they touch few chunks.

    They lie side by side from the start of each chunk, and the last one ends with the axis.

    >>> aligned_starts(200, 64, 64), aligned_starts(200, 64, 100), aligned_starts(100, 64, 20)
    ([0, 64, 128, 136], [0, 64, 100], [0, 20, 40, 64, 80])
    >>> aligned_starts(10, 64, 16)
    [-3]
    """
    if size < length:
        return [-((length - size) // 2)]
    inside = range(0, max(chunk - length, 0) + 1, length)
    starts = {start + more for start in range(0, size, chunk) for more in inside}
    return sorted({start for start in starts if start <= size - length} | {size - length})


@dataclass(frozen=True)
class Tile:
    """One patch of those that cover a scan.

    Attributes:
        counted: The part that no earlier tile shows and that is not padding.
    """

    origin: Index
    counted: Region


def tiles(shape: Index, patch: Index) -> list[Tile]:
    """Return patches side by side over a whole grid; the last ones are moved back inside.

    At most ``MOST_SCORED``, evenly spread over the scan: always the same ones.

    >>> [tile.origin[2] for tile in tiles((1, 1, 10), (1, 1, 4))]
    [0, 4, 6]
    >>> [tile.counted[2] for tile in tiles((1, 1, 10), (1, 1, 4))][-1]
    slice(2, 4, None)
    """
    along = [_tiled(size, length) for size, length in zip(shape, patch, strict=True)]
    total = int(np.prod([len(places) for places in along]))
    chosen = np.unique(np.linspace(0, total - 1, min(total, MOST_SCORED)).round().astype(int))
    found = []
    for number in chosen:
        places = np.unravel_index(number, [len(places) for places in along])
        z, y, x = (axis[int(place)] for axis, place in zip(along, places, strict=True))
        found.append(Tile((z[0], y[0], x[0]), (z[1], y[1], x[1])))
    return found


def _tiled(size: int, length: int) -> list[tuple[int, slice]]:
    """Return origins along one axis, and the part of each patch that is new there."""
    if size <= length:
        before = (length - size) // 2
        return [(-before, slice(before, before + size))]
    whole = [(start, slice(0, length)) for start in range(0, size - length + 1, length)]
    rest = size % length
    return [*whole, (size - length, slice(length - rest, length))] if rest else whole
