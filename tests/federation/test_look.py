"""A look at a folder that a stranger filled: it reads little, and nothing outside."""

import gzip
import json
import tracemalloc
import zlib

import nibabel
import numpy as np
import pydicom
import pytest

from data_adapters import dicom_deflated
from federation.look import look
from tests.data_adapters.stores import edit_ome, write_image, write_labels

LABELS = np.array([[[0, 1], [2, 2]]], np.uint8)


@pytest.fixture
def image(tmp_path):
    """An image and its labels, whose metadata name no values."""

    def put(version="0.5"):
        path = tmp_path / "in" / "P-1" / "a.zarr"
        write_image(path, [LABELS.astype(np.uint16)], version=version)
        write_labels(path, "parts", [LABELS], version=version)
        return path

    return put


def seen_in(path):
    (seen,) = look(path.parents[1])
    return seen


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_read_from_either_version(image, version):
    seen = seen_in(image(version))
    assert (seen.group, seen.num_subjects) == ("parts", 1)
    assert seen.labels == {"1": "class 1", "2": "class 2"}


@pytest.mark.parametrize("name", ["../../../outside.zarr/labels/parts", "/etc", ""])
def test_labels_that_lead_out_of_the_image_are_none(image, tmp_path, name):
    path = image()
    path.rename(tmp_path / "outside.zarr")
    inside = image()
    edit_ome(inside / "labels", lambda ome: ome.update(labels=[name]))
    seen = seen_in(inside)
    assert (seen.group, seen.labels) == ("", {})


@pytest.mark.parametrize("leads_out", ["../../../../../outside", "{}/outside"])
def test_nor_is_a_level_outside_read(image, tmp_path, leads_out):
    path = image()
    (path / "labels/parts/0").rename(tmp_path / "outside")
    level = leads_out.format(tmp_path)
    edit_ome(
        path / "labels/parts",
        lambda ome: ome["multiscales"][0]["datasets"][0].update(path=level),
    )
    assert seen_in(path).labels == {}


def test_nor_one_behind_a_link(image, tmp_path):
    path = image()
    (path / "labels/parts/0").rename(tmp_path / "outside")
    (path / "labels/parts/0").symlink_to(tmp_path / "outside")
    assert seen_in(path).labels == {}


@pytest.mark.parametrize(
    ("shape", "chunk"), [([1, 2, 2], [4000, 4000, 4000]), ([400, 400, 400], [1, 2, 2])]
)
def test_labels_that_are_large_or_have_large_chunks_are_not_read(image, shape, chunk):
    path = image()
    metadata = path / "labels/parts/0/zarr.json"
    document = json.loads(metadata.read_text())
    document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"] = shape, chunk
    metadata.write_text(json.dumps(document))
    assert seen_in(path).labels == {}


@pytest.mark.parametrize("about", [7, {"colors": 7}, {"properties": [7]}, None])
def test_metadata_of_any_kind_say_nothing_more(image, about):
    path = image()
    edit_ome(path / "labels/parts", lambda ome: ome.update({"image-label": about}))
    assert seen_in(path).labels == {"1": "class 1", "2": "class 2"}


def test_a_small_nifti_that_unpacks_to_much_is_not_read(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_shape((512, 512, 512))
    header["sform_code"] = 1
    (tmp_path / "sub-01").mkdir()
    content = gzip.compress(header.binaryblock + bytes(4) + bytes(128 << 20))
    (tmp_path / "sub-01" / "sub-01_dseg.nii.gz").write_bytes(content)
    tracemalloc.start()
    try:
        (seen,) = look(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert (seen.kind, seen.group, seen.labels) == ("nifti", "_dseg", {})


def test_nor_is_a_deflated_dicom_file_that_does_or_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_deflated, "MAX_INFLATED_BYTES", 1 << 20)
    source = pydicom.examples.get_path("ct")
    dataset = pydicom.dcmread(source)
    dataset.save_as(tmp_path / "a.dcm")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.Modality = "PT"
    dataset.save_as(tmp_path / "b.dcm")
    content = (tmp_path / "b.dcm").read_bytes()
    (tmp_path / "c.dcm").write_bytes(content[:-100] + b"\xff" * 100)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    meta = pydicom.filereader.read_file_meta_info(tmp_path / "b.dcm")
    start = 128 + 4 + 12 + meta.FileMetaInformationGroupLength
    data_set = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    bomb = packer.compress(data_set + bytes(2 << 20)) + packer.flush()
    (tmp_path / "b.dcm").write_bytes(content[:start] + bomb)
    (seen,) = look(tmp_path)
    assert seen.modalities == ("CT",)
