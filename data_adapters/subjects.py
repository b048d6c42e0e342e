"""A data set indexed by subject: one record each, whatever the number of scans.

Nothing about one subject depends on another: images are normalised each by itself and resampled
to spacings that the experiment declares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, ResizeWithPadOrCrop, Spacing

from data_adapters.cache import read_scan
from data_adapters.errors import DataError
from data_adapters.inputs import SliceInput, VolumeInput
from data_adapters.manifest import Manifest, ScanEntry
from data_adapters.types import CachedScan

# Prepared scans are kept in memory up to this many bytes; past it they are read again.
MEMORY_BYTES = 1 << 30
_LEAST_COVERAGE = 0.25
# A scan that resampling would blow up beyond this many voxels is refused before it is made.
_MOST_VOXELS = 1 << 28

Uniforms = Callable[[int], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Record:
    """Images of one subject.

    Attributes:
        images: float32 (images, 1, *shape), zero mean and unit deviation within each scan.
        labels: uint8 (images, *shape), the experiment's class indices.
    """

    images: torch.Tensor
    labels: torch.Tensor


class SubjectDataset:
    """Records of a cached data set, in the order of the subjects' pseudonyms."""

    def __init__(
        self,
        cache: Path,
        manifest: Manifest,
        inputs: SliceInput | VolumeInput,
        classes: Sequence[str],
    ) -> None:
        self._cache = cache
        self._inputs = inputs
        self._class_map = _class_map(manifest.classes, classes)
        self._scans = _by_subject(manifest.scans)
        self._subjects = sorted(self._scans)
        self._prepared: dict[str, Record] = {}
        self._prepared_bytes = 0

    def __len__(self) -> int:
        return len(self._subjects)

    def record(self, index: int, uniforms: Uniforms) -> Record:
        """Return at most ``cap`` of the subject's images, drawn afresh at each call.

        Args:
            uniforms: Gives that many independent uniforms in (0, 1). The global generator is
                never used: its state is shared by all subjects, and others reseed it.

        Raises:
            DataError: A scan cannot be prepared.
        """
        scans = self.scans(index)
        images, labels = torch.cat([s.images for s in scans]), torch.cat([s.labels for s in scans])
        chosen = torch.from_numpy(np.argsort(uniforms(len(images)))[: self._inputs.cap])
        return Record(images[chosen], labels[chosen])

    def scans(self, index: int) -> list[Record]:
        """Return every scan of one subject: its slices as images, or the one volume."""
        return [self._prepare(entry) for entry in self._scans[self._subjects[index]]]

    def _prepare(self, entry: ScanEntry) -> Record:
        if entry.digest in self._prepared:
            return self._prepared[entry.digest]
        record = prepare_scan(read_scan(self._cache, entry), self._inputs, self._class_map)
        size = record.images.nbytes + record.labels.nbytes
        if self._prepared_bytes + size <= MEMORY_BYTES:
            self._prepared[entry.digest] = record
            self._prepared_bytes += size
        return record


def prepare_scan(
    scan: CachedScan, inputs: SliceInput | VolumeInput, class_map: torch.Tensor
) -> Record:
    """Orient to (superior, anterior, right), resample, crop or pad, and normalise one scan.

    Raises:
        DataError: The experiment's grid is mostly outside this scan.
    """
    image = _oriented(scan.image_zyx.astype(np.float32), scan, inputs, "bilinear")
    labels = _oriented(scan.labels_zyx.astype(np.float32), scan, inputs, "nearest")
    _require_coverage(image.shape[1:], inputs)
    image = (image - image.mean()) / image.std().clamp(min=1e-6)
    image, labels = _on_grid(image, inputs), _on_grid(labels, inputs)
    classes = class_map[labels.long()]
    if isinstance(inputs, SliceInput):
        return Record(image.movedim(1, 0).contiguous(), classes[0])
    return Record(image[None], classes)


def _oriented(
    array_zyx: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    scan: CachedScan,
    inputs: SliceInput | VolumeInput,
    mode: str,
) -> torch.Tensor:
    """Return (1, z, y, x) at the experiment's spacing, axes along S, A, R."""
    tensor = MetaTensor(torch.from_numpy(array_zyx)[None], affine=torch.from_numpy(scan.affine_ras))
    tensor = Orientation(axcodes="SAR", labels=(("L", "R"), ("P", "A"), ("I", "S")))(tensor)
    present = np.linalg.norm(np.asarray(tensor.affine)[:3, :3], axis=0)
    wanted = np.array(_spacing_zyx(inputs, float(present[0])))
    if np.allclose(present, wanted, rtol=0.01):
        return tensor.as_tensor()
    _require_bounded(np.array(tensor.shape[1:]) * present / wanted)
    resampled: MetaTensor = Spacing(pixdim=wanted, mode=mode, padding_mode="border")(tensor)
    return resampled.as_tensor()


def _require_bounded(shape_zyx: npt.NDArray[np.float64]) -> None:
    if float(np.prod(shape_zyx)) > _MOST_VOXELS:
        raise DataError(
            f"At the experiment's spacing a scan would have more than {_MOST_VOXELS:,} voxels. "
            "Use a coarser spacing in the experiment's input."
        )


def _spacing_zyx(inputs: SliceInput | VolumeInput, present_z: float) -> tuple[float, ...]:
    if isinstance(inputs, SliceInput):
        return (present_z, *inputs.spacing_mm_yx)
    return inputs.spacing_mm_zyx


def _on_grid(tensor: torch.Tensor, inputs: SliceInput | VolumeInput) -> torch.Tensor:
    depth = tensor.shape[1:2] if isinstance(inputs, SliceInput) else ()
    fitted: torch.Tensor = ResizeWithPadOrCrop((*depth, *inputs.shape))(tensor)
    return fitted.as_tensor() if isinstance(fitted, MetaTensor) else fitted


def _require_coverage(shape_zyx: Sequence[int], inputs: SliceInput | VolumeInput) -> None:
    present = tuple(shape_zyx)[-len(inputs.shape) :]
    covered = float(np.prod([min(p, w) / w for p, w in zip(present, inputs.shape, strict=True)]))
    if covered < _LEAST_COVERAGE:
        raise DataError(
            f"The experiment asks for a grid of {inputs.shape} voxels, of which a scan of "
            f"{present} voxels at that spacing fills {covered:.0%}. Use a smaller shape or a "
            "finer spacing in the experiment's input."
        )


def _by_subject(entries: Sequence[ScanEntry]) -> Mapping[str, list[ScanEntry]]:
    subjects: dict[str, list[ScanEntry]] = {}
    for entry in sorted(entries, key=lambda e: e.digest):
        subjects.setdefault(entry.subject, []).append(entry)
    return subjects


def _class_map(present: Sequence[str], wanted: Sequence[str]) -> torch.Tensor:
    """Return, for each class of the cache, its index in the experiment.

    Raises:
        DataError: The two lists differ apart from the background; names what is missing.
    """
    ours, theirs = set(present[1:]), set(wanted[1:])
    if ours != theirs:
        raise DataError(
            f"The experiment's classes {sorted(theirs)} are not this data set's {sorted(ours)}. "
            "Map the labels onto the experiment's names under 'classes' in the site file."
        )
    return torch.tensor([0, *(list(wanted).index(name) for name in present[1:])], dtype=torch.uint8)
