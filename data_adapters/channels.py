"""Some of an image's channels, in another order, still read region by region."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.cache import CachedScan, read_float32
from data_adapters.types import Voxels


@dataclass(frozen=True)
class PickedChannels:
    """An array (c, z, y, x) of which only some channels are ever read.

    Args:
        indices: Of the channels, in the order that they are wanted.
    """

    whole: Voxels
    indices: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the size along each axis."""
        return (len(self.indices), *self.whole.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the stored type."""
        return self.whole.dtype

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Return the size of a chunk along each axis."""
        chunk = getattr(self.whole, "chunk_shape", None) or self.whole.shape
        return tuple(int(size) for size in chunk)

    def __getitem__(self, region: tuple[slice, ...]) -> NDArray[Any]:
        """Read one region, channel by channel."""
        return np.concatenate([self.whole[part] for part in self._parts(region)])

    def float32(self, region: tuple[slice, ...]) -> NDArray[np.float32]:
        """Read one region, converted, channel by channel."""
        return np.concatenate([read_float32(self.whole, part) for part in self._parts(region)])

    def _parts(self, region: tuple[slice, ...]) -> list[tuple[slice, ...]]:
        return [(slice(index, index + 1), *region[1:]) for index in self.indices[region[0]]]


def pick_channels(scan: CachedScan, indices: tuple[int, ...]) -> CachedScan:
    """Return the scan with these channels alone."""
    if indices == tuple(range(scan.stored_czyx.shape[0])):
        return scan

    def of(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(values[index] for index in indices)

    return replace(
        scan,
        stored_czyx=PickedChannels(scan.stored_czyx, indices),
        slopes=of(scan.slopes),
        intercepts=of(scan.intercepts),
        means=of(scan.means),
        deviations=of(scan.deviations),
    )
