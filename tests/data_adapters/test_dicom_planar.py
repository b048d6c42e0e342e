"""Projections (CR, DX and the like): one plane, upright greyscale, a spacing from somewhere."""

import numpy as np
import pytest

from data_adapters.dicom import discover_dicom
from data_adapters.sources import DicomSource
from tests.data_adapters.dicom_files import (
    CR,
    DX,
    MG,
    blank,
    only,
    put_pixels,
    reason,
    save,
    targets_of,
)

PIXELS = np.arange(20, dtype=np.uint16).reshape(4, 5)


def radiograph(pixels=PIXELS, *, sop_class=DX, bits_stored=None, **values):
    values = {"ImagerPixelSpacing": [0.2, 0.1], "FrameOfReferenceUID": None} | values
    dataset = blank(sop_class, {DX: "DX", CR: "CR", MG: "MG"}[sop_class], **values)
    put_pixels(dataset, pixels, bits_stored=bits_stored)
    return dataset


@pytest.fixture
def put(tmp_path):
    def put(name="image.dcm", *, options=None, **values):
        save(radiograph(**values), tmp_path / "in" / name)
        targets = targets_of(tmp_path / "in" / "x", "P-17")
        return DicomSource(path=tmp_path / "in", targets=targets, **(options or {}))

    return put


@pytest.mark.parametrize("sop_class", [CR, DX, MG])
def test_a_projection_is_one_plane_towards_left_and_foot(put, sop_class):
    scan = only(put(sop_class=sop_class)).read()
    assert scan.planar
    assert scan.image_czyx.shape == (1, 1, 4, 5)
    np.testing.assert_array_equal(scan.image_czyx[0, 0], PIXELS)
    steps = [[0, 0, -0.1], [1, 0, 0], [0, -0.2, 0]]
    np.testing.assert_allclose(scan.affine_ras[:3, :3], steps)


@pytest.mark.parametrize(
    ("letters", "row", "column"),
    [
        (["P", "F"], (0, -1, 0), (0, 0, -1)),
        (["A", "F"], (0, 1, 0), (0, 0, -1)),
        (["R", "H"], (1, 0, 0), (0, 0, 1)),
        (["LP", "FA"], (-1, 0, 0), (0, 0, -1)),
        (["L", "R"], (-1, 0, 0), (0, 0, -1)),
        (["X", "F"], (-1, 0, 0), (0, 0, -1)),
    ],
)
def test_patient_orientation_turns_the_plane(put, letters, row, column):
    affine = only(put(PatientOrientation=letters)).read().affine_ras
    np.testing.assert_allclose(affine[:3, 2] / 0.1, row)
    np.testing.assert_allclose(affine[:3, 1] / 0.2, column)


@pytest.mark.parametrize(
    ("values", "spacing"),
    [
        ({"PixelSpacing": [3, 4], "NominalScannedPixelSpacing": [5, 6]}, (3, 4)),
        ({"NominalScannedPixelSpacing": [5, 6]}, (0.2, 0.1)),
        ({"ImagerPixelSpacing": None, "NominalScannedPixelSpacing": [5, 6]}, (5, 6)),
        ({"ImagerPixelSpacing": None, "options": {"spacing": "0.3 mm"}}, (0.3, 0.3)),
    ],
)
def test_spacing_comes_from_the_best_attribute_there_is(put, values, spacing):
    affine = only(put(**values)).read().affine_ras
    np.testing.assert_allclose(np.linalg.norm(affine[:3, 1:3], axis=0), spacing)


def test_without_any_spacing_there_is_no_geometry(put):
    assert reason(put(ImagerPixelSpacing=None)) == "NO_GEOMETRY"


@pytest.mark.parametrize(
    ("pixels", "bits_stored", "largest"),
    [
        (PIXELS, 12, 4095),
        (PIXELS, 16, 65535),
        (PIXELS.astype(np.uint8), 8, 255),
        (PIXELS.astype(np.int16) - 9, 12, -1),
    ],
)
def test_an_inverted_greyscale_is_turned_and_stored_values_stay(put, pixels, bits_stored, largest):
    source = put(pixels=pixels, bits_stored=bits_stored, PhotometricInterpretation="MONOCHROME1")
    scan = only(source).read()
    np.testing.assert_array_equal(scan.image_czyx[0, 0], pixels)
    real = scan.image_czyx[0, 0] * scan.slopes[0] + scan.intercepts[0]
    np.testing.assert_array_equal(real, largest - pixels.astype(int))


def test_rescale_applies_to_the_turned_values(put):
    scan = only(
        put(PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, RescaleIntercept=-10)
    ).read()
    real = scan.image_czyx[0, 0] * scan.slopes[0] + scan.intercepts[0]
    np.testing.assert_array_equal(real, 2 * (65535 - PIXELS.astype(int)) - 10)


def test_hounsfield_units_are_never_turned(put_dicom, dicom_source):
    from tests.data_adapters.dicom_files import SLICES, STORAGE, edit

    folder = put_dicom()
    for name in SLICES:
        edit(
            folder / name,
            SOPClassUID=STORAGE + "2",
            Modality="CT",
            PhotometricInterpretation="MONOCHROME1",
        )
    assert only(dicom_source).read().slopes == (1.0,)


def test_silence_about_burned_in_text_needs_the_operators_word(put):
    assert reason(put(BurnedInAnnotation=None)) == "BURNED_IN_UNKNOWN"
    assert reason(put(BurnedInAnnotation=None, options={"clean_modalities": ("DX",)})) is None
    assert reason(put(BurnedInAnnotation="YES", options={"clean_modalities": ("DX",)})) == (
        "BURNED_IN_ANNOTATION"
    )


def test_two_views_in_one_series_are_two_scans(put):
    put("a.dcm")
    source = put("b.dcm", pixels=PIXELS[::-1])
    wheres = [candidate.where for candidate in discover_dicom(source).candidates]
    assert wheres == ["a.dcm", "b.dcm"]


def test_several_frames_are_no_projection(put):
    assert reason(put(pixels=np.stack([PIXELS, PIXELS]))) == "UNSUPPORTED_OBJECT"


def test_colour_is_refused(put):
    assert reason(put(PhotometricInterpretation="PALETTE COLOR")) == "COLOUR_IMAGE"


def test_a_segmentation_is_found_by_the_image_it_names(tmp_path, put):
    """Two views in one series, a SEG of one of them: pixels to pixels, for there is no place."""
    import highdicom as hd

    put("a.dcm")
    put("b.dcm", pixels=PIXELS[::-1].copy())
    import pydicom

    source_image = pydicom.dcmread(tmp_path / "in/b.dcm")
    for keyword in ("PatientName", "StudyID", "AccessionNumber", "PatientBirthDate"):
        setattr(source_image, keyword, "")
    source_image.PatientSex = source_image.ReferringPhysicianName = ""
    source_image.StudyDate, source_image.StudyTime = "20000101", "120000"
    mask = (PIXELS[::-1] > 12).astype(np.uint8)
    from pydicom.sr.codedict import codes

    seg = hd.seg.Segmentation(
        source_images=[source_image],
        pixel_array=mask[None],
        segmentation_type="BINARY",
        segment_descriptions=[
            hd.seg.SegmentDescription(1, "Lung", codes.SCT.Organ, codes.SCT.Lung, "MANUAL")
        ],
        series_instance_uid="1.2.9",
        series_number=2,
        sop_instance_uid="1.2.9.1",
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    )
    seg.save_as(tmp_path / "in/seg.dcm")
    source = DicomSource(path=tmp_path / "in", classes={"SCT:39607008": "lung"})
    one, other = discover_dicom(source).candidates
    assert one.labels == ()
    np.testing.assert_array_equal(other.read().labels_zyx[0], mask)


@pytest.mark.real_data
def test_a_real_radiograph(real_data):
    path = real_data / "highdicom" / "dx_image.dcm"
    if not path.is_file():
        pytest.skip("the real data has no highdicom/dx_image.dcm")
    import pydicom

    monai = pytest.importorskip("monai")
    assert monai
    from data_adapters import DicomReader

    image, _ = DicomReader().read(path)[0]
    np.testing.assert_array_equal(image[0], 255.0 - pydicom.dcmread(path).pixel_array)


def test_what_the_operator_declared_clean_is_noted(put):
    source = put(BurnedInAnnotation=None, options={"clean_modalities": ("DX",)})
    text = "1 DX files do not say whether text is burned in; accepted, as the site file declares"
    assert f"{text} DX clean." in discover_dicom(source).notes
