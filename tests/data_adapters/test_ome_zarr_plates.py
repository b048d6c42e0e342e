"""Plates, collections and tables of images: which images there are, and whose each one is."""

import numpy as np
import ome_zarr_models
import pytest
import zarr

from data_adapters.errors import DataError
from data_adapters.ome_zarr import discover_ome_zarr
from data_adapters.sources import OmeZarrSource
from tests.data_adapters.stores import (
    edit_ome,
    set_ome,
    whole,
    write_image,
    write_labels,
    write_plate,
)

WELLS = {"A/1": ["0", "1"], "A/2": ["0"], "B/03": ["0"]}
DONORS = "well,subject\nA/1,D-1\nA2,D-2\nB/3,D-1\n"


def put_field(path):
    """Each field of its own brightness, so that none is taken for another."""
    number = sum(ord(letter) for letter in "/".join(path.parts[-3:]))
    version = "0.4" if (path.parent / ".zattrs").is_file() else "0.5"
    write_image(path, [np.full((5, 6), number, np.uint16)], "yx", version=version)
    write_labels(path, "parts", [np.eye(5, 6, dtype=np.uint8)], "yx", version=version)
    return number


@pytest.fixture
def source(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "wells.csv").write_text(DONORS)
    return OmeZarrSource(
        path=tmp_path / "data", wells=tmp_path / "wells.csv", labels="parts", classes={1: "cell"}
    )


def found(source):
    discovery = discover_ome_zarr(source)
    subjects = {candidate.where: candidate.subject for candidate in discovery.candidates}
    refused = {entry.where: entry.code for entry in discovery.quarantined}
    return subjects, refused


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("where", ["plate.ome.zarr", "screen/plate.ome.zarr"])
def test_every_field_of_a_plate_is_an_image_of_its_wells_donor(source, where, version):
    plate = source.path / where
    write_plate(plate, WELLS, version=version, put_field=put_field)
    ome_zarr_models.open_ome_zarr(zarr.open_group(plate, mode="r"))
    subjects, refused = found(source)
    assert subjects == {
        f"{where}/A/1/0": "D-1",
        f"{where}/A/1/1": "D-1",
        f"{where}/A/2/0": "D-2",
        f"{where}/B/03/0": "D-1",
    }
    assert not refused
    for candidate in discover_ome_zarr(source).candidates:
        scan = candidate.read()
        field = candidate.where.removeprefix(f"{where}/")
        assert (whole(scan.image_czyx) == sum(map(ord, field))).all()
        assert scan.in_place
        assert scan.stamp


def test_one_donor_in_several_wells_and_plates_is_one_subject(source):
    for name in ("one.zarr", "two.zarr"):
        write_plate(source.path / name, WELLS, put_field=put_field)
    subjects, _ = found(source)
    assert len(subjects) == 8
    assert set(subjects.values()) == {"D-1", "D-2"}


def test_a_well_may_be_named_with_its_plate(source):
    for name in ("one.zarr", "day 2/two.zarr"):
        write_plate(source.path / name, {"A/1": ["0"]}, put_field=put_field)
    source.wells.write_text("well,subject\none.zarr/A/1,D-1\nday 2/two.zarr/A01,D-2\n")
    subjects, _ = found(source)
    assert subjects == {"one.zarr/A/1/0": "D-1", "day 2/two.zarr/A/1/0": "D-2"}


@pytest.mark.parametrize("table", [None, "well,subject\nA/2,D-2\nB/3,\nA/1,D-1\nA1,D-3\n"])
def test_wells_without_one_subject_are_refused(source, table):
    write_plate(source.path / "p.zarr", WELLS, put_field=put_field)
    if table is None:
        source = source.model_copy(update={"wells": None})
    else:
        source.wells.write_text(table)
    subjects, refused = found(source)
    assert set(refused.values()) == {"WELL_WITHOUT_SUBJECT"}
    assert subjects == ({} if table is None else {"p.zarr/A/2/0": "D-2"})
    assert len(subjects) + len(refused) == 4


def test_a_table_of_wells_without_its_columns_is_an_error(source):
    source.wells.write_text("position,donor\nA/1,D-1\n")
    with pytest.raises(DataError, match="no column 'well'"):
        discover_ome_zarr(source)


def test_the_source_may_be_the_plate_itself(source):
    write_plate(source.path / "p.zarr", WELLS, put_field=put_field)
    subjects, _ = found(source.model_copy(update={"path": source.path / "p.zarr"}))
    assert subjects["A/1/1"] == "D-1"
    assert len(subjects) == 4


def test_what_is_wrong_with_one_well_costs_that_well_only(source, tmp_path):
    plate = source.path / "p.zarr"
    write_plate(plate, WELLS, put_field=put_field)
    (plate / "A/2/zarr.json").write_text("no json")
    (plate / "B/03").rename(tmp_path / "outside")
    (plate / "B/03").symlink_to(tmp_path / "outside")
    edit_ome(plate / "A/1", lambda ome: ome["well"]["images"].append({"path": "7"}))
    subjects, refused = found(source)
    assert refused == {"p.zarr/A/2": "INVALID_METADATA", "p.zarr/B/03": "PATH_OUTSIDE"}
    assert set(subjects) == {"p.zarr/A/1/0", "p.zarr/A/1/1", "p.zarr/A/1/7"}


@pytest.mark.parametrize("path", ["../A/1", "A/1/0", "A", "/A/1", "C/1"])
def test_a_plate_that_leads_elsewhere_is_refused(source, path):
    plate = source.path / "p.zarr"
    write_plate(plate, {"A/1": ["0"]}, put_field=put_field)
    edit_ome(plate, lambda ome: ome["plate"]["wells"][0].update(path=path))
    assert found(source) == ({}, {"p.zarr": "INVALID_METADATA"})


def put_collection(path, *, listed, version="0.5"):
    """What bioformats2raw writes; the OME group's own metadata is no image."""
    zarr_format = 2 if version == "0.4" else 3
    root = zarr.create_group(path, zarr_format=zarr_format)
    set_ome(root, **{"bioformats2raw.layout": 3})
    ome = root.create_group("OME")
    if listed is not None:
        set_ome(ome, series=listed)
    for index in range(3):
        image = np.full((2, 3, 4), index + 1, np.uint16)
        write_image(path / str(index), [image], version=version)
        write_labels(path / str(index), "parts", [image * 0], version=version)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("listed", [None, ["2", "0"]])
def test_every_series_of_a_collection_is_an_image(source, listed, version):
    put_collection(source.path / "P-1/c.zarr", listed=listed, version=version)
    candidates = discover_ome_zarr(source).candidates
    order = listed or ["0", "1", "2"]
    assert [candidate.where for candidate in candidates] == [f"P-1/c.zarr/{n}" for n in order]
    assert {candidate.subject for candidate in candidates} == {"P-1"}
    values = [whole(candidate.read().image_czyx).max() for candidate in candidates]
    assert values == [int(n) + 1 for n in order]


@pytest.mark.parametrize(
    ("listed", "code"),
    [([], "INVALID_METADATA"), ("0", "INVALID_METADATA"), (["../.."], "PATH_OUTSIDE")],
)
def test_a_collection_that_lists_no_images(source, listed, code):
    put_collection(source.path / "P-1/c.zarr", listed=listed)
    subjects, refused = found(source)
    assert not subjects
    assert set(refused.values()) == {code}


def named(source, text):
    table = source.path / "images.csv"
    table.write_text("path,subject\n" + text)
    return source.model_copy(update={"images": table})


def test_a_table_names_images_wherever_they_lie(source):
    put_field(source.path / "deep/er/A/1/one.zarr")
    put_field(source.path / "A/1/two.zarr")
    put_field(source.path / "P-9/not named.zarr")
    text = "deep/er/A/1/one.zarr,P-1\n./A/1/two.zarr/,P-1\nA/1/two.zarr,P-1\ngone.zarr,P-2\n"
    listed = named(source, text)
    subjects, refused = found(listed)
    assert subjects == {"deep/er/A/1/one.zarr": "P-1", "A/1/two.zarr": "P-1", "gone.zarr": "P-2"}
    assert not refused
    *there, gone = discover_ome_zarr(listed).candidates
    assert all(candidate.read().in_place for candidate in there)
    with pytest.raises(Exception, match="MISSING_IMAGE"):
        gone.read()
    assert gone.fingerprint() == ""


def test_rows_of_the_table_that_cannot_be_meant(source):
    put_field(source.path / "a.zarr")
    listed = named(source, "a.zarr,P-1\na.zarr,P-2\n../b.zarr,P-1\n/c.zarr,P-1\nd.zarr.zip,P-1\n")
    assert found(listed) == (
        {},
        {
            "a.zarr": "MIXED_SUBJECTS",
            "../b.zarr": "PATH_OUTSIDE",
            "/c.zarr": "PATH_OUTSIDE",
            "d.zarr.zip": "UNSUPPORTED_LAYOUT",
        },
    )


def test_a_plate_in_the_table_follows_its_wells_or_else_its_row(source):
    write_plate(source.path / "p.zarr", {"A/2": ["0"]}, put_field=put_field)
    listed = named(source, "p.zarr,P-7\n")
    assert found(listed) == ({"p.zarr/A/2/0": "D-2"}, {})
    without = listed.model_copy(update={"wells": None})
    assert found(without) == ({"p.zarr/A/2/0": "P-7"}, {})
