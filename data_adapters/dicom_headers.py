"""What is kept of a DICOM header: about a kilobyte a file, whatever the header held."""

import logging
import math
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from data_adapters.dicom_deflated import open_bounded
from data_adapters.dicom_objects import KIND_OF, MODALITY_OF, Kind, object_name

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

# Where the element of the pixels starts in the file; or one of these.
NO_PIXELS = -1
INSIDE_DEFLATED = -2
_DEFLATED = "1.2.840.10008.1.2.1.99"
# (7FE0,0008) Float, (7FE0,0009) Double Float and (7FE0,0010) Pixel Data, in both byte orders.
_PIXEL_TAGS = frozenset(
    tag
    for end in (b"\x08", b"\x09", b"\x10")
    for tag in (b"\xe0\x7f" + end + b"\0", b"\x7f\xe0\0" + end)
)
# PS3.3 C.8.11.3 and C.8.1.1: a detector's spacing stands in where the patient's is not known.
_PLANAR_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
Reference = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Instance:
    """One file. A field that is absent or malformed is None or empty.

    Args:
        references: Of labels: each series they are of, with its instances.
        slice_step_mm: Between slices, or else a slice's thickness; for a slice that is alone.
        pixel_format: BitsAllocated, BitsStored, HighBit, PixelRepresentation.
        pixels_at: Byte of the file at which the element of the pixels starts.
    """

    path: Path
    sop_class: str
    modality: str
    subject: str
    study: str
    series: str
    instance: str
    description: str
    image_type: tuple[str, ...]
    frame_of_reference: str
    references: tuple[Reference, ...]
    burned_in: str
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    patient_orientation: tuple[str, ...]
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
    transfer_syntax: str
    pixels_at: int

    @property
    def kind(self) -> Kind:
        """Return what its class is to us."""
        return KIND_OF.get(self.sop_class, Kind.OTHER)

    @property
    def public_modality(self) -> str:
        """Return the modality of its class; OT where the class is not read as an image."""
        return MODALITY_OF.get(self.sop_class, "OT")

    @property
    def object_name(self) -> str:
        """Return the name of its class."""
        return object_name(self.sop_class)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep back what pydicom and highdicom warn of and log: they quote header values."""
    from pydicom import config

    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom", "openjpeg")]
    levels = [logger.level for logger in loggers]
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def read_header(path: Path) -> tuple["Dataset", int]:
    """Return the header without pixels, and where they start (``Instance.pixels_at``).

    Raises pydicom's errors, and in a damaged file any other; Unusable: UNPACKS_TOO_LARGE.
    """
    from pydicom import dcmread

    with open_bounded(path) as file:
        header = dcmread(file, stop_before_pixels=True, force=False)
        if _syntax(header) == _DEFLATED:
            return header, INSIDE_DEFLATED
        at = file.tell()
        return header, at if file.read(4) in _PIXEL_TAGS else NO_PIXELS


def instance_of(path: Path, header: "Dataset", pixels_at: int) -> Instance:
    """Return what is needed of ``header``."""
    sop_class = text(header, "SOPClassUID") or _media_class(header)
    kind = KIND_OF.get(sop_class, Kind.OTHER)
    return Instance(
        path=path,
        sop_class=sop_class,
        modality=text(header, "Modality"),
        subject=sys.intern(subject_of(header)),
        study=text(header, "StudyInstanceUID"),
        series=text(header, "SeriesInstanceUID"),
        instance=text(header, "SOPInstanceUID"),
        description=text(header, "SeriesDescription"),
        image_type=_texts(header, "ImageType"),
        frame_of_reference=_frame_of_reference(header, kind),
        references=_references(header, kind),
        burned_in=text(header, "BurnedInAnnotation").upper(),
        position_mm=floats(header, "ImagePositionPatient", 3),
        orientation=floats(header, "ImageOrientationPatient", 6),
        patient_orientation=_texts(header, "PatientOrientation") if kind is Kind.PLANAR else (),
        spacing_yx_mm=_spacing(header, kind),
        slice_step_mm=slice_step(header),
        shape_yx=_shape(header),
        num_frames=integer(header, "NumberOfFrames", 1),
        samples=integer(header, "SamplesPerPixel", 1),
        photometric=text(header, "PhotometricInterpretation"),
        pixel_format=_pixel_format(header),
        slope=number_or(header, "RescaleSlope", 1.0),
        intercept=number_or(header, "RescaleIntercept", 0.0),
        has_value_table="ModalityLUTSequence" in header,
        transfer_syntax=_syntax(header),
        pixels_at=pixels_at,
    )


def subject_of(header: "Dataset") -> str:
    """Return PatientID, with the issuer where one is given, in HL7's CX form."""
    patient = text(header, "PatientID")
    issuer = text(header, "IssuerOfPatientID")
    return f"{patient}^^^{issuer}" if patient and issuer else patient


def _syntax(header: "Dataset") -> str:
    return str(getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", ""))


def _media_class(header: "Dataset") -> str:
    """The file's preamble names the class again; a DICOMDIR names it only there."""
    return str(getattr(getattr(header, "file_meta", None), "MediaStorageSOPClassUID", ""))


def text(header: "Dataset", keyword: str) -> str:
    """Return a value as text; empty where it is absent or malformed."""
    try:
        raw = _plain(header, keyword)
        value = header.get(keyword) if raw is None else raw
    except Exception:  # a malformed value can raise anything; it is then as good as absent
        return ""
    # Most values repeat in every file of a study: one copy of each is kept.
    return "" if value is None else sys.intern(str(value).strip(" \0"))


def _texts(header: "Dataset", keyword: str) -> tuple[str, ...]:
    try:
        value = header.get(keyword)
        several = () if not value else (value,) if isinstance(value, str) else tuple(value)
    except Exception:
        return ()
    return tuple(sys.intern(str(value).strip(" \0").upper()) for value in several)


def floats(header: "Dataset", keyword: str, count: int) -> tuple[float, ...] | None:
    """Return so many numbers; None where they are absent, malformed, more or fewer."""
    try:
        raw = _plain(header, keyword)
        several = header.get(keyword) if raw is None else raw.strip(" \0").split("\\")
        values = tuple(float(value) for value in several or ())
    except Exception:
        return None
    return values if len(values) == count else None


def _float(header: "Dataset", keyword: str) -> float | None:
    try:
        raw = _plain(header, keyword)
        value = header.get(keyword) if raw is None else raw.strip(" \0")
        return None if value is None else float(value)
    except Exception:
        return None


def _plain(header: "Dataset", keyword: str) -> str | None:
    """Return a value of plain ASCII as it stands in the file; None where pydicom must decode it.

    pydicom takes ten times as long to make an element of it, and a header needs thirty.
    """
    tag = _tag(keyword)
    if tag is None:
        return None
    raw = header.get_item(tag)
    value = getattr(raw, "value", None)
    return value.decode("ascii") if isinstance(value, bytes) else None


@cache
def _tag(keyword: str) -> "BaseTag | None":
    """Return the tag of an attribute whose value is ASCII text (PS3.5 6.2), else None."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.tag import Tag

    number = tag_for_keyword(keyword)
    return Tag(number) if number and dictionary_VR(number) in {"UI", "CS", "DS", "IS"} else None


def number_or(header: "Dataset", keyword: str, absent: float) -> float:
    """Return a number; NaN, which is refused later, where there is something else."""
    if keyword not in header:
        return absent
    value = _float(header, keyword)
    return math.nan if value is None else value


def slice_step(header: "Dataset") -> float | None:
    """Return the distance between slices in mm, else their thickness, else None."""
    return _float(header, "SpacingBetweenSlices") or _float(header, "SliceThickness")


def integer(header: "Dataset", keyword: str, absent: int) -> int:
    """Return a whole number, or ``absent`` where there is none."""
    value = _float(header, keyword)
    return absent if value is None or not math.isfinite(value) else int(value)


def _shape(header: "Dataset") -> tuple[int, int] | None:
    rows, columns = integer(header, "Rows", 0), integer(header, "Columns", 0)
    return (rows, columns) if rows > 0 and columns > 0 else None


def _spacing(header: "Dataset", kind: Kind) -> tuple[float, ...] | None:
    keywords = _PLANAR_SPACINGS if kind is Kind.PLANAR else _PLANAR_SPACINGS[:1]
    found = (floats(header, keyword, 2) for keyword in keywords)
    return next((spacing for spacing in found if spacing is not None), None)


def _pixel_format(header: "Dataset") -> tuple[int, ...]:
    keywords = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    return tuple(integer(header, keyword, -1) for keyword in keywords)


def _references(header: "Dataset", kind: Kind) -> tuple[Reference, ...]:
    """Return which series, and which of their instances, labels say they were drawn on."""
    if kind is Kind.SEGMENTATION:
        return _series(items(header, "ReferencedSeriesSequence"), "ReferencedInstanceSequence")
    if kind is Kind.CONTOURS:  # PS3.3 C.8.8.5.1
        frames = items(header, "ReferencedFrameOfReferenceSequence")
        studies = _within(frames, "RTReferencedStudySequence")
        return _series(_within(studies, "RTReferencedSeriesSequence"), "ContourImageSequence")
    return ()


def _series(parents: "Iterable[Dataset]", instances: str) -> tuple[Reference, ...]:
    return tuple(
        (
            text(item, "SeriesInstanceUID"),
            tuple(text(i, "ReferencedSOPInstanceUID") for i in items(item, instances)),
        )
        for item in parents
    )


def _within(parents: "Iterable[Dataset]", keyword: str) -> "Iterator[Dataset]":
    for item in parents:
        yield from items(item, keyword)


def items(header: "Dataset", keyword: str) -> "tuple[Dataset, ...]":
    """Return the items of a sequence; none where it is absent or damaged."""
    try:
        return tuple(header.get(keyword) or ())
    except Exception:  # a damaged sequence can raise anything
        return ()


def _frame_of_reference(header: "Dataset", kind: Kind) -> str:
    """A structure set often names its frame of reference only where it names the images."""
    own = text(header, "FrameOfReferenceUID")
    if kind is not Kind.CONTOURS:
        return own
    named = items(header, "ReferencedFrameOfReferenceSequence")
    return next((text(item, "FrameOfReferenceUID") for item in named), own)
