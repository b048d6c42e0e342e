"""What a DICOM candidate knows before it is read, and that it can be sent elsewhere."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pydicom
import pytest

from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource
from tests.data_adapters.dicom_files import SLICES, edit, only, reason, targets_of


def test_a_lone_slice_without_thickness_is_a_plane(put_dicom, dicom_source):
    folder = put_dicom()
    for name in SLICES[1:]:
        (folder / name).unlink()
    edit(folder / SLICES[0], SliceThickness=None, SpacingBetweenSlices=None)
    edit(folder / "seg.dcm", ReferencedSeriesSequence=None)
    source = DicomSource(path=dicom_source.path, targets=targets_of(folder, "P-17"))
    scan = only(source).read()
    assert scan.planar
    np.testing.assert_allclose(np.linalg.norm(scan.affine_ras[:3, :3], axis=0), [1.0, 2.0, 1.5])


@pytest.mark.parametrize("key", ["subject", "study", "series", "image"])
def test_a_target_is_found_by_any_key_and_needs_no_voxel_labels(put_dicom, dicom_source, key):
    folder = put_dicom()
    (folder / "seg.dcm").unlink()
    header = pydicom.dcmread(folder / SLICES[0])
    named = {
        "subject": "P-17",
        "study": header.StudyInstanceUID,
        "series": header.SeriesInstanceUID,
        "image": "scan",
    }
    source = DicomSource(path=dicom_source.path, targets=targets_of(folder, named[key], key))
    scan = only(source).read()
    assert scan.target == 2.5
    assert scan.labels_zyx is None


@pytest.mark.parametrize("in_table", ["17", "17^^^North"])
def test_a_table_may_leave_the_issuer_out(put_dicom, dicom_source, in_table):
    folder = put_dicom(patient_id="17", issuer="North")
    source = DicomSource(path=dicom_source.path, targets=targets_of(folder, in_table))
    assert only(source).read().target == 2.5


def test_a_scan_that_the_table_lacks_is_refused_and_so_is_one_without_labels(
    put_dicom, dicom_source
):
    folder = put_dicom()
    targets = targets_of(folder, "P-18")
    with pytest.raises(Unusable, match="NO_TARGET"):
        only(DicomSource(path=dicom_source.path, targets=targets)).read()
    targets = targets_of(folder, "P-17")
    both = DicomSource(path=dicom_source.path, targets=targets, classes=dicom_source.classes)
    assert only(both).read().labels_zyx.max() == 2
    (folder / "seg.dcm").unlink()
    assert reason(both) == "NO_LABELS"


def test_a_fingerprint_changes_with_each_file_that_is_read(put_dicom, dicom_source):
    folder = put_dicom()
    first = only(dicom_source).fingerprint()
    assert first == only(dicom_source).fingerprint()
    assert str(folder) not in first
    seen = {first}
    for name in (*SLICES, "seg.dcm"):
        (folder / name).write_bytes((folder / name).read_bytes() + b"\0\0")
        seen.add(only(dicom_source).fingerprint())
    assert len(seen) == 6


def test_a_candidate_names_its_subject_and_does_not_show_it(put_dicom, dicom_source):
    put_dicom(patient_id="Quillfeather", issuer="North")
    candidate = only(dicom_source)
    assert candidate.subject == "Quillfeather^^^North"
    assert "Quillfeather" not in repr(candidate)


def test_a_candidate_is_read_the_same_in_a_spawned_process(put_dicom, dicom_source):
    put_dicom()
    candidate = only(dicom_source)
    assert pickle.loads(pickle.dumps(candidate)) == candidate
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        there = pool.submit(candidate.read).result()
    here = candidate.read()
    np.testing.assert_array_equal(there.image_czyx, here.image_czyx)
    np.testing.assert_array_equal(there.labels_zyx, here.labels_zyx)


def test_a_refused_candidate_keeps_its_reason_when_pickled(put_dicom, dicom_source):
    folder = put_dicom()
    source = DicomSource(path=dicom_source.path, targets=targets_of(folder, "P-18"))
    candidate = pickle.loads(pickle.dumps(only(source)))
    with pytest.raises(Unusable, match="NO_TARGET"):
        candidate.read()


def test_nothing_that_is_wrong_with_a_header_reaches_warnings_or_logs(
    put_dicom, dicom_source, caplog, recwarn
):
    """pydicom quotes values it does not like."""
    folder = put_dicom()
    for name in SLICES:
        edit(folder / name, PatientBirthDate="Quillfeather", StudyDate="not a date, P-17")
    path = folder / SLICES[0]
    path.write_bytes(path.read_bytes()[:-40])
    caplog.clear()
    recwarn.clear()
    with caplog.at_level(0):
        assert reason(dicom_source) == "UNDECODABLE_PIXELS"
    assert "Quillfeather" not in caplog.text
    assert not [warning for warning in recwarn if "Quillfeather" in str(warning.message)]
