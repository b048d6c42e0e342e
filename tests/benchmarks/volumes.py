"""The volume that patches are read from: as .npy, as OME-Zarr in two layouts, and taken in."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.phantoms import microscopy
from tests.benchmarks.processes import files_in
from tests.benchmarks.sizes import Sizes

SUBJECT = "S1"
BLOSC_LEVEL = 5


@dataclass(frozen=True)
class Volume:
    """One layout of the volume.

    Args:
        source: Folder of an OME-Zarr source with one subject and one image.
        cache: Where it was taken in.
        rechunk: It was copied into the cache; else it is read where it lies.
    """

    npy: Path
    source: Path
    cache: Path
    rechunk: bool

    @property
    def image(self) -> Path:
        """Return the image group."""
        return self.source / SUBJECT / "image.ome.zarr"

    @property
    def array(self) -> Path:
        """Return the Zarr array of its one level."""
        return self.image / "0"

    def ratio(self) -> float:
        """Return decoded bytes by stored bytes."""
        stored = sum(file.stat().st_size for file in files_in(self.array))
        return self.npy.stat().st_size / stored


@dataclass(frozen=True)
class Volumes:
    """The same voxels in every form."""

    plain: Volume
    sharded: Volume
    copied: Volume

    def everything(self) -> tuple[Path, ...]:
        """Return all folders and files that hold voxels."""
        sources = (self.plain.npy, self.plain.source, self.sharded.source)
        return (*sources, *(volume.cache for volume in (self.plain, self.sharded, self.copied)))


def write_volumes(folder: Path, sizes: Sizes) -> Volumes:
    """Write the volume and take it in: in place for both layouts, and copied."""
    npy = folder / "volume.npy"
    voxels = microscopy(sizes.side)
    np.save(npy, voxels)
    plain, sharded = folder / "plain", folder / "sharded"
    write_ome_zarr(plain, voxels, sizes.patch, None)
    write_ome_zarr(sharded, voxels, sizes.patch, sizes.shard)
    volumes = Volumes(
        plain=Volume(npy, plain, folder / "cache-plain", False),
        sharded=Volume(npy, sharded, folder / "cache-sharded", False),
        copied=Volume(npy, plain, folder / "cache-copied", True),
    )
    for volume in (volumes.plain, volumes.sharded, volumes.copied):
        take_in(volume)
    os.sync()
    return volumes


def write_ome_zarr(source: Path, voxels: np.ndarray, chunk: int, shard: int | None) -> None:
    """Write OME-Zarr 0.5 with zarr-python, as a lab's microscope would be converted."""
    import zarr
    from zarr.codecs import BloscCodec

    group = zarr.create_group(source / SUBJECT / "image.ome.zarr", zarr_format=3)
    array = group.create_array(
        "0",
        shape=voxels.shape,
        dtype=voxels.dtype,
        chunks=(chunk,) * 3,
        shards=None if shard is None else (shard,) * 3,
        compressors=BloscCodec(cname="zstd", clevel=BLOSC_LEVEL, shuffle="shuffle"),
        dimension_names=("z", "y", "x"),
    )
    array[:] = voxels
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    transform = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    levels = [{"path": "0", "coordinateTransformations": transform}]
    multiscales = [{"name": "image", "axes": axes, "datasets": levels}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    (source / "targets.csv").write_text(f"subject,value\n{SUBJECT},1\n")


def source_of(volume: Volume):
    """Return the source as a site file would declare it."""
    from data_adapters.sources import OmeZarrSource, Targets

    table = Targets(path=volume.source / "targets.csv", id_column="subject", column="value")
    return OmeZarrSource(path=volume.source, targets=table, rechunk=volume.rechunk)


def pseudonym(text: str) -> str:
    """Stand in for the site's keyed hash."""
    return hashlib.sha256(b"benchmark" + text.encode()).hexdigest()


def take_in(volume: Volume) -> None:
    """Ingest one volume."""
    from data_adapters.ingest import ingest

    report = ingest(source_of(volume), volume.cache, pseudonymise=pseudonym)
    if report.quarantined:
        raise RuntimeError(f"the benchmark's own volume is refused: {report.quarantined[0].code}")
