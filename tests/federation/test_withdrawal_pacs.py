"""Whoever is excluded leaves the copy of a PACS at once, and a real Orthanc is not asked again."""

import io
import re
import time
from contextlib import redirect_stderr

import pydicom
import pytest

from data_adapters.dicomweb_folder import locked
from federation.cli import show_site
from federation.errors import FederationError
from federation.readiness import check_site
from federation.site import open_site
from federation.withdrawal import exclude
from tests.data_adapters.orthanc import running_orthanc, why_not_here
from tests.leaks.planting_elsewhere import PARTS, lay_out_pacs

pytestmark = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())
WITHDRAWN = "MRN0047-1130770^^^Nimmerleinskasse"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orthanc")
    with running_orthanc(folder) as server:
        lay_out_pacs(folder / "sites" / "ward", folder / "exports", server.url)
        server.store(folder / "exports")
        yield server


@pytest.fixture
def ward(orthanc, tmp_path, monkeypatch):
    """A site that has mirrored and ingested two protected subjects and a public one."""
    lay_out_pacs(tmp_path / "ward", tmp_path / "exports", orthanc.url)
    monkeypatch.setenv("COHORTIUM_DICOMWEB_USER", orthanc.user)
    monkeypatch.setenv("COHORTIUM_DICOMWEB_PASSWORD", orthanc.password)
    site = open_site(tmp_path / "ward" / "site.yaml")
    for part in PARTS:
        site.ingest(part)
    return site


def mirrored(site):
    files = site.config.protected[0].path.rglob("*.dcm")
    return {str(pydicom.dcmread(path, stop_before_pixels=True).PatientID) for path in files}


def test_they_leave_the_mirror_at_once_and_are_not_fetched_again(ward):
    assert mirrored(ward) == {"MRN0047-1130770", "MRN0047-1130771"}
    done = exclude(ward, WITHDRAWN, by="op", reason="consent withdrawn")
    assert mirrored(ward) == {"MRN0047-1130771"}
    assert done.still_there == ()
    report = ward.ingest("protected")
    assert mirrored(ward) == {"MRN0047-1130771"}
    (told,) = [note for note in report.notes if "The query finds" in note]
    assert "finds 1 studies: 0 files were fetched, 4 were there already" in told
    assert any("1 studies of excluded subjects" in note for note in report.notes)
    assert not any("MRN" in note for note in report.notes)


def test_a_quick_check_does_not_fetch_them_either(ward):
    exclude(ward, WITHDRAWN, by="op", reason="consent withdrawn")
    assert check_site(ward.config.state.parent / "site.yaml", quick=True).parts[0].num_subjects == 1
    assert mirrored(ward) == {"MRN0047-1130771"}


def test_where_another_run_is_mirroring_it_is_said_and_finished_later(ward):
    with locked(ward.config.protected[0].path):
        with pytest.raises(FederationError, match=r"a copy of a PACS may still hold them. Another"):
            exclude(ward, WITHDRAWN, by="op", reason="consent withdrawn")
        assert ward.excluded_in(ward.manifest("protected")) == set() and ward.exclusions
        assert not ward.exclusions[0].done and not ward.ledger.book.notes
    exclude(ward, WITHDRAWN, by="op", reason="consent withdrawn")
    assert mirrored(ward) == {"MRN0047-1130771"}
    assert ward.exclusions[0].done and len(ward.ledger.book.notes) == 1


def test_fetching_is_shown_with_what_the_pacs_announces(orthanc, ward, tmp_path):
    lay_out_pacs(tmp_path / "again" / "ward", tmp_path / "exports-again", orthanc.url)
    told = []

    def progress(part, *stage):
        told.append(stage)

    check_site(tmp_path / "again" / "ward" / "site.yaml", progress=progress)
    fetching = [counts for stage, *counts in told if stage == "fetching"]
    # Two studies of three slices and a segmentation, which Orthanc counts before any is fetched.
    assert fetching[:2] == [[0, 0], [0, 8]]
    assert [8, 8] in fetching and told.index(("fetching", 8, 8)) < told.index(("checking", 1, 2))


def test_the_screen_has_a_bar_for_each_stage():
    screen = io.StringIO()
    with redirect_stderr(screen), show_site.progress("ward") as update:
        update("protected", "fetching", 0, 0)
        update("protected", "fetching", 6, 8)
        update("protected", "checking", 1, 2)
    shown = screen.getvalue()
    assert "Fetching ward (protected)" in shown and "6/8" in shown
    assert "Checking ward (protected)" in shown and "1/2" in shown
    assert shown.count("Fetching") == 1


def test_the_bar_has_a_rate_and_the_time_that_is_left():
    screen = io.StringIO()
    with redirect_stderr(screen), show_site.progress("ward") as update:
        for done in (0, 20, 40, 60):
            update("protected", "checking", done, 80)
            time.sleep(0.05)
    rate, elapsed, left = re.search(r"60/80 +(\S+/s) +(\S+) +(\S+)", screen.getvalue()).groups()
    assert float(rate.removesuffix("/s")) > 0
    assert all(re.fullmatch(r"\d:\d\d:\d\d", each) for each in (elapsed, left))
