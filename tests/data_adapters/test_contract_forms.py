"""The contract once more, for the other forms in which one format brings the same scan.

An enhanced multi-frame image in place of single slices, a structure set in place of a segmentation,
a store behind http in place of a folder.
"""

import shutil

import pytest

from data_adapters.errors import DataError
from data_adapters.sources import DicomSource, OmeZarrSource
from data_adapters.writing import write_ome_zarr_scan
from tests.data_adapters import test_contract
from tests.data_adapters.conftest import AFFINE, SEGMENTS, volume
from tests.data_adapters.dicom_files import SLICES
from tests.data_adapters.dicom_forms import enhance, outline
from tests.data_adapters.http_stores import serving


def outlined(folder, seed):
    outline(folder, volume(seed)[1], AFFINE, SEGMENTS)


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
        outlined(folder, seed)

    def test_there_is_no_segmentation(self, put, tmp_path):
        put()
        names = sorted(path.name for path in (tmp_path / "dicom/scan").iterdir())
        assert names == [*SLICES, "structures.dcm"]


class TestEnhancedDicomWithStructureSet(Rewritten):
    def change(self, folder, seed):
        outlined(folder, seed)
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
        "enhanced": (enhance,),
        "outlined": (lambda folder: outlined(folder, 0),),
        "both": (lambda folder: outlined(folder, 0), enhance),
    }.items():
        folder = put_dicom(name)
        for change in changes:
            change(folder)
        source = DicomSource(path=folder, classes=dicom_source.classes)
        (entry,) = take_in(source, tmp_path / f"cache-{name}").manifest.scans
        roots[name] = entry.digest
    assert len(set(roots.values())) == 1, roots
