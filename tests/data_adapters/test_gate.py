"""The gate counts what identifies, by keyword and never by value, and lets none of it pass."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from data_adapters.dicom import discover_dicom as discover
from data_adapters.dicom_headers import instance_of
from data_adapters.gate import check_burned_in, identifying_keywords, policy
from data_adapters.reasons import REASONS, Unusable
from tests.data_adapters.dicom_files import STORAGE, blank

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


def test_names_in_person_elements_and_repeating_groups_are_counted():
    dataset = Dataset()
    dataset.ScheduledHumanPerformersSequence = Sequence([Dataset()])
    dataset.ScheduledHumanPerformersSequence[0].HumanPerformerName = PLANTED
    dataset.add_new(0x60023000, "OW", b"\0\1")
    dataset.add_new(0x50000010, "US", 1)
    dataset.add_new(0x00102162, "UC", PLANTED)  # newer than pydicom's dictionary
    found = identifying_keywords(dataset)
    assert {"HumanPerformerName", "OverlayData", "CurveData", "EthnicGroups"} <= found


def test_what_is_inside_private_sequences_is_counted():
    inner = Dataset()
    inner.PatientName = PLANTED
    dataset = Dataset()
    block = dataset.private_block(0x0011, "ACME", create=True)
    block.add_new(1, "SQ", Sequence([inner]))
    assert identifying_keywords(dataset) == {"PrivateElement", "PatientName"}


def test_a_sequence_that_cannot_be_read_is_counted_and_stops_nothing(put_dicom, dicom_source):
    dataset = Dataset()
    dataset.PatientName = PLANTED
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    tag = Tag(0x00081140)
    raw = RawDataElement(tag, "SQ", 6, b"\xfe\xff\x00", 0, False, True)
    dataset._dict[tag] = raw
    assert "PatientName" in identifying_keywords(dataset)


def test_uids_are_in_every_file_and_are_not_counted():
    dataset = Dataset()
    dataset.SOPInstanceUID = dataset.StudyInstanceUID = "1.2.3"
    assert identifying_keywords(dataset) == set()


def test_the_policy_is_the_table_that_dicom_anonymizer_ships():
    pytest.importorskip("dicomanonymizer")
    from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table

    listed = {tag for tag in table.ALL_TAGS if len(tag) == 2}
    identifiers = {*table.U_TAGS, *table.X_Z_U_STAR_TAGS}
    assert {f"{group:04x}{element:04x}" for group, element in listed - identifiers} == {
        tag for tag in policy() if "x" not in tag
    }
    assert {tag for tag in policy() if "x" in tag} == {"50xxxxxx", "60xx3000", "60xx4000"}


def test_the_policy_file_is_what_its_script_writes():
    pytest.importorskip("dicomanonymizer")
    root = Path(__file__).parents[2]
    script = root / "docs" / "deidentification_table.py"
    if not script.is_file():
        pytest.skip("the script is not part of this installation")
    spec = importlib.util.spec_from_file_location("deidentification_table", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (root / "data_adapters" / "deidentification.json").read_text() == module.document()


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


CLASSES = {"CT": "2", "MR": "4", "PT": "128", "CR": "1", "DX": "1.1", "MG": "1.2", "SC": "7"}


def image_of(kind, burned_in="", **values):
    header = blank(STORAGE + CLASSES.get(kind, "7"), kind, BurnedInAnnotation=burned_in)
    return replace(instance_of(Path("x"), header, 0), **values)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_silence_about_burned_in_text_passes_where_it_is_rare(modality):
    check_burned_in(image_of(modality))


@pytest.mark.parametrize("modality", ["SC", "US", "ES", "XC", "CR", "DX", "MG", "OT", ""])
def test_silence_about_burned_in_text_is_refused_elsewhere(modality):
    check_burned_in(image_of(modality, "NO"))
    with pytest.raises(Unusable, match="BURNED_IN_UNKNOWN"):
        check_burned_in(image_of(modality))


@pytest.mark.parametrize("modality", ["CR", "DX"])
def test_the_operator_may_declare_a_modality_clean(modality):
    check_burned_in(image_of(modality), frozenset({"CR", "DX"}))
    with pytest.raises(Unusable, match="BURNED_IN_UNKNOWN"):
        check_burned_in(image_of(modality), frozenset({"MG"}))
    with pytest.raises(Unusable, match="BURNED_IN_ANNOTATION"):
        check_burned_in(image_of(modality, "YES"), frozenset({modality}))


def test_a_picture_of_a_screen_is_suspect_whatever_its_class():
    picture = image_of("CT", image_type=("DERIVED", "SECONDARY", "SCREEN SAVE"))
    with pytest.raises(Unusable, match="BURNED_IN_UNKNOWN"):
        check_burned_in(picture)


def test_a_modality_that_may_be_anything_is_not_repeated():
    with pytest.raises(Unusable) as caught:
        check_burned_in(image_of("MR", modality="DOE JANE"))
    assert caught.value.detail == "MR"


def test_silence_is_noted(put_dicom, dicom_source):
    put_dicom()
    assert any("4 MR files do not say" in note for note in discover(dicom_source).notes)


@pytest.mark.parametrize("code", sorted(REASONS))
def test_every_reason_is_a_sentence_with_a_remedy(code):
    entry = Unusable(code, "x").at("somewhere")
    assert entry.sentence[0].isupper() or entry.sentence.startswith("x")
    assert entry.sentence.endswith(".")
    assert entry.remedy.endswith(".")
