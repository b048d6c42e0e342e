"""What passes between readers, the cache and training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Voxels(Protocol):
    """A numpy array, or something on disk that is read region by region."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the size along each axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type of what ``[...]`` gives."""

    def __getitem__(self, region: tuple[slice, ...]) -> NDArray[Any]:
        """Return one region, read now if it is on disk. Every axis has a slice with both ends."""


@dataclass(frozen=True)
class Scan:
    """One image with its labels, as read; it still knows the subject and stays inside ingest.

    Args:
        image_czyx: Stored values: uint8, int16, uint16 or float32. A planar image has z = 1.
        slopes: Of each channel; real-world value = stored * slope + intercept.
        intercepts: Of each channel.
        labels_zyx: uint8 index into the source's ``class_names()``, 0 is background; None where
            the source has no voxel labels.
        target: From a table of labels: the index into ``target_names()``, or a value. None without.
        affine_ras: 4x4, array indices (z, y, x) of voxel centres to RAS+ millimetres.
        planar: A single plane (radiograph, 2-D microscopy): its plane is never turned or resliced,
            and the step along z means nothing.
        subject: The raw identifier. Pseudonymised before anything is written.
        in_place: The arrays are the site's own OME-Zarr, read where it lies and not copied.
        stamp: For ``in_place``: changes when the files behind the arrays change.
    """

    image_czyx: Voxels
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    affine_ras: NDArray[np.float64]
    subject: str = field(repr=False)
    modality: str
    labels_zyx: Voxels | None = None
    target: float | None = None
    planar: bool = False
    in_place: bool = False
    stamp: str = ""

    def __repr__(self) -> str:
        """Say the shape and type only: a subject must not slip into a log."""
        return f"Scan({self.modality}, {self.image_czyx.shape}, {self.image_czyx.dtype})"


@dataclass(frozen=True)
class Quarantined:
    """One scan or file that is left out. For the site's own screen: ``where`` names a path.

    Args:
        code: A key of ``reasons.REASONS``; stable.
        where: Path relative to the source's folder.
    """

    code: str
    where: str
    sentence: str
    remedy: str


class Candidate(Protocol):
    """Something found in a source that may be a scan; reading it is where it may fail.

    It can be pickled: reading may happen in another process.
    """

    @property
    def where(self) -> str:
        """Path relative to the source's folder; unique in the source, the same at each look."""

    @property
    def subject(self) -> str:
        """The raw identifier, ``id^^^issuer`` (HL7 CX) where an issuer is known; may be empty."""

    def fingerprint(self) -> str:
        """Return text that changes when a file changes that ``read`` uses (path, size, time).

        Empty: unknown, so it is read anew each time. It may hold paths; ingest hashes it.
        """

    def read(self) -> Scan:
        """Return the scan. Raises ``reasons.Unusable`` with a reason code."""


@runtime_checkable
class Reopenable(Protocol):
    """A candidate whose scan is read where it lies."""

    def reopen(self) -> Scan:
        """Return a scan that was read before, without looking at its voxels again."""

    def read_again(self, known: Mapping[int, str]) -> Scan:
        """Return the scan as ``read`` does, without a look at labels that have not changed.

        Args:
            known: Number of each block of labels that was looked at to its stamp.
        """


@runtime_checkable
class HasHeaders(Protocol):
    """A candidate of which headers alone may show that it cannot be used."""

    def check_headers(self) -> None:
        """Look at what is known before a pixel is read. Raises ``reasons.Unusable``."""


@dataclass(frozen=True)
class Discovery:
    """What a look at a source found, before any pixel is decoded.

    Args:
        identifiers_found: DICOM keyword to the number of files that hold a value for it.
    """

    candidates: tuple[Candidate, ...]
    quarantined: tuple[Quarantined, ...]
    identifiers_found: dict[str, int]
    notes: tuple[str, ...]


def relative(path: Path, root: Path) -> str:
    """Return ``path`` below ``root`` with forward slashes on every system."""
    return path.relative_to(root).as_posix() or "."


def stat_stamp(path: Path) -> str:
    """Return what tells whether a file changed: its size and the time of its last writing."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"
