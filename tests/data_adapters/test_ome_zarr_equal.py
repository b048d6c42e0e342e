"""Equal images that are read in place share one file of facts: it names the one in the data set."""

import os
import shutil

import numpy as np
import pytest

from data_adapters.cache import open_scan
from data_adapters.discover import locate
from data_adapters.errors import DataError
from data_adapters.ome_zarr import OmeZarrCandidate
from tests.data_adapters.conftest import pseudonymise


@pytest.fixture
def pixels(ome_zarr_source, tmp_path):
    """Open every scan of a manifest and return its image."""

    def pixels(manifest):
        places = locate([ome_zarr_source], pseudonymise)
        cache = tmp_path / "cache"
        return [open_scan(cache, entry, places).image() for entry in manifest.scans]

    return pixels


@pytest.mark.parametrize("gone", ["a", "b"])
def test_the_one_that_stays_is_read_after_the_other_is_deleted(
    put_ome_zarr, ome_zarr_source, take_in, pixels, example, gone
):
    paths = {name: put_ome_zarr(f"P-1/{name}.ome.zarr") for name in "ab"}
    first = take_in(ome_zarr_source).manifest
    shutil.rmtree(paths[gone])
    report = take_in(ome_zarr_source)
    assert (report.manifest, report.num_read) == (first, 0)
    (image,) = pixels(report.manifest)
    np.testing.assert_array_equal(image[0], example.image)


def test_a_copy_under_another_subject_takes_nothing_with_it(
    put_ome_zarr, ome_zarr_source, take_in, pixels
):
    put_ome_zarr("P-1/a.ome.zarr")
    copy = put_ome_zarr("P-2/b.ome.zarr")
    put_ome_zarr("P-3/c.ome.zarr", seed=3)
    report = take_in(ome_zarr_source)
    assert [entry.code for entry in report.quarantined] == ["DUPLICATE_SCAN"]
    shutil.rmtree(copy.parent)
    assert len(pixels(take_in(ome_zarr_source).manifest)) == 2


def test_a_copy_that_changes_takes_nothing_with_it(put_ome_zarr, ome_zarr_source, take_in, pixels):
    put_ome_zarr("P-1/a.ome.zarr")
    copy = put_ome_zarr("P-1/b.ome.zarr")
    take_in(ome_zarr_source)
    os.utime(copy / "zarr.json", ns=(0, 0))
    assert len(pixels(take_in(ome_zarr_source).manifest)) == 1
    shutil.rmtree(copy)
    put_ome_zarr("P-1/b.ome.zarr", seed=3)
    assert len(pixels(take_in(ome_zarr_source).manifest)) == 2


def test_the_facts_are_the_same_whichever_was_read_last(
    put_ome_zarr, ome_zarr_source, take_in, tmp_path
):
    paths = {name: put_ome_zarr(f"P-1/{name}.ome.zarr") for name in "ab"}
    take_in(ome_zarr_source)
    (facts,) = (tmp_path / "cache" / "scans").iterdir()
    before = facts.read_bytes()
    for path in (paths["b"], paths["a"]):
        shutil.rmtree(tmp_path / "cache")
        hidden = path.rename(tmp_path / "hidden")
        take_in(ome_zarr_source)
        hidden.rename(path)
        take_in(ome_zarr_source)
        assert facts.read_bytes() == before


def test_an_image_that_changed_while_another_was_read_is_refused(
    put_ome_zarr, ome_zarr_source, take_in, pixels, monkeypatch
):
    first = put_ome_zarr("P-1/a.ome.zarr")
    put_ome_zarr("P-1/b.ome.zarr")
    read = OmeZarrCandidate.read

    def read_and_change(self):
        if self.where.endswith("b.ome.zarr"):
            os.utime(first / "zarr.json", ns=(0, 0))
        return read(self)

    monkeypatch.setattr(OmeZarrCandidate, "read", read_and_change)
    manifest = take_in(ome_zarr_source).manifest
    with pytest.raises(DataError, match="has changed since it was taken in"):
        pixels(manifest)
    monkeypatch.undo()
    assert len(pixels(take_in(ome_zarr_source).manifest)) == 1
