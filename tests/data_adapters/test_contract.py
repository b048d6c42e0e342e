"""What every source must do, whatever its format."""

import shutil
import stat

import numpy as np
import pytest

from data_adapters.cache import read_scan
from data_adapters.errors import DataError
from data_adapters.ingest import MANIFEST
from data_adapters.manifest import Manifest


class SourceContract:
    """A subclass gives ``source`` and ``put`` (write the example scan under some subject)."""

    def test_pixels_labels_and_geometry_come_back_in_ras_millimetres(
        self, source, put, take_in, tmp_path, example
    ):
        put()
        report = take_in(source)
        (entry,) = report.manifest.scans
        scan = read_scan(tmp_path / "cache", entry)
        order, affine = self.as_stored(example)
        np.testing.assert_array_equal(scan.image_zyx, example.image[order].astype(np.float32))
        np.testing.assert_array_equal(scan.labels_zyx, example.labels[order])
        np.testing.assert_allclose(scan.affine_ras, affine, atol=1e-6)
        assert scan.image_zyx.dtype == np.float32
        assert scan.labels_zyx.dtype == np.uint8
        assert entry.spacing_mm_zyx == (5.0, 2.0, 1.5)
        assert entry.shape_zyx == (4, 6, 7)
        assert report.manifest.classes == ("background", "left", "right")
        assert report.quarantined == ()

    def as_stored(self, example):
        return slice(None), example.affine

    def test_several_scans_of_one_subject_stay_that_subjects(self, source, put_many, take_in):
        put_many([("P-1", 0), ("P-1", 1), ("P-2", 2)])
        manifest = take_in(source).manifest
        assert len(manifest.scans) == 3
        assert len(manifest.subjects) == 2

    def test_no_raw_identifier_is_in_cache_or_manifest(self, source, put, take_in, tmp_path):
        put()
        take_in(source)
        cache = tmp_path / "cache"
        for path in [cache, *cache.rglob("*")]:
            assert "P-17" not in path.relative_to(tmp_path).as_posix()
            assert path.is_dir() or b"P-17" not in path.read_bytes()

    def test_the_cache_is_for_its_owner_only(self, source, put, take_in, tmp_path):
        put()
        take_in(source)
        assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "cache" / MANIFEST).stat().st_mode) == 0o600

    def test_a_rerun_writes_nothing_and_ends_the_same(self, source, put, take_in, tmp_path):
        put()
        first = take_in(source).manifest
        scan = tmp_path / "cache" / first.scans[0].path
        before = {path: path.stat().st_mtime_ns for path in scan.rglob("*")}
        assert take_in(source).manifest == first
        assert {path: path.stat().st_mtime_ns for path in scan.rglob("*")} == before
        assert Manifest.load(tmp_path / "cache" / MANIFEST) == first

    def test_what_a_killed_ingest_left_is_cleared(self, source, put, take_in, tmp_path):
        put()
        leftover = tmp_path / "cache" / "scans" / ".writing-0123"
        leftover.mkdir(parents=True)
        take_in(source)
        assert not leftover.exists()

    def test_progress_counts_scans(self, source, put_many, take_in):
        put_many([("P-1", 0), ("P-2", 1)])
        seen = []
        take_in(source, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(1, 2), (2, 2)]

    def test_a_changed_voxel_changes_the_root(self, source, put, take_in, tmp_path, example):
        put()
        first = take_in(source).manifest.root
        shutil.rmtree(source.path)
        image = example.image.copy()
        image[0, 0, 0] += 1
        put(image_zyx=image)
        assert take_in(source).manifest.root != first

    def test_one_person_under_two_names_is_quarantined(self, source, put_many, take_in):
        put_many([("P-1", 0), ("P-2", 0)])
        report = take_in(source)
        assert len(report.manifest.scans) == 1
        assert [entry.code for entry in report.quarantined] == ["DUPLICATE_SCAN"]

    def test_a_placeholder_is_no_subject(self, source, put_many, take_in):
        put_many([("ANONYMOUS", 0), ("P-2", 1)])
        report = take_in(source)
        assert [entry.code for entry in report.quarantined] == ["NO_SUBJECT"]
        assert len(report.manifest.scans) == 1

    def test_labels_outside_the_classes_are_quarantined_by_name(self, source, put, take_in):
        put()
        fewer = dict(list(source.classes.items())[:1])
        with pytest.raises(DataError, match="1 of them for UNMAPPED_LABEL") as caught:
            take_in(source.model_copy(update={"classes": fewer}))
        assert "P-17" not in str(caught.value).replace(str(source.path), "")

    def test_a_missing_folder_says_where_and_the_way_out(self, source, take_in):
        with pytest.raises(DataError, match=r"There is no folder .* Correct `path`"):
            take_in(source)

    def test_an_empty_folder_says_what_was_looked_for(self, source, take_in):
        source.path.mkdir()
        with pytest.raises(DataError, match=r"There are no scans in .* Correct `path` and `kind`"):
            take_in(source)

    def test_an_unforeseen_failure_quarantines_that_scan_only(
        self, source, put_many, take_in, monkeypatch
    ):
        put_many([("P-1", 0), ("P-2", 1)])
        candidate = self.candidate_class()
        read, calls = candidate.read, []

        def fail_once(self):
            calls.append(self)
            if len(calls) == 1:
                raise RuntimeError("P-1 was in this text")
            return read(self)

        monkeypatch.setattr(candidate, "read", fail_once)
        report = take_in(source)
        assert [entry.code for entry in report.quarantined] == ["UNEXPECTED"]
        assert "P-1" not in report.quarantined[0].sentence
        assert len(report.manifest.scans) == 1


class TestDicom(SourceContract):
    @pytest.fixture
    def source(self, dicom_source):
        return dicom_source

    @pytest.fixture
    def put(self, put_dicom):
        return put_dicom

    @pytest.fixture
    def put_many(self, put_dicom):
        def put(subjects):
            for index, (subject, seed) in enumerate(subjects):
                put_dicom(str(index), patient_id=subject, seed=seed, study_index=index)

        return put

    def as_stored(self, example):
        """highdicom orders slices so that (slice, down, right) is right-handed: here, reversed."""
        affine = example.affine.copy()
        affine[:3, 3] += 3 * affine[:3, 0]
        affine[:3, 0] *= -1
        return slice(None, None, -1), affine

    def candidate_class(self):
        from data_adapters.dicom import DicomCandidate

        return DicomCandidate


class TestOmeZarr(SourceContract):
    @pytest.fixture
    def source(self, ome_zarr_source):
        return ome_zarr_source

    @pytest.fixture
    def put(self, put_ome_zarr):
        def put(name="P-17", **changes):
            return put_ome_zarr(f"{name}/scan.ome.zarr", **changes)

        return put

    @pytest.fixture
    def put_many(self, put_ome_zarr):
        def put(subjects):
            for index, (subject, seed) in enumerate(subjects):
                put_ome_zarr(f"{subject}/{index}.ome.zarr", seed=seed)

        return put

    def candidate_class(self):
        from data_adapters.ome_zarr import OmeZarrCandidate

        return OmeZarrCandidate
