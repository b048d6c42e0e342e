"""OME-Zarr through the whole ingest: in place, copied, from a server, and plates."""

import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest
import zarr

from data_adapters.cache import open_scan
from data_adapters.discover import locate
from data_adapters.errors import DataError
from data_adapters.ingest import ingest
from data_adapters.sources import OmeZarrSource
from data_adapters.zarr_voxels import ZarrVoxels
from tests.data_adapters.stores import write_image, write_labels, write_plate

SHAPE = (2, 130, 20, 24)
IMAGE = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
LABELS = (IMAGE[0] % 3).astype(np.uint8)


def pseudonymise(text):
    return hashlib.sha256(b"a key" + text.encode()).hexdigest()[:32]


def put(path):
    scales = [[1, 4.0, 2.0, 2.0]]
    write_image(path, [IMAGE], "czyx", scales=scales, chunks=(1, 64, 20, 24))
    write_labels(path, "parts", [LABELS], scales=[scales[0][1:]], chunks=(64, 20, 24))
    return path


def source(path, **changes):
    values = {"labels": "parts", "classes": {1: "left", 2: "right"}, "channels": (1, 0)}
    return OmeZarrSource(path=path, **(values | changes))


def take(source, cache):
    return ingest(source, cache, pseudonymise=pseudonymise)


def check_pixels(scan):
    region = (slice(60, 70), slice(3, 9), slice(0, 24))
    np.testing.assert_array_equal(scan.image(region), IMAGE[[1, 0]][:, *region])
    np.testing.assert_array_equal(scan.labels(region), LABELS[region])
    np.testing.assert_allclose(scan.means, IMAGE[[1, 0]].mean(axis=(1, 2, 3)), rtol=1e-6)


def files(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_in_place_and_copied_scans_are_the_same_data_set(tmp_path):
    put(tmp_path / "data/P-1/a.zarr")
    before = files(tmp_path / "data")
    in_place, copied = source(tmp_path / "data"), source(tmp_path / "data", rechunk=True)
    one, other = take(in_place, tmp_path / "one"), take(copied, tmp_path / "other")
    assert one.manifest.root == other.manifest.root
    assert files(tmp_path / "data") == before
    (entry,) = one.manifest.scans
    found = locate([in_place], pseudonymise)
    check_pixels(open_scan(tmp_path / "one", entry, found))
    check_pixels(open_scan(tmp_path / "other", other.manifest.scans[0]))
    size = sum(path.stat().st_size for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert size < IMAGE.nbytes / 10


@pytest.mark.parametrize("rechunk", [False, True])
def test_folders_may_be_named_from_another_one(tmp_path, rechunk):
    """Site files say ``path: ../archive``; tensorstore takes no ``..``."""
    put(tmp_path / "data/P-1/a.zarr")
    for home in ("site", "linked/site"):
        (tmp_path / home).mkdir(parents=True)
    (tmp_path / "away").symlink_to(tmp_path / "linked/site")
    plain = source(tmp_path / "data", rechunk=rechunk)
    expected = take(plain, tmp_path / "cache").manifest
    for path, home in (("../data", "site"), ("../../data", "away")):
        one = source(path, rechunk=rechunk).located(tmp_path / home)
        report = take(one, tmp_path / "cache")
        assert (report.manifest, report.num_read) == (expected, 0), "the same names as without .."
        elsewhere = tmp_path / home / ".." / f"cache-{home.replace('/', '-')}"
        again = take(one, elsewhere).manifest
        assert again.root == expected.root
        check_pixels(open_scan(elsewhere, again.scans[0], locate([one], pseudonymise)))


@pytest.fixture
def regions_read(monkeypatch):
    """The first slices along c and z of what is read of images, of labels along z, from now on."""
    seen, read = [], ZarrVoxels.__getitem__

    def spy(self, region):
        seen.append(tuple(part.start for part in region[:-2]))
        return read(self, region)

    monkeypatch.setattr(ZarrVoxels, "__getitem__", spy)
    return seen


def test_only_the_blocks_of_changed_chunks_are_read_again(tmp_path, regions_read):
    path = put(tmp_path / "data/P-1/a.zarr")
    first = take(source(tmp_path / "data"), tmp_path / "cache").manifest
    labels = [(z,) for z in (0, 64, 128)] * 2  # looked at, then measured
    image = [(c, z) for c in (0, 1) for z in (0, 64, 128)]
    assert sorted(regions_read) == sorted(image + labels)
    regions_read.clear()
    zarr.open_array(path / "0")[0, 70, 0, 0] = 9999
    second = take(source(tmp_path / "data"), tmp_path / "cache").manifest
    # Channel 0 of the file is the second of the scan.
    assert regions_read == [(1, 64)]
    assert second.root != first.root
    again = take(source(tmp_path / "data"), tmp_path / "elsewhere").manifest
    assert again.root == second.root


def test_only_the_labels_of_changed_chunks_are_looked_at_again(tmp_path, regions_read):
    path = put(tmp_path / "data/P-1/a.zarr")
    first = take(source(tmp_path / "data"), tmp_path / "cache").manifest
    labels = zarr.open_array(path / "labels/parts/0")
    regions_read.clear()
    labels[70, 0, 0] = (labels[70, 0, 0] + 1) % 3
    second = take(source(tmp_path / "data"), tmp_path / "cache").manifest
    assert regions_read == [(64,)] * 2
    assert second.root != first.root
    assert take(source(tmp_path / "data"), tmp_path / "elsewhere").manifest.root == second.root


def test_a_changed_label_that_has_no_class_is_found(tmp_path):
    path = put(tmp_path / "data/P-1/a.zarr")
    put(tmp_path / "data/P-2/a.zarr")
    take(source(tmp_path / "data"), tmp_path / "cache")
    zarr.open_array(path / "labels/parts/0")[70, 0, 0] = 9
    report = take(source(tmp_path / "data"), tmp_path / "cache")
    assert [(entry.code, entry.where) for entry in report.quarantined] == [
        ("UNMAPPED_LABEL", "P-1/a.zarr")
    ]


def test_other_classes_look_at_every_label_again(tmp_path):
    put(tmp_path / "data/P-1/a.zarr")
    take(source(tmp_path / "data"), tmp_path / "cache")
    with pytest.raises(DataError, match="UNMAPPED_LABEL"):
        take(source(tmp_path / "data", classes={1: "left"}), tmp_path / "cache")


def test_a_store_behind_http_is_copied_and_is_the_same_data_set(tmp_path):
    put(tmp_path / "data/P-1/a.zarr")
    local = take(source(tmp_path / "data"), tmp_path / "one").manifest
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": no_log})
    folder = functools.partial(handler, directory=tmp_path / "data")
    (tmp_path / "site").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        row = f"http://127.0.0.1:{server.server_port}/P-1/a.zarr,P-1\n"
        (tmp_path / "site/images.csv").write_text("path,subject\n" + row)
        remote = source(tmp_path / "site", images=tmp_path / "site/images.csv")
        report = take(remote, tmp_path / "other")
        server.shutdown()
    assert report.manifest.root == local.root
    check_pixels(open_scan(tmp_path / "other", report.manifest.scans[0]))


def no_log(*_):
    pass


def test_a_donor_in_several_wells_is_one_subject_of_the_data_set(tmp_path):
    random = np.random.default_rng(0)

    def put_field(path):
        write_image(path, [random.integers(0, 255, (8, 9)).astype(np.uint8)], "yx")
        write_labels(path, "parts", [np.eye(8, 9, dtype=np.uint8)], "yx")

    wells = {"A/1": ["0", "1"], "A/2": ["0"], "B/1": ["0"], "B/2": ["0"]}
    (tmp_path / "data").mkdir()
    write_plate(tmp_path / "data/p.zarr", wells, put_field=put_field)
    (tmp_path / "wells.csv").write_text("well,subject\nA/1,D-1\nA/2,D-1\nB/1,D-2\n")
    wanted = source(tmp_path / "data", wells=tmp_path / "wells.csv", channels=(0,))
    report = take(wanted, tmp_path / "cache")
    subjects = sorted(entry.subject for entry in report.manifest.scans)
    assert subjects == sorted([pseudonymise("D-1")] * 3 + [pseudonymise("D-2")])
    assert [entry.code for entry in report.quarantined] == ["WELL_WITHOUT_SUBJECT"]
    assert all(entry.planar for entry in report.manifest.scans)


def test_pixels_that_are_not_finite_or_damaged_are_left_out_by_name(tmp_path):
    put(tmp_path / "data/P-1/a.zarr")
    for name, value in (("nan", np.nan), ("huge", 1e300)):
        image = np.zeros((2, 3, 4, 5))
        image[0, 1, 2, 3] = value
        write_image(tmp_path / f"data/P-2/{name}.zarr", [image], "czyx")
        write_labels(tmp_path / f"data/P-2/{name}.zarr", "parts", [np.zeros((3, 4, 5), np.uint8)])
    damaged = put(tmp_path / "data/P-3/damaged.zarr")
    (damaged / "0/c/1/1/0/0").write_bytes(b"not zstd")
    report = take(source(tmp_path / "data"), tmp_path / "cache")
    assert {entry.where: entry.code for entry in report.quarantined} == {
        "P-2/nan.zarr": "NOT_FINITE",
        "P-2/huge.zarr": "NOT_FINITE",
        "P-3/damaged.zarr": "UNDECODABLE_PIXELS",
    }
    assert len(report.manifest.scans) == 1
