"""Enhanced multi-frame CT, MR and PET: each frame is a slice with its own place and scaling."""

import numpy as np
import pydicom
import pytest

from data_adapters import DicomReader
from data_adapters.sources import DicomSource
from tests.data_adapters.dicom_files import (
    ENHANCED_CT,
    ENHANCED_MR,
    ENHANCED_PET,
    edit,
    enhanced,
    item,
    only,
    reason,
    save,
    targets_of,
)

pytest.importorskip("monai")
PIXELS = np.arange(3 * 4 * 6, dtype=np.uint16).reshape(3, 4, 6)
# Files need not be in geometric order: the middle slice is written last.
POSITIONS = [(10, 20, 30), (10, 20, 40), (10, 20, 35)]


def put(tmp_path, *, sop_class=ENHANCED_CT, modality="CT", pixels=PIXELS, **values):
    positions = values.pop("positions", POSITIONS)
    path = save(enhanced(sop_class, modality, pixels, positions, **values), tmp_path / "in/mf.dcm")
    targets = targets_of(tmp_path / "in" / "x", "P-17")
    return path, DicomSource(path=path.parent, targets=targets)


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [(ENHANCED_CT, "CT"), (ENHANCED_MR, "MR"), (ENHANCED_PET, "PT")],
)
def test_frames_are_ordered_by_place_whatever_their_order_in_the_file(
    tmp_path, sop_class, modality
):
    _, source = put(tmp_path, sop_class=sop_class, modality=modality)
    scan = only(source).read()
    assert scan.modality == modality
    np.testing.assert_array_equal(scan.image_czyx[0], PIXELS[[1, 2, 0]])
    np.testing.assert_allclose(scan.affine_ras @ [0, 0, 0, 1], [-10, -20, 40, 1])
    np.testing.assert_allclose(scan.affine_ras @ [2, 1, 1, 1], [-11.5, -22, 30, 1])


def test_each_frame_has_its_own_rescale(tmp_path):
    rescales = [(1, 0), (2, -5), (0.5, 7)]
    path, source = put(tmp_path, rescales=rescales)
    real = np.stack([p * float(s) + i for p, (s, i) in zip(PIXELS, rescales, strict=True)])[
        [1, 2, 0]
    ]
    scan = only(source).read()
    assert scan.image_czyx.dtype == np.float32
    np.testing.assert_allclose(scan.image_czyx[0], real)
    np.testing.assert_allclose(DicomReader().read(path)[0][0], real)


def test_one_rescale_for_all_frames_keeps_stored_values(tmp_path):
    _, source = put(tmp_path, rescales=[(2, -1024)] * 3)
    scan = only(source).read()
    assert scan.image_czyx.dtype == np.uint16
    assert (scan.slopes, scan.intercepts) == ((2.0,), (-1024.0,))


def test_shared_groups_hold_where_a_frame_has_none_of_its_own(tmp_path):
    path, source = put(tmp_path)
    dataset = pydicom.dcmread(path)
    dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = item(
        RescaleSlope=3, RescaleIntercept=1
    )
    frames = dataset.PerFrameFunctionalGroupsSequence
    for frame in frames:
        frame.PixelMeasuresSequence = item(PixelSpacing=[4.0, 4.0])
    dataset.save_as(path)
    scan = only(source).read()
    assert scan.slopes == (3.0,)
    assert np.linalg.norm(scan.affine_ras[:3, 1]) == pytest.approx(4.0)


def test_echoes_at_one_place_are_not_a_volume(tmp_path):
    _, source = put(tmp_path, positions=[(0, 0, 0), (0, 0, 5), (0, 0, 5)])
    assert reason(source) == "DUPLICATE_SLICES"


@pytest.mark.parametrize(
    ("expected", "positions"),
    [
        ("IRREGULAR_SPACING", [(0, 0, 0), (0, 0, 5), (0, 0, 11.3)]),
        ("IRREGULAR_SPACING", [(0, 0, 0), (0, 2, 5), (0, 4, 10)]),
        ("MISSING_SLICES", [(0, 0, 0), (0, 0, 5), (0, 0, 15)]),
        ("NO_GEOMETRY", [(0, 0, 0), (0, 0, 5)]),
    ],
)
def test_frames_must_lie_on_an_even_grid(tmp_path, expected, positions):
    _, source = put(tmp_path, positions=positions)
    assert reason(source) == expected


def test_stacks_of_two_orientations_are_not_a_volume(tmp_path):
    path, source = put(tmp_path)
    dataset = pydicom.dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence = item(
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1]
    )
    dataset.save_as(path)
    assert reason(source) == "MIXED_GEOMETRY"


def test_files_of_one_concatenated_series_are_one_volume(tmp_path):
    put(tmp_path, pixels=PIXELS[:2], positions=POSITIONS[:2])
    _, source = put(tmp_path / "more", pixels=PIXELS[2:], positions=POSITIONS[2:])
    (tmp_path / "more/in/mf.dcm").rename(tmp_path / "in/mf2.dcm")
    source = source.model_copy(update={"path": tmp_path / "in"})
    np.testing.assert_array_equal(only(source).read().image_czyx[0], PIXELS[[1, 2, 0]])


def test_more_frames_than_pixels_cannot_be_decoded(tmp_path):
    path, source = put(tmp_path)
    edit(path, PixelData=PIXELS[:2].tobytes())
    assert reason(source) == "UNDECODABLE_PIXELS"


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless", "JPEGLSLossless"])
@pytest.mark.parametrize("offsets", [True, False])
def test_compressed_frames_are_those_of_the_plain_file(tmp_path, syntax, offsets):
    pixels = np.arange(3 * 64 * 64, dtype=np.uint16).reshape(3, 64, 64)
    path, source = put(tmp_path, pixels=pixels)
    dataset = pydicom.dcmread(path)
    dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
    if not offsets:
        frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=3))
        dataset.PixelData = pydicom.encaps.encapsulate(frames, has_bot=False)
    dataset.save_as(path)
    np.testing.assert_array_equal(only(source).read().image_czyx[0], pixels[[1, 2, 0]])


@pytest.mark.real_data
def test_a_legacy_converted_ct_is_the_series_it_was_made_of(real_data):
    folder = real_data / "dcmqi" / "23x38x3"
    if not folder.is_dir():
        pytest.skip("the real data has no dcmqi/23x38x3")
    one, other = (DicomReader().read(folder / name)[0] for name in ("multiframe/mf.dcm", "image"))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_allclose(one[1], other[1])


def test_a_number_of_frames_that_cannot_be_is_refused_at_once(tmp_path):
    path, source = put(tmp_path)
    edit(path, NumberOfFrames=2_000_000_000)
    assert reason(source) == "NO_GEOMETRY"
