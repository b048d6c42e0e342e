"""A DICOMDIR: only what it names is read, and what is missing is said."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from data_adapters import DicomReader
from data_adapters.dicom import discover_dicom
from data_adapters.dicom_directory import named_files
from data_adapters.discover import discover
from data_adapters.errors import DataError
from data_adapters.sources import DicomSource
from tests.data_adapters.dicom_files import only, write_medium

pytest.importorskip("monai")


@pytest.fixture
def medium(put_dicom, tmp_path):
    """The example study written as a file set (PS3.10 8)."""
    return write_medium(put_dicom(), tmp_path / "medium")


def source_of(medium, dicom_source):
    return dicom_source.model_copy(update={"path": medium / "DICOMDIR"})


def test_a_medium_is_read_through_its_directory(medium, dicom_source, example):
    source = source_of(medium, dicom_source)
    scan = only(source).read()
    np.testing.assert_array_equal(scan.labels_zyx, example.labels[::-1])
    assert discover(source).candidates == discover_dicom(source).candidates


def test_what_the_directory_does_not_name_is_not_looked_at(medium, dicom_source, put_dicom):
    stray = put_dicom("stray", patient_id="P-2", seed=4)
    shutil.copytree(stray, medium / "STRAY")
    assert len(discover_dicom(source_of(medium, dicom_source)).candidates) == 1
    folder = dicom_source.model_copy(update={"path": medium})
    found = discover_dicom(folder)
    assert len(found.candidates) == 2
    assert "1 DICOMDIR files were passed over; the folders were searched." in found.notes


def test_a_file_that_is_missing_is_named(medium, dicom_source):
    there, _ = named_files(medium / "DICOMDIR")
    there[0].unlink()
    found = discover_dicom(source_of(medium, dicom_source))
    (entry,) = [entry for entry in found.quarantined if entry.code == "MISSING_FILE"]
    assert entry.where == there[0].relative_to(medium).as_posix()


def test_a_copy_in_small_letters_is_the_same_medium(medium, dicom_source):
    for path in sorted(medium.rglob("*"), reverse=True):
        if path.name != "DICOMDIR":
            path.rename(path.with_name(path.name.lower()))
    there, missing = named_files(medium / "DICOMDIR")
    assert (len(there), missing) == (5, ())
    assert only(source_of(medium, dicom_source)).read()


@pytest.mark.parametrize("name", [["..", "secret"], ["/etc", "passwd"], ["PT000000", ".."]])
def test_a_directory_leads_nowhere_else(medium, name):
    """ReferencedFileID comes from outside."""
    path = medium / "DICOMDIR"
    directory = pydicom.dcmread(path)
    tag = 0x00041500
    for record in directory.DirectoryRecordSequence:
        if tag in record:
            record[tag] = pydicom.DataElement(tag, "CS", name, already_converted=True)
    directory.save_as(path)
    there, missing = named_files(path)
    assert there == ()
    assert len(missing) == 1


def test_another_file_is_no_directory(medium):
    (medium / "notes.txt").write_text("not an image")
    image = named_files(medium / "DICOMDIR")[0][0]
    for path, text in ((medium / "notes.txt", "cannot be read"), (image, "is a file and no")):
        with pytest.raises(DataError, match=text):
            discover_dicom(DicomSource(path=path, classes={"a": "b"}))


def test_real_directories_name_their_files():
    folder = Path(get_testdata_file("DICOMDIR", download=False)).parent
    there, missing = named_files(folder / "DICOMDIR")
    assert (len(there), missing) == (31, ())
    found = discover_dicom(DicomSource(path=folder / "DICOMDIR", classes={"a": "b"}))
    first = [candidate.channels[0].instances[0] for candidate in found.candidates]
    assert {instance.public_modality for instance in first} == {"CR", "CT", "MR"}


def test_the_reader_takes_a_directory_of_one_series(medium, put_dicom):
    one = DicomReader().read(medium / "DICOMDIR")[0]
    other = DicomReader().read(put_dicom())[0]
    np.testing.assert_array_equal(one[0], other[0])
