"""From a site's own files to its cache and manifest: one pass, and no bad scan stops it."""

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Literal

from data_adapters.aliases import NOBODY, Excluded, image_name
from data_adapters.cache import IN_PLACE, SCANS, point_at, prepare_cache, prune, publish
from data_adapters.decoding import DECODERS, USUAL, Limits
from data_adapters.digests import FORMAT, Names
from data_adapters.discover import Fetching, Found, discover_all, location, reading
from data_adapters.errors import DataError
from data_adapters.ingest_index import IngestIndex
from data_adapters.manifest import Manifest, ScanEntry
from data_adapters.reasons import Unusable
from data_adapters.sources import AnySource
from data_adapters.staging import BLOCKS, Staged, Task
from data_adapters.subject_ids import Subjects, subjects_of, unclear_identifiers
from data_adapters.types import Candidate, Quarantined, Reopenable, stat_stamp
from data_adapters.workers import Result, stage_all

MANIFEST = "manifest.json"
LIBRARIES = (
    "cohortium",
    "highdicom",
    "nibabel",
    "numpy",
    "ome-zarr-models",
    "pydicom",
    "tensorstore",
)
# Scans, or bytes of them, that a kill can lose the work of.
BATCH, BATCH_BYTES = 64, 1 << 30
# What takes longer is shown.
QUIET_S = 2.0

# Files fetched from a PACS, scans held against what is known of them, scans read.
Stage = Literal["fetching", "comparing", "checking"]
Progress = Callable[[Stage, int, int], None]
Pseudonymise = Callable[[str], str]


@dataclass(frozen=True)
class IngestReport:
    """What the site operator sees. ``quarantined`` names paths, so it stays at the site.

    Args:
        identifiers_found: DICOM keyword to the number of files holding a value; never values.
        num_read: Scans that were read now; the others were known and had not changed.
    """

    manifest: Manifest
    quarantined: tuple[Quarantined, ...]
    identifiers_found: dict[str, int]
    notes: tuple[str, ...]
    num_read: int = 0


class NothingUsable(DataError):  # noqa: N818  (a state of the data)
    """No scan of a data set can be used; ``quarantined`` says why, scan by scan."""

    def __init__(self, message: str, quarantined: tuple[Quarantined, ...]) -> None:
        super().__init__(message)
        self.quarantined = quarantined


def ingest(  # noqa: PLR0913 - all but two are named
    sources: AnySource | Sequence[AnySource],
    cache_dir: Path,
    *,
    pseudonymise: Pseudonymise,
    excluded: Callable[[], Excluded] = lambda: NOBODY,
    progress: Progress | None = None,
    workers: int = 1,
    limits: Limits = USUAL,
) -> IngestReport:
    """Gate, read and cache every scan of a data set; what cannot be used is quarantined by name.

    Scans are stored by content, so a rerun after a kill finishes what is missing and ends the
    same; candidates that have not changed are not read again. The manifest is written last.

    Args:
        sources: One, or several that hold one protected population.
        cache_dir: Made readable by its owner only.
        pseudonymise: Keyed hash of a raw identifier or path; the key stays with the caller.
        excluded: Tells who must not be in the data set; asked while nobody else can write.
        progress: Called with the stage, what is done of it, and what there is in all: 0 while that
            is not known.
        workers: Processes that read; 1 reads in this one. Each has one more that decodes.
        limits: Of the processes that decode.

    Raises:
        DataError: A source is missing, or sources contradict each other.
        NothingUsable: No scan can be used.
    """
    together = tuple(sources) if isinstance(sources, Sequence) else (sources,)
    cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with alone(cache_dir):
        prepare_cache(cache_dir)
        told = partial(progress, "fetching") if progress else None
        if workers <= 1 and any(one.needs_codecs for one in together):
            DECODERS.warm(limits)
        found = discover_all(together, Fetching(excluded(), pseudonymise, told))
        # Asked once more: fetching takes hours, and somebody may have been excluded since.
        run = _Ingest(found, cache_dir, pseudonymise, excluded(), limits)
        return run.finished(progress, workers)


def exclude(cache_dir: Path, who: Excluded, *, pseudonymise: Pseudonymise) -> Manifest | None:
    """Take people out of a cache: manifest first, then the scans. Safe to repeat.

    Returns:
        The manifest that is left; None where nobody is, or nothing was ingested.
    """
    with alone(cache_dir):
        path = cache_dir / MANIFEST
        manifest = Manifest.load(path) if path.is_file() else None
        kept = (
            []
            if manifest is None
            else [e for e in manifest.scans if not _is_out(e, who, pseudonymise)]
        )
        left = None
        if manifest is not None and kept:
            left = Manifest.of(
                manifest.names,
                kept,
                source_kind=manifest.source_kind,
                versions=manifest.versions,
            )
            left.save(path)
        else:
            path.unlink(missing_ok=True)
        _forget_all_but(cache_dir, kept)
        return left


def _is_out(entry: ScanEntry, who: Excluded, pseudonymise: Pseudonymise) -> bool:
    return who.has(entry.aliases) or image_name(entry.image, pseudonymise) in who.images


def _forget_all_but(cache_dir: Path, kept: Collection[ScanEntry]) -> None:
    """Delete every other scan, what is unfinished, and what is known of the others."""
    prepare_cache(cache_dir)
    prune(cache_dir, kept)
    index = IngestIndex(cache_dir)
    index.keep_paths({entry.path for entry in kept})
    _forget_blocks(cache_dir, index.locations)


@contextmanager
def alone(cache_dir: Path) -> Iterator[None]:
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


@dataclass(frozen=True)
class _Known:
    """A candidate whose subject is clear.

    Args:
        subject: Pseudonym.
        aliases: Of the subject, sorted.
        mark: Keyed hash of its files' stamps and all settings; empty if it must be read anew.
        settings: What decides how it is read, beside its files.
    """

    task: Task
    subject: str
    aliases: tuple[str, ...]
    mark: str
    settings: str


class _Ingest:
    """One pass over the candidates of all sources."""

    def __init__(
        self,
        found: Sequence[Found],
        cache_dir: Path,
        pseudonymise: Pseudonymise,
        excluded: Excluded,
        limits: Limits,
    ) -> None:
        source = found[0].source
        self._names = Names(source.class_names(), source.target_names(), source.channel_names())
        self._found, self._cache_dir = found, cache_dir
        self._pseudonymise, self._excluded = pseudonymise, excluded
        self._limits = limits
        self._index = IngestIndex(cache_dir)
        self._batch = _Batch(cache_dir, self._index)
        self._tally = _Tally(self._is_excluded)
        self._num_excluded = 0
        self._total = sum(len(one.discovery.candidates) for one in found)
        self._locations: set[str] = set()
        (cache_dir / BLOCKS).mkdir(exist_ok=True, mode=0o700)

    def finished(self, progress: Progress | None, workers: int) -> IngestReport:
        """Stage, publish, write the manifest, clean up."""
        every = list(self._known(progress))
        results: dict[str, Result | None] = {
            known.task.location: self._index.staged(known.task.location, known.mark)
            for known in every
        }
        unread = [known for known in every if results[known.task.location] is None]
        num_known = self._total - len(unread)
        staged = stage_all((known.task for known in unread), workers)
        for number, (known, (_, result)) in enumerate(zip(unread, staged, strict=True), start=1):
            results[known.task.location] = result
            self._batch.add(known, result)
            if progress is not None:
                progress("checking", num_known + number, self._total)
        self._batch.commit()
        if progress is not None and not unread:
            progress("checking", self._total, self._total)
        # In the order of discovery, so that which of two copies stays does not depend on history.
        for known in every:
            self._tally.add(known, results[known.task.location])
        return self._report(len(unread))

    def _known(self, progress: Progress | None) -> Iterator[_Known]:
        done, started = 0, monotonic()
        unclear = unclear_identifiers(
            (one.source.subjects, candidate.subject)
            for one in self._found
            for candidate in one.discovery.candidates
        )
        for one in self._found:
            subjects = subjects_of(
                one.source.subjects, unclear=unclear, several_sources=len(self._found) > 1
            )
            settings = _settings(one.source)
            for candidate in one.discovery.candidates:
                known = self._clear(one, candidate, subjects, settings)
                done += 1
                # Quick for files of this machine; a server may have to be asked for each.
                if progress and monotonic() - started > QUIET_S:
                    progress("comparing", done, self._total)
                if known:
                    yield known

    def _clear(
        self, found: Found, candidate: Candidate, subjects: Subjects, settings: str
    ) -> _Known | None:
        try:
            identity = subjects.identity(candidate.subject)
        except Unusable as reason:
            self._tally.quarantined.append(reason.at(candidate.where))
            return None
        aliases = identity.aliases(self._pseudonymise)
        if self._excluded.has(aliases):
            self._num_excluded += 1
            return None
        place = self._pseudonymise(location(found.number, found.source, candidate))
        self._locations.add(place)
        return _Known(
            Task(candidate, place, self._names, self._cache_dir, self._limits),
            subject=self._pseudonymise(identity.subject),
            aliases=tuple(sorted(aliases)),
            mark=self._mark(settings, candidate),
            settings=settings,
        )

    def _mark(self, settings: str, candidate: Candidate) -> str:
        seen = candidate.fingerprint()
        return self._pseudonymise(f"{settings}\0{seen}") if seen else ""

    def _is_excluded(self, image: str) -> bool:
        """Tell whether an image is that of somebody excluded, under whatever name it comes."""
        out = image_name(image, self._pseudonymise) in self._excluded.images
        self._num_excluded += out
        return out

    def _report(self, num_read: int) -> IngestReport:
        quarantined = self._quarantined()
        if not self._tally.entries:
            # What was cached before is no longer in the source, so nothing may train on it.
            (self._cache_dir / MANIFEST).unlink(missing_ok=True)
            _forget_all_but(self._cache_dir, ())
            raise NothingUsable(
                _nothing_usable(self._found[0].source.path, quarantined), tuple(quarantined)
            )
        manifest = Manifest.of(
            self._names,
            self._tally.entries.values(),
            source_kind="+".join(sorted({one.source.kind for one in self._found})),
            versions={name: version(name) for name in LIBRARIES},
        )
        self._point_at_entered()
        manifest.save(self._cache_dir / MANIFEST)
        prune(self._cache_dir, manifest.scans)
        self._forget()
        return IngestReport(
            manifest=manifest,
            quarantined=tuple(sorted(quarantined, key=lambda entry: (entry.where, entry.code))),
            identifiers_found=dict(sorted(self._identifiers().items())),
            notes=tuple(self._notes()),
            num_read=num_read,
        )

    def _point_at_entered(self) -> None:
        """Of equal images that are read in place, let the cache know the one that was entered."""
        for known, entry in self._tally.entered():
            if entry.path.endswith(IN_PLACE):
                path = self._cache_dir / entry.path
                point_at(path, known.task.location, partial(self._stamp, known))

    def _stamp(self, known: _Known) -> str:
        """Return the stamp of what was read; none, which fits nothing, if it has changed since."""
        candidate = known.task.candidate
        try:
            stamp = candidate.reopen().stamp if isinstance(candidate, Reopenable) else ""
        except Unusable:
            return ""
        return stamp if self._mark(known.settings, candidate) == known.mark else ""

    def _quarantined(self) -> list[Quarantined]:
        discovered = [q for one in self._found for q in one.discovery.quarantined]
        return discovered + self._tally.quarantined

    def _identifiers(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for one in self._found:
            counts.update(one.discovery.identifiers_found)
        return counts

    def _notes(self) -> Iterator[str]:
        for one in self._found:
            yield from one.discovery.notes
        if self._tally.num_repeated:
            yield (
                f"{self._tally.num_repeated} scans are copies of another one; each is counted once."
            )
        if self._num_excluded:
            yield f"{self._num_excluded} scans of excluded subjects were left out."

    def _forget(self) -> None:
        """Drop what is known of candidates that are gone."""
        self._index.keep_only(self._locations)
        _forget_blocks(self._cache_dir, self._locations)


def _forget_blocks(cache_dir: Path, kept: Collection[str]) -> None:
    (cache_dir / BLOCKS).mkdir(exist_ok=True, mode=0o700)
    for path in (cache_dir / BLOCKS).iterdir():
        if path.name.partition(".")[0] not in kept:
            path.unlink()


def _settings(source: AnySource) -> str:
    """Return what decides how a candidate is read, beside its files: settings, tables, versions."""
    table = stat_stamp(source.targets.path) if source.targets else ""
    versions = ",".join(f"{name}={version(name)}" for name in LIBRARIES)
    return f"{FORMAT}\0{reading(source)}\0{table}\0{versions}"


class _Batch:
    """Staged scans on their way to their final names."""

    def __init__(self, cache_dir: Path, index: IngestIndex) -> None:
        self._cache_dir, self._index = cache_dir, index
        self._waiting: list[tuple[str, str, Staged]] = []
        self._bytes = 0

    def add(self, known: _Known, staged: Result) -> None:
        """Take one scan; publish when enough are waiting."""
        if isinstance(staged, Quarantined):
            return
        self._waiting.append((known.task.location, known.mark, staged))
        c, z, y, x = staged.shape_czyx
        self._bytes += 2 * c * z * y * x
        if len(self._waiting) >= BATCH or self._bytes >= BATCH_BYTES:
            self.commit()

    def commit(self) -> None:
        """Make what is waiting durable, then visible, then remembered."""
        publish(
            self._cache_dir,
            [
                (self._cache_dir / staged.path, staged.temporary)
                for _, _, staged in self._waiting
                if staged.temporary is not None
            ],
        )
        self._index.add(self._waiting)
        self._waiting.clear()
        self._bytes = 0


@dataclass
class _Tally:
    """Entries and refusals of one ingest.

    Args:
        is_excluded: Of an image digest.
    """

    is_excluded: Callable[[str], bool]
    entries: dict[str, ScanEntry] = field(default_factory=dict)
    quarantined: list[Quarantined] = field(default_factory=list)
    num_repeated: int = 0
    _owners: dict[str, str] = field(default_factory=dict)
    _known: dict[str, _Known] = field(default_factory=dict)

    def add(self, known: _Known, result: Result | None) -> None:
        """Enter one scan, or say why not. A scan already there is counted once."""
        if result is None:
            return
        if isinstance(result, Quarantined):
            self.quarantined.append(result)
        elif self.is_excluded(result.image):
            return
        elif self._owners.setdefault(result.image, known.subject) != known.subject:
            self.quarantined.append(Unusable("DUPLICATE_SCAN").at(known.task.candidate.where))
        elif result.digest in self.entries:
            self.num_repeated += 1
        else:
            self.entries[result.digest] = _entry(known, result)
            self._known[result.digest] = known

    def entered(self) -> Iterator[tuple[_Known, ScanEntry]]:
        """Yield each entry with the candidate that it was made of."""
        return ((self._known[digest], entry) for digest, entry in self.entries.items())


def _entry(known: _Known, staged: Staged) -> ScanEntry:
    return ScanEntry(
        subject=known.subject,
        digest=staged.digest,
        image=staged.image,
        shape_czyx=staged.shape_czyx,
        spacing_mm_zyx=staged.spacing_mm_zyx,
        modality=staged.modality,
        planar=staged.planar,
        target=staged.target,
        aliases=known.aliases,
        path=staged.path,
    )


def _nothing_usable(folder: Path, quarantined: Sequence[Quarantined]) -> str:
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


__all__ = ["MANIFEST", "SCANS", "IngestReport", "NothingUsable", "alone", "exclude", "ingest"]
