"""One CT of two subjects in four transfer syntaxes, with headers as a scanner writes them."""

import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.phantoms import ct
from tests.benchmarks.processes import files_in
from tests.benchmarks.sizes import Sizes

# Name in the tables to transfer syntax (PS3.5 annex A).
SYNTAXES = {
    "raw": "1.2.840.10008.1.2.1",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "J2K": "1.2.840.10008.1.2.4.90",
}
SUBJECTS = ("S1", "S2")
SLOPE, INTERCEPT = 1, -1024
SPACING_MM = (1.25, 0.7, 0.7)


@dataclass(frozen=True)
class Series:
    """The series of all subjects in one transfer syntax.

    Args:
        source: Folder of a DICOM source, a subfolder for each subject.
        npy: Stored values (z, y, x), z rising with the patient's superior axis.
    """

    syntax: str
    source: Path
    npy: Path

    @property
    def folder(self) -> Path:
        """Return the folder of the first subject's files."""
        return self.source / SUBJECTS[0]

    @property
    def files(self) -> list[Path]:
        """Return the first subject's files, from foot to head."""
        return sorted(self.folder.iterdir())

    def ratio(self) -> float:
        """Return decoded bytes by the files' bytes."""
        stored = sum(file.stat().st_size for file in files_in(self.folder))
        return self.npy.stat().st_size / stored


def write_all_series(folder: Path, sizes: Sizes) -> list[Series]:
    """Write every series; two processes, for encoders are slow."""
    npy = folder / "ct.npy"
    np.save(npy, ct(sizes.series_zyx))
    found = [Series(name, folder / f"dicom-{name.lower()}", npy) for name in SYNTAXES]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        # The slowest one first.
        list(pool.map(_write, found[::-1]))
    os.sync()
    return found


def source_of(series: Series) -> Any:
    """Return the source as a site file would declare it."""
    from data_adapters.sources import DicomSource, Targets

    table = Targets(path=series.source / "targets.csv", id_column="subject", column="value")
    return DicomSource(path=series.source, targets=table)


def _write(series: Series) -> None:
    for subject in SUBJECTS:
        (series.source / subject).mkdir(parents=True)
    voxels = np.load(series.npy, mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index, pixels in enumerate(voxels):
            _write_slice(series, index, np.ascontiguousarray(pixels))
    rows = "".join(f"{subject},{number}\n" for number, subject in enumerate(SUBJECTS))
    (series.source / "targets.csv").write_text(f"subject,value\n{rows}")


def _write_slice(series: Series, index: int, pixels: np.ndarray) -> None:
    """Encode once, write for each subject; the second one lies elsewhere, so is another image."""
    dataset = _scanner_header(pixels)
    if series.syntax != "raw":
        dataset.compress(SYNTAXES[series.syntax], generate_instance_uid=False)
    for number, subject in enumerate(SUBJECTS):
        dataset.PatientID = subject
        dataset.StudyInstanceUID = f"1.2.3.{number}"
        dataset.SeriesInstanceUID = f"1.2.3.{number}.1"
        dataset.FrameOfReferenceUID = f"1.2.3.{number}.2"
        dataset.SOPInstanceUID = f"1.2.3.{number}.1.{index}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = [-180, -180, 500 * number + SPACING_MM[0] * index]
        path = series.source / subject / f"{index:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)


def _scanner_header(pixels: np.ndarray) -> Any:
    """Return pydicom's own CT, 200 elements with private ones, around other pixels."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    dataset = dcmread(get_testdata_file("CT_small.dcm", download=False))
    dataset.pop("DataSetTrailingPadding", None)
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = list(SPACING_MM[1:])
    dataset.SliceThickness = SPACING_MM[0]
    dataset.RescaleSlope, dataset.RescaleIntercept = SLOPE, INTERCEPT
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelData = pixels.tobytes()
    return dataset
