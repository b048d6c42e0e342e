"""Arrays to DICOM (MR series + SEG) or OME-Zarr 0.5: for simulated sites, scripts and tests.

Everything identifying that is written here is plainly fake, so that a gate has something to find.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_adapters.geometry import RAS_FROM_LPS, axis_aligned_parts, axis_steps
from data_adapters.zarr_store import ZarrImage, write_zarr_image

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
MICROMETRES_PER_MM = 1000.0
FAKE_STUDY_DATE = "20000101"
FAKE_STUDY_TIME = "120000"


def write_dicom_scan(  # noqa: PLR0913
    folder: Path,
    *,
    image_zyx: NDArray[Any],
    labels_zyx: NDArray[np.uint8],
    affine_ras: NDArray[np.float64],
    segment_labels: dict[int, str],
    patient_id: str,
    study_index: int = 0,
    series_description: str = "T1 AXIAL",
    issuer: str = "",
    reverse_files: bool = False,
) -> None:
    """Write one MR series (a file per slice) and one binary DICOM SEG into ``folder``.

    UIDs are derived from ``patient_id`` and ``study_index``, so the same call writes the same
    study again.

    Args:
        folder: Created where needed; one scan a folder.
        image_zyx: int16 or uint16 stored values.
        labels_zyx: Label values; 0 is background, the others are keys of ``segment_labels``.
        affine_ras: Array indices (z, y, x) to RAS+ millimetres. Orthogonal; any rotation or flip.
        segment_labels: Label value to the SegmentLabel that is written.
        issuer: IssuerOfPatientID, left out when empty.
        reverse_files: Number files and instances against the array order.

    Raises:
        ValueError: The shapes differ, the pixels are not 16-bit integers, the axes are sheared,
            or a label value has no name.
    """
    _check_dicom_scan(image_zyx, labels_zyx, segment_labels)
    affine_lps = RAS_FROM_LPS @ np.asarray(affine_ras, dtype=np.float64)
    folder.mkdir(parents=True, exist_ok=True)
    study = _Study(patient_id, issuer, study_index, series_description)
    num_slices = len(image_zyx)
    order = range(num_slices - 1, -1, -1) if reverse_files else range(num_slices)
    slices = [
        _mr_slice(study, image_zyx[index], affine_lps, index=index, number=number)
        for number, index in enumerate(order, start=1)
    ]
    for number, dataset in enumerate(slices, start=1):
        dataset.save_as(folder / f"slice_{number:03d}.dcm", enforce_file_format=True)
    segmentation = _segmentation(study, slices, labels_zyx[list(order)], segment_labels)
    segmentation.save_as(folder / "seg.dcm", enforce_file_format=True)


def write_ome_zarr_scan(  # noqa: PLR0913
    path: Path,
    *,
    image_zyx: NDArray[Any],
    labels_zyx: NDArray[Any],
    affine_ras: NDArray[np.float64],
    labels_name: str,
    unit: Literal["micrometer", "millimeter"] = "micrometer",
) -> None:
    """Write an OME-Zarr 0.5 image (z, y, x) with one labels group, as a lab would keep it.

    Args:
        path: The image group, usually ``<subject>/<name>.ome.zarr``; must not exist.
        affine_ras: Axis-aligned with positive steps, for OME-Zarr 0.5 has scale and translation
            only; its spatial axes are taken as RAS+.
        unit: The unit the axes are written in; values are converted from millimetres.

    Raises:
        ValueError: The affine is rotated or flipped, or the shapes differ.
        FileExistsError: ``path`` exists.
    """
    if image_zyx.shape != labels_zyx.shape:
        raise ValueError(f"image {image_zyx.shape} and labels {labels_zyx.shape} differ in shape")
    scale_mm, translation_mm = axis_aligned_parts(affine_ras)
    factor = MICROMETRES_PER_MM if unit == "micrometer" else 1.0
    geometry = ZarrImage(
        axes=("z", "y", "x"),
        unit=unit,
        scale=tuple(value * factor for value in scale_mm),
        translation=tuple(value * factor for value in translation_mm),
    )
    write_zarr_image(path, image_zyx, geometry, name="image", labels={labels_name: labels_zyx})


def _check_dicom_scan(
    image_zyx: NDArray[Any], labels_zyx: NDArray[np.uint8], segment_labels: dict[int, str]
) -> None:
    if image_zyx.shape != labels_zyx.shape or image_zyx.ndim != 3:
        raise ValueError(f"image {image_zyx.shape} and labels {labels_zyx.shape} must both be zyx")
    if image_zyx.dtype not in (np.int16, np.uint16):
        raise ValueError(f"pixels must be int16 or uint16, not {image_zyx.dtype}")
    unnamed = set(np.unique(labels_zyx).tolist()) - {0, *segment_labels}
    if unnamed:
        raise ValueError(f"label values {sorted(unnamed)} have no name in segment_labels")


class _Study:
    """Identifiers of one simulated study: deterministic UIDs and fake header values."""

    def __init__(self, patient_id: str, issuer: str, index: int, description: str) -> None:
        self.patient_id = patient_id
        self.issuer = issuer
        self.index = index
        self.description = description

    def uid(self, *what: str) -> "UID":
        from pydicom.uid import generate_uid

        sources = ["cohortium-simulated", self.patient_id, self.issuer, str(self.index), *what]
        return generate_uid(entropy_srcs=sources)

    def fill(self, dataset: "Dataset") -> None:
        dataset.PatientName = f"FAKE^{self.patient_id}"
        dataset.PatientID = self.patient_id
        if self.issuer:
            dataset.IssuerOfPatientID = self.issuer
        dataset.PatientBirthDate = "19000101"
        dataset.PatientSex = "O"
        dataset.StudyInstanceUID = self.uid("study")
        dataset.StudyID = str(self.index)
        dataset.StudyDate = FAKE_STUDY_DATE
        dataset.StudyTime = FAKE_STUDY_TIME
        dataset.AccessionNumber = f"FAKE{self.index}"
        dataset.ReferringPhysicianName = "FAKE^Physician"
        dataset.InstitutionName = "FAKE Hospital"
        dataset.FrameOfReferenceUID = self.uid("frame")
        dataset.PositionReferenceIndicator = ""


def _mr_slice(
    study: _Study,
    pixels_yx: NDArray[Any],
    affine_lps: NDArray[np.float64],
    *,
    index: int,
    number: int,
) -> "Dataset":
    """Return one MR Image Storage instance (PS3.3 A.4) at slice ``index`` of the volume."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(MR_IMAGE_STORAGE)
    dataset.file_meta.MediaStorageSOPInstanceUID = study.uid("image", str(index))
    dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT_LITTLE_ENDIAN)
    dataset.SOPClassUID = MR_IMAGE_STORAGE
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    study.fill(dataset)
    _fill_mr_series(dataset, study, number)
    _fill_plane(dataset, affine_lps, index)
    _fill_pixels(dataset, pixels_yx)
    return dataset


def _fill_mr_series(dataset: "Dataset", study: _Study, number: int) -> None:
    dataset.Modality = "MR"
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    dataset.SeriesInstanceUID = study.uid("series")
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = study.description
    dataset.InstanceNumber = number
    dataset.Manufacturer = "Cohortium simulation"
    dataset.ManufacturerModelName = "write_dicom_scan"
    dataset.DeviceSerialNumber = "FAKE-1"
    dataset.ScanningSequence = "GR"
    dataset.SequenceVariant = "NONE"
    dataset.ScanOptions = ""
    dataset.MRAcquisitionType = "2D"
    dataset.EchoTime = None
    dataset.RepetitionTime = None
    dataset.EchoTrainLength = None


def _fill_plane(dataset: "Dataset", affine_lps: NDArray[np.float64], index: int) -> None:
    """PS3.3 C.7.6.2: orientation is the direction of a row, then of a column."""
    spacing_mm, directions = axis_steps(affine_lps)
    dataset.ImageOrientationPatient = _decimals([*directions[:, 2], *directions[:, 1]])
    dataset.ImagePositionPatient = _decimals(affine_lps[:3, 3] + index * affine_lps[:3, 0])
    dataset.PixelSpacing = _decimals(spacing_mm[1:])
    dataset.SliceThickness = _decimals(spacing_mm[:1])[0]
    dataset.SpacingBetweenSlices = dataset.SliceThickness


def _decimals(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """DICOM DS: at most 16 characters (PS3.5 6.2), which keeps 9 or more digits here."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]


def _fill_pixels(dataset: "Dataset", pixels_yx: NDArray[Any]) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels_yx.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(pixels_yx.dtype == np.int16)
    dataset.PixelData = np.ascontiguousarray(pixels_yx, dtype=pixels_yx.dtype.str).tobytes()


def _segmentation(
    study: _Study,
    slices: "list[Dataset]",
    labels_files_yx: NDArray[np.uint8],
    segment_labels: dict[int, str],
) -> "Dataset":
    """Return a binary SEG whose frames follow ``slices``; empty frames are left out, as usual."""
    import highdicom.seg as hd_seg

    values = sorted(segment_labels)
    numbered = np.searchsorted(np.asarray([0, *values]), labels_files_yx).astype(np.uint8)
    return hd_seg.Segmentation(
        source_images=slices,
        pixel_array=numbered,
        segmentation_type=hd_seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment_description(number, segment_labels[value])
            for number, value in enumerate(values, start=1)
        ],
        series_instance_uid=study.uid("seg-series"),
        series_number=100,
        sop_instance_uid=study.uid("seg"),
        instance_number=1,
        manufacturer="Cohortium simulation",
        manufacturer_model_name="write_dicom_scan",
        software_versions="1",
        device_serial_number="FAKE-1",
        content_label="LABELS",
    )


def _segment_description(number: int, label: str) -> Any:
    import highdicom.seg as hd_seg
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    return hd_seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type=hd_seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name="Cohortium simulation", version="1", family=codes.DCM.ArtificialIntelligence
        ),
    )
