"""The site's own copy of its scans: OME-Zarr 0.5, content-addressed, without identifiers.

OME-Zarr 0.5 has no rotation, so its metadata holds spacing alone; the full affine and the scaling
to real values stand beside it under ``cohortium``.
"""

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import DataError
from data_adapters.geometry import axis_steps
from data_adapters.manifest import Manifest, ScanEntry, sync_folder
from data_adapters.types import CachedScan, Scan
from data_adapters.zarr_store import (
    LEVEL,
    ZarrImage,
    group_attributes,
    open_array,
    write_zarr_image,
)

SCANS = "scans"
NAMESPACE = "cohortium"
LABELS = "classes"
TEMPORARY_PREFIX = ".writing-"
# Scans that a kill can lose the work of.
BATCH = 64


def scan_path(digest: str) -> str:
    """Return where a scan with this digest lies, relative to the cache folder."""
    return f"{SCANS}/{digest.removeprefix('sha256:')}.ome.zarr"


def prepare_cache(cache_dir: Path) -> None:
    """Create the cache readable by its owner only, and clear what a killed ingest left."""
    for folder in (cache_dir, cache_dir / SCANS):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    for leftover in (cache_dir / SCANS).glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover)


class CacheWriter:
    """Writes scans in batches: a scan has its final name only once it is whole and on the disk.

    One sync of the file system for a batch: seven small files a scan, synced one by one, made
    the ingest of 74 small scans take 3.1 s instead of 0.9 s (2 busy cores).
    """

    def __init__(self, cache_dir: Path, classes: tuple[str, ...]) -> None:
        self._cache_dir = cache_dir
        self._classes = classes
        self._pending: dict[Path, Path] = {}

    def add(self, scan: Scan, digest: str) -> None:
        """Write ``scan`` under its digest at the next commit; one already there is left alone."""
        final = self._cache_dir / scan_path(digest)
        if final.exists() or final in self._pending:
            return
        temporary = final.with_name(TEMPORARY_PREFIX + secrets.token_hex(8))
        _write(temporary, scan, self._classes)
        self._pending[final] = temporary
        if len(self._pending) >= BATCH:
            self.commit()

    def commit(self) -> None:
        """Make what was added durable, then visible."""
        if not self._pending:
            return
        os.sync()
        for final, temporary in self._pending.items():
            temporary.rename(final)
        self._pending.clear()
        sync_folder(self._cache_dir / SCANS)


def write_scan(cache_dir: Path, scan: Scan, digest: str, classes: tuple[str, ...]) -> None:
    """Write one scan under its digest, all of it or nothing."""
    writer = CacheWriter(cache_dir, classes)
    writer.add(scan, digest)
    writer.commit()


def prune(cache_dir: Path, manifest: Manifest) -> None:
    """Delete scans that the manifest no longer names: withdrawn, replaced, or now quarantined."""
    kept = {Path(scan_path(entry.digest)).name for entry in manifest.scans}
    for path in (cache_dir / SCANS).iterdir():
        if path.name.endswith(".ome.zarr") and path.name not in kept:
            shutil.rmtree(path)


def _write(path: Path, scan: Scan, classes: tuple[str, ...]) -> None:
    spacing_mm, _ = axis_steps(scan.affine_ras)
    geometry = ZarrImage(
        axes=("z", "y", "x"),
        unit="millimeter",
        scale=tuple(float(step) for step in spacing_mm),
        translation=(0.0, 0.0, 0.0),
    )
    write_zarr_image(
        path,
        scan.image_zyx,
        geometry,
        name="image",
        labels={LABELS: scan.labels_zyx},
        attributes={NAMESPACE: _attributes(scan, classes)},
    )


def _attributes(scan: Scan, classes: tuple[str, ...]) -> dict[str, object]:
    return {
        "affine_ras": scan.affine_ras.tolist(),
        "slope": scan.slope,
        "intercept": scan.intercept,
        "modality": scan.modality,
        "classes": list(classes),
    }


def read_scan(cache_dir: Path, entry: ScanEntry) -> CachedScan:
    """Read one scan for training.

    Raises:
        DataError: The scan is not in the cache, or is damaged.
    """
    path = cache_dir / entry.path
    try:
        attributes = group_attributes(path)[NAMESPACE]
        stored = open_array(path / LEVEL).read().result()
        labels: NDArray[np.uint8] = open_array(path / "labels" / LABELS / LEVEL).read().result()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"A scan of the cache {cache_dir} is missing or damaged ({type(error).__name__}). "
            f"Delete {cache_dir / SCANS} and ingest the data again."
        ) from error
    return CachedScan(
        image_zyx=_real_values(stored, attributes["slope"], attributes["intercept"]),
        labels_zyx=labels,
        affine_ras=np.asarray(attributes["affine_ras"], dtype=np.float64),
    )


def _real_values(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    values = stored.astype(np.float32)
    if (slope, intercept) != (1.0, 0.0):
        values *= np.float32(slope)
        values += np.float32(intercept)
    return values
