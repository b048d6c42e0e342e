"""What is written is valid for other readers, deterministic, and refuses what it cannot hold."""

import numpy as np
import pydicom
import pytest

from data_adapters.writing import write_dicom_scan, write_ome_zarr_scan


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "seg.dcm"}


def test_the_same_call_writes_the_same_files(put_dicom):
    assert files(put_dicom("a")) == files(put_dicom("b"))


def test_another_study_of_the_patient_has_other_uids(put_dicom):
    one = pydicom.dcmread(put_dicom("a", study_index=0) / "slice_001.dcm")
    two = pydicom.dcmread(put_dicom("b", study_index=1) / "slice_001.dcm")
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert one[keyword].value != two[keyword].value
    assert one.PatientID == two.PatientID


def test_highdicom_reads_the_series_to_the_same_world(put_dicom, example):
    """An independent reader agrees on pixels and LPS affine."""
    import highdicom as hd

    folder = put_dicom()
    slices = [pydicom.dcmread(path) for path in sorted(folder.glob("slice_*.dcm"))]
    volume = hd.get_volume_from_series(slices)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ example.affine
    reversed_slices = volume.array[::-1]
    np.testing.assert_array_equal(reversed_slices, example.image)
    np.testing.assert_allclose(volume.affine @ [3, 1, 2, 1], lps @ [0, 1, 2, 1], atol=1e-6)


def test_the_header_is_full_of_plainly_fake_identifiers(put_dicom):
    dataset = pydicom.dcmread(put_dicom(issuer="FAKE registry") / "slice_001.dcm")
    assert str(dataset.PatientName) == "FAKE^P-17"
    assert dataset.IssuerOfPatientID == "FAKE registry"
    assert dataset.SpacingBetweenSlices == 5.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image_zyx": np.zeros((4, 6, 7))}, "must be int16 or uint16"),
        ({"labels_zyx": np.zeros((1, 6, 7), np.uint8)}, "must both be zyx"),
        ({"segment_labels": {1: "Left part"}}, r"label values \[2\] have no name"),
    ],
)
def test_dicom_refuses_what_it_cannot_hold(put_dicom, change, match):
    with pytest.raises(ValueError, match=match):
        put_dicom(**change)


def test_ome_zarr_refuses_rotation_flips_and_other_shapes(put_ome_zarr, example):
    flipped = example.affine.copy()
    flipped[0, 2] *= -1
    with pytest.raises(ValueError, match="must not rotate or flip"):
        put_ome_zarr(affine_ras=flipped)
    with pytest.raises(ValueError, match="differ in shape"):
        put_ome_zarr(labels_zyx=example.labels[:2])


def test_ome_zarr_never_overwrites(put_ome_zarr):
    put_ome_zarr()
    with pytest.raises(FileExistsError):
        put_ome_zarr()


def test_writers_are_public():
    assert write_dicom_scan.__doc__
    assert write_ome_zarr_scan.__doc__
