"""Each thing that can be wrong with a DICOM study has its reason code, and stops nothing else."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from data_adapters.dicom import discover_dicom
from data_adapters.ingest import ingest
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource
from data_adapters.writing import write_dicom_scan
from tests.data_adapters.dicom_files import NOT_A_NUMBER, SLICES, edit, edit_images, only, reason


def test_a_sound_scan_is_read(put_dicom, dicom_source):
    put_dicom()
    assert reason(dicom_source) is None


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("BURNED_IN_ANNOTATION", {"BurnedInAnnotation": "YES"}),
        ("BURNED_IN_UNKNOWN", {"Modality": "SC"}),
        ("BURNED_IN_UNKNOWN", {"Modality": "US"}),
        ("BURNED_IN_UNKNOWN", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
        ("NO_GEOMETRY", {"ImagePositionPatient": None}),
        ("NO_GEOMETRY", {"ImageOrientationPatient": None}),
        ("NO_GEOMETRY", {"PixelSpacing": None}),
        ("NO_GEOMETRY", {"PixelSpacing": [0, 1]}),
        ("SHEARED_GEOMETRY", {"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}),
        ("DUPLICATE_SLICES", {"ImagePositionPatient": [0, 0, 0]}),
        ("COLOUR_IMAGE", {"SamplesPerPixel": 3}),
        ("COLOUR_IMAGE", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("NONLINEAR_VALUES", {"ModalityLUTSequence": [pydicom.Dataset()]}),
        ("NOT_FINITE", {"RescaleSlope": "1e400", "RescaleIntercept": "0"}),
        ("NOT_FINITE", {"RescaleSlope": NOT_A_NUMBER}),
        ("NO_GEOMETRY", {"PixelSpacing": NOT_A_NUMBER}),
        ("NO_PIXELS", {"PixelData": None}),
        ("NO_PIXELS", {"PixelData": b""}),
        ("UNSUPPORTED_PIXELS", {"BitsAllocated": 64}),
        ("FRAME_OF_REFERENCE", {"FrameOfReferenceUID": generate_uid()}),
    ],
)
def test_what_is_wrong_with_every_file_has_a_code(put_dicom, dicom_source, code, values):
    edit_images(put_dicom(), **values)
    assert reason(dicom_source) == code


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("MIXED_SUBJECTS", {"PatientID": "P-18"}),
        ("MIXED_GEOMETRY", {"PixelSpacing": [9, 9]}),
        ("MIXED_GEOMETRY", {"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}),
        ("MIXED_PIXELS", {"BitsStored": 12, "HighBit": 11}),
        ("UNSUPPORTED_OBJECT", {"NumberOfFrames": 2}),
        ("UNSUPPORTED_OBJECT", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1"}),
        ("UNSUPPORTED_OBJECT", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("MIXED_GEOMETRY", {"FrameOfReferenceUID": "1.2.3"}),
        ("NO_PIXELS", {"PixelData": None}),
    ],
)
def test_what_is_wrong_with_one_file_has_a_code(put_dicom, dicom_source, code, values):
    edit(put_dicom() / SLICES[1], **values)
    assert reason(dicom_source) == code


def test_a_gap_of_a_whole_slice(put_dicom, dicom_source):
    (put_dicom() / SLICES[1]).unlink()
    assert reason(dicom_source) == "MISSING_SLICES"


def test_a_slice_lost_at_the_end_is_missed_through_the_segmentation(put_dicom, dicom_source):
    (put_dicom() / SLICES[3]).unlink()
    assert reason(dicom_source) == "MISSING_SLICES"


def test_variable_gaps(put_dicom, dicom_source):
    path = put_dicom() / SLICES[1]
    x, y, z = pydicom.dcmread(path).ImagePositionPatient
    edit(path, ImagePositionPatient=[x, y, z + 1.7])
    assert reason(dicom_source) == "IRREGULAR_SPACING"


def test_gantry_tilt(put_dicom, dicom_source):
    folder = put_dicom()
    for place, name in enumerate(SLICES):
        x, y, z = pydicom.dcmread(folder / name).ImagePositionPatient
        edit(folder / name, ImagePositionPatient=[x, y + 2 * place, z])
    assert reason(dicom_source) == "IRREGULAR_SPACING"


def test_a_file_cut_off_in_its_pixels(put_dicom, dicom_source):
    path = put_dicom() / SLICES[2]
    path.write_bytes(path.read_bytes()[:-40])
    assert reason(dicom_source) == "UNDECODABLE_PIXELS"


@pytest.mark.parametrize("kept_bytes", [0, 90, 140, 200, 400, 900, 1100, 1300])
def test_a_file_cut_off_in_its_header_is_never_silently_left_out(
    put_dicom, dicom_source, kept_bytes
):
    put_dicom("sound", patient_id="P-2", seed=3)
    path = put_dicom() / SLICES[3]
    path.write_bytes(path.read_bytes()[:kept_bytes])
    found = discover_dicom(dicom_source)
    codes = [code for candidate in found.candidates if (code := read_code(candidate))]
    assert len(found.candidates) - len(codes) == 1
    assert codes or found.quarantined


def read_code(candidate):
    try:
        candidate.read()
    except Unusable as refused:
        return refused.code
    return None


def test_foreign_files_are_counted_and_passed_over(put_dicom, dicom_source):
    (put_dicom() / "notes.txt").write_text("not an image")
    assert "1 files are not DICOM and were passed over." in discover_dicom(dicom_source).notes


def test_an_image_without_segmentation(put_dicom, dicom_source):
    (put_dicom() / "seg.dcm").unlink()
    assert reason(dicom_source) == "NO_LABELS"


def test_a_segmentation_without_image(put_dicom, dicom_source):
    folder = put_dicom()
    for name in SLICES:
        (folder / name).unlink()
    (entry,) = discover_dicom(dicom_source).quarantined
    assert entry.code == "LABELS_WITHOUT_IMAGE"
    assert entry.where == "scan/seg.dcm"


def test_two_segmentations_are_not_chosen_between(put_dicom, dicom_source):
    folder = put_dicom()
    (folder / "seg2.dcm").write_bytes((folder / "seg.dcm").read_bytes())
    assert reason(dicom_source) == "SEVERAL_SEGMENTATIONS"


def test_a_segmentation_of_another_subject(put_dicom, dicom_source):
    edit(put_dicom() / "seg.dcm", PatientID="P-18")
    assert reason(dicom_source) == "MIXED_SUBJECTS"


@pytest.mark.parametrize(
    ("file", "values", "code"),
    [
        ("seg.dcm", {"IssuerOfPatientID": None}, None),
        (SLICES[0], {"IssuerOfPatientID": None}, None),
        ("seg.dcm", {"IssuerOfPatientID": "SOUTH"}, "MIXED_SUBJECTS"),
        ("seg.dcm", {"IssuerOfPatientID": None, "PatientID": "P-18"}, "MIXED_SUBJECTS"),
    ],
)
def test_an_issuer_counts_only_where_both_name_one(put_dicom, dicom_source, file, values, code):
    folder = put_dicom(issuer="NORTH")
    edit(folder / file, **values)
    assert reason(dicom_source) == code
    assert only(dicom_source).subject == "P-17^^^NORTH"


def test_a_segmentation_without_references_is_found_by_frame_of_reference(put_dicom, dicom_source):
    folder = put_dicom()
    edit(folder / "seg.dcm", ReferencedSeriesSequence=None)
    assert reason(dicom_source) is None


def test_a_segmentation_on_another_grid(put_dicom, dicom_source):
    path = put_dicom() / "seg.dcm"
    dataset = pydicom.dcmread(path)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        position[0] += 0.7
    dataset.save_as(path)
    assert reason(dicom_source) == "LABEL_GRID"


def test_a_damaged_segmentation(put_dicom, dicom_source):
    edit(put_dicom() / "seg.dcm", SegmentSequence=None)
    assert reason(dicom_source) == "UNDECODABLE_PIXELS"


def test_a_segmentation_cut_off_in_its_pixels(put_dicom, dicom_source):
    path = put_dicom() / "seg.dcm"
    path.write_bytes(path.read_bytes()[:-8])
    assert reason(dicom_source) == "UNDECODABLE_PIXELS"


def test_an_unmapped_segment_is_named(put_dicom, dicom_source):
    put_dicom(segment_labels={1: "Left part", 2: "Tumour"})
    (candidate,) = discover_dicom(dicom_source).candidates
    with pytest.raises(Unusable) as caught:
        candidate.read()
    sentence = caught.value.at("x").sentence
    assert sentence == "These labels are in no class: 'Tumour' or 'SCT:85756007'."


def test_overlapping_classes_are_quarantined_and_overlap_within_a_class_is_not(
    put_dicom, dicom_source, overlapping
):
    overlapping(put_dicom())
    assert reason(dicom_source) == "OVERLAPPING_LABELS"
    one_class = {"Left part": "part", "Right part": "part"}
    assert reason(DicomSource(path=dicom_source.path, classes=one_class)) is None


@pytest.fixture
def overlapping():
    """Replace the SEG by one whose segments share voxels."""

    def replace(folder):
        import highdicom as hd

        slices = [pydicom.dcmread(folder / name) for name in SLICES]
        old = pydicom.dcmread(folder / "seg.dcm")
        masks = np.zeros((4, 6, 7, 2), dtype=np.uint8)
        masks[1:3, 2:4, 2:4, 0] = 1
        masks[2, 3:5, 3:5, 1] = 1
        hd.seg.Segmentation(
            source_images=slices,
            pixel_array=masks,
            segmentation_type="BINARY",
            segment_descriptions=[
                hd.seg.SegmentDescription.from_dataset(item) for item in old.SegmentSequence
            ],
            series_instance_uid=generate_uid(),
            series_number=2,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="test",
            manufacturer_model_name="test",
            software_versions="1",
            device_serial_number="1",
        ).save_as(folder / "seg.dcm")

    return replace


@pytest.mark.parametrize("place", range(4))
def test_labels_on_a_single_slice_land_there(put_dicom, dicom_source, example, place):
    labels = np.zeros_like(example.labels)
    labels[place, 2, 5] = 2
    put_dicom(labels_zyx=labels)
    (candidate,) = discover_dicom(dicom_source).candidates
    scan = candidate.read()
    (found,) = np.argwhere(scan.labels_zyx == 2)
    np.testing.assert_allclose(
        scan.affine_ras @ [*found, 1], example.affine @ [place, 2, 5, 1], atol=1e-6
    )


@pytest.mark.parametrize("places", [(0, 2), (0, 3), (1, 3)])
def test_empty_slices_between_labels_stay_empty(put_dicom, dicom_source, example, places):
    labels = np.zeros_like(example.labels)
    labels[list(places), 2, 5] = 2
    put_dicom(labels_zyx=labels)
    (candidate,) = discover_dicom(dicom_source).candidates
    np.testing.assert_array_equal(candidate.read().labels_zyx, labels[::-1])


def test_an_empty_segmentation_is_all_background(put_dicom, dicom_source, example):
    put_dicom(labels_zyx=np.zeros_like(example.labels))
    (candidate,) = discover_dicom(dicom_source).candidates
    assert not candidate.read().labels_zyx.any()


def test_stored_values_keep_their_type_and_scaling(put_dicom, dicom_source):
    edit_images(put_dicom(), RescaleSlope="2.5", RescaleIntercept="-1024")
    (candidate,) = discover_dicom(dicom_source).candidates
    scan = candidate.read()
    assert scan.image_czyx.dtype == np.int16
    assert (scan.slopes, scan.intercepts) == ((2.5,), (-1024.0,))
    assert not scan.planar


def test_slopes_that_differ_by_slice_become_real_values(put_dicom, dicom_source, example):
    folder = put_dicom()
    for place, name in enumerate(SLICES):
        edit(folder / name, RescaleSlope=str(place + 1), RescaleIntercept="0")
    (candidate,) = discover_dicom(dicom_source).candidates
    scan = candidate.read()
    assert scan.image_czyx.dtype == np.float32
    assert (scan.slopes, scan.intercepts) == ((1.0,), (0.0,))
    scaled = example.image * np.array([1, 2, 3, 4]).reshape(4, 1, 1)
    np.testing.assert_array_equal(scan.image_czyx[0], scaled[::-1])


def test_bits_above_the_stored_ones_are_masked(put_dicom, dicom_source, example):
    image = (np.abs(example.image) % 4096).astype(np.uint16)
    folder = put_dicom(image_zyx=image | 0x8000)
    edit_images(folder, BitsStored=12, HighBit=11)
    (candidate,) = discover_dicom(dicom_source).candidates
    np.testing.assert_array_equal(candidate.read().image_czyx[0], image[::-1])


def test_the_issuer_tells_two_patients_of_one_number_apart(put_dicom, dicom_source, take_in):
    put_dicom("a", patient_id="17", issuer="North", seed=1)
    put_dicom("b", patient_id="17", issuer="South", seed=2)
    assert len(take_in(dicom_source).manifest.subjects) == 2


def test_file_names_and_folders_do_not_change_the_root(tmp_path, put_dicom, dicom_source, take_in):
    put_dicom("a", reverse_files=False)
    first = take_in(dicom_source).manifest.root
    folder = tmp_path / "dicom"
    for number, path in enumerate(sorted((folder / "a").iterdir(), reverse=True)):
        target = folder / f"x{number}"
        target.mkdir()
        path.rename(target / "file")
    assert take_in(dicom_source, tmp_path / "other").manifest.root == first


def test_two_series_in_one_folder_are_two_scans(tmp_path, example, dicom_source):
    for index in range(2):
        image, labels = example.volume(index)
        folder = tmp_path / f"work-{index}"
        write_dicom_scan(
            folder,
            image_zyx=image,
            labels_zyx=labels,
            affine_ras=example.affine,
            segment_labels={1: "Left part", 2: "Right part"},
            patient_id="P-1",
            study_index=index,
        )
        for path in folder.iterdir():
            dicom_source.path.mkdir(exist_ok=True)
            path.rename(dicom_source.path / f"{index}-{path.name}")
    found = discover_dicom(dicom_source)
    assert [candidate.where for candidate in found.candidates] == [
        "0-slice_001.dcm",
        "1-slice_001.dcm",
    ]
    assert all(candidate.read() for candidate in found.candidates)


def test_a_scans_modality_is_that_of_its_class_whatever_the_header_says(tmp_path):
    """A free-text Modality must not become something that travels."""
    folder = tmp_path / "study"
    write_dicom_scan(
        folder,
        image_zyx=np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8),
        labels_zyx=np.ones((4, 6, 8), np.uint8),
        affine_ras=np.diag([5.0, 2.0, 2.0, 1.0])[:, [2, 1, 0, 3]],
        segment_labels={1: "liver"},
        patient_id="P1",
    )
    for path in folder.glob("*.dcm"):
        header = pydicom.dcmread(path)
        if "PixelSpacing" in header:
            header.Modality = "DOE JANE"
            header.BurnedInAnnotation = "NO"
            header.save_as(path)
    source = DicomSource(kind="dicom", path=tmp_path, classes={"liver": "liver"})
    report = ingest(source, tmp_path / "cache", pseudonymise=str.upper)
    assert {scan.modality for scan in report.manifest.scans} == {"MR"}


def test_a_copy_of_one_slice_is_a_duplicate(put_dicom, dicom_source):
    folder = put_dicom()
    (folder / "copy.dcm").write_bytes((folder / SLICES[0]).read_bytes())
    assert reason(dicom_source) == "DUPLICATE_SLICES"


@pytest.mark.parametrize(
    "keyword", ["SpacingBetweenSlices", "BurnedInAnnotation", "InstanceNumber", "SliceThickness"]
)
def test_optional_attributes_may_be_absent(put_dicom, dicom_source, keyword):
    for name in SLICES:
        path = put_dicom() / name
        dataset = pydicom.dcmread(path)
        if keyword in dataset:
            edit(path, **{keyword: None})
    assert reason(dicom_source) is None
