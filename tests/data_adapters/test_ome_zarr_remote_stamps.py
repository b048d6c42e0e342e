"""A remote image that did not change is not fetched again: requests are counted at real servers."""

import os
import time
from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest

from data_adapters import ingest as ingest_module
from data_adapters import zarr_voxels
from data_adapters.cache import open_scan
from data_adapters.ome_zarr import discover_ome_zarr
from tests.data_adapters.http_stores import Quiet, serving
from tests.data_adapters.stores import write_image, write_labels
from tests.data_adapters.test_ome_zarr_remote import (
    bucket,  # noqa: F401 - a fixture
    listed,
)

IMAGE = np.arange(8 * 6 * 8, dtype=np.uint16).reshape(8, 6, 8)
LABELS = (IMAGE % 2).astype(np.uint8)
CHUNKS = 4 * 2 * 2
LAYOUTS = {
    "0.4": {"version": "0.4", "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "0.5": {"version": "0.5"},
}


class Server(Quiet):
    """Serves a folder, and counts. Python's own server says Last-Modified and no ETag."""

    def do_GET(self):
        self.counts["GET", self.kind] += 1
        super().do_GET()

    def do_HEAD(self):
        self.counts["HEAD", self.kind] += 1
        if self.refuses_head:
            self.send_error(405)
        else:
            super().do_HEAD()

    @property
    def kind(self):
        return "metadata" if self.path.rpartition("/")[2] in METADATA else "chunk"

    def send_header(self, keyword, value):
        if keyword not in self.left_out:
            super().send_header(keyword, value)


METADATA = {"zarr.json", ".zattrs", ".zgroup", ".zarray"}


@pytest.fixture
def serve(tmp_path):
    """Serve this test's folder; returns the URL and the counts of requests."""
    with ExitStack() as stack:

        def start(*, refuses_head=False, left_out=(), etags=False):
            counts = Counter()
            members = {"refuses_head": refuses_head, "left_out": left_out, "etags": etags}
            served = serving(tmp_path / "served", kind=Server, counts=counts, **members)
            return stack.enter_context(served), counts

        yield start


@pytest.fixture(params=LAYOUTS)
def image(request, tmp_path):
    """An image of 16 chunks, half of them its labels' own, last written a minute ago."""
    return put(tmp_path / "served" / "a b.ome.zarr", LAYOUTS[request.param])


def put(path, layout):
    write_image(path, [IMAGE], scales=[[2, 1, 1]], chunks=(2, 3, 4), **layout)
    write_labels(path, "parts", [LABELS], scales=[[2, 1, 1]], chunks=(2, 3, 4), **layout)
    return aged(path, 60)


def aged(path, seconds):
    then = time.time() - seconds
    for file in path.rglob("*"):
        os.utime(file, (then, then))
    return path


def chunk_of(image):
    array = image / "0"
    names = (path for path in sorted(array.rglob("*")) if path.is_file())
    return next(path for path in names if path.name not in METADATA)


def write_over(image, value=7):
    """Change some voxels of the image itself."""
    import zarr

    zarr.open_array(image / "0", mode="r+")[:2, :3, :4] = value


@pytest.mark.parametrize("etags", [False, True])
def test_an_unchanged_image_is_not_fetched_again(image, serve, tmp_path, take_in, etags):
    url, counts = serve(etags=etags)
    source = listed(tmp_path, f"{url}/a b.ome.zarr")
    first = take_in(source)
    assert first.num_read == 1 and counts["GET", "chunk"] >= 2 * CHUNKS
    counts.clear()
    again = take_in(source)
    assert counts["GET", "chunk"] == 0
    assert counts["HEAD", "chunk"] == 2 * CHUNKS
    assert (again.num_read, again.manifest) == (0, first.manifest)


def test_a_changed_chunk_is_noticed_and_read(image, serve, tmp_path, take_in):
    url, counts = serve()
    source = listed(tmp_path, f"{url}/a b.ome.zarr")
    first = take_in(source)
    write_over(image)
    aged(image, 30)
    counts.clear()
    again = take_in(source)
    assert again.num_read == 1 and counts["GET", "chunk"] >= CHUNKS
    assert again.manifest.root != first.manifest.root
    scan = open_scan(tmp_path / "cache", again.manifest.scans[0])
    assert (scan.image()[0][:2, :3, :4] == 7).all()


def fingerprint(tmp_path, url):
    (candidate,) = discover_ome_zarr(listed(tmp_path, url)).candidates
    return candidate.fingerprint()


def test_every_object_that_is_read_counts_and_no_other(image, serve, tmp_path):
    url, _ = serve()
    known = fingerprint(tmp_path, f"{url}/a b.ome.zarr")
    assert known and known == fingerprint(tmp_path, f"{url}/a b.ome.zarr")
    seen = {known}
    files = {path for path in image.rglob("*") if path.is_file()}
    # Nothing of these is read: what the group of labels lists, and an array's own attributes.
    files -= {image / "labels" / name for name in METADATA}
    files -= {path.with_name(".zattrs") for path in files if path.name == ".zarray"}
    read = sorted(files)
    for number, path in enumerate(read):
        os.utime(path, (10_000 + number, 10_000 + number))
        seen.add(fingerprint(tmp_path, f"{url}/a b.ome.zarr"))
    assert len(seen) == len(read) + 1
    (image / "0" / "notes.txt").write_text("nobody reads this")
    assert fingerprint(tmp_path, f"{url}/a b.ome.zarr") in seen


def test_a_chunk_that_went_or_came_is_noticed(image, serve, tmp_path):
    url, _ = serve()
    known = fingerprint(tmp_path, f"{url}/a b.ome.zarr")
    chunk = chunk_of(image)
    chunk.rename(tmp_path / "aside")
    without = fingerprint(tmp_path, f"{url}/a b.ome.zarr")
    assert without and without != known
    (tmp_path / "aside").rename(chunk)
    assert fingerprint(tmp_path, f"{url}/a b.ome.zarr") == known


@pytest.mark.parametrize(
    "server",
    [
        {"refuses_head": True},
        {"left_out": ("Last-Modified",)},
        {"left_out": ("Content-Length",)},
        {"left_out": ("Date",)},
    ],
    ids=lambda server: str(*server.values()),
)
def test_where_the_server_does_not_tell_the_image_is_fetched(
    image, serve, tmp_path, take_in, server
):
    url, counts = serve(**server)
    assert fingerprint(tmp_path, f"{url}/a b.ome.zarr") == ""
    source = listed(tmp_path, f"{url}/a b.ome.zarr")
    first = take_in(source)
    counts.clear()
    again = take_in(source)
    assert counts["GET", "chunk"] >= CHUNKS and again.num_read == 1
    assert again.manifest == first.manifest


def test_what_was_written_a_moment_ago_may_change_within_its_second(image, serve, tmp_path):
    aged(image, 0)
    url, _ = serve()
    assert fingerprint(tmp_path, f"{url}/a b.ome.zarr") == ""
    url, _ = serve(etags=True)
    assert fingerprint(tmp_path, f"{url}/a b.ome.zarr") != ""


def test_too_many_objects_are_not_asked_for(image, serve, tmp_path, monkeypatch):
    url, counts = serve()
    monkeypatch.setattr(zarr_voxels, "MOST_OBJECTS", CHUNKS - 1)
    assert fingerprint(tmp_path, f"{url}/a b.ome.zarr") == ""
    assert counts["HEAD", "chunk"] == 0


def test_other_settings_read_it_again(image, serve, tmp_path, take_in):
    url, _ = serve()
    take_in(listed(tmp_path, f"{url}/a b.ome.zarr"))
    other = listed(tmp_path, f"{url}/a b.ome.zarr", classes={1: "right"})
    assert take_in(other).num_read == 1


def test_comparing_is_shown_where_it_takes_long(image, serve, tmp_path, take_in, monkeypatch):
    url, _ = serve()
    monkeypatch.setattr(ingest_module, "QUIET_S", -1.0)
    told = []
    take_in(listed(tmp_path, f"{url}/a b.ome.zarr"), progress=lambda *stage: told.append(stage))
    assert told == [("comparing", 1, 1), ("checking", 1, 1)]


def test_so_it_is_in_an_s3_bucket(tmp_path, bucket, take_in):  # noqa: F811
    image = put(tmp_path / "a.zarr", LAYOUTS["0.5"])
    bucket(image)
    source = listed(tmp_path, "s3://lab/a.zarr")
    first = take_in(source)
    bucket.requests.clear()
    again = take_in(source)
    chunks = [(how, path) for how, path in bucket.requests if path.rpartition("/")[2].isdigit()]
    assert Counter(how for how, _ in chunks) == {"HEAD": 2 * CHUNKS}
    assert (again.num_read, again.manifest) == (0, first.manifest)
    write_over(image)
    bucket(image)
    changed = take_in(source)
    assert changed.num_read == 1 and changed.manifest.root != first.manifest.root
