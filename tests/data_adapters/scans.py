"""Cached scans for tests: in memory with a spy on what is read, or put into a cache folder."""

import math
from dataclasses import dataclass, field

import numpy as np

from data_adapters.cache import (
    CachedScan,
    copied_path,
    prepare_cache,
    publish,
    temporary_path,
    write_pixels,
)
from data_adapters.digests import Names, measure
from data_adapters.manifest import Manifest, ScanEntry
from data_adapters.types import Scan

NAMES = Names(("background", "left", "right"))


@dataclass
class SpyVoxels:
    """An array that remembers how many voxels were read at a time."""

    array: np.ndarray
    chunk_shape: tuple[int, ...] | None = None
    reads: list[int] = field(default_factory=list)

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    def __getitem__(self, region):
        part = self.array[region]
        self.reads.append(part.size)
        return part.copy()


def cached(image, affine=None, labels=None, *, chunk=None, planar=False, target=None):
    """Return a CachedScan over arrays; an image (z, y, x) has one channel."""
    image = image[None] if image.ndim == 3 else image
    return CachedScan(
        stored_czyx=SpyVoxels(image, None if chunk is None else (1, *chunk)),
        labels_on_disk=None if labels is None else SpyVoxels(labels),
        slopes=(1.0,) * len(image),
        intercepts=(0.0,) * len(image),
        affine_ras=np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]] if affine is None else affine,
        means=tuple(float(channel.mean()) for channel in image),
        deviations=tuple(float(channel.std()) for channel in image),
        planar=planar,
        target=target,
    )


def random_scan(shape=(12, 14, 16), affine=None, *, channels=1, seed=0, **options):
    random = np.random.default_rng(seed)
    image = random.integers(-500, 2000, (channels, *shape)).astype(np.int16)
    labels = random.integers(0, 3, shape).astype(np.uint8)
    return cached(image, affine, labels, **options)


def put(cache, subject, image, affine, labels=None, *, names=NAMES, **facts):
    """Write one scan into a cache folder as ingest does, and return its entry."""
    prepare_cache(cache)
    image = image[None] if image.ndim == 3 else image
    scan = Scan(
        image_czyx=image,
        slopes=(1.0,) * len(image),
        intercepts=(0.0,) * len(image),
        affine_ras=affine,
        subject="raw",
        modality="OT",
        labels_zyx=labels,
        **facts,
    )
    measured = measure(scan, names)
    temporary, path = temporary_path(cache), copied_path(measured.digest)
    write_pixels(temporary, scan, names, measured)
    publish(cache, [(cache / path, temporary)])
    return ScanEntry(
        subject=subject,
        digest=measured.digest,
        image=measured.image,
        shape_czyx=image.shape,
        spacing_mm_zyx=(1.0, 1.0, 1.0),
        modality="OT",
        planar=scan.planar,
        target=scan.target,
        aliases=(f"is:{subject}",),
        path=path,
    )


def manifest_of(entries, names=NAMES):
    return Manifest.of(names, entries, source_kind="dicom", versions={})


class Uniforms:
    """Seeded uniforms that count how many were asked for."""

    def __init__(self, seed=0):
        self._random = np.random.default_rng(seed)
        self.asked = []

    def __call__(self, count):
        self.asked.append(count)
        return self._random.random(count)


def voxels(shape):
    return math.prod(shape)
