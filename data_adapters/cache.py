"""The site's own copy of its scans: OME-Zarr 0.5, content-addressed, without identifiers.

OME-Zarr 0.5 has no rotation, so its metadata holds spacing alone; the full affine and the scaling
to real values stand beside it under ``cohortium``.
"""

import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import DataError
from data_adapters.geometry import axis_steps
from data_adapters.manifest import ScanEntry, sync_folder
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


def write_scan(cache_dir: Path, scan: Scan, digest: str, classes: tuple[str, ...]) -> None:
    """Write ``scan`` under its digest, all of it or nothing; one already there is left as it is."""
    final = cache_dir / scan_path(digest)
    if final.exists():
        return
    temporary = final.with_name(TEMPORARY_PREFIX + secrets.token_hex(8))
    spacing_mm, _ = axis_steps(scan.affine_ras)
    geometry = ZarrImage(
        axes=("z", "y", "x"),
        unit="millimeter",
        scale=tuple(float(step) for step in spacing_mm),
        translation=(0.0, 0.0, 0.0),
    )
    write_zarr_image(
        temporary,
        scan.image_zyx,
        geometry,
        name="image",
        labels={LABELS: scan.labels_zyx},
        attributes={NAMESPACE: _attributes(scan, classes)},
        durable=True,
    )
    temporary.rename(final)
    sync_folder(final.parent)


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
