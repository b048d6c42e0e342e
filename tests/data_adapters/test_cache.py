"""The cache is valid OME-Zarr that other tools open, and damage is named."""

import shutil

import numpy as np
import pytest
import zarr

from data_adapters.cache import CacheWriter, prepare_cache, read_scan, scan_path, write_scan
from data_adapters.errors import DataError
from data_adapters.geometry import axis_steps
from data_adapters.manifest import ScanEntry, scan_digest
from data_adapters.types import Scan

CLASSES = ("background", "left", "right")


def oblique():
    affine = np.eye(4)
    c, s = np.cos(0.3), np.sin(0.3)
    affine[:3, :3] = np.array([[0, -s, c], [0, c, s], [1, 0, 0]]) * [5.0, 2.0, -1.5]
    affine[:3, 3] = [1.0, -2.0, 3.0]
    return affine


@pytest.fixture
def scan(example):
    return Scan(example.image, 2.0, -1000.0, example.labels, oblique(), "P-1", "CT")


@pytest.fixture
def entry(tmp_path, scan):
    prepare_cache(tmp_path)
    digest = scan_digest(scan, CLASSES)
    write_scan(tmp_path, scan, digest, CLASSES)
    return ScanEntry("a", digest, (4, 6, 7), (5.0, 2.0, 1.5), "CT", scan_path(digest))


def test_an_oblique_flipped_affine_and_the_scaling_survive(tmp_path, entry, scan):
    cached = read_scan(tmp_path, entry)
    np.testing.assert_array_equal(cached.affine_ras, scan.affine_ras)
    np.testing.assert_array_equal(cached.image_zyx, scan.image_zyx * 2.0 - 1000.0)
    np.testing.assert_array_equal(cached.labels_zyx, scan.labels_zyx)


def test_the_cache_is_valid_ome_zarr_with_native_pixels(tmp_path, entry, scan):
    import ome_zarr_models

    group = zarr.open_group(tmp_path / entry.path, mode="r")
    image = ome_zarr_models.open_ome_zarr(group)
    assert image.ome_zarr_version == "0.5"
    (dataset,) = image.ome_attributes.multiscales[0].datasets
    assert dataset.coordinateTransformations[0].scale == pytest.approx([5.0, 2.0, 1.5])
    assert group["0"].dtype == np.int16
    np.testing.assert_array_equal(group["0"][:], scan.image_zyx)
    assert group.attrs["cohortium"]["classes"] == list(CLASSES)


def test_nothing_but_named_facts_stands_in_the_metadata(tmp_path, entry):
    attributes = dict(zarr.open_group(tmp_path / entry.path, mode="r").attrs)
    assert set(attributes) == {"ome", "cohortium"}
    assert set(attributes["cohortium"]) == {
        "affine_ras",
        "slope",
        "intercept",
        "modality",
        "classes",
    }


@pytest.mark.parametrize("what", ["", "zarr.json", "0/zarr.json", "labels/classes/0/zarr.json"])
def test_a_missing_part_is_a_data_error_with_the_way_out(tmp_path, entry, what):
    part = tmp_path / entry.path / what
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(DataError, match=r"missing or damaged .* ingest the data again"):
        read_scan(tmp_path, entry)


def test_a_large_scan_is_chunked_and_comes_back(tmp_path):
    random = np.random.default_rng(0)
    image = random.integers(0, 9, (70, 80, 90)).astype(np.float32)
    labels = (image > 4).astype(np.uint8)
    scan = Scan(image, 1.0, 0.0, labels, oblique(), "P-1", "CT")
    prepare_cache(tmp_path)
    write_scan(tmp_path, scan, "sha256:1", CLASSES)
    entry = ScanEntry("a", "sha256:1", (70, 80, 90), (5.0, 2.0, 1.5), "CT", scan_path("sha256:1"))
    cached = read_scan(tmp_path, entry)
    np.testing.assert_array_equal(cached.image_zyx, image)
    np.testing.assert_array_equal(cached.labels_zyx, labels)
    assert zarr.open_array(tmp_path / entry.path / "0", mode="r").chunks == (64, 64, 64)


def test_a_scan_has_its_name_only_after_the_commit(tmp_path, scan):
    prepare_cache(tmp_path)
    writer = CacheWriter(tmp_path, CLASSES)
    writer.add(scan, "sha256:1")
    assert not (tmp_path / scan_path("sha256:1")).exists()
    writer.commit()
    writer.commit()
    assert [path.name for path in (tmp_path / "scans").iterdir()] == ["1.ome.zarr"]


def test_axis_steps_refuses_shear():
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    with pytest.raises(ValueError, match="not perpendicular"):
        axis_steps(sheared)
    with pytest.raises(ValueError, match="zero or not finite"):
        axis_steps(np.zeros((4, 4)))
