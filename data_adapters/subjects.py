"""A data set indexed by subject: one record each, whatever the number of scans.

Nothing about one subject depends on another: images are normalised each by itself and resampled
to spacings that the experiment declares.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from data_adapters.cache import IN_PLACE, CachedScan, InPlace, open_scan
from data_adapters.channels import pick_channels
from data_adapters.grids import Grid, grid_of
from data_adapters.inputs import AnyInput, Learns, PatchInput
from data_adapters.manifest import Manifest, ScanEntry
from data_adapters.matching import channel_indices, class_map, require_values
from data_adapters.patches import (
    UNIFORMS_PER_PATCH,
    Foreground,
    Tile,
    draw_origin,
    find_foreground,
    tiles,
)
from data_adapters.prepare import (
    Record,
    ValueScale,
    Wanted,
    prepare_patch,
    prepare_scan,
    require_axes,
    require_coverage,
)

# Prepared scans are kept in memory up to this many bytes; past it they are read again.
MEMORY_BYTES = 1 << 30
# Scans whose metadata is kept open.
OPEN_SCANS = 512
# Patches that are scored at a time.
TILES_AT_A_TIME = 8

Uniforms = Callable[[int], npt.NDArray[np.float64]]
_CPU = torch.device("cpu")
AS_THEY_ARE = ValueScale()


class SubjectDataset:
    """Records of a cached data set, in the order of the subjects' pseudonyms."""

    def __init__(  # noqa: PLR0913 - all but the data and what is wanted of it are named
        self,
        cache: Path,
        manifest: Manifest,
        inputs: AnyInput,
        classes: Sequence[str],
        *,
        learns: Learns = "voxels",
        values: ValueScale = AS_THEY_ARE,
        meanings: Mapping[str, str] | None = None,
        in_place: InPlace | None = None,
        without: Collection[str] = frozenset(),
        device: torch.device = _CPU,
    ) -> None:
        """Match names; nothing is read yet.

        Args:
            classes: The experiment's, in its order; none where values are learned.
            learns: Voxel labels, or each scan's class or value from a table.
            values: How a table's values become what is learned.
            meanings: What coded classes mean, for errors.
            in_place: Keyed name to the site's own image, for scans that were not copied.
            without: Pseudonyms of subjects who are not sampled.
            device: Where patches are oriented and resampled.

        Raises:
            DataError: The data set's classes or channels are not the experiment's.
        """
        found = _class_map(manifest, classes, learns, meanings)
        self._wanted = Wanted(inputs, found, learns, values)
        self._channels = channel_indices(manifest.channels, inputs.channels)
        self._cache = cache
        self._scans = _by_subject(manifest.scans)
        self._subjects = sorted(self._scans.keys() - set(without))
        self._device = device
        self._memory = _Memory()
        self._foreground: dict[str, Foreground] = {}
        self._in_place = in_place
        self._open = self._opener()

    def __len__(self) -> int:
        return len(self._subjects)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Return the pseudonyms in the order of records."""
        return tuple(self._subjects)

    def look_again(self) -> None:
        """Forget which scans are open, and check that those read in place are as they were.

        Training calls it before each round. Files are asked for their size and time, and no voxel
        is read.

        Raises:
            DataError: One has changed since it was taken in, or is gone.
        """
        self._open = self._opener()
        for subject in self._subjects:
            for entry in self._scans[subject]:
                if entry.path.endswith(IN_PLACE):
                    self._open(entry)

    def subset(self, subjects: Collection[str]) -> "SubjectDataset":
        """Return the data set of some of its subjects; what is in memory is shared."""
        chosen = copy(self)
        chosen._subjects = [subject for subject in self._subjects if subject in set(subjects)]
        return chosen

    def record(self, index: int, uniforms: Uniforms) -> Record:
        """Return at most ``cap`` of the subject's images, drawn afresh at each call.

        Args:
            uniforms: Gives that many independent uniforms in (0, 1). The global generator is
                never used: its state is shared by all subjects, and others reseed it.

        Raises:
            DataError: A scan cannot be prepared.
        """
        inputs = self._wanted.inputs
        if isinstance(inputs, PatchInput):
            drawn = uniforms(inputs.cap * UNIFORMS_PER_PATCH).reshape(inputs.cap, -1)
            return joined([self._patch(index, inputs, row) for row in drawn])
        scans = [self._prepared(entry) for entry in self._entries(index)]
        sizes = [len(scan.images) for scan in scans]
        chosen = np.argsort(uniforms(sum(sizes)))[: inputs.cap]
        places = [(which, at) for which, size in enumerate(sizes) for at in range(size)]
        parts = [(scans[places[number][0]], places[number][1]) for number in chosen]
        return Record(
            torch.stack([scan.images[at] for scan, at in parts]),
            torch.stack([scan.labels[at] for scan, at in parts]),
        )

    def scans(self, index: int) -> list[Record]:
        """Return every scan of one subject as one record: its slices, its volume, its patches."""
        return [joined(list(pieces)) for pieces in self.pieces(index)]

    def pieces(self, index: int) -> Iterator[Iterator[Record]]:
        """Yield every scan of one subject as records that together show it, for scoring.

        Slices and volumes are one record each. Patches lie side by side over the scan, a few in
        each record, read when they are asked for; see ``patches.tiles``.
        """
        for entry in self._entries(index):
            if isinstance(self._wanted.inputs, PatchInput):
                yield self._tiled(entry, self._wanted.inputs)
            else:
                yield iter([self._prepared(entry)])

    def check(self, index: int) -> None:
        """Check that a subject's scans fit the experiment; of patches the places alone.

        Raises:
            DataError: Says which grid or which labels, and what to change.
        """
        for entry in self._entries(index):
            if isinstance(self._wanted.inputs, PatchInput):
                scan, grid = self._opened(entry, self._wanted.inputs)
                first = tiles(grid.shape, self._wanted.inputs.shape_zyx)[0]
                prepare_patch(scan, self._wanted, grid, first.origin, self._device)
            else:
                self._prepared(entry)

    def _opener(self) -> Callable[[ScanEntry], CachedScan]:
        # Failures are not kept, so that a scan that is back where it was is found again.
        return lru_cache(OPEN_SCANS)(
            lambda entry: pick_channels(
                open_scan(self._cache, entry, self._in_place), self._channels
            )
        )

    def _entries(self, index: int) -> list[ScanEntry]:
        return self._scans[self._subjects[index]]

    def _prepared(self, entry: ScanEntry) -> Record:
        return self._memory.get(entry.digest, lambda: prepare_scan(self._open(entry), self._wanted))

    def _opened(self, entry: ScanEntry, inputs: PatchInput) -> tuple[CachedScan, Grid]:
        scan = self._open(entry)
        require_axes(scan, inputs)
        grid = grid_of(scan, inputs.spacing_mm_zyx)
        require_coverage(grid.shape, inputs)
        return scan, grid

    def _patch(self, index: int, inputs: PatchInput, uniforms: npt.NDArray[np.float64]) -> Record:
        entries = self._entries(index)
        entry = entries[int(uniforms[0] * len(entries))]
        scan, grid = self._opened(entry, inputs)
        foreground = self._labelled(entry, scan) if inputs.foreground else None
        origin = draw_origin(scan, grid, inputs, uniforms[1:], foreground)
        return prepare_patch(scan, self._wanted, grid, origin, self._device)

    def _labelled(self, entry: ScanEntry, scan: CachedScan) -> Foreground:
        if entry.digest not in self._foreground:
            self._foreground[entry.digest] = find_foreground(scan)
        return self._foreground[entry.digest]

    def _tiled(self, entry: ScanEntry, inputs: PatchInput) -> Iterator[Record]:
        scan, grid = self._opened(entry, inputs)
        waiting = iter(tiles(grid.shape, inputs.shape_zyx))
        while some := list(islice(waiting, TILES_AT_A_TIME)):
            yield joined([self._tile(scan, grid, tile) for tile in some])

    def _tile(self, scan: CachedScan, grid: Grid, tile: Tile) -> Record:
        record = prepare_patch(scan, self._wanted, grid, tile.origin, self._device)
        shape = self._wanted.inputs.shape
        counted = torch.zeros((1, *shape), dtype=torch.bool, device=self._device)
        counted[0][tile.counted[-len(shape) :]] = True
        return Record(record.images, record.labels, counted)


class _Memory:
    """Prepared scans, up to ``MEMORY_BYTES``; the first ones stay."""

    def __init__(self) -> None:
        self._kept: dict[str, Record] = {}
        self._bytes = 0

    def get(self, key: str, make: Callable[[], Record]) -> Record:
        if key in self._kept:
            return self._kept[key]
        record = make()
        size = record.images.nbytes + record.labels.nbytes
        if self._bytes + size <= MEMORY_BYTES:
            self._kept[key] = record
            self._bytes += size
        return record


def _class_map(
    manifest: Manifest,
    classes: Sequence[str],
    learns: Learns,
    meanings: Mapping[str, str] | None,
) -> torch.Tensor:
    if learns == "values":
        require_values(manifest.target_classes)
        return torch.empty(0, dtype=torch.uint8)
    present = manifest.classes if learns == "voxels" else manifest.target_classes
    return class_map(present, classes, learns=learns, meanings=meanings)


def joined(records: Sequence[Record]) -> Record:
    """Return all images of some records as one record."""
    if len(records) == 1:
        return records[0]
    counted = [record.counted for record in records if record.counted is not None]
    return Record(
        torch.cat([record.images for record in records]),
        torch.cat([record.labels for record in records]),
        torch.cat(counted) if counted else None,
    )


def _by_subject(entries: Sequence[ScanEntry]) -> Mapping[str, list[ScanEntry]]:
    subjects: dict[str, list[ScanEntry]] = {}
    for entry in sorted(entries, key=lambda e: e.digest):
        subjects.setdefault(entry.subject, []).append(entry)
    return subjects
