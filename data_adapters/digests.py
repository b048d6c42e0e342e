"""One digest for one image, the same on every machine and from every format; statistics with it.

A scan's digest is SHA-256 over a header (geometry in whole picometres, scaling, classes, modality)
and the SHA-256 of each logical block (``blocks``) of image and labels, little-endian in C order.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_adapters.blocks import Region, blocks
from data_adapters.reasons import Unusable
from data_adapters.types import Scan, Voxels

FORMAT = 2
# DICOM's decimal text and OME-Zarr's doubles carry no more; float rounding stays far below.
GEOMETRY_STEPS_PER_MM = 1e9


@dataclass(frozen=True)
class Names:
    """What the numbers in a data set's scans mean; the same for all of its scans."""

    classes: tuple[str, ...]
    targets: tuple[str, ...] = ()
    channels: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Block:
    """One block of an image: its SHA-256 in hex, and sums over stored values.

    The sums are relative to ``shift``, so that a large mean costs no digits.
    """

    sha256: str
    shift: float
    total: float
    squares: float


@dataclass(frozen=True)
class Measured:
    """What one pass over a scan gives.

    Args:
        digest: ``sha256:<hex>`` of everything that is cached: all but the subject.
        image: ``sha256:<hex>`` of pixels and geometry alone, whatever the labels.
        means: Of each channel, real-world values.
        deviations: Of each channel, real-world values; 0 for a constant one.
    """

    digest: str
    image: str
    means: tuple[float, ...]
    deviations: tuple[float, ...]


class KnownBlocks(Protocol):
    """What was measured of one array before, block by block."""

    def recall(self, number: int, region: Region) -> Block | None:
        """Return a block that has not changed since it was measured."""

    def remember(self, number: int, block: Block) -> None:
        """Keep a block; straight after it was not recalled."""


def measure(
    scan: Scan,
    names: Names,
    *,
    known_image: KnownBlocks | None = None,
    known_labels: KnownBlocks | None = None,
) -> Measured:
    """Read every voxel once, block by block, and return digest and statistics.

    Args:
        known_image: Blocks of the image that need not be read again.
        known_labels: Blocks of the labels that need not.

    Raises:
        Unusable: NOT_FINITE.
    """
    measured = list(_blocks(scan.image_czyx, _measured, known_image))
    image = _image_header(scan)
    hashes = "".join(block.sha256 for block in measured)
    labels = ""
    if scan.labels_zyx is not None:
        labels = "".join(b.sha256 for b in _blocks(scan.labels_zyx, _hashed, known_labels))
    header = image | _meaning(scan, names)
    return Measured(
        digest=_sha256(_json(header), hashes, "labels", labels),
        image=_sha256(_json(image), hashes),
        **_statistics(scan, measured),
    )


def _blocks(
    voxels: Voxels, take: Callable[[NDArray[Any]], Block], known: KnownBlocks | None
) -> Iterator[Block]:
    for number, region in enumerate(blocks(voxels.shape)):
        block = known.recall(number, region) if known else None
        if block is None:
            block = take(voxels[region])
            if known:
                known.remember(number, block)
        yield block


def _measured(values: NDArray[Any]) -> Block:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Unusable("NOT_FINITE")
    shift = float(values.flat[0])
    total = squares = 0.0
    for plane in values.reshape(-1, values.shape[-2] * values.shape[-1]):
        centred = plane.astype(np.float64) - shift
        total += float(centred.sum())
        squares += float(np.dot(centred, centred))
    return Block(_hash(values), shift, total, squares)


def _hashed(labels: NDArray[Any]) -> Block:
    """Of classes sums mean nothing."""
    return Block(_hash(labels), 0.0, 0.0, 0.0)


def _hash(values: NDArray[Any]) -> str:
    little_endian = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return hashlib.sha256(little_endian.data.cast("B")).hexdigest()


def _image_header(scan: Scan) -> dict[str, Any]:
    dtype = scan.image_czyx.dtype.newbyteorder("<").str
    scaling = zip(scan.slopes, scan.intercepts, strict=True)
    return {
        "format": FORMAT,
        "image": [dtype, list(scan.image_czyx.shape)],
        "scaling": [[float(slope).hex(), float(offset).hex()] for slope, offset in scaling],
        "affine_pm": [round(float(v) * GEOMETRY_STEPS_PER_MM) for v in scan.affine_ras.ravel()],
        "planar": scan.planar,
    }


def _meaning(scan: Scan, names: Names) -> dict[str, Any]:
    return {
        "classes": names.classes,
        "targets": names.targets,
        "channels": names.channels,
        "modality": scan.modality,
        "target": None if scan.target is None else float(scan.target).hex(),
    }


def _statistics(scan: Scan, measured: list[Block]) -> dict[str, tuple[float, ...]]:
    """Combine the blocks of each channel; blocks are in C order, so channels follow each other."""
    per_channel = len(measured) // scan.image_czyx.shape[0]
    voxels = [_size(region) for region in blocks(scan.image_czyx.shape)]
    means, deviations = [], []
    for channel, (slope, offset) in enumerate(zip(scan.slopes, scan.intercepts, strict=True)):
        part = slice(channel * per_channel, (channel + 1) * per_channel)
        mean, variance = _mean_and_variance(measured[part], voxels[part])
        means.append(mean * slope + offset)
        deviations.append(abs(slope) * float(np.sqrt(variance)))
    return {"means": tuple(means), "deviations": tuple(deviations)}


def _mean_and_variance(measured: list[Block], voxels: list[int]) -> tuple[float, float]:
    shift, count = measured[0].shift, sum(voxels)
    total = sum(b.total + (b.shift - shift) * n for b, n in zip(measured, voxels, strict=True))
    squares = sum(
        b.squares + 2 * (b.shift - shift) * b.total + (b.shift - shift) ** 2 * n
        for b, n in zip(measured, voxels, strict=True)
    )
    mean = total / count
    return shift + mean, max(squares / count - mean**2, 0.0)


def _size(region: Region) -> int:
    return int(np.prod([part.stop - part.start for part in region]))


def _sha256(*parts: bytes | str) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part if isinstance(part, bytes) else part.encode("ascii"))
    return "sha256:" + hasher.hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
