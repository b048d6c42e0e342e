"""Where the files of the outcome table lie on this machine: three origins, none downloaded."""

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SHARED_FOLDERS = ("dcmqi", "highdicom", "rtstruct", "microscopy")


def folder_of(origin: str) -> Path | None:
    """Return the folder that an origin's relative paths start at; None where it is absent."""
    folder = {"shared": _shared, "pydicom": _pydicom, "pydicom-data": _pydicom_data}[origin]()
    return folder if folder is not None and folder.is_dir() else None


def files_of(origin: str) -> list[Path]:
    """Return every file of an origin that somebody could hand to a DICOM reader, sorted."""
    folder = folder_of(origin)
    if folder is None:
        raise FileNotFoundError(f"{origin} is not here")
    parts = [folder / name for name in SHARED_FOLDERS] if origin == "shared" else [folder]
    found = [path for part in parts for path in part.rglob("*") if path.is_file()]
    return sorted(p for p in found if not _is_code_or_zarr(p))


def _is_code_or_zarr(path: Path) -> bool:
    in_zarr = any(part.endswith(".zarr") for part in path.parts)
    return in_zarr or path.suffix in {".py", ".pyc", ".md"}


def _shared() -> Path:
    return Path(os.environ.get("COHORTIUM_TEST_DATA", ROOT.parent / "shared" / "data"))


def _pydicom() -> Path | None:
    return _package("pydicom.data")


def _pydicom_data() -> Path | None:
    package = _package("data_store")
    return package / "data" if package else None


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None
