"""DICOM folders: which files make which scan, and reading one."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_adapters.dicom_headers import (
    DICOMDIR,
    MODALITY_OF,
    SEGMENTATIONS,
    SINGLE_FRAME_VOLUMES,
    Instance,
    instance_of,
    quiet_pydicom,
    read_header,
)
from data_adapters.dicom_labels import read_labels
from data_adapters.dicom_volume import check_pixels, read_pixels, volume_geometry
from data_adapters.gate import RARELY_ANNOTATED, check_burned_in, identifying_keywords
from data_adapters.geometry import RAS_FROM_LPS
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource
from data_adapters.subject_ids import names_a_subject
from data_adapters.types import Discovery, Quarantined, Scan, relative


@dataclass(frozen=True)
class DicomCandidate:
    """One image series and the segmentations that mean it."""

    where: str
    images: tuple[Instance, ...]
    segmentations: tuple[Instance, ...]
    values: Mapping[str, int] = field(repr=False)

    def read(self) -> Scan:
        """Return the scan.

        Raises:
            Unusable: The reason code for which it is left out.
        """
        with quiet_pydicom():
            return self._read()

    def _read(self) -> Scan:
        self._check()
        check_pixels(self.images)
        geometry = volume_geometry(self.images)
        segmentation = self._segmentation()
        image, slope, intercept = read_pixels(geometry)
        return Scan(
            image_zyx=image,
            slope=slope,
            intercept=intercept,
            labels_zyx=read_labels(segmentation.path, geometry, self.values),
            affine_ras=RAS_FROM_LPS @ geometry.affine_lps,
            subject=self.images[0].subject,
            modality=MODALITY_OF[self.images[0].sop_class],
        )

    def _check(self) -> None:
        """Refuse what headers alone show; cheap, and before any pixel is decoded."""
        for instance in self.images:
            if instance.sop_class not in SINGLE_FRAME_VOLUMES or instance.num_frames != 1:
                check_burned_in(instance.modality, instance.burned_in)
                raise Unusable("UNSUPPORTED_OBJECT", instance.object_name)
            check_burned_in(instance.modality, instance.burned_in)
        if not all(names_a_subject(instance.subject) for instance in self.images):
            raise Unusable("NO_SUBJECT")
        if len({i.subject for i in (*self.images, *self.segmentations)}) > 1:
            raise Unusable("MIXED_SUBJECTS")
        if not self.segmentations:
            raise Unusable("NO_LABELS")

    def _segmentation(self) -> Instance:
        if len(self.segmentations) > 1:
            raise Unusable("SEVERAL_SEGMENTATIONS")
        segmentation = self.segmentations[0]
        # A slice lost at an end leaves an even grid; only the segmentation remembers it.
        if set(segmentation.referenced_instances) - {image.instance for image in self.images}:
            raise Unusable("MISSING_SLICES")
        return segmentation


def discover_dicom(source: DicomSource) -> Discovery:
    """Look at every file below ``source.path`` and sort out which make a scan."""
    found = _Found()
    with quiet_pydicom():
        for path in _files(source.path):
            found.look_at(path, source.path)
    images, segmentations = _by_series(found.instances)
    paired, orphans = _pair(images, segmentations)
    names = source.class_names()
    values = {label: names.index(name) for label, name in source.classes.items()}
    crowded = Counter(f for series in images.values() for f in {i.path.parent for i in series})
    candidates = [
        DicomCandidate(_where(series, crowded, source.path), series, paired.get(uid, ()), values)
        for uid, series in images.items()
    ]
    found.quarantined += [
        Unusable("LABELS_WITHOUT_IMAGE").at(relative(orphan.path, source.path))
        for orphan in orphans
    ]
    return Discovery(
        candidates=tuple(sorted(candidates, key=lambda candidate: candidate.where)),
        quarantined=tuple(found.quarantined),
        identifiers_found=dict(sorted(found.identifiers.items())),
        notes=tuple(found.notes()),
    )


@dataclass
class _Found:
    """Tally of a walk over a folder."""

    instances: list[Instance] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    identifiers: Counter[str] = field(default_factory=Counter)
    num_foreign: int = 0
    num_indexes: int = 0

    def look_at(self, path: Path, root: Path) -> None:
        from pydicom.errors import InvalidDicomError

        try:
            header = read_header(path)
            instance = instance_of(path, header)
            identifiers = identifying_keywords(header)
        except InvalidDicomError:
            self.num_foreign += 1
            return
        except Exception:  # a damaged header can raise anything, and the text may quote it
            self.quarantined.append(Unusable("UNREADABLE_FILE").at(relative(path, root)))
            return
        if instance.sop_class == DICOMDIR:
            self.num_indexes += 1
            return
        self.identifiers.update(identifiers)
        self.instances.append(instance)

    def notes(self) -> Iterator[str]:
        if self.num_foreign:
            yield f"{self.num_foreign} files are not DICOM and were passed over."
        if self.num_indexes:
            yield f"{self.num_indexes} DICOMDIR files were passed over; the folders were searched."
        silent = Counter(
            i.modality
            for i in self.instances
            if i.sop_class in SINGLE_FRAME_VOLUMES and not i.burned_in
        )
        for modality in sorted(set(silent) & RARELY_ANNOTATED):
            yield (
                f"{silent[modality]} {modality} files do not say whether text is burned in; "
                f"accepted, as {modality} images rarely carry any."
            )


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _by_series(
    instances: Iterable[Instance],
) -> tuple[dict[str, tuple[Instance, ...]], list[Instance]]:
    """Return image series by UID, and segmentations; objects without pixels are passed over."""
    series: defaultdict[str, list[Instance]] = defaultdict(list)
    segmentations = []
    for instance in instances:
        if instance.sop_class in SEGMENTATIONS:
            segmentations.append(instance)
        elif instance.photometric or instance.sop_class in SINGLE_FRAME_VOLUMES:
            series[instance.series or str(instance.path)].append(instance)
    return {uid: tuple(files) for uid, files in series.items()}, segmentations


def _pair(
    images: Mapping[str, Sequence[Instance]], segmentations: Iterable[Instance]
) -> tuple[dict[str, tuple[Instance, ...]], list[Instance]]:
    """Give each segmentation to the series it references, else to the only one it can mean."""
    paired: defaultdict[str, tuple[Instance, ...]] = defaultdict(tuple)
    orphans = []
    for segmentation in segmentations:
        target = _target(segmentation, images)
        if target is None:
            orphans.append(segmentation)
        else:
            paired[target] += (segmentation,)
    return dict(paired), orphans


def _target(segmentation: Instance, images: Mapping[str, Sequence[Instance]]) -> str | None:
    referenced = [uid for uid in segmentation.referenced_series if uid in images]
    in_frame = [
        uid
        for uid, series in images.items()
        if segmentation.frame_of_reference
        and series[0].study == segmentation.study
        and series[0].frame_of_reference == segmentation.frame_of_reference
    ]
    # References name what it was drawn on; the frame of reference alone may fit several series.
    for choice in (referenced, in_frame):
        if len(choice) == 1:
            return choice[0]
    return None


def _where(series: Sequence[Instance], crowded: Mapping[Path, int], root: Path) -> str:
    """Return the folder, or the first file where the folder holds other series too."""
    first = min(instance.path for instance in series)
    alone = len(series) > 1 and crowded[first.parent] == 1
    return relative(first.parent if alone else first, root)


def image_series(path: Path) -> list[tuple[Instance, ...]]:
    """Return the image series below a folder, or of one file; for use without a federation."""
    found = _Found()
    for file in _files(path) if path.is_dir() else [path]:
        found.look_at(file, path.parent)
    images, _ = _by_series(found.instances)
    return list(images.values())
