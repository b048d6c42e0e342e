"""DICOM folders and media: which files make which scan, and reading one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_adapters.dicom_channels import check_colour, check_frames, onto_first, read_channels
from data_adapters.dicom_found import Found, source_files
from data_adapters.dicom_headers import Instance, quiet_pydicom
from data_adapters.dicom_images import check_kind, grid_of
from data_adapters.dicom_label_rule import LabelRule, label_rule
from data_adapters.dicom_labels import read_segmentation
from data_adapters.dicom_objects import LABEL_KINDS, Kind
from data_adapters.dicom_rtstruct import read_structures
from data_adapters.dicom_series import (
    Choice,
    Image,
    Labels,
    Pairing,
    chosen,
    crowded_folders,
    images_of,
)
from data_adapters.dicom_volume import VolumeGeometry
from data_adapters.gate import check_burned_in
from data_adapters.geometry import RAS_FROM_LPS
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource
from data_adapters.targets import TargetTable, load_targets
from data_adapters.types import Discovery, Scan, relative, stat_stamp

_KINDS_OF_LABELS = {
    "any": LABEL_KINDS,
    "seg": frozenset({Kind.SEGMENTATION}),
    "rtstruct": frozenset({Kind.CONTOURS}),
}


@dataclass(frozen=True)
class Settings:
    """What a source says about reading; the same for all of its candidates.

    Args:
        rule: None where the source has no voxel classes.
    """

    root: Path
    rule: LabelRule | None
    clean_modalities: frozenset[str]
    spacing_mm: float | None
    colour: bool


@dataclass(frozen=True)
class DicomCandidate:
    """One image, of one series or of a series for each channel, and the labels that mean it.

    Args:
        target: From the table of targets: a value, or why there is none.
    """

    where: str
    channels: tuple[Image, ...] = field(repr=False)
    labels: tuple[Labels, ...] = field(repr=False)
    settings: Settings = field(repr=False)
    target: float | Unusable | None = field(repr=False, default=None)

    @property
    def subject(self) -> str:
        """Return the raw identifier, with an issuer if one of the image's files names it."""
        subjects = (instance.subject for image in self.channels for instance in image.instances)
        return max(subjects, key=_issuer)

    @property
    def needs_codecs(self) -> Literal[True]:
        """Return that it is read in a decoder."""
        return True

    def fingerprint(self) -> str:
        """Return paths, sizes and times of every file that may be read."""
        try:
            files = sorted((instance.path, stat_stamp(instance.path)) for instance in self._files())
        except OSError:
            return ""
        root = self.settings.root
        return "\n".join(f"{relative(path, root)}\t{stamp}" for path, stamp in files)

    def read(self) -> Scan:
        """Return the scan.

        Raises:
            Unusable: The reason code for which it is left out.
        """
        with quiet_pydicom():
            return self._read()

    def _files(self) -> Iterator[Instance]:
        for image in self.channels:
            yield from image.instances
        for labels in self.labels:
            yield labels.instance

    def _read(self) -> Scan:
        self.check_headers()
        labels = self._chosen_labels()
        if isinstance(self.target, Unusable):
            raise self.target
        grids = [grid_of(image.instances, self.settings.spacing_mm) for image in self.channels]
        check_colour(grids, colour=self.settings.colour)
        check_frames(grids)
        # Labels before pixels: most of what is wrong with a study is wrong with its labels.
        labels_zyx = None if labels is None else self._read_labels(labels, grids)
        image_czyx, slopes, intercepts = read_channels(grids)
        return Scan(
            image_czyx=image_czyx,
            slopes=slopes,
            intercepts=intercepts,
            labels_zyx=labels_zyx,
            target=self.target,
            affine_ras=RAS_FROM_LPS @ grids[0].affine_lps,
            planar=grids[0].planar,
            subject=self.subject,
            modality=self.channels[0].instances[0].public_modality,
        )

    def check_headers(self) -> None:
        """Refuse what headers alone show; cheap, and before any pixel is decoded.

        Raises:
            Unusable: The reason code.
        """
        for image in self.channels:
            check_kind(image.instances)
            for instance in image.instances:
                # A slide's label and overview are never read.
                if instance.kind is not Kind.SLIDE or "VOLUME" in instance.image_type:
                    check_burned_in(instance, self.settings.clean_modalities)
        if not _is_one({instance.subject for instance in self._files()}):
            raise Unusable("MIXED_SUBJECTS")

    def _chosen_labels(self) -> Labels | None:
        if self.settings.rule is None:
            return None
        if not self.labels:
            raise Unusable("NO_LABELS")
        if len(self.labels) > 1:
            raise Unusable("SEVERAL_SEGMENTATIONS")
        labels = self.labels[0]
        # A slice lost at an end leaves an even grid; only the labels remember it.
        image = self.channels[labels.channel]
        there = {instance.instance for instance in image.instances}
        if not image.is_alone and any(
            set(instances) - there
            for series, instances in labels.instance.references
            if series == image.series
        ):
            raise Unusable("MISSING_SLICES")
        return labels

    def _read_labels(self, labels: Labels, grids: Sequence[VolumeGeometry]) -> NDArray[np.uint8]:
        """Labels that were drawn on another channel are taken over voxel by voxel, nearest."""
        rule = self.settings.rule or LabelRule({})
        read = read_segmentation
        if labels.instance.kind is Kind.CONTOURS:
            read = read_structures
        drawn_on = grids[labels.channel]
        return onto_first(read(labels.instance.path, drawn_on, rule), drawn_on, grids[0])


def _issuer(subject: str) -> str:
    return subject.partition("^^^")[2]


def _is_one(subjects: Iterable[str]) -> bool:
    """Tell whether files of one study are of one subject: few label tools copy the issuer."""
    issuers = {_issuer(subject) for subject in subjects} - {""}
    return len({subject.partition("^^^")[0] for subject in subjects}) == 1 and len(issuers) <= 1


def discover_dicom(source: DicomSource) -> Discovery:
    """Look at every file of the source and sort out which make a scan.

    Raises:
        DataError: The table of targets cannot be read, or ``source.path`` is a file and no
            DICOMDIR.
    """
    root, files, missing = source_files(source.path)
    found = Found([Unusable("MISSING_FILE").at(name) for name in missing])
    with quiet_pydicom():
        for path in files:
            found.look_at(path, root)
    images = images_of(found.instances)
    choices = chosen(images, source)
    every_label = [i for i in found.instances if i.kind in _KINDS_OF_LABELS[source.labels]]
    labels, orphans, num_left_out = Pairing(images, every_label).assign(choices)
    if source.class_names():
        found.quarantined += [
            Unusable("LABELS_WITHOUT_IMAGE").at(relative(orphan.path, root)) for orphan in orphans
        ]
    make = _Maker(source, root, crowded_folders(images))
    for choice in choices:
        if choice.refusal is not None:
            found.quarantined.append(choice.refusal.at(make.where(choice)))
    num_left_out = num_left_out if source.class_names() else 0
    candidates = [
        make.candidate(choice, labels[place])
        for place, choice in enumerate(choices)
        if choice.refusal is None
    ]
    return Discovery(
        candidates=tuple(sorted(candidates, key=lambda candidate: candidate.where)),
        quarantined=tuple(found.quarantined),
        identifiers_found=dict(sorted(found.identifiers.items())),
        notes=tuple(found.notes(source, num_left_out)),
    )


class _Maker:
    """Makes the candidates of one source."""

    def __init__(self, source: DicomSource, root: Path, crowded: Mapping[str, int]) -> None:
        self._root = root
        self._crowded = crowded
        self._targets = load_targets(source.targets) if source.targets else None
        self._key = source.targets.key if source.targets else "subject"
        self._settings = Settings(
            root=root,
            rule=label_rule(source) if source.class_names() else None,
            clean_modalities=frozenset(source.clean_modalities),
            spacing_mm=source.spacing,
            colour=source.colour,
        )

    def candidate(self, choice: Choice, labels: tuple[Labels, ...]) -> DicomCandidate:
        """Return one candidate; what is wrong with it shows when it is read."""
        where = self.where(choice)
        return DicomCandidate(
            where=where,
            channels=choice.images,
            labels=labels,
            settings=self._settings,
            target=self._target(choice.images[0].instances[0], where),
        )

    def where(self, choice: Choice) -> str:
        """Return the folder, or the first file where the folder holds other images too."""
        paths = [instance.path for instance in choice.images[0].instances]
        first = min(paths)
        alone = len(paths) > 1 and self._crowded[str(first.parent)] == 1
        return relative(first.parent if alone else first, self._root)

    def _target(self, first: Instance, where: str) -> float | Unusable | None:
        if self._targets is None:
            return None
        plain, _, issuer = first.subject.partition("^^^")
        keys = {
            "subject": (first.subject, plain) if issuer else (first.subject,),
            "study": (first.study,),
            "series": (first.series,),
            "image": (where,),
        }[self._key]
        return _first_target(self._targets, keys)


def _first_target(table: TargetTable, keys: Iterable[str]) -> float | Unusable:
    refusal = Unusable("NO_TARGET")
    for key in keys:
        try:
            return table.target_of(key)
        except Unusable as reason:
            refusal = reason
            if reason.code != "NO_TARGET":
                break
    return refusal
