"""Every file of three public collections against a table that was not made by our readers.

``outcomes/make_table.py`` derives the table from DICOM and NGFF facts. ``outcome`` holds ``read``
or the reason codes that the facts allow; ``or_code``, beside ``read``, the code of a refusal that
is right too, where an image can only be given in a form that not everybody wants.
"""

import csv
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monai")

from data_adapters import DicomReader, OmeZarrReader
from data_adapters.errors import DataError
from data_adapters.reasons import REASONS
from tests.data_adapters.outcomes.origins import files_of, folder_of

TABLES = Path(__file__).parent / "outcomes"
# The promise.
LEAST_SHARE = 0.9
COUNTED = ("CT", "MR", "SEG")


@dataclass(frozen=True)
class Outcome:
    """What a reader gave."""

    code: str
    image: np.ndarray | None = None
    affine: np.ndarray | None = None


def rows_of(name):
    with (TABLES / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


DICOM = rows_of("dicom")
OME_ZARR = rows_of("ome_zarr")


def named(row):
    level = f" level {row['level']}" if "level" in row else ""
    return f"{row['origin']}:{row['path']}{level}"


def location(row):
    folder = folder_of(row["origin"])
    if folder is None:
        pytest.skip(f"the files of {row['origin']} are not here")
    return folder / row["path"]


@cache
def read_dicom(path):
    return read(DicomReader(), path)


def read(reader, path):
    try:
        image, meta = reader.get_data(reader.read(path))
    except DataError as error:
        return Outcome(error.code)
    return Outcome("read", np.asarray(image), np.asarray(meta["affine"]))


@pytest.mark.parametrize("row", DICOM, ids=named)
def test_dicom_is_read_or_refused_as_the_facts_say(row):
    check(read_dicom(location(row)), row)


@pytest.mark.parametrize("row", OME_ZARR, ids=named)
def test_each_level_of_ome_zarr_is_read_as_the_facts_say(row):
    check(read(OmeZarrReader(level=int(row["level"])), location(row)), row)


def check(outcome, row):
    assert outcome.code in {*row["outcome"].split("|"), *row["or_code"].split("|")} - {""}
    if outcome.code == "read":
        image, affine = as_zyx(outcome.image, outcome.affine)
        check_image(image, row)
        check_affine(affine, row)


def as_zyx(image, affine):
    """Put the z axis in front of a plane that was given as (y, x), with z as third column."""
    if image.ndim > 2:
        return image, affine
    return image[None], affine[:, [2, 0, 1, 3]]


def check_image(image, row):
    assert image.shape == tuple(map(int, row["shape"].split()))
    for probe in row["probes"].split("; "):
        place, value = probe.split(" = ")
        found = float(image[tuple(map(int, place.split()))])
        assert found == pytest.approx(float(value), rel=1e-5, abs=1e-4), f"at {place}"
    assert image.mean(dtype=np.float64) == pytest.approx(float(row["mean"]), rel=1e-4, abs=1e-4)


def check_affine(affine, row):
    expected = np.vstack([np.array(row["affine"].split(), float).reshape(3, 4), [0, 0, 0, 1]])
    if row["rule"] == "full":
        np.testing.assert_allclose(affine, expected, rtol=1e-4, atol=1e-3)
    else:  # only the distance between pixel centres; slides have no patient space
        in_plane = np.linalg.norm(affine[:3, 1:3], axis=0)
        np.testing.assert_allclose(in_plane, np.linalg.norm(expected[:3, 1:3], axis=0), rtol=1e-3)


@pytest.mark.parametrize("origin", ["shared", "pydicom", "pydicom-data"])
def test_every_file_of_a_collection_has_a_row(origin):
    folder = location({"origin": origin, "path": "."})
    there = {path.relative_to(folder).as_posix() for path in files_of(origin)}
    assert there == {r["path"] for r in DICOM if r["origin"] == origin and r["form"] == "file"}


def test_the_table_names_known_reasons_and_right_handed_grids():
    for row in DICOM + OME_ZARR:
        codes = {*row["outcome"].split("|"), *row["or_code"].split("|")} - {"read", ""}
        assert codes <= set(REASONS), named(row)
        if row["rule"] == "full" and row["kind"] != "OME-Zarr":
            axes = np.array(row["affine"].split(), float).reshape(3, 4)[:, :3]
            assert np.linalg.det(axes) > 0, named(row)


STACKED = [
    row
    for row in DICOM
    if row["rule"] == "full" and (row["form"] == "series" or row["kind"] == "SEG")
    # highdicom parses no big-endian files.
    if row["kind"] != "CR" and "expb" not in row["path"]
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", STACKED, ids=named)
def test_the_table_orders_slices_as_highdicom_does(row):
    """Somebody else's library gives the same grid: the table is not only our own opinion."""
    volume = highdicom_volume(location(row))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    expected = np.array(row["affine"].split(), float).reshape(3, 4)
    np.testing.assert_allclose(affine[:3], expected, atol=1e-3)
    assert volume.spatial_shape == tuple(map(int, row["shape"].split()))[-3:]


def highdicom_volume(path):
    import highdicom
    import pydicom

    if path.is_file():
        return highdicom.seg.segread(path).get_volume(combine_segments=False)
    every = [pydicom.dcmread(file) for file in sorted(path.iterdir())]
    return highdicom.get_volume_from_series([data for data in every if "PixelData" in data])


def test_nine_in_ten_ct_mr_and_seg_files_that_pydicom_decodes_are_read(capsys):
    counted = [
        row
        for row in DICOM
        if row["form"] == "file" and row["kind"] in COUNTED and row["pydicom_decodes"] == "yes"
    ]
    absent = {row["origin"] for row in counted if folder_of(row["origin"]) is None}
    counted = [row for row in counted if row["origin"] not in absent]
    assert counted, absent  # pydicom's own files are there wherever pydicom is
    codes = {named(row): read_dicom(location(row)).code for row in counted}
    refused = {name: code for name, code in codes.items() if code != "read"}
    share = 1 - len(refused) / len(codes)
    with capsys.disabled():
        sys.stdout.write(f"\n{len(codes) - len(refused)} of {len(codes)} files read: {share:.1%}\n")
        sys.stdout.write(f"not here: {', '.join(sorted(absent))}\n" if absent else "")
    assert set(refused.values()) <= set(REASONS), refused
    assert share >= LEAST_SHARE, refused
