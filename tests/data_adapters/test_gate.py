"""The gate counts what identifies, by keyword and never by value, and lets none of it pass."""

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from data_adapters.gate import check_burned_in, identifying_keywords
from data_adapters.ingest import discover
from data_adapters.reasons import REASONS, Unusable

PLANTED = "Zebulon Quillfeather"


def plant(path, *, implicit=False):
    """Hide a name in plain, nested, private and free-text elements."""
    dataset = pydicom.dcmread(path)
    dataset.PatientName = PLANTED
    dataset.PatientComments = PLANTED
    inner = Dataset()
    inner.PersonName = PLANTED
    inner.PersonTelephoneNumbers = "555"
    outer = Dataset()
    outer.PersonIdentificationCodeSequence = Sequence([inner])
    dataset.ReferringPhysicianIdentificationSequence = Sequence([outer])
    dataset.private_block(0x0011, "ACME", create=True).add_new(1, "LO", PLANTED)
    if implicit:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("implicit", [False, True])
def test_nested_and_private_identifiers_are_counted_by_keyword(put_dicom, dicom_source, implicit):
    plant(put_dicom() / "slice_001.dcm", implicit=implicit)
    found = discover(dicom_source).identifiers_found
    assert found["PersonName"] == 1
    assert found["PatientComments"] == 1
    assert found["PrivateElement"] == 1
    assert found["PatientName"] == 5  # four slices and the segmentation
    assert PLANTED not in str(found)


def test_an_empty_value_is_not_counted():
    dataset = Dataset()
    dataset.PatientName = ""
    dataset.PatientBirthDate = None
    dataset.StudyDate = "20200101"
    assert identifying_keywords(dataset) == {"StudyDate"}


def test_planted_identifiers_are_nowhere_in_what_ingest_leaves(
    put_dicom, dicom_source, take_in, tmp_path
):
    folder = put_dicom(issuer="Northern Registry")
    for path in folder.glob("slice_*.dcm"):
        plant(path)
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in folder.iterdir()}
    report = take_in(dicom_source)
    for path in (p for p in (tmp_path / "cache").rglob("*") if p.is_file()):
        content = path.read_bytes()
        for needle in (PLANTED, "Quillfeather", "Northern", "P-17", "FAKE", *uids):
            assert needle.encode() not in content
    assert PLANTED not in repr(report)
    assert "P-17" not in repr(report)


def test_a_scan_does_not_show_its_subject(put_dicom, dicom_source):
    put_dicom(patient_id="Quillfeather")
    (candidate,) = discover(dicom_source).candidates
    assert "Quillfeather" not in repr(candidate.read())


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_silence_about_burned_in_text_passes_where_it_is_rare(modality):
    check_burned_in(modality, "")


@pytest.mark.parametrize("modality", ["SC", "US", "ES", "XC", "CR", "DX", "OT", ""])
def test_silence_about_burned_in_text_is_refused_elsewhere(modality):
    check_burned_in(modality, "NO")
    with pytest.raises(Unusable, match="BURNED_IN_UNKNOWN"):
        check_burned_in(modality, "")


def test_silence_is_noted(put_dicom, dicom_source):
    put_dicom()
    assert any("4 MR files do not say" in note for note in discover(dicom_source).notes)


@pytest.mark.parametrize("code", sorted(REASONS))
def test_every_reason_is_a_sentence_with_a_remedy(code):
    entry = Unusable(code, "x").at("somewhere")
    assert entry.sentence[0].isupper() or entry.sentence.startswith("x")
    assert entry.sentence.endswith(".")
    assert entry.remedy.endswith(".")
