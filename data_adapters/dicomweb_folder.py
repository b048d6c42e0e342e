"""The folder a PACS is mirrored into: what is where, and steps that a kill cannot leave half done.

It holds whole DICOM files, with everything that identifies: it stays at the site, for its owner
only. Names in it are keyed hashes: who sees names alone, in a backup's index or a log, cannot try
identifiers until one fits, which a hash without a key would allow. A study is seen by training only
once it is there whole:

    studies/<study>/<series>/<instance>.dcm    complete, as the last query found them
    incoming/<study>/<series>/<instance>.dcm   on the way, or what could not be completed
    patients/<study>                           a hash of who the PACS said it was of
    names.key                                  the key of the hashes
"""

import fcntl
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data_adapters.errors import DataError

MARKER = "DICOMWEB-MIRROR"
STUDIES, INCOMING, PATIENTS = "studies", "incoming", "patients"
KEY, KEY_BYTES = "names.key", 32


@dataclass(frozen=True)
class Names:
    """What things are called in one mirror.

    Args:
        key: Of this mirror alone, random; without it a name says nothing.
    """

    key: bytes = field(repr=False)

    def of(self, *parts: str) -> str:
        """Return the name of a UID, or of whatever several texts stand for (HMAC, RFC 2104)."""
        # As JSON, so that no two different sequences are one text.
        return hmac.digest(self.key, json.dumps(parts).encode(), "sha256").hex()[:32]


@dataclass(frozen=True)
class StudyFolder:
    """Where one study's files are, in either room.

    Args:
        root: The mirror.
        name: As ``Names`` calls the study.
    """

    root: Path
    name: str

    @property
    def complete(self) -> Path:
        """Return the study's folder once it is whole."""
        return self.root / STUDIES / self.name

    @property
    def incoming(self) -> Path:
        """Return the study's folder while it is not."""
        return self.root / INCOMING / self.name

    def files(self) -> Iterator[Path]:
        """Yield every file of the study, in either room."""
        for room in (self.complete, self.incoming):
            yield from (path for path in sorted(room.glob("*/*")) if path.is_file())

    def is_complete_with(self, files: Iterable[str]) -> bool:
        """Return whether the study is whole and has just these files."""
        return self.complete.is_dir() and files_in(self.complete) == set(files)

    def reopen(self) -> None:
        """Take the study out of sight; whatever of it is there is kept."""
        if self.complete.is_dir():
            self.complete.rename(self.incoming)
        self.incoming.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        """Show the study to training."""
        self.incoming.rename(self.complete)

    def remove(self) -> None:
        """Delete the study's files."""
        # Out of sight first: half a study must not be read as a whole one.
        self.reopen()
        shutil.rmtree(self.incoming)

    def withdraw(self) -> None:
        """Delete all that is known of the study."""
        self.remove()
        self._patient.unlink(missing_ok=True)

    def is_of(self, patient: str) -> bool:
        """Return whether the study was of ``patient`` when it was fetched."""
        return self._patient.is_file() and self._patient.read_text() == patient

    def begin(self, patient: str) -> None:
        """Note whose study is fetched from now on; what is there of it was another's."""
        self.remove()
        with appearing(self._patient) as file:
            file.write(patient.encode())

    @property
    def is_known(self) -> bool:
        """Return whether the study was met before."""
        return self._patient.is_file()

    @property
    def has_files(self) -> bool:
        """Return whether anything of the study was fetched before."""
        return self.complete.is_dir() or self.incoming.is_dir()

    @property
    def _patient(self) -> Path:
        return self.root / PATIENTS / self.name


def files_in(study: Path) -> set[str]:
    """Return a study's files, as ``<series>/<file>``."""
    return {path.relative_to(study).as_posix() for path in study.glob("*/*")}


def study_names(root: Path) -> set[str]:
    """Return the name of every study of which something is there."""
    return {path.name for room in (STUDIES, INCOMING, PATIENTS) for path in (root / room).iterdir()}


@contextmanager
def appearing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that is there whole or not at all, whenever the machine stops."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(root: Path) -> Iterator[Names]:
    """Make the folder a mirror if it is empty, and keep it from a second run.

    Where the key is lost, nothing in the mirror can be told any more: it starts anew, empty.

    Raises:
        DataError: It holds something else, or another run is mirroring into it.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    marker = root / MARKER
    if not marker.exists() and any(root.iterdir()):
        raise DataError(
            f"{root} holds files that are not a mirror's. `path` of a DICOMweb source names an "
            "empty folder: studies that the PACS withdraws are deleted from it."
        )
    root.chmod(0o700)
    with marker.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"Another run is mirroring into {root}. Wait for it.") from None
        for room in (STUDIES, INCOMING, PATIENTS):
            (root / room).mkdir(mode=0o700, exist_ok=True)
        yield _names(root)


def _names(root: Path) -> Names:
    path = root / KEY
    key = path.read_bytes() if path.is_file() else b""
    if len(key) != KEY_BYTES:
        # Before there is a new key: what was named by the old one must not outlive a kill here.
        for name in study_names(root):
            StudyFolder(root, name).withdraw()
        key = secrets.token_bytes(KEY_BYTES)
        with appearing(path) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(key)
    return Names(key)
