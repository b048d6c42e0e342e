"""The digest follows the data and nothing else, and a changed manifest is noticed."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from data_adapters.errors import DataError
from data_adapters.manifest import Manifest, ScanEntry, leaf_digest, root_digest, scan_digest
from data_adapters.types import Scan

CLASSES = ("background", "left")


@pytest.fixture
def scan(example):
    return Scan(example.image, 2.0, -1.0, example.labels, example.affine, "P-1", "MR")


def entry(subject="a", digest="sha256:1"):
    return ScanEntry(subject, digest, (1, 2, 3), (1.0, 1.0, 1.0), "MR", "scans/1.ome.zarr")


def changed(array, place, value):
    copy = array.copy()
    copy[place] = value
    return copy


def test_each_thing_that_matters_changes_the_scan_digest(scan):
    others = [
        replace(scan, image_zyx=changed(scan.image_zyx, (0, 0, 0), 7777)),
        replace(scan, image_zyx=scan.image_zyx.astype(np.float32)),
        replace(scan, image_zyx=scan.image_zyx.view(np.uint16)),
        replace(scan, labels_zyx=changed(scan.labels_zyx, (0, 0, 0), 1)),
        replace(scan, labels_zyx=3 - scan.labels_zyx),
        replace(scan, affine_ras=changed(scan.affine_ras, (0, 3), 0.001)),
        replace(scan, slope=2.5),
        replace(scan, intercept=0.0),
        replace(scan, modality="CT"),
    ]
    digests = [scan_digest(other, CLASSES) for other in (scan, *others)]
    digests.append(scan_digest(scan, ("background", "right")))
    assert len(set(digests)) == len(digests)


def test_what_does_not_matter_does_not_change_it(scan):
    same = [
        replace(scan, subject="P-2"),
        replace(scan, image_zyx=scan.image_zyx.astype(">i2")),
        replace(scan, image_zyx=np.asfortranarray(scan.image_zyx)),
        replace(scan, affine_ras=scan.affine_ras + 1e-9),
        replace(scan, affine_ras=np.where(scan.affine_ras == 0, -0.0, scan.affine_ras)),
    ]
    expected = scan_digest(scan, CLASSES)
    assert [scan_digest(other, CLASSES) for other in same] == [expected] * len(same)


def test_the_digest_is_a_published_rule_and_not_this_code():
    """Computed once by hand with hashlib, so that another program can check a site's root."""
    scan = Scan(
        np.array([[[1, -2]]], dtype=np.int16),
        1.0,
        0.0,
        np.array([[[0, 1]]], dtype=np.uint8),
        np.diag([3.0, 2.0, 1.0, 1.0]),
        "P-1",
        "MR",
    )
    header = (
        b'{"affine_nm":[3000000,0,0,0,0,2000000,0,0,0,0,1000000,0,0,0,0,1000000],'
        b'"classes":["background","left"],"format":1,"image":["<i2",[1,1,2]],"modality":"MR",'
        b'"scaling":["0x1.0000000000000p+0","0x0.0p+0"]}'
    )
    expected = hashlib.sha256(header + b"\x01\x00\xfe\xff" + b"\x00\x01").hexdigest()
    assert scan_digest(scan, CLASSES) == f"sha256:{expected}"


def test_the_root_ignores_the_order_of_scans_but_not_whose_they_are():
    one, two, three = entry("a", "sha256:1"), entry("a", "sha256:2"), entry("b", "sha256:3")
    root = root_digest(CLASSES, [one, two, three])
    assert root == root_digest(CLASSES, [three, two, one])
    assert root != root_digest(CLASSES, [one, two])
    assert root != root_digest(CLASSES, [one, replace(two, subject="b"), three])
    assert root != root_digest(("background", "right"), [one, two, three])


def test_a_leaf_covers_all_scans_of_a_subject():
    assert leaf_digest("a", ["2", "1"], CLASSES) == leaf_digest("a", ["1", "2"], CLASSES)
    assert leaf_digest("a", ["1"], CLASSES) != leaf_digest("b", ["1"], CLASSES)


@pytest.fixture
def saved(tmp_path):
    scans = (entry("a"), entry("b", "sha256:2"))
    manifest = Manifest("dicom", CLASSES, scans, root_digest(CLASSES, scans), {"numpy": "2"})
    manifest.save(tmp_path / "manifest.json")
    return manifest


def test_save_and_load_are_inverse(saved, tmp_path):
    assert Manifest.load(tmp_path / "manifest.json") == saved
    assert saved.subjects == ("a", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_manifest_changed_by_hand_is_noticed(saved, tmp_path):
    path = tmp_path / "manifest.json"
    document = json.loads(path.read_text())
    document["scans"][0]["subject"] = "c"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="does not match its own digest"):
        Manifest.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "scans": [{}]}'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(DataError, match="cannot be read"):
        Manifest.load(path)


def test_no_manifest_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="Ingest the data first"):
        Manifest.load(tmp_path / "manifest.json")
