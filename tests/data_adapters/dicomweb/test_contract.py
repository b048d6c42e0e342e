"""A PACS does what every source must do."""

import pytest

from data_adapters.errors import DataError
from data_adapters.sources import DicomWebSource
from tests.data_adapters import test_contract
from tests.data_adapters.conftest import CLASSES
from tests.data_adapters.dicomweb.fake_pacs import FakePacs, running


class TestDicomWeb(test_contract.TestDicom):
    rewritten = 0
    left_out = "1 studies of excluded subjects were not fetched, or left the mirror."

    @pytest.fixture
    def pacs(self):
        with running(FakePacs()) as fake:
            self.pacs = fake
            yield fake

    @pytest.fixture
    def source(self, pacs, tmp_path):
        return DicomWebSource(path=tmp_path / "mirror", url=pacs.url, classes=CLASSES)

    @pytest.fixture
    def put(self, put_dicom, pacs):
        def put(*names, **changes):
            pacs.objects.clear()
            pacs.store(put_dicom(*names, **changes))

        return put

    @pytest.fixture
    def put_many(self, put_dicom, pacs):
        def put(subjects):
            pacs.objects.clear()
            for index, (subject, seed) in enumerate(subjects):
                options = {"patient_id": subject, "seed": seed, "study_index": index}
                pacs.store(put_dicom(str(index), **options))

        return put

    def remove_one(self, source):
        self.pacs.delete_study("P-1")

    def test_a_missing_folder_says_where_and_the_way_out(self, source, take_in):
        """The folder is made; what may be missing is the service."""
        with pytest.raises(DataError, match=r"127\.0\.0\.1"):
            take_in(source.model_copy(update={"url": "http://127.0.0.1:9/dicom-web"}))
