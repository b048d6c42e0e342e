"""The root follows the subjects' scans and nothing else, and a changed manifest is noticed."""

import json
from dataclasses import replace

import pytest

from data_adapters.digests import Names
from data_adapters.errors import DataError
from data_adapters.manifest import Manifest, ScanEntry, leaf_digest, root_digest

NAMES = Names(("background", "left"))


def entry(subject="a", digest="sha256:1"):
    return ScanEntry(
        subject=subject,
        digest=digest,
        image=digest,
        shape_czyx=(1, 1, 2, 3),
        spacing_mm_zyx=(1.0, 1.0, 1.0),
        modality="MR",
        planar=False,
        target=None,
        aliases=("is:1",),
        path="scans/1.ome.zarr",
    )


def test_the_root_ignores_the_order_of_scans_but_not_whose_they_are():
    one, two, three = entry("a", "sha256:1"), entry("a", "sha256:2"), entry("b", "sha256:3")
    root = root_digest(NAMES, [one, two, three])
    assert root == root_digest(NAMES, [three, two, one])
    assert root != root_digest(NAMES, [one, two])
    assert root != root_digest(NAMES, [one, replace(two, subject="b"), three])
    assert root != root_digest(Names(("background", "right")), [one, two, three])
    assert root != root_digest(replace(NAMES, channels=("T1", "T2")), [one, two, three])


def test_a_leaf_covers_all_scans_of_a_subject():
    assert leaf_digest("a", ["2", "1"], NAMES) == leaf_digest("a", ["1", "2"], NAMES)
    assert leaf_digest("a", ["1"], NAMES) != leaf_digest("b", ["1"], NAMES)


@pytest.fixture
def saved(tmp_path):
    scans = (entry("b", "sha256:2"), entry("a"))
    manifest = Manifest.of(NAMES, scans, source_kind="dicom", versions={"numpy": "2"})
    manifest.save(tmp_path / "manifest.json")
    return manifest


def test_save_and_load_are_inverse(saved, tmp_path):
    assert Manifest.load(tmp_path / "manifest.json") == saved
    assert saved.subjects == ("a", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("what", "value"),
    [("subject", "c"), ("target", 1.0), ("path", "scans/2.ome.zarr"), ("aliases", ["is:2"])],
)
def test_a_manifest_changed_by_hand_is_noticed(saved, tmp_path, what, value):
    path = tmp_path / "manifest.json"
    document = json.loads(path.read_text())
    document["scans"][0][what] = value
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="does not match its own digest"):
        Manifest.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "scans": [{}]}'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(DataError, match="cannot be read"):
        Manifest.load(path)


def test_no_manifest_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="Ingest the data first"):
        Manifest.load(tmp_path / "manifest.json")
