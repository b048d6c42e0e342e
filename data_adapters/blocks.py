"""Fixed logical blocks of an image: what is read, digested and copied at a time.

They depend on the shape alone and not on how an array is stored, so one image has one digest in
every format; at 64 slices of 512 by 512 they are whole chunks of usual OME-Zarr images, and whole
slices of usual CT.
"""

from collections.abc import Iterator
from itertools import product

# Along z, y, x; axes in front (channels) are taken one index at a time.
BLOCK_ZYX = (64, 512, 512)

Region = tuple[slice, ...]


def blocks(shape: tuple[int, ...]) -> Iterator[Region]:
    """Yield the blocks of an array in C order; every slice has both ends.

    >>> len(list(blocks((2, 65, 512, 513))))
    8
    """
    sizes = (1,) * (len(shape) - len(BLOCK_ZYX)) + BLOCK_ZYX[-len(shape) :]
    ranges = (
        [slice(start, min(start + size, length)) for start in range(0, length, size)]
        for length, size in zip(shape, sizes, strict=True)
    )
    yield from product(*ranges)


def whole(shape: tuple[int, ...]) -> Region:
    """Return the region that is everything."""
    return tuple(slice(0, size) for size in shape)
