"""Three studies in a service on loopback, and a source that asks for them."""

from pathlib import Path

import pydicom
import pytest

from data_adapters import dicomweb_client
from data_adapters.dicomweb_client import DicomWebClient
from data_adapters.sources import DicomWebSource
from data_adapters.writing import write_dicom_scan
from tests.data_adapters.conftest import AFFINE, CLASSES, SEGMENTS, volume
from tests.data_adapters.dicomweb.fake_pacs import (
    FakePacs,
    running,
)

CREDENTIALS = ("TOKEN", "USER", "PASSWORD")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """No credentials but those of the test, and no waiting between tries."""
    for name in CREDENTIALS:
        monkeypatch.delenv(f"COHORTIUM_DICOMWEB_{name}", raising=False)
    monkeypatch.setattr(dicomweb_client, "BACK_OFF_S", (0.0, 0.0, 0.0))


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> Path:
    """Three studies, an MR series of 4 slices and a SEG each, by patient."""
    root = tmp_path_factory.mktemp("exports")
    for index, patient in enumerate(("P-1", "P-2", "P-3")):
        image, labels = volume(index)
        write_dicom_scan(
            root / patient,
            image_zyx=image,
            labels_zyx=labels,
            affine_ras=AFFINE,
            segment_labels=SEGMENTS,
            patient_id=patient,
            study_index=index,
        )
        for path in (root / patient).iterdir():
            dataset = pydicom.dcmread(path)
            dataset.StudyDate = f"2020010{index + 1}"
            dataset.StudyDescription = f"BRAIN [research] {index + 1}"
            dataset.save_as(path)
    return root


@pytest.fixture
def pacs(exports):
    with running(FakePacs()) as fake:
        fake.store(exports)
        yield fake


@pytest.fixture
def source(pacs, tmp_path):
    return DicomWebSource(path=tmp_path / "mirror", url=pacs.url, classes=CLASSES, modality="MR")


@pytest.fixture
def client(pacs):
    return DicomWebClient(pacs.url, connections=2, environment={})
