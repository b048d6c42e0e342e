"""What is kept of a DICOM header: a few hundred bytes a file, whatever the header held."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# What a scan's modality is, by its class (PS3.6, annex A): a header's own Modality is free text in
# practice, and could hold anything.
MODALITY_OF = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.4": "MR",  # MR Image Storage
    "1.2.840.10008.5.1.4.1.1.128": "PT",  # Positron Emission Tomography Image Storage
}
SINGLE_FRAME_VOLUMES = frozenset(MODALITY_OF)
SEGMENTATIONS = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
    }
)
DICOMDIR = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Instance:
    """One file. A field that is absent or malformed is None or empty."""

    path: Path
    sop_class: str
    object_name: str
    modality: str
    subject: str
    study: str
    series: str
    instance: str
    frame_of_reference: str
    referenced_series: tuple[str, ...]
    referenced_instances: tuple[str, ...]
    burned_in: str
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_yx_mm: tuple[float, ...] | None
    slice_step_mm: float | None
    shape_yx: tuple[int, int] | None
    num_frames: int
    samples: int
    photometric: str
    pixel_format: tuple[int, ...]
    slope: float
    intercept: float
    has_value_table: bool


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's and highdicom's warnings back: they quote header values."""
    from pydicom import config

    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(path: Path) -> "Dataset":
    """Return the header without pixels. Raises pydicom's errors; see ``dicom.discover_dicom``."""
    from pydicom import dcmread

    return dcmread(path, stop_before_pixels=True, force=False)


def instance_of(path: Path, header: "Dataset") -> Instance:
    """Return what is needed of ``header``."""
    from pydicom.uid import UID

    sop_class = _text(header, "SOPClassUID") or _media_class(header)
    references: list[Any] = list(header.get("ReferencedSeriesSequence") or ())
    return Instance(
        path=path,
        sop_class=sop_class,
        object_name=UID(sop_class).name if sop_class else "An object without a class",
        modality=_text(header, "Modality"),
        subject=subject_of(header),
        study=_text(header, "StudyInstanceUID"),
        series=_text(header, "SeriesInstanceUID"),
        instance=_text(header, "SOPInstanceUID"),
        frame_of_reference=_text(header, "FrameOfReferenceUID"),
        referenced_series=_uids(references, "SeriesInstanceUID"),
        referenced_instances=_uids(
            [
                image
                for reference in references
                for image in reference.get("ReferencedInstanceSequence") or ()
            ],
            "ReferencedSOPInstanceUID",
        ),
        burned_in=_text(header, "BurnedInAnnotation").upper(),
        position_mm=_floats(header, "ImagePositionPatient", 3),
        orientation=_floats(header, "ImageOrientationPatient", 6),
        spacing_yx_mm=_floats(header, "PixelSpacing", 2),
        slice_step_mm=_float(header, "SpacingBetweenSlices") or _float(header, "SliceThickness"),
        shape_yx=_shape(header),
        num_frames=_int(header, "NumberOfFrames", 1),
        samples=_int(header, "SamplesPerPixel", 1),
        photometric=_text(header, "PhotometricInterpretation"),
        pixel_format=_pixel_format(header),
        slope=_rescale(header, "RescaleSlope", 1.0),
        intercept=_rescale(header, "RescaleIntercept", 0.0),
        has_value_table="ModalityLUTSequence" in header,
    )


def subject_of(header: "Dataset") -> str:
    """Return PatientID, with the issuer where one is given, in HL7's CX form."""
    patient = _text(header, "PatientID")
    issuer = _text(header, "IssuerOfPatientID")
    return f"{patient}^^^{issuer}" if patient and issuer else patient


def _text(header: "Dataset", keyword: str) -> str:
    try:
        value = header.get(keyword)
    except Exception:  # a malformed value can raise anything; it is then as good as absent
        return ""
    return "" if value is None else str(value).strip(" \0")


def _floats(header: "Dataset", keyword: str, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(value) for value in header[keyword].value)
    except Exception:
        return None
    return values if len(values) == count else None


def _float(header: "Dataset", keyword: str) -> float | None:
    try:
        return float(header[keyword].value)
    except Exception:
        return None


def _rescale(header: "Dataset", keyword: str, absent: float) -> float:
    """A rescale that is there but no number becomes NaN, which is refused later."""
    if keyword not in header:
        return absent
    value = _float(header, keyword)
    return float("nan") if value is None else value


def _int(header: "Dataset", keyword: str, absent: int) -> int:
    value = _float(header, keyword)
    return absent if value is None else int(value)


def _shape(header: "Dataset") -> tuple[int, int] | None:
    rows, columns = _int(header, "Rows", 0), _int(header, "Columns", 0)
    return (rows, columns) if rows > 0 and columns > 0 else None


def _pixel_format(header: "Dataset") -> tuple[int, ...]:
    keywords = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    return tuple(_int(header, keyword, -1) for keyword in keywords)


def _uids(items: "Iterable[Dataset]", keyword: str) -> tuple[str, ...]:
    found = (_text(item, keyword) for item in items)
    return tuple(uid for uid in found if uid)


def _media_class(header: "Dataset") -> str:
    """The file's preamble names the class again; a DICOMDIR names it only there."""
    meta = getattr(header, "file_meta", None)
    return str(getattr(meta, "MediaStorageSOPClassUID", ""))
