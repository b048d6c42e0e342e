"""What one part of a site's data is: counts, histograms, and what was set aside and why.

For the site's own screen: nothing of it is released.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.cache import CachedScan, open_scan
from data_adapters.discover import Fetching, Found, discover_all
from data_adapters.errors import DataError
from data_adapters.ingest import Progress
from data_adapters.manifest import Manifest, ScanEntry
from data_adapters.reasons import Unusable as UnusableScan
from data_adapters.subject_ids import subjects_of, unclear_identifiers
from data_adapters.types import HasHeaders, Quarantined
from federation.site_config import Part
from federation.site_data import SiteData

Counts = tuple[tuple[str, int], ...]
# Labels are counted slab by slab, of at most so many voxels.
_SLAB_VOXELS = 1 << 26
BURNED_IN = ("BURNED_IN_ANNOTATION", "BURNED_IN_UNKNOWN")


@dataclass(frozen=True)
class Unusable:
    """Scans and files that were set aside for one reason.

    Attributes:
        where: Paths below the source's folder.
    """

    code: str
    sentence: str
    remedy: str
    where: tuple[str, ...]


@dataclass(frozen=True)
class LabelUse:
    """One class of the labels.

    Attributes:
        num_scans: Scans that hold it.
        share: Of all voxels.
    """

    name: str
    num_scans: int
    share: float


@dataclass(frozen=True)
class PartFound:
    """What one part of the data is. After a quick look only headers are known.

    Attributes:
        spacings, shapes: Along z, y, x.
        identifiers: DICOM keyword to the number of files that hold a value; never values.
    """

    part: Part
    kind: str
    where: tuple[str, ...]
    num_subjects: int
    num_scans: int
    unusable: tuple[Unusable, ...]
    identifiers: Counts
    notes: tuple[str, ...]
    clean_modalities: tuple[str, ...] = ()
    modalities: Counts = ()
    spacings: Counts = ()
    shapes: Counts = ()
    scans_per_subject: Counts = ()
    labels: tuple[LabelUse, ...] = ()
    targets: Counts = ()

    @property
    def num_unusable(self) -> int:
        """Return how many scans and files were set aside."""
        return sum(len(reason.where) for reason in self.unusable)

    @property
    def burned_in(self) -> tuple[Unusable, ...]:
        """Return what was set aside because text may be burned into the pixels."""
        return tuple(reason for reason in self.unusable if reason.code in BURNED_IN)


def ingested_part(data: SiteData, part: Part, progress: Progress | None, workers: int) -> PartFound:
    """Ingest one part and describe what is then in the cache.

    Raises:
        DataError: No scan can be used, or the cache is damaged.
    """
    report = data.ingest(part, progress, workers=workers)
    manifest = report.manifest
    per_subject = Counter(scan.subject for scan in manifest.scans)
    return PartFound(
        **_about(data, part),
        num_subjects=len(manifest.subjects),
        num_scans=len(manifest.scans),
        unusable=_by_reason(report.quarantined),
        identifiers=ordered(report.identifiers_found),
        notes=report.notes,
        modalities=ordered(Counter(scan.modality for scan in manifest.scans)),
        spacings=ordered(Counter(spacing_text(scan) for scan in manifest.scans)),
        shapes=ordered(Counter(_shape_text(scan) for scan in manifest.scans)),
        scans_per_subject=tuple(
            (str(number), count) for number, count in sorted(Counter(per_subject.values()).items())
        ),
        labels=_labels(data, part, manifest),
        targets=_targets(manifest),
    )


def part_by_headers(data: SiteData, part: Part, progress: Progress | None = None) -> PartFound:
    """Describe one part without reading a pixel and without caching anything.

    Raises:
        DataError: A source is missing.
    """
    told = partial(progress, "fetching") if progress else None
    # The key is not made by a look alone: it is there once somebody was excluded.
    fetching = Fetching(data.excluded, lambda raw: data.pseudonymise(raw), told)  # noqa: PLW0108
    found = discover_all(data.config.sources(part), fetching)
    people, refused = _people(found)
    counts: Counter[str] = Counter()
    for one in found:
        counts.update(one.discovery.identifiers_found)
    return PartFound(
        **_about(data, part),
        num_subjects=len(people),
        num_scans=sum(len(one.discovery.candidates) for one in found) - len(refused),
        unusable=_by_reason([*refused, *(q for one in found for q in one.discovery.quarantined)]),
        identifiers=ordered(counts),
        notes=tuple(note for one in found for note in one.discovery.notes),
    )


def _people(found: Sequence[Found]) -> tuple[set[str], list[Quarantined]]:
    """Return the subjects by each source's rule, and the scans that headers alone refuse."""
    people: set[str] = set()
    refused: list[Quarantined] = []
    ambiguous = unclear_identifiers(
        (one.source.subjects, candidate.subject)
        for one in found
        for candidate in one.discovery.candidates
    )
    for one in found:
        rule = subjects_of(one.source.subjects, unclear=ambiguous, several_sources=len(found) > 1)
        for candidate in one.discovery.candidates:
            try:
                subject = rule.subject(candidate.subject)
                if isinstance(candidate, HasHeaders):
                    candidate.check_headers()
                people.add(subject)
            except UnusableScan as reason:
                refused.append(reason.at(candidate.where))
    return people, refused


def unusable_part(data: SiteData, part: Part, quarantined: Iterable[Quarantined]) -> PartFound:
    """Describe one part of which nothing can be used.

    Args:
        quarantined: What was set aside, as far as that is known.
    """
    nothing = PartFound(
        **_about(data, part),
        num_subjects=0,
        num_scans=0,
        unusable=_by_reason(quarantined),
        identifiers=(),
        notes=(),
    )
    try:
        headers = part_by_headers(data, part)
    except DataError:
        return nothing
    unusable = nothing.unusable or headers.unusable
    return replace(headers, num_subjects=0, num_scans=0, unusable=unusable)


def _about(data: SiteData, part: Part) -> dict[str, Any]:
    sources = data.config.sources(part)
    clean = {m for source in sources for m in getattr(source, "clean_modalities", ())}
    return {
        "part": part,
        "kind": "+".join(sorted({source.kind for source in sources})),
        "where": tuple(str(source.path) for source in sources),
        "clean_modalities": tuple(sorted(clean)),
    }


def _by_reason(quarantined: Iterable[Quarantined]) -> tuple[Unusable, ...]:
    """Put equal sentences together, most frequent first."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for entry in quarantined:
        groups.setdefault((entry.code, entry.sentence, entry.remedy), []).append(entry.where)
    frequent = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Unusable(*key, where=tuple(sorted(where))) for key, where in frequent)


def ordered(counts: Mapping[str, int]) -> Counts:
    """Return names and counts, most frequent first."""
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def spacing_text(scan: ScanEntry) -> str:
    """Return the spacing along z, y, x with three digits; of a plane along y, x only."""
    steps = scan.spacing_mm_zyx[1:] if scan.planar else scan.spacing_mm_zyx
    unit, scale = ("µm", 1000.0) if max(steps) < 0.1 else ("mm", 1.0)
    return " × ".join(f"{step * scale:.3g}" for step in steps) + f" {unit}"


def _shape_text(scan: ScanEntry) -> str:
    channels, *shape = scan.shape_czyx
    text = " × ".join(str(size) for size in (shape[1:] if scan.planar else shape))
    return text if channels == 1 else f"{text}, {channels} channels"


def _targets(manifest: Manifest) -> Counts:
    values = [scan.target for scan in manifest.scans if scan.target is not None]
    if not manifest.target_classes:
        return (("with a value", len(values)),) if values else ()
    names = Counter(manifest.target_classes[int(value)] for value in values)
    return tuple((name, names[name]) for name in manifest.target_classes)


def _labels(data: SiteData, part: Part, manifest: Manifest) -> tuple[LabelUse, ...]:
    if not manifest.classes:
        return ()
    in_place = data.in_place(part) if any(s.path.endswith(".json") for s in manifest.scans) else {}
    voxels = np.zeros(len(manifest.classes), np.int64)
    scans = np.zeros(len(manifest.classes), np.int64)
    for entry in manifest.scans:
        counts = _class_counts(open_scan(data.cache(part), entry, in_place), len(voxels))
        voxels += counts
        scans += counts > 0
    total = max(1, int(voxels.sum()))
    return tuple(
        LabelUse(name, int(scans[index]), int(voxels[index]) / total)
        for index, name in enumerate(manifest.classes)
    )


def _class_counts(scan: CachedScan, num_classes: int) -> NDArray[np.int64]:
    """Count the voxels of each class, some planes at a time."""
    z, y, x = scan.shape_zyx
    counts = np.zeros(num_classes, np.int64)
    step = max(1, _SLAB_VOXELS // (y * x))
    for start in range(0, z, step):
        region = (slice(start, min(z, start + step)), slice(0, y), slice(0, x))
        counts += np.bincount(scan.labels(region).ravel(), minlength=num_classes)[:num_classes]
    return counts
