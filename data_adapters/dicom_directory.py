"""A DICOMDIR (PS3.10 8, PS3.3 F): the files that it names, and those that are not there."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from data_adapters.dicom_deflated import open_bounded
from data_adapters.dicom_headers import items, quiet_pydicom
from data_adapters.dicom_objects import DICOMDIR
from data_adapters.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def named_files(path: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Return the files that a DICOMDIR names, and the names below its folder that are not there.

    Raises:
        DataError: It is no DICOMDIR, or cannot be read.
    """
    with quiet_pydicom():
        names = sorted({_name(record) for record in _records(path)} - {""})
    found = {name: _located(path.parent, name) for name in names}
    there = tuple(file for file in found.values() if file is not None)
    return there, tuple(name for name, file in found.items() if file is None)


def _records(path: Path) -> "tuple[Dataset, ...]":
    from pydicom import dcmread

    try:
        with open_bounded(path) as file:
            directory = dcmread(file)
        media = str(directory.file_meta.get("MediaStorageSOPClassUID", ""))
    except Exception as error:  # its text may quote the header
        raise DataError(
            f"{path} cannot be read as a DICOMDIR ({type(error).__name__}). Name the folder that "
            "holds the files in its place.",
            "UNREADABLE_FILE",
        ) from None
    if media != DICOMDIR:
        raise DataError(
            f"{path} is a file and no DICOMDIR. Name the folder that holds it.", "UNREADABLE_FILE"
        )
    return items(directory, "DirectoryRecordSequence")


def _name(record: "Dataset") -> str:
    """Return ReferencedFileID, which is one value for each part of the path."""
    try:
        value = record.get("ReferencedFileID") or ()
        parts = [value] if isinstance(value, str) else [str(part) for part in value]
    except Exception:  # a damaged record names nothing
        return ""
    return PurePosixPath(*parts).as_posix() if parts else ""


def _located(folder: Path, name: str) -> Path | None:
    """Return the file; media are written in capitals, and copies of them often are not."""
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute():
        return None
    for part in parts:
        found = _entry(folder, part)
        if found is None:
            return None
        folder = found
    return folder if folder.is_file() else None


def _entry(folder: Path, part: str) -> Path | None:
    exact = folder / part
    if exact.exists():
        return exact
    if not folder.is_dir():
        return None
    alike = (path for path in folder.iterdir() if path.name.casefold() == part.casefold())
    return next(alike, None)
