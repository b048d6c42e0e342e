"""What a DICOM file or series should give, from its header (PS3.3) and pydicom's pixels."""

from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from tests.data_adapters.outcomes.make_geometry import (
    RefusedError,
    check_one_orientation,
    lone_affine,
    plane_of,
    radiograph_affine,
    stack,
)
from tests.data_adapters.outcomes.make_segmentation import segmentation

VOLUMES = {
    "CTImageStorage",
    "MRImageStorage",
    "PositronEmissionTomographyImageStorage",
}
FRAMED = {
    "EnhancedCTImageStorage",
    "EnhancedMRImageStorage",
    "EnhancedPETImageStorage",
    "LegacyConvertedEnhancedCTImageStorage",
    "LegacyConvertedEnhancedMRImageStorage",
    "LegacyConvertedEnhancedPETImageStorage",
}
RADIOGRAPHS = {
    "ComputedRadiographyImageStorage",
    "DigitalXRayImageStorageForPresentation",
    "DigitalXRayImageStorageForProcessing",
}
SEGMENTATIONS = {"SegmentationStorage", "1.2.840.10008.5.1.4.1.1.66.7"}
SLIDES = {"VLWholeSlideMicroscopyImageStorage"}
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
# Real-world units: PS3.3 C.11.1.1.2 (HU) and C.8.9.1.1.3 (Units of PET).
PHYSICAL = {"CT", "PT"}


@dataclass(frozen=True)
class Expected:
    """What reading gives.

    Args:
        image: Real values, (z, y, x) or (channels, z, y, x).
        rule: ``full`` affine, or only the ``spacing`` where the standard leaves the rest open.
    """

    image: np.ndarray
    affine: np.ndarray
    rule: str = "full"
    or_code: str = ""


def opened(path):
    """Return the dataset, or refuse what is no DICOM file (PS3.10 7.1)."""
    try:
        return pydicom.dcmread(path)
    except InvalidDicomError:
        raise RefusedError("UNREADABLE_FILE") from None


def decodes(path):
    """Tell whether pydicom, with the decoders installed, gives pixels."""
    try:
        pydicom.dcmread(path).pixel_array  # noqa: B018
    except Exception:
        return False
    return True


def expect_file(path):
    """Return what one file gives alone, or refuse."""
    data = opened(path)
    if data.file_meta.get("MediaStorageSOPClassUID") == MEDIA_STORAGE_DIRECTORY:
        return _directory(data, path.parent)
    if "SOPClassUID" not in data:
        # A file cut off this early: its meta header may still say what it was to be.
        raise RefusedError("UNREADABLE_FILE|UNSUPPORTED_OBJECT|NO_PIXELS|NO_GEOMETRY")
    name = data.SOPClassUID.keyword or str(data.SOPClassUID)
    kinds = (SEGMENTATIONS, SLIDES, FRAMED, RADIOGRAPHS, VOLUMES)
    makers = (_segmentation, _slide, _framed, _radiograph, _lone)
    for kind, make in zip(kinds, makers, strict=True):
        if name in kind:
            return make(with_pixels(data))
    if name == "RTDoseStorage":
        raise RefusedError("UNSUPPORTED_OBJECT|UNREADABLE_FILE")
    raise RefusedError("UNSUPPORTED_OBJECT" if _is_image(data) else "UNSUPPORTED_OBJECT|NO_PIXELS")


def _directory(data, folder):
    """A DICOMDIR stands for the files that it names (PS3.3 F.3.2.2)."""
    records = [r for r in data.get("DirectoryRecordSequence", ()) if "ReferencedFileID" in r]
    paths = [folder.joinpath(*np.atleast_1d(r.ReferencedFileID)) for r in records]
    if not paths:  # no code says that a medium is empty
        raise RefusedError("UNREADABLE_FILE|UNSUPPORTED_OBJECT|NO_PIXELS")
    if not all(path.is_file() for path in paths):
        raise RefusedError("MISSING_FILE")
    return expect_series(paths)


def _is_image(data):
    return any(word in data for word in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))


def with_pixels(data):
    """Decode, or refuse a shell or damaged pixels."""
    if not _is_image(data):
        raise RefusedError("NO_PIXELS")
    try:
        data.pixel_array  # noqa: B018
    except Exception:
        raise RefusedError("UNDECODABLE_PIXELS") from None
    return data


def expect_series(paths):
    """Return what the files of one folder give as one volume, or refuse."""
    every = [opened(path) for path in paths]
    images = [data for data in every if data.get("Modality") not in {"RTSTRUCT", "SR", "SEG"}]
    if len({data.SeriesInstanceUID for data in images}) > 1:
        raise RefusedError("AMBIGUOUS_SERIES")
    slices = [with_pixels(data) for data in images]
    planes = [slice_plane(data) for data in slices]
    check_one_orientation(planes)
    order, _, affine = stack(planes)
    image = np.stack([real_values(slices[i], slices[i].pixel_array) for i in order])
    return Expected(image, affine)


def slice_plane(data):
    get = data.get
    return plane_of(
        get("ImagePositionPatient"), get("ImageOrientationPatient"), get("PixelSpacing")
    )


def real_values(data, stored, slope=None, intercept=None):
    """Rescale (C.11.1.1.2), after turning MONOCHROME1 where values have no physical unit."""
    slope = float(data.get("RescaleSlope", 1) if slope is None else slope)
    intercept = float(data.get("RescaleIntercept", 0) if intercept is None else intercept)
    values = np.asarray(stored, dtype=np.float64)
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    if inverted and data.Modality not in PHYSICAL:
        values = (-1 if data.PixelRepresentation else 2**data.BitsStored - 1) - values
    return values * slope + intercept


def _lone(data):
    affine, or_code = lone_affine(
        slice_plane(data), data.get("SpacingBetweenSlices"), data.get("SliceThickness")
    )
    return Expected(real_values(data, data.pixel_array)[None], affine, or_code=or_code)


def _radiograph(data):
    image = real_values(data, data.pixel_array)[None]
    keywords = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    for spacing in filter(None, map(data.get, keywords)):
        if min(spacing) > 0:
            return Expected(image, radiograph_affine(spacing, data.get("PatientOrientation")))
    raise RefusedError("NO_GEOMETRY")


def _framed(data):
    """Enhanced multi-frame: each frame's own groups, else the shared ones (C.7.6.16)."""
    frames = [Frame(data, number) for number in range(int(data.NumberOfFrames))]
    order, _, affine = stack([frame.plane for frame in frames])
    stored = data.pixel_array
    image = np.stack([real_values(data, stored[i], *frames[i].rescale) for i in order])
    return Expected(image, affine)


class Frame:
    """The functional groups that hold for one frame."""

    def __init__(self, data, number):
        own = data.get("PerFrameFunctionalGroupsSequence")
        self._groups = [own[number]] if own else []
        self._groups += [*(data.get("SharedFunctionalGroupsSequence") or ())]

    def value(self, sequence, keyword):
        for group in self._groups:
            items = group.get(sequence)
            if items and items[0].get(keyword) is not None:
                return items[0].get(keyword)
        return None

    @property
    def plane(self):
        return plane_of(
            self.value("PlanePositionSequence", "ImagePositionPatient"),
            self.value("PlaneOrientationSequence", "ImageOrientationPatient"),
            self.value("PixelMeasuresSequence", "PixelSpacing"),
        )

    @property
    def rescale(self):
        name = "PixelValueTransformationSequence"
        slope, intercept = self.value(name, "RescaleSlope"), self.value(name, "RescaleIntercept")
        return (1 if slope is None else slope), (0 if intercept is None else intercept)

    def step_mm(self):
        for keyword in ("SpacingBetweenSlices", "SliceThickness"):
            value = self.value("PixelMeasuresSequence", keyword)
            if value:
                return float(value)
        return None


def _segmentation(data):
    return Expected(*segmentation(data, Frame))


def _slide(data):
    """Frames of TILED_FULL run along rows, then down (C.7.6.17.3)."""
    frames = data.pixel_array
    rows, columns = data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns
    high, wide = data.Rows, data.Columns
    matrix = np.zeros((rows, columns, *frames.shape[3:]))
    across = -(-columns // wide)
    for number, frame in enumerate(frames):
        y, x = number // across * high, number % across * wide
        matrix[y : y + high, x : x + wide] = frame[: rows - y, : columns - x]
    image = np.moveaxis(matrix, -1, 0)[:, None] if matrix.ndim == 3 else matrix[None]
    spacing = Frame(data, 0).value("PixelMeasuresSequence", "PixelSpacing")
    affine = np.diag([1.0, float(spacing[0]), float(spacing[1]), 1.0])
    return Expected(image, affine, rule="spacing")
