"""Which series of a study is meant, several of them as channels, and whose labels are whose."""

import numpy as np
import pydicom
import pytest

from data_adapters.dicom import discover_dicom
from data_adapters.errors import DataError
from data_adapters.geometry import zyx_affine
from data_adapters.reasons import Unusable
from data_adapters.resampling import onto_grid
from data_adapters.sources import Channel, DicomSource, Select
from tests.data_adapters.conftest import AFFINE, CLASSES
from tests.data_adapters.dicom_files import SLICES, edit, only, reason, targets_of


@pytest.fixture
def source(dicom_source):
    def source(**options):
        return DicomSource(path=dicom_source.path, classes=CLASSES, **options)

    return source


def channels(*descriptions):
    return tuple(Channel(name=name, select=Select(description=name)) for name in descriptions)


@pytest.mark.parametrize(
    "select",
    [
        {"description": "t1*"},
        {"description": "T1 AXIAL"},
        {"image_type": ("primary",)},
        {"modality": "MR", "description": "*axial"},
    ],
)
def test_a_rule_picks_one_series_of_each_study(put_series, source, select):
    put_series("a")
    put_series("b", description="T2 FLAIR", image_type=("DERIVED", "SECONDARY"))
    candidate = only(source(select=Select(**select)))
    assert candidate.where == "a"
    assert reason(source(select=Select(**select))) is None


def test_a_study_without_a_match_is_set_aside_by_name_and_the_others_go_on(put_series, source):
    put_series("a")
    put_series("b", patient_id="P-2", study_index=2, description="T2")
    found = discover_dicom(source(select=Select(description="T2")))
    assert [candidate.where for candidate in found.candidates] == ["b"]
    (entry,) = found.quarantined
    assert (entry.code, entry.where) == ("NO_MATCHING_SERIES", "a")
    assert entry.sentence.endswith("it has 1 images of 4 slices.")


def test_a_rule_that_matches_nothing_at_all_says_so(put_series, source, take_in):
    put_series("a")
    with pytest.raises(DataError, match=r"NO_MATCHING_SERIES.*widen `select`"):
        take_in(source(select=Select(description="tpyo*")))


def test_labels_of_a_series_that_is_not_chosen_are_counted(put_series, source):
    put_series("a")
    put_series("b", description="T2")
    found = discover_dicom(source(select=Select(description="T2")))
    assert (len(found.candidates), found.quarantined) == (1, ())
    assert "1 label objects mean a series that the rule leaves out." in found.notes


def test_short_series_such_as_localisers_are_passed_over(put_series, source):
    put_series("a")
    folder = put_series("b")
    (folder / "seg.dcm").unlink()
    for name in SLICES[1:]:
        (folder / name).unlink()
    assert only(source(select=Select(min_slices=2))).where == "a"


def test_another_modality_is_not_chosen(put_series, source):
    put_series("a")
    found = discover_dicom(source(select=Select(modality="CT")))
    assert found.candidates == ()
    assert [entry.code for entry in found.quarantined] == ["NO_MATCHING_SERIES"]


def test_two_series_on_one_grid_are_two_channels(put_series, source, example):
    put_series("a", description="T1")
    (put_series("b", description="T2", seed=5) / "seg.dcm").unlink()
    scan = only(source(channels=channels("T2", "T1"))).read()
    other, _ = example.volume(5)
    assert scan.image_czyx.dtype == np.int16
    np.testing.assert_array_equal(scan.image_czyx[0], other[::-1])
    np.testing.assert_array_equal(scan.image_czyx[1], example.image[::-1])
    np.testing.assert_array_equal(scan.labels_zyx, example.labels[::-1])
    assert scan.slopes == (1.0, 1.0)


def test_each_channel_keeps_its_own_scaling(put_series, source):
    put_series("a", description="T1")
    folder = put_series("b", description="T2", seed=5)
    (folder / "seg.dcm").unlink()
    for name in SLICES:
        edit(folder / name, RescaleSlope=2, RescaleIntercept=-3)
    scan = only(source(channels=channels("T1", "T2"))).read()
    assert (scan.slopes, scan.intercepts) == ((1.0, 2.0), (0.0, -3.0))


def coarse():
    """A ramp along each axis on a grid of half the resolution around the example's."""
    affine = zyx_affine((10.0, 4.0, 3.0), (-26.0, 6.0, 25.0))
    shape = (5, 6, 7)
    z, y, x = np.indices(shape)
    return (z * 100 + y * 10 + x).astype(np.int16), affine


def test_a_channel_on_another_grid_is_resampled_in_world_coordinates(put_series, source, example):
    put_series("a", description="T1")
    image, affine = coarse()
    blank = np.zeros(image.shape, np.uint8)
    folder = put_series("b", description="T2", image_zyx=image, labels_zyx=blank, affine_ras=affine)
    (folder / "seg.dcm").unlink()
    for path in folder.glob("slice_005.dcm"):
        edit(
            path,
            SeriesInstanceUID=pydicom.dcmread(folder / SLICES[0]).SeriesInstanceUID,
            SeriesDescription="T2",
        )
    scan = only(source(channels=channels("T1", "T2"))).read()
    assert scan.image_czyx.dtype == np.float32
    np.testing.assert_array_equal(scan.image_czyx[0], example.image[::-1])
    for voxel in np.ndindex(*example.image.shape):
        world = scan.affine_ras @ [*voxel, 1]
        there = np.linalg.solve(affine, world)[:3]
        inside = np.all(there >= 0) and np.all(there <= np.array(image.shape) - 1)
        expected = there @ [100, 10, 1] if inside else image.min()
        assert scan.image_czyx[(1, *voxel)] == pytest.approx(expected, abs=1e-3), voxel


def test_outside_a_turned_greyscale_lies_its_darkest_value(put_series, source):
    put_series("a", description="T1")
    image, _ = coarse()
    folder = put_series(
        "b",
        description="T2",
        image_zyx=image[:4],
        labels_zyx=np.zeros((4, 6, 7), np.uint8),
        affine_ras=zyx_affine((10.0, 4.0, 3.0), (500.0, 0, 0)),
    )
    (folder / "seg.dcm").unlink()
    for name in SLICES:
        edit(folder / name, PhotometricInterpretation="MONOCHROME1")
    scan = only(source(channels=channels("T1", "T2"))).read()
    assert np.unique(scan.image_czyx[1]).tolist() == [image[:4].max()]
    assert scan.slopes[1] == -1.0


def test_labels_of_another_channel_come_to_the_first_ones_grid(put_series, source, example):
    """Drawn on the second channel, whose slices lie one step further: nearest, by place."""
    (put_series("a", description="T1") / "seg.dcm").unlink()
    moved = AFFINE.copy()
    moved[:3, 3] += moved[:3, 0]
    put_series("b", description="T2", affine_ras=moved)
    labels = only(source(channels=channels("T1", "T2"))).read().labels_zyx
    expected = np.zeros_like(example.labels)
    expected[1:] = example.labels[:-1]
    np.testing.assert_array_equal(labels, expected[::-1])


def test_channels_in_different_places_are_refused(put_series, source):
    put_series("a", description="T1")
    folder = put_series("b", description="T2")
    (folder / "seg.dcm").unlink()
    for name in SLICES:
        edit(folder / name, FrameOfReferenceUID="1.2.3")
    assert reason(source(channels=channels("T1", "T2"))) == "FRAME_OF_REFERENCE"


def test_a_study_that_lacks_a_channel_is_named(put_series, source):
    put_series("a", description="T1")
    found = discover_dicom(source(channels=channels("T1", "T2", "T3")))
    (entry,) = found.quarantined
    assert (entry.code, entry.where) == ("MISSING_CHANNEL", "a")
    assert entry.sentence == "This study has no series for T2, T3."


def test_a_study_without_any_of_the_channels_is_named(put_series, source):
    put_series("a", description="PD")
    found = discover_dicom(source(channels=channels("T1", "T2")))
    (entry,) = found.quarantined
    assert (entry.code, entry.where) == ("MISSING_CHANNEL", "a")
    assert entry.sentence == "This study has no series for T1, T2."


def test_two_series_for_one_channel_are_not_chosen_between(put_series, source):
    for name, description in (("a", "T1"), ("b", "T1"), ("c", "T2")):
        put_series(name, description=description)
    found = discover_dicom(source(channels=channels("T1", "T2")))
    assert [entry.code for entry in found.quarantined] == ["AMBIGUOUS_SERIES"]
    assert "for T1" in found.quarantined[0].sentence


def test_no_header_text_is_in_what_the_operator_is_told(put_series, source):
    put_series("a", description="Quillfeather")
    put_series("b", description="Quillfeather")
    found = discover_dicom(source(select=Select(description="quill*")))
    assert found.quarantined
    assert "Quillfeather" not in repr(found)


def test_labels_that_name_two_series_belong_to_neither_unless_a_rule_says(put_series, source):
    put_series("a", description="T1")
    folder = put_series("b", description="T2")
    other = pydicom.dcmread(folder / "seg.dcm").ReferencedSeriesSequence[0]
    (folder / "seg.dcm").unlink()
    path = folder.parent / "a" / "seg.dcm"
    dataset = pydicom.dcmread(path)
    dataset.ReferencedSeriesSequence.append(other)
    dataset.save_as(path)
    found = discover_dicom(source())
    assert [entry.code for entry in found.quarantined] == ["LABELS_WITHOUT_IMAGE"]
    assert reason(source(select=Select(description="T1"))) is None
    assert reason(source(channels=channels("T1", "T2"))) is None


def test_without_voxel_classes_segmentations_are_nobodys_business(put_series, dicom_source):
    folder = put_series("a")
    for name in SLICES:
        (folder / name).unlink()
    source = DicomSource(path=dicom_source.path, targets=targets_of(folder, "P-17"))
    assert discover_dicom(source).quarantined == ()


def test_a_channel_of_another_subject_is_refused(put_series, source):
    put_series("a", description="T1")
    folder = put_series("b", description="T2")
    (folder / "seg.dcm").unlink()
    for name in SLICES:
        edit(folder / name, PatientID="P-18")
    with pytest.raises(Unusable, match="MIXED_SUBJECTS"):
        only(source(channels=channels("T1", "T2"))).read()


def test_labels_are_resampled_without_new_values():
    labels = np.array([[[0, 3, 0, 7]]], np.uint8)
    half = np.diag([1.0, 1.0, 0.5, 1.0])
    there = onto_grid(labels, np.eye(4), half, (1, 1, 9), nearest=True)
    assert there.dtype == np.uint8
    assert set(np.unique(there)) == {0, 3, 7}
