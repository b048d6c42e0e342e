"""What passes between readers, the cache and training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scan:
    """One volume with its labels, as read; it still knows the subject and stays inside ingest.

    Args:
        image_zyx: Stored values: uint8, int16, uint16 or float32.
        slope: Real-world value = stored * slope + intercept.
        labels_zyx: uint8 index into the source's ``class_names()``; 0 is background.
        affine_ras: 4x4, array indices (z, y, x) of voxel centres to RAS+ millimetres.
        subject: The raw identifier. Pseudonymised before anything is written.
    """

    image_zyx: NDArray[Any]
    slope: float
    intercept: float
    labels_zyx: NDArray[np.uint8]
    affine_ras: NDArray[np.float64]
    subject: str
    modality: str

    def __repr__(self) -> str:
        """Say the shape and type only: a subject must not slip into a log."""
        return f"Scan({self.modality}, {self.image_zyx.shape}, {self.image_zyx.dtype})"


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


@dataclass(frozen=True)
class CachedScan:
    """One volume from the cache, ready for transforms.

    Args:
        image_zyx: float32 real-world values (slope and intercept applied).
        labels_zyx: uint8 index into the manifest's classes.
        affine_ras: 4x4, array indices (z, y, x) of voxel centres to RAS+ millimetres.
    """

    image_zyx: NDArray[np.float32]
    labels_zyx: NDArray[np.uint8]
    affine_ras: NDArray[np.float64]


class Candidate(Protocol):
    """Something found in a source that may be a scan; reading it is where it may fail."""

    @property
    def where(self) -> str:
        """Path relative to the source's folder."""

    def read(self) -> Scan:
        """Return the scan. Raises ``reasons.Unusable`` with a reason code."""


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
