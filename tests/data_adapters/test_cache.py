"""The cache is valid OME-Zarr that other tools open, and damage is named."""

import shutil

import numpy as np
import pytest
import zarr

from data_adapters.cache import (
    StoredArray,
    copied_path,
    open_scan,
    prepare_cache,
    publish,
    read_float32,
    temporary_path,
    write_pixels,
)
from data_adapters.channels import PickedChannels
from data_adapters.digests import Names, measure
from data_adapters.errors import DataError
from data_adapters.geometry import axis_steps
from data_adapters.manifest import ScanEntry
from data_adapters.types import Scan
from data_adapters.zarr_store import open_array

NAMES = Names(("background", "left", "right"), channels=("T1", "T2"))


def oblique():
    affine = np.eye(4)
    c, s = np.cos(0.3), np.sin(0.3)
    affine[:3, :3] = np.array([[0, -s, c], [0, c, s], [1, 0, 0]]) * [5.0, 2.0, -1.5]
    affine[:3, 3] = [1.0, -2.0, 3.0]
    return affine


def put(cache, scan):
    """Write one scan as ingest does."""
    prepare_cache(cache)
    measured = measure(scan, NAMES)
    temporary, path = temporary_path(cache), copied_path(measured.digest)
    write_pixels(temporary, scan, NAMES, measured)
    publish(cache, [(cache / path, temporary)])
    return ScanEntry(
        subject="a",
        digest=measured.digest,
        image=measured.image,
        shape_czyx=scan.image_czyx.shape,
        spacing_mm_zyx=(5.0, 2.0, 1.5),
        modality="CT",
        planar=False,
        target=None,
        aliases=(),
        path=path,
    )


@pytest.fixture
def scan(example):
    return Scan(
        image_czyx=np.stack([example.image, example.image[::-1]]),
        slopes=(2.0, 1.0),
        intercepts=(-1000.0, 0.0),
        affine_ras=oblique(),
        subject="P-1",
        modality="CT",
        labels_zyx=example.labels,
        target=1.0,
    )


@pytest.fixture
def entry(tmp_path, scan):
    return put(tmp_path, scan)


def test_an_oblique_flipped_affine_and_the_scaling_of_each_channel_survive(tmp_path, entry, scan):
    cached = open_scan(tmp_path, entry)
    np.testing.assert_array_equal(cached.affine_ras, scan.affine_ras)
    real = np.stack([scan.image_czyx[0] * 2.0 - 1000.0, scan.image_czyx[1]])
    np.testing.assert_array_equal(cached.image(), real)
    np.testing.assert_array_equal(cached.labels(), scan.labels_zyx)
    region = (slice(1, 3), slice(0, 2), slice(4, 7))
    np.testing.assert_array_equal(cached.image(region), real[(slice(None), *region)])
    np.testing.assert_array_equal(cached.labels(region), scan.labels_zyx[region])
    assert cached.target == 1.0
    np.testing.assert_allclose(cached.means, real.mean((1, 2, 3)))
    np.testing.assert_allclose(cached.deviations, real.std((1, 2, 3)))


def test_the_cache_is_valid_ome_zarr_with_native_pixels(tmp_path, entry, scan):
    import ome_zarr_models

    group = zarr.open_group(tmp_path / entry.path, mode="r")
    image = ome_zarr_models.open_ome_zarr(group)
    assert image.ome_zarr_version == "0.5"
    (dataset,) = image.ome_attributes.multiscales[0].datasets
    assert dataset.coordinateTransformations[0].scale == pytest.approx([1.0, 5.0, 2.0, 1.5])
    assert group["0"].dtype == np.int16
    np.testing.assert_array_equal(group["0"][:], scan.image_czyx)
    assert group.attrs["cohortium"]["classes"] == list(NAMES.classes)
    ome_zarr_models.open_ome_zarr(group["labels/classes"])


def test_nothing_but_named_facts_stands_in_the_metadata(tmp_path, entry):
    attributes = dict(zarr.open_group(tmp_path / entry.path, mode="r").attrs)
    assert set(attributes) == {"ome", "cohortium"}
    assert set(attributes["cohortium"]) == {
        "affine_ras",
        "slopes",
        "intercepts",
        "means",
        "deviations",
        "modality",
        "planar",
        "target",
        "labelled",
        "classes",
        "channels",
    }


@pytest.mark.parametrize(
    "what", ["", "zarr.json", "0/zarr.json", "labels/classes/0/zarr.json", "labels"]
)
def test_a_missing_part_is_a_data_error_with_the_way_out(tmp_path, entry, what):
    part = tmp_path / entry.path / what
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(DataError, match=r"missing or damaged .* ingest the data again"):
        open_scan(tmp_path, entry)


def test_a_scan_without_labels_says_so(tmp_path, scan):
    from dataclasses import replace

    cached = open_scan(tmp_path, put(tmp_path, replace(scan, labels_zyx=None)))
    with pytest.raises(DataError, match="no voxel labels"):
        cached.labels()


def test_a_large_scan_is_chunked_and_comes_back(tmp_path):
    random = np.random.default_rng(0)
    image = random.integers(0, 9, (1, 70, 80, 90)).astype(np.float32)
    labels = (image[0] > 4).astype(np.uint8)
    scan = Scan(image, (1.0,), (0.0,), oblique(), "P-1", "CT", labels_zyx=labels)
    cached = open_scan(tmp_path, put(tmp_path, scan))
    np.testing.assert_array_equal(cached.image(), image)
    np.testing.assert_array_equal(cached.labels(), labels)
    assert cached.chunk_zyx == (64, 64, 64)
    assert cached.shape_zyx == (70, 80, 90)


def test_a_scan_has_its_name_only_once_it_is_published(tmp_path, scan):
    prepare_cache(tmp_path)
    temporary = temporary_path(tmp_path)
    write_pixels(temporary, scan, NAMES, measure(scan, NAMES))
    final = tmp_path / copied_path("sha256:1")
    assert not final.exists()
    publish(tmp_path, [(final, temporary)])
    publish(tmp_path, [])
    assert [path.name for path in (tmp_path / "scans").iterdir()] == ["1.ome.zarr"]


def test_what_nobody_published_is_cleared(tmp_path):
    prepare_cache(tmp_path)
    temporary_path(tmp_path).mkdir()
    temporary_path(tmp_path).write_text("{}")
    prepare_cache(tmp_path)
    assert list((tmp_path / "scans").iterdir()) == []


def test_axis_steps_refuses_shear():
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    with pytest.raises(ValueError, match="not perpendicular"):
        axis_steps(sheared)
    with pytest.raises(ValueError, match="zero or not finite"):
        axis_steps(np.zeros((4, 4)))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_converting_while_reading_gives_what_converting_afterwards_gives(tmp_path, dtype):
    stored = np.random.default_rng(3).integers(0, 127, (2, 5, 6, 7)).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        stored[0, 0, 0, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    zarr.create_array(tmp_path / "a", data=stored, chunks=(1, 2, 6, 3))
    array = StoredArray(open_array(tmp_path / "a"))
    region = (slice(0, 2), slice(1, 4), slice(0, 6), slice(2, 7))

    for voxels in (array, PickedChannels(array, (1, 0)), PickedChannels(stored, (1, 0))):
        converted = read_float32(voxels, region)
        np.testing.assert_array_equal(converted, voxels[region].astype(np.float32), strict=True)


def test_scaling_a_patch_leaves_the_chunks_in_memory_as_they_are(tmp_path, scan, entry):
    opened = open_scan(tmp_path, entry)
    first = opened.image()
    first += 1000
    np.testing.assert_array_equal(opened.image(), first - 1000)
