"""What a site has: one digest over pixels, labels, geometry and pseudonyms, the same everywhere.

The root and the leaves stay at the site; federation sends a blinded commitment to the root.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_adapters.atomic import write_atomically
from data_adapters.digests import FORMAT, Names
from data_adapters.errors import DataError


@dataclass(frozen=True)
class ScanEntry:
    """One cached scan.

    Args:
        subject: Pseudonym.
        digest: ``sha256:<hex>`` over pixels, labels, geometry, classes and modality.
        image: ``sha256:<hex>`` over pixels and geometry alone.
        target: Class index or value, where a table gave one.
        aliases: Of the subject: keyed hashes of every name (``aliases.Identity``), sorted.
        path: Relative to the cache folder, with forward slashes: an OME-Zarr image, or for images
            read in place a ``.json`` that says how to find it again.
    """

    subject: str
    digest: str
    image: str
    shape_czyx: tuple[int, int, int, int]
    spacing_mm_zyx: tuple[float, float, float]
    modality: str
    planar: bool
    target: float | None
    aliases: tuple[str, ...]
    path: str


@dataclass(frozen=True)
class Manifest:
    """All scans of one data set, sorted by subject and digest.

    Args:
        source_kind: Of the source, or of all sources joined by ``+``.
        classes: A class's place is its value in cached labels; empty without voxel labels.
        target_classes: A class's place is a scan's target; empty without a table of classes.
        channels: Names, in the order of the image's first axis.
        root: ``sha256:<hex>`` over the subjects' leaves; see ``root_digest``.
        versions: Of this adapter and the libraries that read the data; not part of the root.
    """

    source_kind: str
    classes: tuple[str, ...]
    target_classes: tuple[str, ...]
    channels: tuple[str, ...]
    scans: tuple[ScanEntry, ...]
    root: str
    versions: dict[str, str]

    @classmethod
    def of(
        cls, names: Names, scans: Iterable[ScanEntry], *, source_kind: str, versions: dict[str, str]
    ) -> "Manifest":
        """Sort the scans and compute the root."""
        ordered = tuple(sorted(scans, key=lambda entry: (entry.subject, entry.digest)))
        return cls(
            source_kind=source_kind,
            classes=names.classes,
            target_classes=names.targets,
            channels=names.channels,
            scans=ordered,
            root=root_digest(names, ordered),
            versions=versions,
        )

    @property
    def names(self) -> Names:
        """Return what the numbers in the scans mean."""
        return Names(self.classes, self.target_classes, self.channels)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Return the pseudonyms, sorted."""
        return tuple(sorted({scan.subject for scan in self.scans}))

    def save(self, path: Path) -> None:
        """Write the manifest so that a crash leaves the old one or the new one."""
        document: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        document["check"] = _check(document)
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
        write_atomically(path, text.encode("utf-8"))

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read a manifest and check its root against its scans.

        Raises:
            DataError: The file is missing, damaged, or was changed by hand.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            changed = document.pop("check") != _check(document)
            manifest = _from_document(document)
        except FileNotFoundError:
            raise DataError(f"No manifest at {path}. Ingest the data first.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"The manifest {path} cannot be read ({type(error).__name__}). "
                "Delete it and ingest the data again; cached scans are kept."
            ) from error
        if changed or manifest.root != root_digest(manifest.names, manifest.scans):
            raise DataError(
                f"The manifest {path} does not match its own digest: it was changed after ingest. "
                "Delete it and ingest the data again; cached scans are kept."
            )
        return manifest


def _check(document: dict[str, Any]) -> str:
    return hashlib.sha256(_json(document)).hexdigest()


def _from_document(document: dict[str, Any]) -> Manifest:
    if document.pop("format") != FORMAT:
        raise ValueError("another manifest format")
    return Manifest(
        source_kind=str(document["source_kind"]),
        classes=tuple(document["classes"]),
        target_classes=tuple(document["target_classes"]),
        channels=tuple(document["channels"]),
        scans=tuple(_entry(entry) for entry in document["scans"]),
        root=str(document["root"]),
        versions=dict(document["versions"]),
    )


def _entry(entry: dict[str, Any]) -> ScanEntry:
    c, z, y, x = entry.pop("shape_czyx")
    dz, dy, dx = entry.pop("spacing_mm_zyx")
    aliases = tuple(entry.pop("aliases"))
    return ScanEntry(shape_czyx=(c, z, y, x), spacing_mm_zyx=(dz, dy, dx), aliases=aliases, **entry)


def leaf_digest(subject: str, scan_digests: Iterable[str], names: Names) -> str:
    """Return the digest of one subject: pseudonym, names, and its scans in any order."""
    leaf = {"subject": subject, "names": asdict(names), "scans": sorted(scan_digests)}
    return "sha256:" + hashlib.sha256(_json(leaf)).hexdigest()


def root_digest(names: Names, scans: Iterable[ScanEntry]) -> str:
    """Return the digest over all subjects' leaves, whatever the order of scans.

    >>> root_digest(Names(("background", "head")), ()) == root_digest(Names(("background",)), ())
    False
    """
    by_subject: defaultdict[str, list[str]] = defaultdict(list)
    for scan in scans:
        by_subject[scan.subject].append(scan.digest)
    leaves = sorted(leaf_digest(name, found, names) for name, found in by_subject.items())
    root = {"format": FORMAT, "names": asdict(names), "leaves": leaves}
    return "sha256:" + hashlib.sha256(_json(root)).hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
