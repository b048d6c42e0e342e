"""How large a run is. The sizes of issue 3, and tiny ones that show that everything works."""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Sizes:
    """Of one run.

    Args:
        side: Voxels along each axis of the volume, uint16.
        patch: Voxels along each axis of a patch; chunks have the same size.
        shard: Of the sharded volume.
        num_cold: Patches that are read after the page cache was emptied.
        window_s: A rate is the best of ``windows`` of this length.
        series_zyx: Of one DICOM series.
        least_s: A reading is repeated until this much time has passed; the best counts.
        num_workers: Processes whose memory is measured.
        cache_shares: Of the volume: what each of them declares as its cache.
        reading_s: How long they read.
    """

    side: int
    patch: int
    shard: int
    num_cold: int
    window_s: float
    windows: int
    series_zyx: tuple[int, int, int]
    least_s: float
    num_workers: int
    cache_shares: tuple[float, ...]
    reading_s: float

    @property
    def volume_bytes(self) -> int:
        """Return the size of the decoded volume."""
        return 2 * self.side**3

    @property
    def roomy_bytes(self) -> int:
        """Return a declared cache into which the whole volume goes."""
        return 2 * self.volume_bytes

    @property
    def narrow_bytes(self) -> int:
        """Return a declared cache into which a quarter of the volume goes."""
        return self.volume_bytes // 4


FULL = Sizes(
    side=512,
    patch=64,
    shard=256,
    num_cold=32,
    window_s=0.15,
    windows=3,
    series_zyx=(200, 512, 512),
    least_s=1.0,
    num_workers=4,
    cache_shares=(0, 1 / 8, 1 / 4),
    reading_s=2.0,
)
TINY = Sizes(
    side=64,
    patch=16,
    shard=32,
    num_cold=2,
    window_s=0.01,
    windows=1,
    series_zyx=(6, 48, 48),
    least_s=0.0,
    num_workers=2,
    cache_shares=(0, 1 / 4),
    reading_s=0.2,
)
