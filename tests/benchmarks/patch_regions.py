"""Which patches are read: random ones, and ones that are a chunk each."""

from collections.abc import Iterator
from itertools import product

import numpy as np

from tests.benchmarks.sizes import Sizes

Region = tuple[slice, slice, slice]
PATTERNS = ("random", "aligned")


def endless(pattern: str, sizes: Sizes, seed: int = 0) -> Iterator[Region]:
    """Yield regions for ever, the same ones for every reader."""
    generator = np.random.default_rng(seed)
    step = sizes.patch if pattern == "aligned" else 1
    most = (sizes.side - sizes.patch) // step
    while True:
        yield at(tuple(int(n) * step for n in generator.integers(0, most + 1, 3)), sizes)


def every_chunk(sizes: Sizes) -> Iterator[Region]:
    """Yield every aligned patch once."""
    starts = range(0, sizes.side, sizes.patch)
    for origin in product(starts, starts, starts):
        yield at(origin, sizes)


def to_check(sizes: Sizes) -> list[Region]:
    """Return patches whose voxels are compared: the corners, and some between."""
    last = sizes.side - sizes.patch
    corners = [at((0, 0, 0), sizes), at((last, last, last), sizes), at((0, 1, last), sizes)]
    some = endless("random", sizes, seed=1)
    return [*corners, *(next(some) for _ in range(3))]


def at(origin: tuple[int, ...], sizes: Sizes) -> Region:
    """Return the patch that starts there."""
    z, y, x = (slice(start, start + sizes.patch) for start in origin)
    return z, y, x
