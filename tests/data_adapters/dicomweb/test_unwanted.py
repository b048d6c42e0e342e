"""Who was excluded is not fetched from a PACS, and leaves the mirror; others are as before."""

import io

import pydicom
import pytest

from data_adapters.aliases import Excluded, Identity
from data_adapters.dicomweb import forget, mirror
from data_adapters.dicomweb_folder import locked
from data_adapters.errors import DataError
from data_adapters.sources import SubjectRule
from data_adapters.unwanted import unwanted_by
from tests.data_adapters.conftest import pseudonymise
from tests.data_adapters.dicomweb.fake_pacs import change, contents, instance_requests


def out(identifier, issuer=""):
    """Return that one person was excluded, known by this identifier."""
    subject = f"{identifier}^^^{issuer}" if issuer else identifier
    aliases = Identity(subject, frozenset({(identifier, issuer)})).aliases(pseudonymise)
    return unwanted_by(SubjectRule(), Excluded(people=(aliases,)), pseudonymise)


def study_of(pacs, patient):
    (study,) = {key[0] for key in pacs.objects if pacs.headers[key[0]].PatientID == patient}
    return study


def give_issuer(pacs, patient, issuer):
    """Let the files name an issuer, which this service's lists do not."""
    for key in [key for key in pacs.objects if key[0] == study_of(pacs, patient)]:
        file = pydicom.dcmread(io.BytesIO(pacs.objects[key]))
        file.IssuerOfPatientID = issuer
        written = io.BytesIO()
        file.save_as(written)
        pacs.objects[key] = written.getvalue()


def patients(source):
    return {pydicom.dcmread(io.BytesIO(file)).PatientID for file in contents(source)}


def requests_for(pacs, patient):
    study = study_of(pacs, patient)
    return [path for path in pacs.asked if f"/{study}" in path]


def test_their_studies_are_not_even_asked_for(pacs, source):
    notes = mirror(source, unwanted=out("P-2"))
    assert patients(source) == {"P-1", "P-3"}
    assert requests_for(pacs, "P-2") == []
    assert any("1 studies of excluded subjects" in note for note in notes)
    assert "The query finds 2 studies: 10 files were fetched" in notes[0]


def test_what_was_fetched_before_leaves_the_mirror(pacs, source):
    mirror(source)
    before = len(list((source.path / "patients").iterdir()))
    mirror(source, unwanted=out("P-2"))
    assert patients(source) == {"P-1", "P-3"}
    assert len(list((source.path / "patients").iterdir())) == before - 1


def test_they_take_no_place_under_a_limit(pacs, source):
    mirror(change(source, limit=2), unwanted=out("P-1"))
    assert patients(source) == {"P-2", "P-3"}


def test_where_the_list_names_no_issuer_the_first_file_decides(pacs, source):
    for patient in ("P-1", "P-2", "P-3"):
        give_issuer(pacs, patient, "NORTH")
    notes = mirror(change(source, connections=1), unwanted=out("P-2", "NORTH"))
    assert patients(source) == {"P-1", "P-3"}
    assert len([p for p in instance_requests(pacs) if study_of(pacs, "P-2") in p]) == 1
    assert any("1 studies of excluded subjects" in note for note in notes)
    left = {path.name for room in source.path.iterdir() if room.is_dir() for path in room.iterdir()}
    assert len(left) == 2, "nothing is kept of the third, in any room"


def test_the_same_number_from_another_issuer_is_somebody_else(pacs, source):
    give_issuer(pacs, "P-2", "SOUTH")
    mirror(source, unwanted=out("P-2", "NORTH"))
    assert patients(source) == {"P-1", "P-2", "P-3"}


def test_a_study_fetched_earlier_is_looked_at_where_the_list_does_not_tell(pacs, source):
    give_issuer(pacs, "P-2", "NORTH")
    mirror(source)
    mirror(source, unwanted=out("P-2", "NORTH"))
    assert patients(source) == {"P-1", "P-3"}


def test_forgetting_deletes_at_once_and_asks_nobody(pacs, source):
    mirror(source)
    asked = pacs.asked.total()
    assert forget(source, out("P-2")) == 1
    assert patients(source) == {"P-1", "P-3"}
    assert pacs.asked.total() == asked
    assert forget(source, out("P-2")) == 0


def test_what_was_not_fetched_whole_is_forgotten_too(pacs, source):
    mirror(source)
    (study,) = [
        path
        for path in (source.path / "studies").iterdir()
        if pydicom.dcmread(next(path.rglob("*.dcm"))).PatientID == "P-2"
    ]
    study.rename(source.path / "incoming" / study.name)
    assert forget(source, out("P-2")) == 1
    assert not any((source.path / "incoming").iterdir())


def test_a_folder_that_is_no_mirror_is_left_alone(source):
    source.path.mkdir()
    (source.path / "image.dcm").write_bytes(b"somebody's")
    assert forget(source, out("P-2")) == 0
    assert (source.path / "image.dcm").is_file()


def test_nothing_is_forgotten_under_a_running_mirror(pacs, source):
    mirror(source)
    with locked(source.path), pytest.raises(DataError, match="Another run is mirroring"):
        forget(source, out("P-2"))
    assert patients(source) == {"P-1", "P-2", "P-3"}


def test_where_nobody_is_excluded_no_header_is_read_for_it():
    assert unwanted_by(SubjectRule(), Excluded(), pseudonymise) is None
