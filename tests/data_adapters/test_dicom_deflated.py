"""Deflated files (PS3.5 A.5) are read, and unpacked no further than to a limit."""

import tracemalloc
import zlib

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from data_adapters import dicom_deflated
from data_adapters.dicom import discover_dicom
from data_adapters.dicom_directory import named_files
from data_adapters.errors import DataError
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource
from data_adapters.writing import write_dicom_scan
from tests.data_adapters.conftest import AFFINE, CLASSES, SEGMENTS, volume

MIB = 1 << 20


@pytest.fixture
def deflated(tmp_path):
    """Write a series whose first slice is deflated; return its path."""
    image, labels = volume(0)
    write_dicom_scan(
        tmp_path / "in",
        image_zyx=image,
        labels_zyx=labels,
        affine_ras=AFFINE,
        segment_labels=SEGMENTS,
        patient_id="P-1",
        study_index=0,
    )
    path = min((tmp_path / "in").iterdir())
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    return path


def blow_up(path, num_bytes):
    """Let the deflated data set go on with zeros, after an element that says so."""
    meta = pydicom.filereader.read_file_meta_info(path)
    content = path.read_bytes()
    start = 128 + 4 + 12 + meta.FileMetaInformationGroupLength
    data_set = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = num_bytes.to_bytes(4, "little") + bytes(num_bytes)
    packed = packer.compress(data_set + b"\xfc\xff\xfc\xffOB\0\0" + zeros) + packer.flush()
    path.write_bytes(content[:start] + packed)


def test_a_deflated_slice_is_read_like_the_others(deflated):
    found = discover_dicom(DicomSource(path=deflated.parent, classes=CLASSES))
    (candidate,) = found.candidates
    assert candidate.read().image_czyx.shape[1] == 4


def test_one_that_unpacks_without_end_is_refused_before_it_is_in_memory(deflated, monkeypatch):
    monkeypatch.setattr(dicom_deflated, "MAX_INFLATED_BYTES", 8 * MIB)
    blow_up(deflated, 64 * MIB)
    tracemalloc.start()
    try:
        found = discover_dicom(DicomSource(path=deflated.parent, classes=CLASSES))
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
    refused = {entry.code: entry for entry in found.quarantined}["UNPACKS_TOO_LARGE"]
    assert refused.where == deflated.name and "8 MiB" in refused.sentence


def test_below_the_limit_it_is_read(deflated):
    blow_up(deflated, MIB)
    found = discover_dicom(DicomSource(path=deflated.parent, classes=CLASSES))
    assert len(found.candidates) == 1 and not found.quarantined


def test_nor_is_what_says_that_it_is_a_dicomdir_unpacked(deflated, monkeypatch):
    monkeypatch.setattr(dicom_deflated, "MAX_INFLATED_BYTES", 8 * MIB)
    blow_up(deflated, 64 * MIB)
    with pytest.raises(DataError, match="cannot be read as a DICOMDIR"):
        named_files(deflated)


def test_all_of_a_file_that_is_not_deflated_may_be_asked_for(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff" * 3 * MIB)
    with dicom_deflated.open_bounded(tmp_path / "a") as file:
        assert file.read(1) == b"\xff" and len(file.read()) == 3 * MIB - 1
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    (tmp_path / "b").write_bytes(packer.compress(bytes(257 * MIB)) + packer.flush())
    with (
        dicom_deflated.open_bounded(tmp_path / "b") as file,
        pytest.raises(Unusable, match="UNPACKS_TOO_LARGE"),
    ):
        file.read()
