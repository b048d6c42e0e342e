"""From a site's own files to its cache and manifest: one pass, and no bad scan stops it."""

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from data_adapters.cache import CacheWriter, prepare_cache, prune, scan_path
from data_adapters.dicom import discover_dicom
from data_adapters.errors import DataError
from data_adapters.geometry import axis_steps
from data_adapters.manifest import Manifest, ScanEntry, root_digest, scan_digest
from data_adapters.ome_zarr import discover_ome_zarr
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource, OmeZarrSource
from data_adapters.types import Candidate, Discovery, Quarantined, Scan

MANIFEST = "manifest.json"
LIBRARIES = ("cohortium", "highdicom", "numpy", "ome-zarr-models", "pydicom", "tensorstore")


@dataclass(frozen=True)
class IngestReport:
    """What the site operator sees. ``quarantined`` names paths, so it stays at the site.

    Args:
        identifiers_found: DICOM keyword to the number of files holding a value; never values.
    """

    manifest: Manifest
    quarantined: tuple[Quarantined, ...]
    identifiers_found: dict[str, int]
    notes: tuple[str, ...]


def ingest(
    source: DicomSource | OmeZarrSource,
    cache_dir: Path,
    *,
    pseudonymise: Callable[[str], str],
    progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Gate, read and cache every scan of ``source``; what cannot be used is quarantined by name.

    Scans are stored by content, so a rerun after a kill writes only what is missing and ends the
    same. The manifest is written last.

    Args:
        cache_dir: Made readable by its owner only.
        pseudonymise: Raw subject identifier to pseudonym; the key stays with the caller.
        progress: Called with (scans done, scans in all).

    Raises:
        DataError: The folder is missing or holds no usable scan.
    """
    discovery = discover(source)
    cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(cache_dir):
        prepare_cache(cache_dir)
        return _ingest(source, discovery, cache_dir, pseudonymise, progress)


@contextmanager
def _alone(cache_dir: Path) -> Iterator[None]:
    """Keep a second process out of the cache: each would clean up what the other is writing."""
    descriptor = os.open(cache_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DataError(
            f"Another process is writing to the cache {cache_dir}. Wait until it has finished."
        ) from error
    finally:
        os.close(descriptor)


def _ingest(
    source: DicomSource | OmeZarrSource,
    discovery: Discovery,
    cache_dir: Path,
    pseudonymise: Callable[[str], str],
    progress: Callable[[int, int], None] | None,
) -> IngestReport:
    writer = CacheWriter(cache_dir, source.class_names())
    tally = _Tally(writer, source.class_names(), pseudonymise)
    for done, candidate in enumerate(discovery.candidates, start=1):
        tally.add(candidate)
        if progress is not None:
            progress(done, len(discovery.candidates))
    writer.commit()
    quarantined = (*discovery.quarantined, *tally.quarantined)
    if not tally.entries:
        # What was cached before is no longer in the source, so nothing may train on it.
        (cache_dir / MANIFEST).unlink(missing_ok=True)
        raise DataError(_nothing_usable(source.path, quarantined))
    manifest = tally.manifest(source.kind)
    manifest.save(cache_dir / MANIFEST)
    prune(cache_dir, manifest)
    return IngestReport(
        manifest=manifest,
        quarantined=tuple(sorted(quarantined, key=lambda entry: (entry.where, entry.code))),
        identifiers_found=discovery.identifiers_found,
        notes=(*discovery.notes, *tally.notes()),
    )


def discover(source: DicomSource | OmeZarrSource) -> Discovery:
    """Find what may be a scan in ``source``, without decoding pixels.

    Raises:
        DataError: The folder does not exist.
    """
    if not source.path.is_dir():
        raise DataError(
            f"There is no folder {source.path}. Correct `path` in the site file, or mount the "
            "folder it names."
        )
    if isinstance(source, DicomSource):
        return discover_dicom(source)
    return discover_ome_zarr(source)


def _read(candidate: Candidate) -> Scan | Quarantined:
    try:
        return candidate.read()
    except Unusable as reason:
        return reason.at(candidate.where)
    except Exception as error:  # one bad scan never stops the others; its text may quote a header
        return Unusable("UNEXPECTED", type(error).__name__).at(candidate.where)


@dataclass
class _Tally:
    """Entries and refusals of one ingest."""

    writer: CacheWriter
    classes: tuple[str, ...]
    pseudonymise: Callable[[str], str]
    entries: dict[str, ScanEntry] = field(default_factory=dict)
    quarantined: list[Quarantined] = field(default_factory=list)
    num_repeated: int = 0

    def add(self, candidate: Candidate) -> None:
        """Cache one scan, or say why not. A scan already there is counted once."""
        scan = _read(candidate)
        if isinstance(scan, Quarantined):
            self.quarantined.append(scan)
            return
        entry = self._entry(scan)
        known = self.entries.get(entry.digest)
        if known is None:
            self.writer.add(scan, entry.digest)
            self.entries[entry.digest] = entry
        elif known.subject == entry.subject:
            self.num_repeated += 1
        else:
            self.quarantined.append(Unusable("DUPLICATE_SCAN").at(candidate.where))

    def _entry(self, scan: Scan) -> ScanEntry:
        digest = scan_digest(scan, self.classes)
        spacing_mm, _ = axis_steps(scan.affine_ras)
        z, y, x = scan.image_zyx.shape
        dz, dy, dx = (round(float(step), 6) for step in spacing_mm)
        return ScanEntry(
            subject=self.pseudonymise(scan.subject),
            digest=digest,
            shape_zyx=(z, y, x),
            spacing_mm_zyx=(dz, dy, dx),
            modality=scan.modality,
            path=scan_path(digest),
        )

    def manifest(self, source_kind: str) -> Manifest:
        scans = tuple(sorted(self.entries.values(), key=lambda e: (e.subject, e.digest)))
        return Manifest(
            source_kind=source_kind,
            classes=self.classes,
            scans=scans,
            root=root_digest(self.classes, scans),
            versions={name: version(name) for name in LIBRARIES},
        )

    def notes(self) -> tuple[str, ...]:
        if not self.num_repeated:
            return ()
        return (f"{self.num_repeated} scans are copies of another one; each is counted once.",)


def _nothing_usable(folder: Path, quarantined: tuple[Quarantined, ...]) -> str:
    if not quarantined:
        return (
            f"There are no scans in {folder}. Correct `path` and `kind` in the site file: a DICOM "
            "source is any folder of DICOM files, an OME-Zarr source holds "
            "<subject>/<name>.ome.zarr."
        )
    (code, count), *_ = Counter(entry.code for entry in quarantined).most_common(1)
    example = next(entry for entry in quarantined if entry.code == code)
    return (
        f"No scan in {folder} can be used: {len(quarantined)} were left out, {count} of them "
        f"for {code}. {example.sentence} {example.remedy}"
    )
