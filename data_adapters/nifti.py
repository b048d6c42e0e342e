"""NIfTI as a source: which images there are, and reading one with its labels."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_adapters.nearest import unmapped_values
from data_adapters.nifti_layout import NiftiFile, find_files, labels_of, raw_subject
from data_adapters.nifti_volume import (
    NiftiVolume,
    header_notes,
    matched_labels,
    read_header,
    same_grid,
)
from data_adapters.reasons import Unusable
from data_adapters.sources import NiftiSource, class_values
from data_adapters.targets import TargetTable, load_targets
from data_adapters.types import Discovery, Quarantined, Scan, relative, stat_stamp

MOST_NAMED = 5


@dataclass(frozen=True)
class NiftiCandidate:
    """One image and the label files that may mean it.

    Args:
        labels: None where the source has no voxel labels.
        values: Label value to what is stored.
    """

    where: str
    subject: str = field(repr=False)
    path: Path
    labels: tuple[Path, ...] | None
    values: Mapping[int, int]
    modality: str
    target: float | None

    @property
    def needs_codecs(self) -> Literal[True]:
        """Return that it is read in a decoder."""
        return True

    def fingerprint(self) -> str:
        """Return text that changes when a file changes that ``read`` uses."""
        files = (self.path, *(self.labels or ()))
        try:
            stamps = [f"{path}:{stat_stamp(path)}" for path in files]
        except OSError:
            return ""
        return "\n".join([*stamps, str(self.target), str(sorted(self.values.items()))])

    def read(self) -> Scan:
        """Return the scan.

        Raises:
            Unusable: The reason code for which it is left out.
        """
        image = read_header(self.path)
        labels = None if self.labels is None else self._labels(image, self.labels)
        return Scan(
            image_czyx=image.image()[None],
            slopes=(image.slope,),
            intercepts=(image.intercept,),
            affine_ras=image.affine_ras,
            subject=self.subject,
            modality=self.modality,
            labels_zyx=labels,
            target=self.target,
            planar=image.planar,
        )

    def _labels(self, image: NiftiVolume, files: tuple[Path, ...]) -> NDArray[np.uint8]:
        """Of several label files the one on the image's grid is meant."""
        if not files:
            raise Unusable("NO_LABELS")
        fitting = [h for h in map(read_header, files) if same_grid(h, image)]
        if len(fitting) > 1:
            raise Unusable("SEVERAL_SEGMENTATIONS")
        values = matched_labels(fitting[0], image) if fitting else None
        if values is None:
            raise Unusable("LABEL_GRID")
        return _classes(values, self.values)


def discover_nifti(source: NiftiSource) -> Discovery:
    """Look for the images of a BIDS data set, or of a folder of subject folders.

    Raises:
        DataError: The table of targets cannot be used.
    """
    files = find_files(source.path)
    images = [file for file in files if _is_image(file, source)]
    found = _Found(source, load_targets(source.targets) if source.targets else None)
    found.give_labels(images, files)
    for image in images:
        found.look_at(image)
    return Discovery(
        candidates=tuple(found.candidates),
        quarantined=tuple(found.quarantined),
        identifiers_found=dict(sorted(found.identifiers.items())),
        notes=tuple(found.notes(len(files))),
    )


@dataclass
class _Found:
    """Tally of a look at a source."""

    source: NiftiSource
    targets: TargetTable | None
    labels: dict[Path, tuple[Path, ...]] = field(default_factory=dict)
    candidates: list[NiftiCandidate] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    identifiers: Counter[str] = field(default_factory=Counter)
    num_without_unit: int = 0

    def give_labels(self, images: list[NiftiFile], files: list[NiftiFile]) -> None:
        end = self.source.labels
        if end is None:
            return
        labels = [file for file in files if file.stem.endswith(end)]
        self.labels, orphans = labels_of(
            images, labels, image_end=self.source.image, labels_end=end
        )
        for path in orphans:
            where = relative(path, self.source.path)
            self.quarantined.append(Unusable("LABELS_WITHOUT_IMAGE").at(where))

    def look_at(self, image: NiftiFile) -> None:
        where = relative(image.path, self.source.path)
        has_unit, free_text = header_notes(image.path)
        self.num_without_unit += not has_unit
        self.identifiers.update(f"NIfTI {name}" for name in free_text)
        try:
            target = self._target(image, where)
        except Unusable as refusal:
            self.quarantined.append(refusal.at(where))
            return
        self.candidates.append(
            NiftiCandidate(
                where=where,
                subject=raw_subject(image),
                path=image.path,
                labels=self.labels.get(image.path, ()) if self.source.labels else None,
                values=class_values(self.source, self.source.classes) | {0: 0},
                modality=self.source.modality,
                target=target,
            )
        )

    def _target(self, image: NiftiFile, where: str) -> float | None:
        if self.targets is None or self.source.targets is None:
            return None
        return self.targets.target_of(
            where if self.source.targets.key == "image" else image.subject
        )

    def notes(self, num_files: int) -> list[str]:
        notes = []
        if self.num_without_unit:
            notes.append(
                f"{self.num_without_unit} images state no unit of length; millimetres are taken, "
                "as is usual in NIfTI."
            )
        others = num_files - len(self.candidates) - sum(map(len, self.labels.values()))
        others -= len(self.quarantined)
        if others:
            notes.append(
                f"{others} NIfTI files are neither images nor labels by the end of their names, "
                "and were passed over."
            )
        return notes


def _is_image(file: NiftiFile, source: NiftiSource) -> bool:
    if source.labels and file.stem.endswith(source.labels):
        return False
    return not file.derived and file.stem.endswith(source.image)


def _classes(labels: NDArray[Any], values: Mapping[int, int]) -> NDArray[np.uint8]:
    present = np.unique(labels)
    unmapped = sorted({int(value) for value in present} - values.keys())
    if unmapped:
        named = unmapped_values(unmapped[:MOST_NAMED], values)
        raise Unusable("UNMAPPED_LABEL", named + ", …" * (len(unmapped) > MOST_NAMED))
    table = np.asarray([values[int(value)] for value in present], dtype=np.uint8)
    return table[np.searchsorted(present, labels)]
