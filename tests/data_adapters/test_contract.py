"""What every source must do, whatever its format."""

import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest

from data_adapters import staging
from data_adapters.aliases import Excluded, image_name
from data_adapters.cache import open_scan
from data_adapters.discover import locate
from data_adapters.errors import DataError
from data_adapters.ingest import MANIFEST, exclude
from data_adapters.manifest import Manifest
from data_adapters.sources import SubjectRule, Targets
from tests.data_adapters.conftest import pseudonymise


class SourceContract:
    """A subclass gives ``source`` and ``put`` (write the example scan under some subject)."""

    def test_pixels_labels_and_geometry_come_back_in_ras_millimetres(
        self, source, put, take_in, tmp_path, example
    ):
        put()
        report = take_in(source)
        (entry,) = report.manifest.scans
        scan = open_scan(tmp_path / "cache", entry, locate([source], pseudonymise))
        order, affine = self.as_stored(example)
        image = scan.image()
        np.testing.assert_array_equal(image, example.image[order].astype(np.float32)[None])
        np.testing.assert_array_equal(scan.labels(), example.labels[order])
        np.testing.assert_allclose(scan.affine_ras, affine, atol=1e-6)
        assert image.dtype == np.float32
        assert scan.labels().dtype == np.uint8
        np.testing.assert_allclose(scan.means, [example.image.mean()])
        np.testing.assert_allclose(scan.deviations, [example.image.std()])
        assert entry.spacing_mm_zyx == (5.0, 2.0, 1.5)
        assert entry.shape_czyx == (1, 4, 6, 7)
        assert report.manifest.classes == ("background", "left", "right")
        assert report.quarantined == ()

    def test_a_region_is_the_same_part_of_the_whole(self, source, put, take_in, tmp_path):
        put()
        (entry,) = take_in(source).manifest.scans
        scan = open_scan(tmp_path / "cache", entry, locate([source], pseudonymise))
        region = (slice(1, 3), slice(2, 6), slice(0, 5))
        np.testing.assert_array_equal(scan.image(region), scan.image()[(slice(None), *region)])
        np.testing.assert_array_equal(scan.labels(region), scan.labels()[region])

    def test_targets_come_from_a_table_and_what_it_lacks_is_quarantined(
        self, source, put_many, take_in, tmp_path
    ):
        put_many([("P-1", 0), ("P-2", 1), ("P-3", 2)])
        (tmp_path / "findings.csv").write_text("who,finding\nP-1,yes\nP-2,no\n")
        targets = Targets(
            path=tmp_path / "findings.csv",
            key="subject",
            id_column="who",
            column="finding",
            classes={"yes": "sick", "no": "healthy"},
        )
        report = take_in(source.model_copy(update={"targets": targets}))
        assert report.manifest.target_classes == ("healthy", "sick")
        found = {entry.subject: entry.target for entry in report.manifest.scans}
        assert found == {pseudonymise("P-1"): 1.0, pseudonymise("P-2"): 0.0}
        assert [entry.code for entry in report.quarantined] == ["NO_TARGET"]

    def test_a_changed_table_is_read_again(self, source, put, take_in, tmp_path):
        put()
        table = tmp_path / "ages.csv"
        targets = Targets(path=table, key="subject", id_column="who", column="age")
        source = source.model_copy(update={"targets": targets})
        roots = []
        for age in ("41", "1042"):
            table.write_text(f"who,age\nP-17,{age}\n")
            roots.append(take_in(source).manifest)
        assert [manifest.scans[0].target for manifest in roots] == [41.0, 1042.0]
        assert roots[0].root != roots[1].root

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

    def test_a_rerun_reads_and_writes_nothing_and_ends_the_same(
        self, source, put, take_in, tmp_path
    ):
        put()
        first = take_in(source)
        scans = tmp_path / "cache" / "scans"
        before = {path: path.stat().st_mtime_ns for path in scans.rglob("*")}
        again = take_in(source)
        assert (first.num_read, again.num_read) == (1, 0)
        assert again.manifest == first.manifest
        assert {path: path.stat().st_mtime_ns for path in scans.rglob("*")} == before
        assert Manifest.load(tmp_path / "cache" / MANIFEST) == first.manifest

    def test_only_what_is_new_is_read(self, source, put_many, take_in):
        put_many([("P-1", 0)])
        take_in(source)
        put_many([("P-1", 0), ("P-2", 1)])
        report = take_in(source)
        assert len(report.manifest.scans) == 2
        assert report.num_read <= 1 + self.rewritten

    # Scans that ``put_many`` writes anew when it is called again: their times change.
    rewritten = 0

    def test_what_is_gone_from_the_source_leaves_the_cache(
        self, source, put_many, take_in, tmp_path
    ):
        put_many([("P-1", 0), ("P-2", 1)])
        take_in(source)
        self.remove_one(source)
        report = take_in(source)
        assert len(report.manifest.scans) == 1
        assert len(list((tmp_path / "cache" / "scans").iterdir())) == 1

    def remove_one(self, source):
        first, *_ = sorted(path for path in source.path.iterdir() if path.is_dir())
        shutil.rmtree(first)

    # What is said of somebody who is out.
    left_out = "1 scans of excluded subjects were left out."

    def test_an_excluded_subject_leaves_and_stays_out(self, source, put_many, take_in, tmp_path):
        put_many([("P-1", 0), ("P-2", 1)])
        whole = take_in(source).manifest
        (gone,) = [e for e in whole.scans if e.subject == pseudonymise("P-1")]
        who = Excluded(
            (frozenset(gone.aliases),), frozenset({image_name(gone.image, pseudonymise)})
        )
        left = exclude(tmp_path / "cache", who, pseudonymise=pseudonymise)
        assert left == exclude(tmp_path / "cache", who, pseudonymise=pseudonymise)
        assert left.subjects == (pseudonymise("P-2"),)
        assert len(list((tmp_path / "cache" / "scans").iterdir())) == 1
        again = take_in(source, excluded=lambda: who)
        assert again.manifest == left
        assert self.left_out in again.notes

    def test_an_excluded_subject_stays_out_under_another_name(
        self, source, put_many, take_in, tmp_path
    ):
        put_many([("P-1", 0), ("P-2", 1)])
        (gone,) = [e for e in take_in(source).manifest.scans if e.subject == pseudonymise("P-1")]
        by_name = Excluded((frozenset(gone.aliases),))
        by_image = Excluded(images=frozenset({image_name(gone.image, pseudonymise)}))
        issued = source.model_copy(update={"subjects": SubjectRule(issuer="LATER")})
        assert len(take_in(issued, excluded=lambda: by_name).manifest.scans) == 1
        put_many([("Q-9", 0), ("P-2", 1)])
        assert len(take_in(source, excluded=lambda: by_name).manifest.scans) == 2
        assert len(take_in(source, excluded=lambda: by_image).manifest.scans) == 1

    def test_excluding_everybody_leaves_nothing_behind(self, source, put_many, take_in, tmp_path):
        put_many([("P-1", 0)])
        (gone,) = take_in(source).manifest.scans
        who = Excluded((frozenset(gone.aliases),))
        cache = tmp_path / "cache"
        (cache / "scans" / ".writing-left").mkdir()
        assert exclude(cache, who, pseudonymise=pseudonymise) is None
        assert list((cache / "scans").iterdir()) == []
        assert not (cache / MANIFEST).exists()
        assert (cache / "index.jsonl").read_bytes() == b""

    def test_two_equal_scans_in_one_batch_leave_no_second_copy(
        self, source, put_many, take_in, tmp_path
    ):
        put_many([("P-1", 0), ("P-1", 0), ("P-2", 0)])
        report = take_in(source)
        (kept,) = report.manifest.scans
        assert [path.name for path in (tmp_path / "cache" / "scans").iterdir()] == [
            kept.path.removeprefix("scans/")
        ]

    def test_worker_processes_give_the_same(self, source, put_many, take_in, tmp_path):
        put_many([("P-1", 0), ("P-2", 1), ("P-2", 2), ("ANON", 3)])
        alone = take_in(source, tmp_path / "one")
        together = take_in(source, tmp_path / "two", workers=2)
        assert replace(together, notes=alone.notes) == alone

    def test_what_a_killed_ingest_left_is_cleared(self, source, put, take_in, tmp_path):
        put()
        leftover = tmp_path / "cache" / "scans" / ".writing-0123"
        leftover.mkdir(parents=True)
        take_in(source)
        assert not leftover.exists()

    def test_progress_counts_scans(self, source, put_many, take_in):
        put_many([("P-1", 0), ("P-2", 1)])
        seen = []
        take_in(source, progress=lambda *told: seen.append(told))
        checked = [told for told in seen if told[0] != "fetching"]
        assert checked == [("checking", 1, 2), ("checking", 2, 2)]

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
        read, calls = staging._read, []

        def fail_once(task):
            calls.append(task)
            if len(calls) == 1:
                raise RuntimeError("P-1 was in this text")
            return read(task)

        monkeypatch.setattr(staging, "_read", fail_once)
        report = take_in(source)
        assert [entry.code for entry in report.quarantined] == ["UNEXPECTED"]
        assert "P-1" not in report.quarantined[0].sentence
        assert len(report.manifest.scans) == 1


class TestDicom(SourceContract):
    rewritten = 1

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


class TestOmeZarr(SourceContract):
    rewritten = 1

    @pytest.fixture
    def source(self, ome_zarr_source):
        return ome_zarr_source

    @pytest.fixture
    def put(self, put_ome_zarr):
        def put(name="P-17", **changes):
            return put_ome_zarr(f"{name}/scan.ome.zarr", **changes)

        return put

    @pytest.fixture
    def put_many(self, put_ome_zarr, tmp_path):
        def put(subjects):
            shutil.rmtree(tmp_path / "ome_zarr", ignore_errors=True)
            for index, (subject, seed) in enumerate(subjects):
                put_ome_zarr(f"{subject}/{index}.ome.zarr", seed=seed)

        return put


class TestRechunkedOmeZarr(TestOmeZarr):
    """The same images, copied into the cache."""

    @pytest.fixture
    def source(self, ome_zarr_source):
        return ome_zarr_source.model_copy(update={"rechunk": True})
