"""Two sources that hold the same simulated scan, one in each format."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest

from data_adapters.geometry import zyx_affine
from data_adapters.ingest import IngestReport, ingest
from data_adapters.sources import DicomSource, OmeZarrSource
from data_adapters.writing import write_dicom_scan, write_ome_zarr_scan
from tests.data_adapters.dicom_files import SLICES, edit

SEGMENTS = {1: "Left part", 2: "Right part"}
CLASSES = {"Left part": "left", "Right part": "right"}
AFFINE = zyx_affine((5.0, 2.0, 1.5), (-20.0, 10.0, 30.0))


def pseudonymise(subject: str) -> str:
    return hashlib.sha256(b"a key" + subject.encode()).hexdigest()[:32]


def volume(seed: int = 0, shape: tuple[int, int, int] = (4, 6, 7)):
    """Random int16 image; labels with an empty end slice and both classes."""
    random = np.random.default_rng(seed)
    image = random.integers(-500, 2000, shape).astype(np.int16)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[1, 1:3, 1:3] = 1
    labels[2, 3:5, 2:6] = 2
    return image, labels


@pytest.fixture
def put_dicom(tmp_path: Path) -> Callable[..., Path]:
    def put(name: str = "scan", *, seed: int = 0, **changes) -> Path:
        image, labels = volume(seed)
        arguments = {
            "image_zyx": image,
            "labels_zyx": labels,
            "affine_ras": AFFINE,
            "segment_labels": SEGMENTS,
            "patient_id": "P-17",
        }
        folder = tmp_path / "dicom" / name
        write_dicom_scan(folder, **(arguments | changes))
        return folder

    return put


@pytest.fixture
def put_series(put_dicom):
    """Write one series of a study; all of one patient share its frame of reference."""

    def put(name, *, description="T1 AXIAL", image_type=("ORIGINAL", "PRIMARY"), **options):
        folder = put_dicom(name, **options)
        series = pydicom.uid.generate_uid(entropy_srcs=[name])
        for place, file in enumerate(SLICES):
            if (folder / file).is_file():
                edit(
                    folder / file,
                    SeriesInstanceUID=series,
                    SeriesDescription=description,
                    ImageType=list(image_type),
                    SOPInstanceUID=f"{series[:40]}.{place + 1}",
                )
        segmentation = pydicom.dcmread(folder / "seg.dcm")
        segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID = series
        references = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        for place, reference in enumerate(references):
            reference.ReferencedSOPInstanceUID = f"{series[:40]}.{place + 1}"
        segmentation.save_as(folder / "seg.dcm")
        own = pydicom.uid.generate_uid(entropy_srcs=[name, "seg"])
        edit(folder / "seg.dcm", SOPInstanceUID=own)
        return folder

    return put


@pytest.fixture
def put_ome_zarr(tmp_path: Path) -> Callable[..., Path]:
    def put(name: str = "P-17/scan.ome.zarr", *, seed: int = 0, **changes) -> Path:
        image, labels = volume(seed)
        arguments = {
            "image_zyx": image,
            "labels_zyx": labels,
            "affine_ras": AFFINE,
            "labels_name": "parts",
        }
        path = tmp_path / "ome_zarr" / name
        write_ome_zarr_scan(path, **(arguments | changes))
        return path

    return put


@pytest.fixture
def dicom_source(tmp_path: Path) -> DicomSource:
    return DicomSource(path=tmp_path / "dicom", classes=CLASSES)


@pytest.fixture
def ome_zarr_source(tmp_path: Path) -> OmeZarrSource:
    return OmeZarrSource(
        path=tmp_path / "ome_zarr", labels="parts", classes={1: "left", 2: "right"}
    )


@pytest.fixture
def take_in(tmp_path: Path) -> Callable[..., IngestReport]:
    """Ingest into one cache folder of this test."""

    def take(source, cache_dir: Path | None = None, **options) -> IngestReport:
        return ingest(source, cache_dir or tmp_path / "cache", pseudonymise=pseudonymise, **options)

    return take


@pytest.fixture
def example() -> SimpleNamespace:
    image, labels = volume()
    return SimpleNamespace(image=image, labels=labels, affine=AFFINE, volume=volume)


@pytest.fixture
def real_data() -> Path:
    named = os.environ.get("COHORTIUM_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}; name it with COHORTIUM_TEST_DATA")
    return folder
