"""Whole-slide images: one level of a tiled plane, in colour."""

import shutil

import numpy as np
import pydicom
import pytest

from data_adapters import DicomReader
from data_adapters.cache import open_scan
from data_adapters.dicom import discover_dicom
from data_adapters.errors import DataError
from data_adapters.sources import DicomSource
from tests.data_adapters.dicom_files import edit, only, reason, targets_of

pytest.importorskip("monai")
pytestmark = pytest.mark.real_data


@pytest.fixture
def put(real_data, tmp_path):
    """Copy files into one folder; ``level`` makes a coarser copy of the same slide."""

    def put(*names, **options):
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        for name in names:
            path = real_data / "highdicom" / name
            if not path.is_file():
                pytest.skip(f"the real data has no highdicom/{name}")
            shutil.copy(path, folder / name)
        header = pydicom.dcmread(folder / names[0], stop_before_pixels=True)
        targets = targets_of(folder / "x", header.PatientID)
        return DicomSource(path=folder, **{"targets": targets, "colour": True} | options)

    return put


def test_a_slide_is_one_plane_of_three_channels(put):
    scan = only(put("sm_image.dcm")).read()
    assert scan.planar
    assert scan.modality == "SM"
    assert (scan.image_czyx.shape, scan.image_czyx.dtype) == ((3, 1, 50, 50), np.uint8)
    assert len(scan.slopes) == 3
    steps_mm = np.linalg.norm(scan.affine_ras[:3, :3], axis=0)
    np.testing.assert_allclose(steps_mm[1:], 0.000499)


def test_the_channels_of_a_slide_are_red_green_and_blue(put, take_in, tmp_path):
    source = put("sm_image.dcm")
    manifest = take_in(source).manifest
    assert manifest.channels == ("red", "green", "blue")
    (entry,) = manifest.scans
    expected = pydicom.dcmread(source.path / "sm_image.dcm").pixel_array[0]
    image = open_scan(tmp_path / "cache", entry).image()
    assert image.shape == (3, 1, 50, 50)
    np.testing.assert_array_equal(np.moveaxis(image[:, 0, :10, :10], 0, -1), expected)


def test_colour_is_read_only_where_the_site_file_says_so(put):
    assert reason(put("sm_image.dcm", colour=False)) == "COLOUR_IMAGE"


def test_a_slide_in_grey_has_one_channel(put):
    source = put("sm_image_grayscale.dcm")
    assert reason(source) == "NOT_COLOUR"
    grey = source.model_copy(update={"colour": False})
    assert only(grey).read().image_czyx.shape == (1, 1, 50, 50)


def test_colour_is_of_one_series():
    channels = [{"name": "T1", "select": {}}]
    with pytest.raises(ValueError, match="not both"):
        DicomSource(path="x", classes={"a": "b"}, colour=True, channels=channels)


def test_a_compressed_slide_has_the_same_pixels(put):
    one, other = (
        DicomReader().read(put(name).path / name)[0][0]
        for name in ("sm_image.dcm", "sm_image_jpegls.dcm")
    )
    np.testing.assert_array_equal(one, other)


def labelled(source, name):
    """Return the source with every segment of a file in one class."""
    segments = pydicom.dcmread(source.path / name).SegmentSequence
    return DicomSource(
        path=source.path,
        classes={str(segment.SegmentLabel): "cell" for segment in segments},
        colour=True,
    )


def refer(source, name, image):
    """Let a segmentation name the series that it was drawn on."""
    dataset = pydicom.dcmread(source.path / name)
    series = pydicom.dcmread(source.path / image, stop_before_pixels=True).SeriesInstanceUID
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = series
    del dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    dataset.save_as(source.path / name)


def test_segments_of_a_slide_lie_on_it(put):
    name, image = "seg_image_sm_dots_tiled_full.dcm", "sm_image_dots.dcm"
    source = put(image, name)
    refer(source, name, image)
    scan = only(labelled(source, name)).read()
    alone = DicomReader().read(source.path / name)[0][0]
    np.testing.assert_array_equal(scan.labels_zyx, alone > 0)
    assert scan.labels_zyx.any()


def test_segments_that_say_another_place_are_refused(put):
    """This file's origin is one pixel off the slide's in both directions."""
    name, image = "seg_image_sm_control.dcm", "sm_image_control.dcm"
    source = put(image, name)
    assert reason(labelled(source, name)) == "LABEL_GRID"


def add_level(folder, spacing_mm):
    """The same pixels at another declared spacing: only the choice of a level is looked at."""
    path = folder / "coarse.dcm"
    dataset = pydicom.dcmread(folder / "sm_image.dcm")
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = [spacing_mm, spacing_mm]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.save_as(path)


@pytest.mark.parametrize(
    ("spacing_mm", "asked", "code"),
    [
        (0.000499, None, "UNSUPPORTED_OBJECT"),
        (0.0004991, None, "UNSUPPORTED_OBJECT"),
        (0.000499, "3 um", "UNSUPPORTED_OBJECT"),
        (0.0006, None, None),
    ],
)
def test_two_files_of_one_level_are_not_chosen_between(put, spacing_mm, asked, code):
    source = put("sm_image.dcm", spacing=asked)
    add_level(source.path, spacing_mm)
    assert reason(source) == code


def test_two_files_of_a_level_that_is_not_read_are_nobodys_business(put):
    source = put("sm_image.dcm", spacing="0.0005 mm")
    add_level(source.path, 0.002)
    shutil.copy(source.path / "coarse.dcm", source.path / "coarse_2.dcm")
    edit(source.path / "coarse_2.dcm", SOPInstanceUID="1.2.3.5")
    assert reason(source) is None


@pytest.mark.parametrize(
    ("asked", "found_mm"),
    [(None, 0.000499), ("1 um", 0.000499), ("2 um", 0.002), ("3 um", 0.002), ("0.1 um", 0.000499)],
)
def test_the_coarsest_level_that_is_fine_enough_is_read(put, asked, found_mm):
    source = put("sm_image.dcm", spacing=asked)
    add_level(source.path, 0.002)
    affine = only(source).read().affine_ras
    np.testing.assert_allclose(np.linalg.norm(affine[:3, 1:3], axis=0), found_mm)


def test_a_label_is_never_a_level_and_may_carry_text(put):
    source = put("sm_image.dcm")
    shutil.copy(source.path / "sm_image.dcm", source.path / "label.dcm")
    edit(
        source.path / "label.dcm",
        ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"],
        BurnedInAnnotation="YES",
        SOPInstanceUID="1.2.3.4",
    )
    assert reason(source) is None
    (source.path / "sm_image.dcm").unlink()
    assert reason(source) == "UNSUPPORTED_OBJECT"


@pytest.mark.parametrize(
    ("wanted", "code"),
    [(("ORIGINAL", "volume"), None), (("LABEL",), "NO_MATCHING_SERIES")],
)
def test_a_rule_looks_at_the_levels_of_a_slide(put, wanted, code):
    """Neither the label nor a level that was computed has what the finest level has."""
    source = put("sm_image.dcm", select={"image_type": wanted})
    edit(source.path / "sm_image.dcm", ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    add_level(source.path, 0.002)
    edit(source.path / "coarse.dcm", ImageType=["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"])
    shutil.copy(source.path / "sm_image.dcm", source.path / "label.dcm")
    values = {"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"], "SOPInstanceUID": "1.2.3.5"}
    edit(source.path / "label.dcm", **values)
    found = discover_dicom(source)
    assert [entry.code for entry in found.quarantined] == ([code] if code else [])
    assert len(found.candidates) == (code is None)


def test_a_slide_that_may_carry_text_is_refused(put):
    source = put("sm_image.dcm")
    edit(source.path / "sm_image.dcm", BurnedInAnnotation=None)
    assert reason(source) == "BURNED_IN_UNKNOWN"
    assert reason(source.model_copy(update={"clean_modalities": ("SM",)})) is None


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"TotalPixelMatrixFocalPlanes": 3}, "UNSUPPORTED_OBJECT"),
        ({"TotalPixelMatrixRows": 100_000, "TotalPixelMatrixColumns": 100_000}, "TOO_LARGE"),
        ({"SharedFunctionalGroupsSequence": None}, "NO_GEOMETRY"),
        ({"PixelData": None}, "NO_PIXELS"),
        ({"PixelData": b"\0\0"}, "UNDECODABLE_PIXELS"),
    ],
)
def test_what_is_wrong_with_a_slide_has_a_code(put, values, code):
    source = put("sm_image.dcm")
    edit(source.path / "sm_image.dcm", **values)
    assert reason(source) == code
    with pytest.raises(DataError) as caught:
        DicomReader().read(source.path)
    assert caught.value.code == code


def test_every_slide_of_the_collection_is_a_candidate(real_data):
    found = discover_dicom(DicomSource(path=real_data / "highdicom", classes={"a": "b"}))
    kinds = {candidate.channels[0].instances[0].public_modality for candidate in found.candidates}
    assert "SM" in kinds
