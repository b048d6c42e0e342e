"""Orthanc stands for a real PACS: asked, mirrored, ingested, and followed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_adapters.cache import open_scan
from data_adapters.dicomweb import discover_dicomweb, mirror
from data_adapters.errors import DataError
from data_adapters.sources import DicomWebSource
from tests.data_adapters.conftest import AFFINE, CLASSES, pseudonymise, volume
from tests.data_adapters.dicomweb.fake_pacs import (
    change,
    contents,
)
from tests.data_adapters.orthanc import running_orthanc, why_not_here


@pytest.fixture(scope="session")
def orthanc_server(tmp_path_factory):
    reason = why_not_here()
    if reason:
        pytest.skip(reason)
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def orthanc(orthanc_server, exports, monkeypatch):
    orthanc_server.empty()
    orthanc_server.store(exports)
    monkeypatch.setenv("COHORTIUM_DICOMWEB_USER", orthanc_server.user)
    monkeypatch.setenv("COHORTIUM_DICOMWEB_PASSWORD", orthanc_server.password)
    return orthanc_server


class TestOrthanc:
    @pytest.fixture
    def source(self, orthanc, tmp_path):
        return DicomWebSource(
            path=tmp_path / "mirror", url=orthanc.url, classes=CLASSES, modality="MR"
        )

    def test_scans_come_back_as_they_were_exported(self, source, exports):
        found = discover_dicomweb(source)
        assert found.quarantined == ()
        scans = {candidate.subject: candidate.read() for candidate in found.candidates}
        assert len(scans) == 3
        for index, (_, scan) in enumerate(sorted(scans.items())):
            image, labels = volume(index)
            np.testing.assert_array_equal(scan.image_czyx[0], image[::-1])
            np.testing.assert_array_equal(scan.labels_zyx, labels[::-1])
            expected = AFFINE.copy()
            expected[:3, 3] += 3 * expected[:3, 0]
            expected[:3, 0] *= -1
            np.testing.assert_allclose(scan.affine_ras, expected, atol=1e-6)

    def test_files_are_not_transcoded(self, source, exports):
        mirror(source)
        exported = sorted(path.read_bytes() for path in exports.rglob("*.dcm"))
        assert contents(source) == exported

    def test_the_query_is_understood(self, source):
        for fields, num_studies in (
            ({"study_dates": ("20200102", "20200103")}, 2),
            ({"study_description": "BRAIN*3"}, 1),
            ({"study_description": "brain [research] ?"}, 3),
            ({"study_description": "KNEE*"}, 0),
            ({"modality": "CT"}, 0),
            ({"limit": 2}, 2),
        ):
            mirror(change(source, **fields))
            assert len(contents(source)) == 5 * num_studies, fields

    def test_a_deleted_study_leaves_the_mirror(self, source, orthanc):
        mirror(source)
        orthanc.delete_study("P-2")
        found = discover_dicomweb(source)
        assert {candidate.subject for candidate in found.candidates} == {"P-1", "P-3"}

    def test_wrong_credentials_are_refused(self, source, monkeypatch):
        monkeypatch.setenv("COHORTIUM_DICOMWEB_PASSWORD", "wrong")
        with pytest.raises(DataError, match="HTTP 401"):
            mirror(source)

    def test_another_address_of_the_same_server_is_no_dicomweb(self, source, orthanc):
        with pytest.raises(DataError, match=r"does not answer a search .* as DICOMweb"):
            mirror(change(source, url=orthanc.url.removesuffix("/dicom-web")))

    def test_it_is_ingested_and_follows_the_pacs(self, source, orthanc, take_in, tmp_path):
        first = take_in(source)
        assert len(first.manifest.subjects) == 3 and first.quarantined == ()
        (entry, *_) = (e for e in first.manifest.scans if e.subject == pseudonymise("P-1"))
        scan = open_scan(tmp_path / "cache", entry)
        np.testing.assert_array_equal(scan.image()[0], volume(0)[0][::-1])
        again = take_in(source)
        assert (again.num_read, again.manifest) == (0, first.manifest)
        orthanc.delete_study("P-1")
        left = take_in(source)
        assert (left.num_read, len(left.manifest.scans)) == (0, 2)
        assert pseudonymise("P-1") not in left.manifest.subjects

    def test_killed_in_the_middle_the_rerun_fetches_the_rest_only(self, source, exports):
        code = (
            "import sys, time; from data_adapters import dicomweb as d;"
            "from data_adapters.sources import DicomWebSource as S; f = d._Study._fetch;"
            "d._Study._fetch = lambda *a: (time.sleep(0.05), f(*a));"
            "d.mirror(S.model_validate_json(sys.argv[1]))"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code, change(source, connections=1).model_dump_json()],
            cwd=Path(__file__).parents[2],
        )
        wait_for(lambda: len(list(source.path.rglob("*.dcm"))) >= 6, child)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        there = len(list(source.path.rglob("*.dcm")))
        assert f"{15 - there} files were fetched, {there} were there already" in mirror(source)[0]
        assert contents(source) == sorted(path.read_bytes() for path in exports.rglob("*.dcm"))


def wait_for(condition, child) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.005)
