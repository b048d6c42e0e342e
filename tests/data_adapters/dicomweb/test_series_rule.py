"""The rule for series is the same for a folder, a DICOMDIR and a PACS."""

import pytest

from data_adapters.discover import discover
from data_adapters.sources import Channel, DicomSource, DicomWebSource, Select
from tests.data_adapters.conftest import CLASSES
from tests.data_adapters.dicom_files import write_medium
from tests.data_adapters.dicomweb.fake_pacs import FakePacs, running


@pytest.fixture(params=["folder", "DICOMDIR", "PACS"])
def found(request, tmp_path):
    """Look at the series that were put, in the place that the test is for."""

    def found(**rule):
        folder = tmp_path / "dicom"
        if request.param == "folder":
            return discover(DicomSource(path=folder, classes=CLASSES, **rule))
        if request.param == "DICOMDIR":
            medium = write_medium(folder, tmp_path / "medium")
            return discover(DicomSource(path=medium / "DICOMDIR", classes=CLASSES, **rule))
        with running(FakePacs()) as pacs:
            pacs.store(folder)
            mirror = tmp_path / "mirror"
            return discover(DicomWebSource(path=mirror, url=pacs.url, classes=CLASSES, **rule))

    return found


def test_one_match_is_taken(put_series, found):
    put_series("a")
    put_series("b", description="T2")
    discovery = found(select=Select(description="T2"))
    assert (len(discovery.candidates), discovery.quarantined) == (1, ())
    assert discovery.candidates[0].read()


def test_several_series_that_match_are_not_chosen_between(put_series, found):
    put_series("a")
    put_series("b")
    discovery = found(select=Select(modality="MR"))
    (entry,) = discovery.quarantined
    assert (entry.code, discovery.candidates) == ("AMBIGUOUS_SERIES", ())
    assert entry.sentence == "Several series of this study match: 2 images of 4, 4 slices."


def test_a_study_without_a_match_is_set_aside(put_series, found):
    put_series("a")
    put_series("b", patient_id="P-2", study_index=2, description="T2")
    discovery = found(select=Select(description="T2"))
    assert [entry.code for entry in discovery.quarantined] == ["NO_MATCHING_SERIES"]
    assert len(discovery.candidates) == 1


def test_a_study_that_lacks_a_channel_is_set_aside(put_series, found):
    put_series("a", description="T1")
    rule = [Channel(name=name, select=Select(description=name)) for name in ("T1", "T2")]
    assert [entry.code for entry in found(channels=rule).quarantined] == ["MISSING_CHANNEL"]
