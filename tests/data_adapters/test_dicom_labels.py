"""SEG in every form, and the site's own words for its classes."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from data_adapters.dicom_label_rule import LabelRule
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource
from tests.data_adapters.dicom_files import SLICES, edit, only, reason

LIVER, SPLEEN = "SCT:10200004", "SCT:78961009"


def segment(number, label, code):
    import highdicom as hd
    from pydicom.sr.codedict import codes

    kinds = {LIVER: codes.SCT.Liver, SPLEEN: codes.SCT.Spleen}
    return hd.seg.SegmentDescription(number, label, codes.SCT.Organ, kinds[code], "MANUAL")


def put_seg(folder, masks, kind="BINARY", **options):
    """Replace the SEG: masks are (z, y, x, segment) in the files' order, or (z, y, x) numbers."""
    import highdicom as hd

    segments = [segment(1, "my liver", LIVER), segment(2, "my spleen", SPLEEN)]
    hd.seg.Segmentation(
        source_images=[pydicom.dcmread(folder / name) for name in SLICES],
        pixel_array=masks,
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
        **options,
    ).save_as(folder / "seg.dcm")


@pytest.fixture
def numbers():
    labels = np.zeros((4, 6, 7), np.uint8)
    labels[0, 1:3, 1:5] = 1
    labels[2:, 3:5, 2:6] = 2
    return labels


@pytest.fixture
def overlapping():
    masks = np.zeros((4, 6, 7, 2), np.uint8)
    masks[1, 1:4, 1:4, 0] = 1
    masks[1, 3:5, 3:5, 1] = 1
    return masks


@pytest.fixture
def source(dicom_source):
    def source(classes, **options):
        return DicomSource(path=dicom_source.path, classes=classes, **options)

    return source


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_segments_are_known_by_label_or_coded_type(put_dicom, source, numbers, kind):
    put_seg(put_dicom(), numbers, kind)
    for classes in ({"my liver": "b", "my spleen": "a"}, {LIVER: "b", SPLEEN: "a"}):
        labels = only(source(classes)).read().labels_zyx
        expected = np.array([0, 2, 1], np.uint8)[numbers[::-1]]
        np.testing.assert_array_equal(labels, expected)


def test_a_label_goes_before_a_coded_type(put_dicom, source, numbers):
    put_seg(put_dicom(), numbers)
    labels = only(source({"my liver": "a", LIVER: "b", SPLEEN: "b"})).read().labels_zyx
    assert set(np.unique(labels[numbers[::-1] == 1])) == {1}


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_what_is_mapped_to_background_is_background(put_dicom, source, numbers, kind):
    put_seg(put_dicom(), numbers, kind)
    labels = only(source({LIVER: "liver", SPLEEN: "background"})).read().labels_zyx
    np.testing.assert_array_equal(labels, numbers[::-1] == 1)


def test_background_claims_no_voxel(put_dicom, source, overlapping):
    put_seg(put_dicom(), overlapping)
    for classes in (
        {LIVER: "liver", SPLEEN: "background"},
        {SPLEEN: "background", LIVER: "liver"},
    ):
        assert only(source(classes)).read().labels_zyx.sum() == overlapping[..., 0].sum()


def test_of_overlapping_classes_the_one_that_stands_later_wins(put_dicom, source, overlapping):
    put_seg(put_dicom(), overlapping)
    assert reason(source({LIVER: "liver", SPLEEN: "spleen"})) == "OVERLAPPING_LABELS"
    both = overlapping[::-1].all(axis=-1)
    for classes, winner in (
        ({LIVER: "liver", SPLEEN: "spleen"}, 2),
        ({SPLEEN: "spleen", LIVER: "liver"}, 1),
    ):
        labels = only(source(classes, overlaps="last_wins")).read().labels_zyx
        assert set(labels[both]) == {winner}
        assert (labels > 0).sum() == overlapping.any(axis=-1).sum()


def test_fractions_are_refused_unless_each_is_none_or_all(put_dicom, source, numbers):
    folder = put_dicom()
    whole = np.stack([numbers == 1, numbers == 2], axis=-1).astype(np.float32)
    put_seg(folder, whole, "FRACTIONAL")
    classes = {LIVER: "liver", SPLEEN: "spleen"}
    np.testing.assert_array_equal(only(source(classes)).read().labels_zyx, numbers[::-1])
    put_seg(folder, whole / 2, "FRACTIONAL")
    assert reason(source(classes)) == "FRACTIONAL_LABELS"


@pytest.mark.parametrize("stated", [True, False])
def test_distant_slices_are_not_neighbours_though_the_header_is_silent(
    put_dicom, source, numbers, stated
):
    """A SEG leaves empty frames out, and need not say how far apart slices are."""
    folder = put_dicom()
    put_seg(folder, np.where(np.arange(4).reshape(4, 1, 1) % 3 == 0, numbers, 0))
    if not stated:
        dataset = pydicom.dcmread(folder / "seg.dcm")
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
        dataset.save_as(folder / "seg.dcm")
    labels = only(source({LIVER: "liver", SPLEEN: "spleen"})).read().labels_zyx
    np.testing.assert_array_equal(np.flatnonzero(labels.any(axis=(1, 2))), [0, 3])


def test_a_big_endian_segmentation_is_read():
    """highdicom refuses them; the files are in pydicom-data."""
    pytest.importorskip("monai")
    from pydicom.data import get_testdata_file

    from data_adapters import DicomReader

    paths = [get_testdata_file(name, download=False) for name in ("liver_expb.dcm", "liver.dcm")]
    if None in paths:
        pytest.skip("pydicom-data is not installed")
    one, other = (DicomReader().read(path)[0] for path in paths)
    np.testing.assert_array_equal(one[0], other[0])
    assert one[0].any()


@pytest.mark.parametrize("frame", [None, "", "1.2.3"])
def test_labels_of_another_place_are_refused(put_dicom, dicom_source, frame):
    edit(put_dicom() / "seg.dcm", FrameOfReferenceUID=frame)
    assert reason(dicom_source) == "FRAME_OF_REFERENCE"


def test_labels_may_be_limited_to_one_kind(put_dicom, dicom_source):
    put_dicom()
    assert reason(dicom_source.model_copy(update={"labels": "seg"})) is None
    assert reason(dicom_source.model_copy(update={"labels": "rtstruct"})) == "NO_LABELS"


def test_unmapped_labels_come_with_the_nearest_known_ones():
    rule = LabelRule({"Tumour": 1, "Edema": 2})
    with pytest.raises(Unusable) as caught:
        rule.keys_of({1: ("tumor", "SCT:1"), 2: ("Oedema",), 3: ("Tumour",), 4: ("Couch",)})
    assert caught.value.detail == (
        "'Couch', 'Oedema' (nearest: 'Edema'), 'tumor' or 'SCT:1' (nearest: 'Tumour')"
    )


def test_a_hundred_unmapped_labels_are_not_all_named():
    with pytest.raises(Unusable) as caught:
        LabelRule({}).keys_of({number: (f"region {number}",) for number in range(100)})
    assert caught.value.detail.endswith(", and 92 more")


def test_a_segmentation_cut_to_fewer_frames_than_it_describes_is_refused(put_dicom, dicom_source):
    """highdicom alone reads the frames that are there, and the other labels would be gone."""
    folder = put_dicom()
    segmentation = pydicom.dcmread(folder / "seg.dcm")
    frames = int(segmentation.NumberOfFrames)
    assert frames > 1
    one = segmentation.Rows * segmentation.Columns // 8 + 1
    segmentation.PixelData = segmentation.PixelData[: one + one % 2]
    segmentation.NumberOfFrames = 1
    segmentation.save_as(folder / "seg.dcm")
    assert reason(dicom_source) == "UNDECODABLE_PIXELS"
