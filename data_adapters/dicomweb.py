"""A PACS as a source: what its query finds is mirrored into a folder, and read from there."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from data_adapters.dicom import discover_dicom
from data_adapters.dicom_headers import quiet_pydicom, read_header, subject_of
from data_adapters.dicomweb_access import no_addresses_logged
from data_adapters.dicomweb_arrived import Arrived, Progress
from data_adapters.dicomweb_client import DicomWebClient, NotGiven, Row, text_of
from data_adapters.dicomweb_folder import (
    INCOMING,
    MARKER,
    STUDIES,
    Names,
    StudyFolder,
    appearing,
    files_in,
    locked,
    study_names,
)
from data_adapters.errors import DataError
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource, DicomWebSource
from data_adapters.types import Discovery, Quarantined
from data_adapters.unwanted import Unwanted

# PS3.6 tags, as DICOM JSON writes them.
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
MODALITY, STUDY_DATE, STUDY_DESCRIPTION = "00080060", "00080020", "00081030"
PATIENT_ID, ISSUER = "00100020", "00100021"
NUM_INSTANCES = "00201208"

LABELS = frozenset({"SEG", "RTSTRUCT"})
# Never an image or a label of one; what is not needed is not copied.
NEVER_USED = frozenset({"AU", "DOC", "ECG", "HD", "KO", "PLAN", "PR", "REG", "RTPLAN", "SR"})

# More than any study has, and no more than are listed and asked for in a day.
MAX_SERIES, MAX_INSTANCES = 10_000, 200_000
_KEPT = (MODALITY, STUDY_DATE, STUDY_DESCRIPTION, PATIENT_ID, ISSUER, NUM_INSTANCES)


def discover_dicomweb(
    source: DicomWebSource, *, unwanted: Unwanted | None = None, progress: Progress | None = None
) -> Discovery:
    """Bring the mirror up to date and look at it as at any folder of DICOM files.

    Args:
        unwanted, progress: As ``mirror`` has them.

    Raises:
        DataError: As ``mirror``.
    """
    mirrored = _mirror(source, unwanted, progress)
    found = discover_dicom(_mirrored_folder(source))
    return Discovery(
        candidates=found.candidates,
        quarantined=(*mirrored.quarantined, *found.quarantined),
        identifiers_found=found.identifiers_found,
        notes=(*mirrored.notes(), *found.notes),
    )


def mirror(
    source: DicomWebSource, progress: Progress | None = None, unwanted: Unwanted | None = None
) -> tuple[str, ...]:
    """Fetch what the query finds and is not there yet; drop what it no longer finds.

    It can be killed at any point: what was fetched whole is never fetched again.

    Args:
        progress: Called with the number of files that are there, and of all as far as the service
            tells; both 0 before it has answered. By one thread at a time.
        unwanted: Whose studies are not fetched, and are dropped where they had been.

    Returns:
        Notes for the site operator.

    Raises:
        DataError: The service cannot be reached or used, or the folder is not a mirror.
    """
    return _mirror(source, unwanted, progress).notes()


def forget(source: DicomWebSource, unwanted: Unwanted) -> int:
    """Delete every study in the mirror that has a file of somebody unwanted; ask no service.

    Returns:
        The number of studies that were deleted.

    Raises:
        DataError: Another run is mirroring, or a study could not be deleted.
    """
    if not (source.path / MARKER).is_file():
        return 0
    with _writing(source.path), locked(source.path):
        folders = [StudyFolder(source.path, name) for name in sorted(study_names(source.path))]
        meant = [folder for folder in folders if _is_of(folder.files(), unwanted)]
        for folder in meant:
            folder.withdraw()
    return len(meant)


def _is_of(files: Iterable[Path], unwanted: Unwanted) -> bool:
    """Return whether a header names somebody unwanted; what cannot be read names nobody."""
    with quiet_pydicom():
        for file in files:
            try:
                header, _ = read_header(file)
            except Exception:  # noqa: S112 - a file that is not whole, or no DICOM
                continue
            if unwanted.has(subject_of(header)):
                return True
    return False


@dataclass
class _Mirrored:
    """Tally of one mirroring."""

    num_studies: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    quarantined: list[Quarantined] = field(default_factory=list)
    complete: bool = True

    def notes(self) -> tuple[str, ...]:
        counts = self.counts
        notes = [
            f"The query finds {self.num_studies} studies: {counts['fetched']} files were fetched, "
            f"{counts['kept']} were there already."
        ]
        if counts["over_limit"]:
            notes.append(f"{counts['over_limit']} more studies match; `limit` leaves them out.")
        if counts["withdrawn"]:
            notes.append(
                f"{counts['withdrawn']} studies left the mirror: the query does not find them now."
            )
        if counts["excluded"]:
            notes.append(
                f"{counts['excluded']} studies of excluded subjects were not fetched, or left the "
                "mirror."
            )
        if counts["withheld"]:
            notes.append(
                f"{counts['withheld']} studies left the mirror: the query finds them, but the "
                "service does not give them any more (HTTP 403, 404 or 410)."
            )
        if counts["unchecked"]:
            notes.append(
                f"{counts['unchecked']} studies are used as they were fetched before: the service "
                "does not say now what is in them."
            )
        if not self.complete:
            notes.append("The service does not list all studies, so none were taken as withdrawn.")
        return tuple(notes)


def _mirrored_folder(source: DicomWebSource) -> DicomSource:
    """Return the source as a plain folder of files."""
    fields = {name: getattr(source, name) for name in DicomSource.model_fields if name != "kind"}
    return DicomSource(**fields | {"path": source.path / STUDIES})


def _mirror(
    source: DicomWebSource, unwanted: Unwanted | None, progress: Progress | None
) -> _Mirrored:
    client = DicomWebClient(source.url, connections=source.connections, ca_file=source.ca_file)
    try:
        with _writing(source.path), locked(source.path) as names, no_addresses_logged():
            arrived = Arrived(progress)
            mirror = _Mirror(source.path, client, names, _wanted(source), unwanted, arrived)
            return _bring_up_to_date(source, mirror)
    finally:
        client.close()


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Say what is wrong with the disk, without the names of what was being written."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The mirror {root} cannot be written: {os.strerror(error.errno or 0)}. "
            "What was fetched is kept; ingest again when that is mended."
        ) from None


def _bring_up_to_date(source: DicomWebSource, mirror: "_Mirror") -> _Mirrored:
    mirrored = _Mirrored()
    studies = _studies(source, mirror, mirrored)
    mirror.arrived.expect({uid: _announced(row) for uid, row in studies.items()})
    if mirrored.complete:
        for name in study_names(source.path) - {mirror.names.of(study) for study in studies}:
            StudyFolder(source.path, name).withdraw()
            mirrored.counts["withdrawn"] += 1
    tasks = [_Study(mirror, uid, row) for uid, row in studies.items()]
    with ThreadPoolExecutor(source.connections) as pool:
        try:
            futures = [pool.submit(task.bring_up_to_date) for task in tasks]
            for future in as_completed(futures):
                counts, quarantined = future.result()
                mirrored.counts.update(counts)
                mirrored.quarantined += quarantined
        except BaseException:
            mirror.client.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    mirrored.quarantined.sort(key=lambda entry: entry.where)
    return mirrored


def _studies(source: DicomWebSource, mirror: "_Mirror", mirrored: _Mirrored) -> dict[str, Row]:
    """Return the studies to have, by UID: those already here come first under ``limit``."""
    try:
        found, mirrored.complete = mirror.client.search("/studies", STUDY, _query(source), _KEPT)
    except NotGiven as refusal:
        raise DataError(
            f"The service at {source.url} does not answer a search for studies as DICOMweb does "
            f"({refusal}). `url` is the DICOMweb root, to which /studies is added; the account "
            "must be allowed to search."
        ) from None
    matching = []
    for uid, row in found.items():
        if not _matches(source, row):
            continue
        if mirror.is_unwanted(row):
            mirrored.counts["excluded"] += 1
            mirror.folder(uid).withdraw()
        else:
            matching.append((not mirror.folder(uid).is_known, uid))
    matching.sort()
    taken = [uid for _, uid in matching[: source.limit]]
    mirrored.num_studies = len(matching)
    mirrored.counts["over_limit"] = len(matching) - len(taken)
    return {uid: found[uid] for uid in taken}


def _query(source: DicomWebSource) -> list[tuple[str, str]]:
    query = [("includefield", tag) for tag in (STUDY_DESCRIPTION, ISSUER, NUM_INSTANCES)]
    if source.modality:
        query.append(("ModalitiesInStudy", source.modality))
    if source.study_dates:
        query.append(("StudyDate", "-".join(source.study_dates)))
    if source.study_description:
        # Orthanc 1.10 does not decode %20: what would be encoded may be anything to the server,
        # and _matches decides.
        wide = re.sub(r"[^A-Za-z0-9._*?-]", "?", source.study_description)
        query.append(("StudyDescription", wide))
    return query


def _matches(source: DicomWebSource, row: Row) -> bool:
    """Check once more: a server may ignore keys that PS3.18 does not oblige it to match."""
    if source.study_dates:
        first, last = source.study_dates
        if not first <= text_of(row, STUDY_DATE).replace(".", "") <= last:
            return False
    if source.study_description:
        pattern = source.study_description.replace("[", "[[]").casefold()
        return fnmatchcase(text_of(row, STUDY_DESCRIPTION).casefold(), pattern)
    return True


def _announced(row: Row) -> int:
    """Return how many objects a study has, as the service counts them; at least 1."""
    number = text_of(row, NUM_INSTANCES)
    return max(1, int(number)) if number.isascii() and number.isdecimal() else 1


def _wanted(source: DicomWebSource) -> frozenset[str]:
    """Return the modalities whose series are copied; empty for all that may be of use."""
    chosen = {source.modality}
    if source.modality is None:
        rules = [channel.select for channel in source.channels]
        chosen = {rule.modality for rule in (*rules, *filter(None, [source.select]))}
    named = frozenset(filter(None, chosen))
    return named | LABELS if named and None not in chosen else frozenset()


@dataclass(frozen=True)
class _Mirror:
    """What every study of a mirror is brought up to date with.

    Args:
        modalities: Whose series are copied; empty for all that may be of use.
        unwanted: Whose studies are not copied; None where nobody was excluded.
    """

    root: Path
    client: DicomWebClient
    names: Names
    modalities: frozenset[str]
    unwanted: Unwanted | None
    arrived: Arrived

    def is_unwanted(self, row: Row) -> bool:
        """Return whether the service's list alone tells that a study is of somebody unwanted."""
        if self.unwanted is None:
            return False
        patient, issuer = text_of(row, PATIENT_ID), text_of(row, ISSUER)
        # A service need not name issuers in its lists; the files then decide.
        raw = f"{patient}^^^{issuer}" if issuer else patient
        return self.unwanted.has(raw, issuer_may_follow=not issuer)

    def require_wanted(self, files: Iterable[Path]) -> None:
        """Check what was fetched, for what a list leaves out.

        Raises:
            _Excluded: A file is of somebody unwanted.
        """
        if self.unwanted is not None and _is_of(files, self.unwanted):
            raise _Excluded

    def folder(self, study: str) -> StudyFolder:
        """Return where a study's files are."""
        return StudyFolder(self.root, self.names.of(study))


@dataclass(frozen=True)
class _Study:
    """One study to bring up to date, by one thread."""

    mirror: _Mirror
    uid: str = field(repr=False)
    row: Row = field(repr=False)

    @property
    def folder(self) -> StudyFolder:
        """Return where its files are."""
        return self.mirror.folder(self.uid)

    def bring_up_to_date(self) -> tuple[Counter[str], tuple[Quarantined, ...]]:
        """Fetch and drop files until they are those of the PACS; else say why not."""
        try:
            return self._update(), ()
        except _Excluded:
            self.folder.withdraw()
            return Counter(excluded=1), ()
        except _Withheld:
            self.folder.withdraw()
            return Counter(withheld=1), ()
        except NotGiven as refusal:
            if self.folder.complete.is_dir():
                return Counter(unchecked=1), ()
            where = f"{INCOMING}/{self.folder.name}"
            return Counter(), (Unusable("UNREACHABLE", str(refusal)).at(where),)
        finally:
            self.mirror.arrived.end(self.uid)

    def _update(self) -> Counter[str]:
        # Where the PACS corrected whose study it is, its instances keep their UIDs: fetch anew.
        named = self.mirror.names.of
        patient = named(text_of(self.row, PATIENT_ID), text_of(self.row, ISSUER))
        if not self.folder.is_of(patient):
            self.folder.begin(patient)
        # One of each study that was fetched earlier; what is fetched now is looked at below.
        self.mirror.require_wanted(islice(self.folder.files(), 1))
        wanted = self._listed()
        self.mirror.arrived.know(self.uid, len(wanted))
        if self.folder.is_complete_with(wanted):
            self.mirror.arrived.add(self.uid, len(wanted))
            return Counter(kept=len(wanted))
        self.folder.reopen()
        here = files_in(self.folder.incoming)
        for file in here - wanted.keys():
            (self.folder.incoming / file).unlink()
        missing = sorted(wanted.keys() - here)
        self.mirror.arrived.add(self.uid, len(wanted) - len(missing))
        for file in missing:
            self._fetch(self.folder.incoming / file, *wanted[file])
            self.mirror.arrived.add(self.uid)
        self.folder.close()
        return Counter(kept=len(wanted) - len(missing), fetched=len(missing))

    def _listed(self) -> dict[str, tuple[str, str]]:
        """Return ``_instances``, telling a study that was taken back from one never given."""
        try:
            return self._instances()
        except NotGiven as refusal:
            if refusal.withheld and self.folder.has_files:
                raise _Withheld from None
            raise

    def _instances(self) -> dict[str, tuple[str, str]]:
        """Return the files to have, each with its series' and its own UID."""
        wanted: dict[str, tuple[str, str]] = {}
        path = f"/studies/{self.uid}/series"
        named = self.mirror.names.of
        for series, row in self._all(path, SERIES, MAX_SERIES).items():
            if self._is_wanted(text_of(row, MODALITY)):
                left = MAX_INSTANCES - len(wanted)
                for instance in self._all(f"{path}/{series}/instances", INSTANCE, left):
                    wanted[f"{named(series)}/{named(instance)}.dcm"] = (series, instance)
        return wanted

    def _all(self, path: str, key: str, most: int) -> dict[str, Row]:
        rows, complete = self.mirror.client.search(path, key, (), (MODALITY,))
        if not complete or len(rows) > most:
            raise NotGiven("the list of the study's series or instances has no end")
        return rows

    def _is_wanted(self, modality: str) -> bool:
        wanted = self.mirror.modalities
        return modality in wanted if wanted else modality not in NEVER_USED

    def _fetch(self, path: Path, series: str, instance: str) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with appearing(path) as file:
            self.mirror.client.retrieve(self.uid, series, instance, file)
            file.flush()
            _require_instance(Path(file.name), instance)
        self.mirror.require_wanted([path])


class _Excluded(Exception):  # noqa: N818
    """A study's files say that it is of somebody who was excluded."""


class _Withheld(Exception):  # noqa: N818
    """A study that is in the mirror is not given any more."""


def _require_instance(path: Path, instance: str) -> None:
    """Check that the file is the object that was asked for (PS3.10, 7.1).

    Raises:
        NotGiven: It is not.
    """
    from pydicom.filereader import read_file_meta_info

    try:
        sent = read_file_meta_info(path).MediaStorageSOPInstanceUID
    except Exception:  # whatever a server sends; pydicom's text may quote it
        raise NotGiven("the answer is no DICOM file") from None
    if sent != instance:
        raise NotGiven("another object was sent than was asked for")
