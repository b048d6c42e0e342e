"""What a site has: one digest over pixels, labels, geometry and pseudonyms, the same everywhere.

The root and the leaves stay at the site; federation sends a blinded commitment to the root.
"""

import hashlib
import json
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import DataError
from data_adapters.types import Scan

FORMAT = 1
# Geometry is compared in steps of a nanometre: DICOM's decimal text carries no more.
GEOMETRY_STEPS_PER_MM = 1e6


@dataclass(frozen=True)
class ScanEntry:
    """One cached scan.

    Args:
        subject: Pseudonym.
        digest: ``sha256:<hex>`` over pixels, labels, geometry, classes and modality.
        path: Relative to the cache folder, with forward slashes.
    """

    subject: str
    digest: str
    shape_zyx: tuple[int, int, int]
    spacing_mm_zyx: tuple[float, float, float]
    modality: str
    path: str


@dataclass(frozen=True)
class Manifest:
    """All scans of one data set, sorted by subject and digest.

    Args:
        classes: A class's place is its value in cached labels.
        root: ``sha256:<hex>`` over the subjects' leaves; see ``root_digest``.
        versions: Of this adapter and the libraries that read the data; not part of the root.
    """

    source_kind: str
    classes: tuple[str, ...]
    scans: tuple[ScanEntry, ...]
    root: str
    versions: dict[str, str]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Return the pseudonyms, sorted."""
        return tuple(sorted({scan.subject for scan in self.scans}))

    def save(self, path: Path) -> None:
        """Write the manifest so that a crash leaves the old one or the new one."""
        document = {"format": FORMAT, **asdict(self)}
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
        _write_atomically(path, text.encode("utf-8"))

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read a manifest and check its root against its scans.

        Raises:
            DataError: The file is missing, damaged, or was changed by hand.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            manifest = _from_document(document)
        except FileNotFoundError:
            raise DataError(f"No manifest at {path}. Ingest the data first.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"The manifest {path} cannot be read ({type(error).__name__}). "
                "Delete it and ingest the data again; cached scans are kept."
            ) from error
        if manifest.root != root_digest(manifest.classes, manifest.scans):
            raise DataError(
                f"The manifest {path} does not match its own digest: it was changed after ingest. "
                "Delete it and ingest the data again; cached scans are kept."
            )
        return manifest


def _from_document(document: dict[str, Any]) -> Manifest:
    if document.pop("format") != FORMAT:
        raise ValueError("another manifest format")
    scans = tuple(_entry(entry) for entry in document.pop("scans"))
    return Manifest(scans=scans, classes=tuple(document.pop("classes")), **document)


def _entry(entry: dict[str, Any]) -> ScanEntry:
    z, y, x = entry.pop("shape_zyx")
    dz, dy, dx = entry.pop("spacing_mm_zyx")
    return ScanEntry(shape_zyx=(z, y, x), spacing_mm_zyx=(dz, dy, dx), **entry)


def scan_digest(scan: Scan, classes: tuple[str, ...]) -> str:
    """Return the digest of what is cached of a scan: everything but the subject.

    Explicit little-endian bytes in C order and geometry in integers, so that neither the machine
    nor the last bit of a floating-point library changes it.
    """
    header = {
        "format": FORMAT,
        "classes": classes,
        "modality": scan.modality,
        "image": [scan.image_zyx.dtype.newbyteorder("<").str, scan.image_zyx.shape],
        "scaling": [float(scan.slope).hex(), float(scan.intercept).hex()],
        "affine_nm": _integers(scan.affine_ras),
    }
    hasher = hashlib.sha256(_json(header))
    hasher.update(_little_endian(scan.image_zyx))
    hasher.update(_little_endian(scan.labels_zyx))
    return "sha256:" + hasher.hexdigest()


def _integers(affine_ras: NDArray[np.float64]) -> list[int]:
    return [round(float(value) * GEOMETRY_STEPS_PER_MM) for value in affine_ras.ravel()]


def _little_endian(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data.cast("B")


def leaf_digest(subject: str, scan_digests: Iterable[str], classes: tuple[str, ...]) -> str:
    """Return the digest of one subject: pseudonym, classes, and its scans in any order."""
    leaf = {"subject": subject, "classes": classes, "scans": sorted(scan_digests)}
    return "sha256:" + hashlib.sha256(_json(leaf)).hexdigest()


def root_digest(classes: tuple[str, ...], scans: Iterable[ScanEntry]) -> str:
    """Return the digest over all subjects' leaves, whatever the order of scans.

    >>> root_digest(("background", "head"), ())[:20]
    'sha256:962fdbff50b67'
    """
    by_subject: defaultdict[str, list[str]] = defaultdict(list)
    for scan in scans:
        by_subject[scan.subject].append(scan.digest)
    leaves = sorted(leaf_digest(name, found, classes) for name, found in by_subject.items())
    root = {"format": FORMAT, "classes": classes, "leaves": leaves}
    return "sha256:" + hashlib.sha256(_json(root)).hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` durable (POSIX asks for this separately)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
