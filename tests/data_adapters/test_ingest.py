"""What an ingest does when the machine is in the way, and when several sources are one data set."""

from dataclasses import replace

import numpy as np
import pytest

from data_adapters import staging
from data_adapters.errors import CacheError, DataError
from data_adapters.ingest import MANIFEST, NothingUsable, ingest
from data_adapters.reasons import Unusable
from data_adapters.sources import SubjectRule
from tests.data_adapters.conftest import pseudonymise


@pytest.fixture
def two_patients(put_dicom):
    for number in (1, 2):
        put_dicom(str(number), patient_id=f"P-{number}", seed=number, study_index=number)


@pytest.mark.parametrize("error", [ValueError, OSError(28, "full"), PermissionError])
def test_a_full_disk_ends_the_ingest_and_leaves_the_data_set_as_it_was(
    two_patients, dicom_source, take_in, tmp_path, monkeypatch, error
):
    """tensorstore says ValueError for a full disk."""

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(staging, "write_pixels", fail)
    with pytest.raises(CacheError, match=r"cannot be written .* space left"):
        take_in(dicom_source)
    assert not (tmp_path / "cache" / MANIFEST).exists()
    monkeypatch.undo()
    assert len(take_in(dicom_source).manifest.scans) == 2


def test_memory_that_runs_out_ends_the_ingest(two_patients, dicom_source, take_in, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(staging, "measure", fail)
    with pytest.raises(CacheError, match="fewer --workers"):
        take_in(dicom_source)


def test_pixels_that_cannot_be_read_while_they_are_copied_are_the_scans_own_fault(
    two_patients, dicom_source, take_in, monkeypatch
):
    def fail(*args, **kwargs):
        raise Unusable("UNDECODABLE_PIXELS", "KeyError")

    monkeypatch.setattr(staging, "write_pixels", fail)
    with pytest.raises(NothingUsable) as caught:
        take_in(dicom_source)
    assert [entry.code for entry in caught.value.quarantined] == ["UNDECODABLE_PIXELS"] * 2


def test_data_that_became_unusable_leave_the_cache_empty(
    two_patients, dicom_source, take_in, tmp_path
):
    take_in(dicom_source)
    with pytest.raises(NothingUsable):
        take_in(dicom_source.model_copy(update={"classes": {"Other": "x"}}))
    cache = tmp_path / "cache"
    assert list((cache / "scans").iterdir()) == []
    assert not (cache / MANIFEST).exists()


def test_who_is_excluded_is_asked_while_nobody_else_can_write(
    two_patients, dicom_source, take_in, tmp_path
):
    from data_adapters.aliases import NOBODY
    from data_adapters.ingest import alone

    def asked():
        with pytest.raises(DataError, match="Another process"), alone(tmp_path / "cache"):
            pass
        return NOBODY

    take_in(dicom_source, excluded=asked)


def both(dicom_source, ome_zarr_source, **rules):
    return [
        dicom_source.model_copy(update={"subjects": SubjectRule(issuer="HOSPITAL", **rules)}),
        ome_zarr_source.model_copy(update={"subjects": SubjectRule(issuer="LAB", **rules)}),
    ]


def test_one_patient_under_two_identifiers_in_two_formats_is_one_subject(
    put_dicom, put_ome_zarr, dicom_source, ome_zarr_source, tmp_path
):
    put_dicom("1", patient_id="P-1", seed=1)
    put_ome_zarr("donor-7/a.ome.zarr", seed=2)
    put_ome_zarr("donor-8/a.ome.zarr", seed=3)
    crosswalk = tmp_path / "who.csv"
    crosswalk.write_text("id,subject\nP-1^^^HOSPITAL,Anna\ndonor-7^^^LAB,Anna\n")
    apart = ingest(
        both(dicom_source, ome_zarr_source), tmp_path / "one", pseudonymise=pseudonymise
    ).manifest
    joined = ingest(
        both(dicom_source, ome_zarr_source, crosswalk=crosswalk),
        tmp_path / "two",
        pseudonymise=pseudonymise,
    ).manifest
    assert (len(apart.scans), len(apart.subjects)) == (3, 3)
    assert (len(joined.scans), len(joined.subjects)) == (3, 2)
    assert joined.source_kind == "dicom+ome_zarr"
    assert apart.root != joined.root


def test_sources_with_other_classes_are_not_one_data_set(
    two_patients, dicom_source, put_ome_zarr, ome_zarr_source, tmp_path
):
    put_ome_zarr()
    other = ome_zarr_source.model_copy(update={"classes": {1: "left", 2: "middle"}})
    with pytest.raises(DataError, match=r"different classes.* map both onto it"):
        ingest([dicom_source, other], tmp_path / "cache", pseudonymise=pseudonymise)


def test_another_reading_of_an_image_in_place_is_not_the_one_that_was_taken_in(
    put_ome_zarr, ome_zarr_source, take_in, tmp_path
):
    """Else a swapped class map in the site file would change labels behind the manifest's back."""
    from data_adapters.cache import open_scan
    from data_adapters.discover import locate

    put_ome_zarr()
    (entry,) = take_in(ome_zarr_source).manifest.scans
    open_scan(tmp_path / "cache", entry, locate([ome_zarr_source], pseudonymise))
    swapped = ome_zarr_source.model_copy(update={"classes": {1: "right", 2: "left"}})
    with pytest.raises(DataError, match="site file now says otherwise"):
        open_scan(tmp_path / "cache", entry, locate([swapped], pseudonymise))


def test_channels_that_a_source_does_not_name_are_never_cached(
    put_dicom, dicom_source, take_in, monkeypatch
):
    put_dicom()
    read = staging._read

    def read_twice(task):
        scan = read(task)
        image = np.concatenate([scan.image_czyx] * 2)
        return replace(scan, image_czyx=image, slopes=(1.0,) * 2, intercepts=(0.0,) * 2)

    monkeypatch.setattr(staging, "_read", read_twice)
    with pytest.raises(NothingUsable) as caught:
        take_in(dicom_source)
    assert [entry.code for entry in caught.value.quarantined] == ["UNEXPECTED"]
