"""Why a scan is left out: stable codes, each with a sentence and what to do about it.

Sentences name no identifier and quote no header value; a path stands in ``Quarantined.where`` and
is for the site's own screen.
"""

from dataclasses import dataclass

from data_adapters.types import Quarantined


@dataclass(frozen=True)
class Reason:
    """A sentence (``{detail}`` may be filled in) and the way out."""

    sentence: str
    remedy: str


REASONS: dict[str, Reason] = {
    # Files
    "UNREADABLE_FILE": Reason(
        "The header cannot be read: the file is damaged or cut short.",
        "Export the file again from its origin.",
    ),
    "UNDECODABLE_PIXELS": Reason(
        "The pixels cannot be decoded: {detail}.",
        "Export the series again; a cut-off transfer and a rare compression look like this.",
    ),
    "UNSUPPORTED_OBJECT": Reason(
        "{detail} cannot be used as a volume yet.",
        "Export the images as single-frame CT, MR or PET series.",
    ),
    "UNEXPECTED": Reason(
        "Reading failed in a way that has no reason code yet ({detail}).",
        "Please report the kind of data; the other scans are not affected.",
    ),
    # Who
    "NO_SUBJECT": Reason(
        "The subject's identifier is empty or a placeholder, so subjects cannot be told apart.",
        "Give each subject an identifier of its own (it never leaves this site).",
    ),
    "MIXED_SUBJECTS": Reason(
        "Files of one scan, or its image and labels, name different subjects.",
        "Correct the identifiers at their origin.",
    ),
    "DUPLICATE_SCAN": Reason(
        "The same pixels and labels are already there under another subject.",
        "If it is one person, give both scans one identifier; privacy is counted by subject.",
    ),
    # Burned-in annotation
    "BURNED_IN_ANNOTATION": Reason(
        "The header says that text is burned into the pixels.",
        "Remove the text from the pixels, or leave the series out.",
    ),
    "BURNED_IN_UNKNOWN": Reason(
        "Images of modality {detail} often carry burned-in names, and the header does not deny it.",
        "Check the pixels and set BurnedInAnnotation to NO at the origin.",
    ),
    # Geometry
    "NO_GEOMETRY": Reason(
        "Position, orientation or pixel spacing is missing or not a number.",
        "Export the series with its geometry; it cannot be guessed.",
    ),
    "MIXED_GEOMETRY": Reason(
        "The slices differ in orientation, matrix size or pixel spacing.",
        "Split the series at its origin (a localiser, or two acquisitions in one).",
    ),
    "MIXED_PIXELS": Reason(
        "The slices differ in how their pixels are stored.",
        "Export the series again with one pixel format.",
    ),
    "DUPLICATE_SLICES": Reason(
        "Two or more slices lie at the same place.",
        "Remove the repeated files, or split echoes and phases into series of their own.",
    ),
    "MISSING_SLICES": Reason(
        "There are gaps of whole slices.",
        "Transfer the missing slices again.",
    ),
    "IRREGULAR_SPACING": Reason(
        "The slices are not evenly spaced along their normal (variable gap or gantry tilt).",
        "Resample the series onto an even grid before it is registered.",
    ),
    "SHEARED_GEOMETRY": Reason(
        "The rows and columns are not perpendicular.",
        "Export the series again; such a header is not valid DICOM.",
    ),
    # Pixels
    "COLOUR_IMAGE": Reason(
        "The pixels are in colour.",
        "Only single-channel images can be used.",
    ),
    "INVERTED_GREYSCALE": Reason(
        "The greyscale is inverted (MONOCHROME1), and which end is zero is not known.",
        "Export the series as MONOCHROME2.",
    ),
    "NONLINEAR_VALUES": Reason(
        "Stored values map to real ones through a table or per-frame functions, not a slope.",
        "Export the series with rescale slope and intercept.",
    ),
    "UNSUPPORTED_PIXELS": Reason(
        "Pixels of type {detail} cannot be kept without loss.",
        "Convert to 8- or 16-bit integers or to 32-bit floats.",
    ),
    "TOO_LARGE": Reason(
        "One channel at full resolution is larger than {detail}.",
        "Save a coarser level, or crops, as images of their own.",
    ),
    "NOT_FINITE": Reason(
        "The image, or its scaling to real values, holds NaN or infinity.",
        "Replace them at the origin with a value that means the same.",
    ),
    # Labels
    "NO_LABELS": Reason(
        "There are no labels for this image.",
        "Add a DICOM SEG of this series, or the named labels group of an OME-Zarr image.",
    ),
    "SEVERAL_SEGMENTATIONS": Reason(
        "More than one segmentation belongs to this image, and choosing is not ours.",
        "Keep the one that is to be learned from.",
    ),
    "LABELS_WITHOUT_IMAGE": Reason(
        "The segmentation's image is not here, or more than one image could be meant.",
        "Put the image series into the same source, with the segmentation's references intact.",
    ),
    "FRACTIONAL_LABELS": Reason(
        "The segmentation holds fractions, not classes.",
        "Export it as a BINARY or LABELMAP segmentation.",
    ),
    "OVERLAPPING_LABELS": Reason(
        "Two classes claim the same voxel.",
        "Decide which class wins at the origin, or leave one of them out.",
    ),
    "UNMAPPED_LABEL": Reason(
        "These labels are in no class: {detail}.",
        "Add them to `classes` in the site file; background must be asked for, not assumed.",
    ),
    "FRAME_OF_REFERENCE": Reason(
        "Image and segmentation are in different frames of reference.",
        "Register the segmentation to this image and export it again.",
    ),
    "LABEL_GRID": Reason(
        "The labels do not lie on the image's voxel grid.",
        "Resample the labels onto the image.",
    ),
    "LABEL_SHAPE": Reason(
        "No level of the labels has the image's shape.",
        "Write the labels at the image's full resolution.",
    ),
    "LABEL_TYPE": Reason(
        "Labels of type {detail} are not classes.",
        "Write the labels as integers.",
    ),
    # OME-Zarr
    "INVALID_METADATA": Reason(
        "The OME-Zarr metadata is missing or does not follow the specification.",
        "Check the image with `ome-zarr-models validate`, and write it again as 0.4 or 0.5.",
    ),
    "UNSUPPORTED_LAYOUT": Reason(
        "{detail} cannot be used as one image yet.",
        "Save each image as an OME-Zarr image of its own.",
    ),
    "UNSUPPORTED_AXES": Reason(
        "Axes ({detail}) are neither z, y, x nor a channel with them.",
        "Save single time points of three-dimensional images.",
    ),
    "UNSUPPORTED_TRANSFORM": Reason(
        "A coordinate transformation of type {detail} is not scale or translation.",
        "Resample the image, or save it with scale and translation only.",
    ),
    "MISSING_UNIT": Reason(
        "A spatial axis has no unit, so its size is not known.",
        "Write the unit (for example micrometer) into the axes.",
    ),
    "UNKNOWN_UNIT": Reason(
        "The unit {detail} is not one of length that is known here.",
        "Write micrometer, millimeter or another UDUNITS-2 name from the OME-Zarr specification.",
    ),
    "CHANNEL_MISSING": Reason(
        "There is no channel {detail}.",
        "Correct `channel` in the site file; channels count from 0.",
    ),
}


class Unusable(Exception):  # noqa: N818  (a state of the data, not a fault of the program)
    """One scan cannot be used. Never leaves this package: it becomes a ``Quarantined``."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail

    def at(self, where: str) -> Quarantined:
        """Return the entry for the site operator."""
        reason = REASONS[self.code]
        sentence = reason.sentence.format(detail=self.detail)
        return Quarantined(self.code, where, sentence, reason.remedy)
