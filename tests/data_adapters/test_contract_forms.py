"""The contract once more, for the other forms in which one format brings the same scan.

An enhanced multi-frame image in place of single slices, a structure set in place of a segmentation,
a store behind http in place of a folder.
"""

import shutil

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from data_adapters.errors import DataError
from data_adapters.sources import DicomSource, OmeZarrSource
from data_adapters.writing import write_ome_zarr_scan
from tests.data_adapters import test_contract
from tests.data_adapters.conftest import AFFINE, volume
from tests.data_adapters.dicom_files import ENHANCED_MR, SLICES, enhanced, item, save, structures
from tests.data_adapters.http_stores import serving

LPS = np.diag([-1.0, -1.0, 1.0])


def enhance(folder):
    """Put one enhanced MR image in place of the slices, in the same series and frame."""
    slices = [pydicom.dcmread(folder / name) for name in SLICES]
    first = slices[0]
    named = (
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
    )
    dataset = enhanced(
        ENHANCED_MR,
        "MR",
        np.stack([one.pixel_array for one in slices]),
        [one.ImagePositionPatient for one in slices],
        **{name: first.get(name) for name in named},
    )
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = first.ImageOrientationPatient
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[first.SOPInstanceUID])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for name in SLICES:
        (folder / name).unlink()
    save(dataset, folder / "multiframe.dcm")
    for name in ("seg.dcm", "structures.dcm"):
        if (folder / name).is_file():
            _name_one_file(folder / name, dataset)


def _name_one_file(path, image):
    """Let labels say that they were drawn on this one file."""
    labels = pydicom.dcmread(path)
    file = item(
        ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID
    )
    if labels.Modality == "SEG":
        labels.ReferencedSeriesSequence[0].ReferencedInstanceSequence = file
    else:
        frame = labels.ReferencedFrameOfReferenceSequence[0]
        (study,) = frame.RTReferencedStudySequence
        study.RTReferencedSeriesSequence[0].ContourImageSequence = file
    labels.save_as(path)


def outline(folder, seed):
    """Put a structure set in place of the segmentation: around the same voxels, edge to edge."""
    images = [pydicom.dcmread(folder / name) for name in SLICES]
    _, labels = volume(seed)
    regions = {}
    for value, name in ((1, "Left part"), (2, "Right part")):
        plane, (y0, x0), (y1, x1) = _box(labels == value)
        corners = np.array([(plane, y0, x0), (plane, y0, x1), (plane, y1, x1), (plane, y1, x0)])
        regions[name] = [(corners @ AFFINE[:3, :3].T + AFFINE[:3, 3]) @ LPS]
    (folder / "seg.dcm").unlink()
    dataset = structures(images, regions)
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[images[0].SOPInstanceUID, "structures"])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[dataset.SOPInstanceUID])
    save(dataset, folder / "structures.dcm")


def _box(mask):
    """Return the slice of a rectangle in one slice, and its edges, half a voxel further out."""
    z, y, x = np.nonzero(mask)
    assert len(set(z)) == 1 and mask.sum() == (np.ptp(y) + 1) * (np.ptp(x) + 1)
    return z[0], (y.min() - 0.5, x.min() - 0.5), (y.max() + 0.5, x.max() + 0.5)


class Rewritten(test_contract.TestDicom):
    """A scan is written as single slices and a segmentation, then ``change`` is made to it."""

    def change(self, folder, seed):
        raise NotImplementedError

    @pytest.fixture
    def put(self, put_dicom):
        def put(*names, seed=0, **changes):
            self.change(put_dicom(*names, seed=seed, **changes), seed)

        return put

    @pytest.fixture
    def put_many(self, put, tmp_path):
        def put_each(subjects):
            for index, (subject, seed) in enumerate(subjects):
                shutil.rmtree(tmp_path / "dicom" / str(index), ignore_errors=True)
                put(str(index), patient_id=subject, seed=seed, study_index=index)

        return put_each


class TestEnhancedDicom(Rewritten):
    def change(self, folder, seed):
        enhance(folder)

    def test_it_is_one_file_beside_its_segmentation(self, put, tmp_path):
        put()
        names = sorted(path.name for path in (tmp_path / "dicom/scan").iterdir())
        assert names == ["multiframe.dcm", "seg.dcm"]


class TestStructureSet(Rewritten):
    def change(self, folder, seed):
        outline(folder, seed)

    def test_there_is_no_segmentation(self, put, tmp_path):
        put()
        names = sorted(path.name for path in (tmp_path / "dicom/scan").iterdir())
        assert names == [*SLICES, "structures.dcm"]


class TestEnhancedDicomWithStructureSet(Rewritten):
    def change(self, folder, seed):
        outline(folder, seed)
        enhance(folder)


class TestRemoteOmeZarr(test_contract.SourceContract):
    """Images behind http, listed in a table; a real server on this machine's loopback."""

    rewritten = 1

    @pytest.fixture
    def served(self, tmp_path):
        (tmp_path / "served").mkdir()
        # Without, a file of this second is fetched again: its time may still be the same later.
        with serving(tmp_path / "served", etags=True) as url:
            yield url

    @pytest.fixture
    def source(self, tmp_path):
        return OmeZarrSource(
            path=tmp_path / "listed",
            images=tmp_path / "listed" / "images.csv",
            labels="parts",
            classes={1: "left", 2: "right"},
        )

    @pytest.fixture
    def put(self, put_many, tmp_path):
        def put(subject="P-17", **changes):
            put_many([(subject, 0)], **changes)

        return put

    @pytest.fixture
    def put_many(self, served, tmp_path):
        def put_each(subjects, **changes):
            shutil.rmtree(tmp_path / "served")
            (tmp_path / "listed").mkdir(exist_ok=True)
            lines = ["path,subject"]
            for index, (subject, seed) in enumerate(subjects):
                image, labels = volume(seed)
                arguments = {
                    "image_zyx": image,
                    "labels_zyx": labels,
                    "affine_ras": AFFINE,
                    "labels_name": "parts",
                }
                name = f"{index}.ome.zarr"
                write_ome_zarr_scan(tmp_path / "served" / name, **(arguments | changes))
                lines.append(f"{served}/{name},{subject}")
            (tmp_path / "listed/images.csv").write_text("\n".join(lines) + "\n")

        return put_each

    def remove_one(self, source):
        heading, _, *others = source.images.read_text().splitlines()
        source.images.write_text("\n".join([heading, *others]) + "\n")

    def test_an_empty_folder_says_what_was_looked_for(self, source, take_in):
        """The table is what may be empty."""
        source.path.mkdir()
        source.images.write_text("path,subject\n")
        with pytest.raises(DataError, match=r"There are no scans in .* Correct `path` and `kind`"):
            take_in(source)


def test_each_form_is_the_same_data_set(put_dicom, take_in, tmp_path, dicom_source):
    """What is trained on does not depend on which of the forms a site has."""
    roots = {}
    for name, changes in {
        "slices": (),
        "enhanced": (lambda folder: enhance(folder),),
        "outlined": (lambda folder: outline(folder, 0),),
        "both": (lambda folder: outline(folder, 0), lambda folder: enhance(folder)),
    }.items():
        folder = put_dicom(name)
        for change in changes:
            change(folder)
        source = DicomSource(path=folder, classes=dicom_source.classes)
        (entry,) = take_in(source, tmp_path / f"cache-{name}").manifest.scans
        roots[name] = entry.digest
    assert len(set(roots.values())) == 1, roots
