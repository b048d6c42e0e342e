"""Changing one file of a store changes the stamps of exactly the regions that touch it."""

import os
import pickle
import shutil

import numcodecs
import numpy as np
import pytest

from data_adapters.ome_zarr_images import Wanted, open_image
from data_adapters.ome_zarr_labels import ClassTable, open_labels
from data_adapters.ome_zarr_stamps import chunk_files
from data_adapters.zarr_places import Place
from tests.data_adapters.stores import whole, write_image, write_labels

SHAPE = (2, 4, 6, 8)
CHUNKS = (1, 2, 3, 4)
# Layout: what is written, the size that one file holds, and the file of the cell (1, 0, 1, 0).
LAYOUTS = {
    "v2 flat": (
        {"version": "0.4", "chunk_key_encoding": {"name": "v2", "separator": "."}},
        CHUNKS,
        "1.0.1.0",
    ),
    "v2 nested": (
        {
            "version": "0.4",
            "chunk_key_encoding": {"name": "v2", "separator": "/"},
            "compressors": numcodecs.Zstd(),
        },
        CHUNKS,
        "1/0/1/0",
    ),
    "v3": ({}, CHUNKS, "c/1/0/1/0"),
    "v3 flat": ({"chunk_key_encoding": {"name": "default", "separator": "."}}, CHUNKS, "c.1.0.1.0"),
    "v3 with names of v2": (
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
        CHUNKS,
        "1.0.1.0",
    ),
    "v3 sharded": ({"shards": (1, 4, 3, 8)}, (1, 4, 3, 8), "c/1/0/1/0"),
}
CELL = (1, 0, 1, 0)


def put(tmp_path, options):
    array = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE) + 1
    return write_image(tmp_path / "a.zarr", [array], "czyx", chunks=CHUNKS, **options)


def opened(path, channels=(0, 1)):
    return open_image(Place(str(path)), Wanted(channels=channels))


def boxes():
    """Regions of many sizes and places, (c, z, y, x)."""
    random = np.random.default_rng(0)
    for _ in range(60):
        ends = [sorted(random.choice(size + 1, 2, replace=False)) for size in SHAPE]
        yield tuple(slice(int(start), int(stop)) for start, stop in ends)


def touches(region, cell, grain):
    """Whether a region has a voxel in common with what one file holds."""
    return all(
        part.start < (place + 1) * size and part.stop > place * size
        for part, place, size in zip(region, cell, grain, strict=True)
    )


@pytest.mark.parametrize("change", ["rewritten", "removed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exactly_the_regions_that_touch_a_changed_file_change(tmp_path, layout, change):
    options, grain, name = LAYOUTS[layout]
    file = put(tmp_path, options) / "0" / name
    voxels = opened(tmp_path / "a.zarr").voxels
    regions = list(boxes())
    before = [voxels.region_stamp(region) for region in regions]
    assert all(before)
    assert before == [voxels.region_stamp(region) for region in regions]
    if change == "removed":
        file.unlink()
    else:
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = [voxels.region_stamp(region) for region in regions]
    changed = [one != other for one, other in zip(before, after, strict=True)]
    assert changed == [touches(region, CELL, grain) for region in regions]
    assert 0 < sum(changed) < len(changed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_named_file_holds_what_its_regions_read(tmp_path, layout):
    """The other half: pixels of a cell come from that file, so a missing one is the fill value."""
    options, grain, name = LAYOUTS[layout]
    (put(tmp_path, options) / "0" / name).unlink()
    found = whole(opened(tmp_path / "a.zarr").voxels)
    gone = np.zeros(SHAPE, bool)
    gone[tuple(slice(c * g, (c + 1) * g) for c, g in zip(CELL, grain, strict=True))] = True
    np.testing.assert_array_equal(found == 0, gone)


def test_a_changed_array_header_changes_every_region(tmp_path):
    path = put(tmp_path, {})
    voxels = opened(path).voxels
    before = [voxels.region_stamp(region) for region in boxes()]
    os.utime(path / "0" / "zarr.json", ns=(0, 0))
    after = [voxels.region_stamp(region) for region in boxes()]
    assert not set(before) & set(after)


def test_what_is_taken_of_a_chunk_is_part_of_its_stamp(tmp_path):
    path = put(tmp_path, {})
    region = tuple(slice(0, size) for size in (1, *SHAPE[1:]))
    first, second = (opened(path, channels=(channel,)).voxels for channel in (0, 1))
    assert first.region_stamp(region) != second.region_stamp(region)
    again = pickle.loads(pickle.dumps(first))
    assert again.region_stamp(region) == first.region_stamp(region)


def test_the_place_of_a_store_is_not(tmp_path):
    path = put(tmp_path, {})
    region = tuple(slice(0, size) for size in SHAPE)
    before = opened(path).voxels.region_stamp(region)
    moved = shutil.move(path, tmp_path / "b.zarr")
    assert opened(moved).voxels.region_stamp(region) == before


def test_the_classes_are_part_of_the_labels_stamp(tmp_path):
    path = put(tmp_path, {})
    labels = np.ones(SHAPE[1:], np.uint8)
    write_labels(path, "parts", [labels], chunks=CHUNKS[1:])
    image = opened(path)
    region = tuple(slice(0, size) for size in labels.shape)
    one, other, same = (
        open_labels(image, "parts", ClassTable.of({1: to}), None).region_stamp(region)
        for to in (1, 2, 1)
    )
    assert one == same != other


@pytest.mark.parametrize("header", ["", "[]", "{}", '{"chunk_key_encoding": {"name": "mine"}}'])
def test_unknown_names_of_chunks_have_no_stamp(tmp_path, header):
    """Then it is not known that a region is unchanged, and it is read again."""
    (tmp_path / "zarr.json").write_text(header)
    assert chunk_files(Place(str(tmp_path)), 3, CHUNKS) is None
