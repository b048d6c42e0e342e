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
    "UNPACKS_TOO_LARGE": Reason(
        "The file is compressed and unpacks to more than {detail}.",
        "Export it again, uncompressed: few bytes that unpack to many are a defect, or an attack.",
    ),
    "MISSING_FILE": Reason(
        "The DICOMDIR names a file that is not there.",
        "Copy the medium again, whole; or name its folder in place of the DICOMDIR.",
    ),
    "UNREACHABLE": Reason(
        "The store does not answer, or not with an image ({detail}).",
        "Check the address and the credentials, and ingest again.",
    ),
    "NO_PIXELS": Reason(
        "The file holds a header but no pixels.",
        "Export the images again; what was transferred is an empty shell.",
    ),
    "UNSUPPORTED_OBJECT": Reason(
        "{detail} cannot be used as an image yet.",
        "Used are CT, MR and PET series (enhanced ones too), projections such as CR and DX, and "
        "whole-slide images.",
    ),
    "UNEXPECTED": Reason(
        "Reading failed in a way that has no reason code yet ({detail}).",
        "Please report the kind of data; the other scans are not affected.",
    ),
    "READER_DIED": Reason(
        "The process that read this scan was killed by it (a decoder crashed, or memory ran out).",
        "Export the scan again, uncompressed; if it is very large, use fewer --workers.",
    ),
    "DECODER_TIMEOUT": Reason(
        "Decoding took longer than {detail}, and was ended.",
        "Export the scan again; if it is only very large, raise `decoding.timeout_s` in the site "
        "file.",
    ),
    "DECODER_MEMORY": Reason(
        "Decoding needs more memory than {detail}.",
        "Export the scan again, uncompressed; if it is only very large, raise "
        "`decoding.memory_gib` in the site file.",
    ),
    "DECODER_ANSWER": Reason(
        "The process that decoded this scan answered with what is no scan.",
        "Do not open the scan elsewhere: a damaged file, or one made to take over a decoder, looks "
        "like this. Export it again from its origin.",
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
    "SUBJECT_WITHOUT_ISSUER": Reason(
        "The subject's identifier names no issuer, and this site has several sources: the same "
        "number could be two people.",
        "Give the source an `issuer` under `subjects`, or list its identifiers in a crosswalk.",
    ),
    "WELL_WITHOUT_SUBJECT": Reason(
        "The table of wells gives no subject for this well, or several.",
        "Add the well and its one donor to the table that `wells` names.",
    ),
    "DUPLICATE_SCAN": Reason(
        "The same pixels and labels are already there under another subject.",
        "If it is one person, give both scans one identifier; privacy is counted by subject.",
    ),
    # Which series
    "AMBIGUOUS_SERIES": Reason(
        "Several series of this study match: {detail}.",
        "Make `select` in the site file narrower, until one series of each study matches.",
    ),
    "NO_MATCHING_SERIES": Reason(
        "No series of this study matches the rule for series: it has {detail}.",
        "Correct or widen `select` in the site file, or leave the study out.",
    ),
    "MISSING_CHANNEL": Reason(
        "This study has no series for {detail}.",
        "Widen `select` of that channel, or leave the study out.",
    ),
    # Burned-in annotation
    "BURNED_IN_ANNOTATION": Reason(
        "The header says that text is burned into the pixels.",
        "Remove the text from the pixels, or leave the series out.",
    ),
    "BURNED_IN_UNKNOWN": Reason(
        "Images of modality {detail} often carry burned-in names, and the header does not deny it.",
        "Check the pixels, then set BurnedInAnnotation to NO at the origin, or name the modality "
        "under `clean_modalities` in the site file.",
    ),
    # Geometry
    "NO_GEOMETRY": Reason(
        "Position, orientation or pixel spacing is missing or not a number.",
        "Export the series with its geometry; it cannot be guessed. For projections without a "
        "pixel spacing, declare `spacing` in the site file.",
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
        "Resample onto perpendicular axes, or export the series again.",
    ),
    # Pixels
    "COLOUR_IMAGE": Reason(
        "The pixels are in colour.",
        "Say `colour: true` in the site file if these are slides, whose channels are then red, "
        "green and blue; of other objects only images with one channel can be used.",
    ),
    "NOT_COLOUR": Reason(
        "The image has one channel, and the site file says that images are in colour.",
        "Take `colour` out of the site file, or leave the image out.",
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
        "The image is larger than {detail} at this resolution.",
        "Save a coarser level, or crops, as images of their own.",
    ),
    "NOT_FINITE": Reason(
        "The image, or its scaling to real values, holds NaN or infinity.",
        "Replace them at the origin with a value that means the same.",
    ),
    # Labels
    "NO_LABELS": Reason(
        "There are no labels for this image.",
        "Add a DICOM SEG or RTSTRUCT of this series, or the named labels group of an OME-Zarr "
        "image.",
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
    "NO_CONTOURS": Reason(
        "The structure set has no closed contours for a region that has a class ({detail}).",
        "Draw the region, or take it out of `classes` in the site file.",
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
        "Image and labels, or two channels, are in different frames of reference, or in none.",
        "Register them to one another and export them again.",
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
    # Targets
    "NO_TARGET": Reason(
        "The table of targets has no row for this scan.",
        "Add the row, or check which identifiers `key` means.",
    ),
    "AMBIGUOUS_TARGET": Reason(
        "The table of targets gives this scan two different values.",
        "Keep the row that is true.",
    ),
    "UNMAPPED_TARGET": Reason(
        "The table's value is in no class, or is no number: {detail}.",
        "Add it to `classes` under `targets` in the site file.",
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
        "Axes ({detail}) are not y and x, with or without z, channel and time.",
        "Save the image with axes of these names.",
    ),
    "SEVERAL_TIME_POINTS": Reason(
        "The image has {detail} time points.",
        "Say which one is meant (`time` of an OME-Zarr source), or save it as an image of its own.",
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
        "Correct `channels` in the site file: names as in the image's omero metadata, or indices "
        "from 0.",
    ),
    "LEVEL_MISSING": Reason(
        "There is no level {detail}.",
        "Levels count from 0, the finest; name a spacing to have one chosen.",
    ),
    "TIME_MISSING": Reason(
        "There is no time point {detail}.",
        "Correct `time` in the site file; time points count from 0.",
    ),
    "UNSUPPORTED_VERSION": Reason(
        "The image is written as OME-Zarr {detail}; 0.4 and 0.5 are read.",
        "Convert it, for example with `ome2024-ngff-challenge`, or write it again as 0.5.",
    ),
    "PATH_OUTSIDE": Reason(
        "The metadata, or a link, leads to files outside the image's own folder.",
        "Copy what it leads to into the image's folder.",
    ),
    "MISSING_IMAGE": Reason(
        "The table of images names a folder that is not there.",
        "Correct `path` in that row; it starts at the source's folder.",
    ),
    "EMPTY_ARRAY": Reason(
        "The image is declared as {detail}, and its files hold next to nothing of it.",
        "Write the image again in its true shape; a copy that was broken off looks like this, too.",
    ),
    "HUGE_CHUNKS": Reason(
        "A chunk of the image holds more than {detail}, and is only read whole.",
        "Write the image again in chunks of a few MiB.",
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
