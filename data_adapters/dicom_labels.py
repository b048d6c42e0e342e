"""DICOM SEG to class indices on the image's grid, by world position and never by frame index."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.dicom_headers import integer, items, text
from data_adapters.dicom_label_rule import Canvas, LabelRule
from data_adapters.dicom_volume import VolumeGeometry
from data_adapters.reasons import Unusable

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from highdicom.volume import Volume
    from pydicom.dataset import Dataset

# Fraction of a voxel by which SEG and image may disagree (both are rounded decimal text).
GRID_TOLERANCE_VOXELS = 0.05
# highdicom's own test of directions (1 - cosine) and steps; the corners are checked after it.
MATCH_TOLERANCE = 1e-3
# Segments that are channels of their own; past it they are refused rather than tried.
MAX_BYTES = 1 << 31


def read_segmentation(path: Path, image: VolumeGeometry, rule: LabelRule) -> NDArray[np.uint8]:
    """Return class indices in the image's (z, y, x) grid.

    Raises:
        Unusable: FRACTIONAL_LABELS, UNMAPPED_LABEL, FRAME_OF_REFERENCE, LABEL_GRID,
            OVERLAPPING_LABELS or UNDECODABLE_PIXELS.
    """
    segmentation = open_segmentation(path, float(np.linalg.norm(image.affine_lps[:3, 0])))
    keys = rule.keys_of(_names(segmentation))
    canvas = Canvas(image.shape_zyx, rule)
    if image.is_projection:
        _paint_projection(segmentation, image, keys, canvas)
        return canvas.labels
    named = text(segmentation, "FrameOfReferenceUID")
    if not named or named != image.frame_of_reference:
        raise Unusable("FRAME_OF_REFERENCE")
    for number, mask in _masks(segmentation, image, list(keys)):
        canvas.paint(mask, keys[number])
    return canvas.labels


def open_segmentation(path: Path, step_mm: float | None = None) -> "Segmentation":
    """Return a SEG.

    Args:
        step_mm: Between the image's slices. Empty frames are left out of a SEG, so without it
            two labelled slices that are far apart look like neighbours.

    Raises:
        Unusable: UNDECODABLE_PIXELS.
    """
    from highdicom.seg import Segmentation
    from pydicom import dcmread

    try:
        dataset = _little_endian(dcmread(path))
        if step_mm is not None:
            _hint_step(dataset, step_mm)
        segmentation = Segmentation.from_dataset(dataset, copy=False)
        segmentation.segmentation_type  # noqa: B018 - a type that is none raises
        described = len(items(dataset, "PerFrameFunctionalGroupsSequence"))
    except Exception as error:  # its text may quote the header
        raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None
    # highdicom reads the frames that are there: a SEG cut short would lose labels without a word.
    # (Tiles of a whole plane, PS3.3 C.7.6.17.3 TILED_FULL, are not described one by one.)
    if described and described != integer(dataset, "NumberOfFrames", 1):
        raise Unusable("UNDECODABLE_PIXELS", "the number of frames differs from the header")
    return segmentation


def _little_endian(dataset: "Dataset") -> "Dataset":
    """highdicom reads no big-endian files: swap the bytes of packed or 8-bit pixels (PS3.5 A.3)."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

    if dataset.file_meta.TransferSyntaxUID != ExplicitVRBigEndian:
        return dataset
    swapped = np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()
    if dataset["PixelData"].VR == "OW":
        dataset.PixelData = swapped
    for element in dataset.iterall():  # what is still raw is decoded as it was written
        element.value  # noqa: B018
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _hint_step(dataset: "Dataset", step_mm: float) -> None:
    from pydicom.valuerep import DSfloat

    for group in items(dataset, "SharedFunctionalGroupsSequence"):
        for measures in items(group, "PixelMeasuresSequence"):
            if not text(measures, "SpacingBetweenSlices"):
                measures.SpacingBetweenSlices = DSfloat(step_mm, auto_format=True)


def _names(segmentation: "Segmentation") -> dict[int, tuple[str, ...]]:
    """Return what each segment may be called; segment 0 is a labelmap's background."""
    return {
        int(number): _called(segmentation.get_segment_description(number))
        for number in segmentation.segment_numbers
        if number != 0
    }


def _called(segment: "Dataset") -> tuple[str, ...]:
    """SegmentLabel, then the coded type as ``SCT:10200004`` (PS3.3 8.3, C.8.20.2)."""
    codes = [
        f"{text(code, 'CodingSchemeDesignator')}:{text(code, 'CodeValue')}"
        for code in items(segment, "SegmentedPropertyTypeCodeSequence")
    ]
    return (text(segment, "SegmentLabel"), *codes)


def _masks(
    segmentation: "Segmentation", image: VolumeGeometry, numbers: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Give each segment's voxels, one segment in memory at a time."""
    if segmentation.segmentation_type.value == "LABELMAP":
        every = _on_grid(_volume(segmentation, numbers, combined=True), image)
        for number in numbers:
            yield number, every == number
        return
    for number in numbers:
        segment = _on_grid(_volume(segmentation, [number], combined=False), image)
        yield number, _whole_voxels(segment[..., 0])


def _whole_voxels(segment: NDArray[Any]) -> NDArray[np.bool_]:
    """A FRACTIONAL segment is one of whole voxels where every fraction is none or all."""
    mask: NDArray[np.bool_] = segment > 0
    if segment.dtype.kind == "f" and np.any(segment[mask] < 1):
        raise Unusable("FRACTIONAL_LABELS")
    return mask


def _on_grid(volume: "Volume", image: VolumeGeometry) -> NDArray[Any]:
    import highdicom

    grid = highdicom.VolumeGeometry(
        image.affine_lps, image.shape_zyx, image.coordinates, image.frame_of_reference or None
    )
    try:
        matched = _with_slice_step(volume, image).match_geometry(grid, tol=MATCH_TOLERANCE)
    except (RuntimeError, ValueError, IndexError):
        raise Unusable("LABEL_GRID") from None
    if matched.spatial_shape != image.shape_zyx or not _same_corners(matched.affine, image):
        raise Unusable("LABEL_GRID")
    array: NDArray[Any] = matched.array
    return array


def _volume(segmentation: "Segmentation", numbers: Sequence[int], *, combined: bool) -> "Volume":
    try:
        return segmentation.get_volume(segment_numbers=numbers, combine_segments=combined)
    except RuntimeError:  # highdicom: the frames are not one regular volume
        raise Unusable("LABEL_GRID") from None
    except Exception as error:  # its text may quote the header
        raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None


def _with_slice_step(volume: "Volume", image: VolumeGeometry) -> "Volume":
    """Give a one-slice SEG the image's slice step: alone it cannot know it.

    On a slide the focal plane's height (Z offset) differs too, and means no other place.
    """
    import highdicom

    if volume.spatial_shape[0] != 1:
        return volume
    affine = volume.affine.copy()
    affine[:3, 0] *= np.linalg.norm(image.affine_lps[:3, 0]) / np.linalg.norm(affine[:3, 0])
    if image.coordinates == "SLIDE":
        affine[2, 3] = image.affine_lps[2, 3]
    return highdicom.Volume(
        volume.array,
        affine,
        coordinate_system=volume.coordinate_system,
        frame_of_reference_uid=image.frame_of_reference or None,
        channels=_channels(volume),
    )


def _channels(volume: "Volume") -> dict[Any, Any]:
    return {
        descriptor: volume.get_channel_values(descriptor)
        for descriptor in volume.channel_descriptors
    }


def _same_corners(affine_lps: NDArray[np.float64], image: VolumeGeometry) -> bool:
    """match_geometry rounds to whole voxels; see that no corner moved."""
    far = [size - 1 for size in image.shape_zyx]
    corners = np.array([[*bits, 1] for bits in itertools.product(*((0, last) for last in far))])
    moved_mm = np.abs(corners @ (affine_lps - image.affine_lps).T)
    finest_mm = np.linalg.norm(image.affine_lps[:3, :3], axis=0).min()
    return bool(moved_mm.max() <= GRID_TOLERANCE_VOXELS * finest_mm)


def _paint_projection(
    segmentation: "Segmentation", image: VolumeGeometry, keys: dict[int, str], canvas: Canvas
) -> None:
    """A projection has no place in the patient: its SEG says which image it was drawn on."""
    if (segmentation.Rows, segmentation.Columns) != image.shape_zyx[1:]:
        raise Unusable("LABEL_GRID")
    try:
        pixels = segmentation.get_pixels_by_source_instance(
            [image.frames[0].instance.instance],
            segment_numbers=list(keys),
            combine_segments=False,
            assert_missing_frames_are_empty=True,
        )
    except Exception as error:  # its text may quote the header
        raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None
    for place, key in enumerate(keys.values()):
        canvas.paint(_whole_voxels(pixels[..., place]), key)


def lone_segmentation(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return segment numbers (z, y, x) on the SEG's own grid, with its LPS affine.

    Where segments overlap or hold fractions no number says it all: then each segment is a
    channel (segment, z, y, x) in the order of their numbers, float32 from 0 to 1.

    Raises:
        Unusable: NO_GEOMETRY, TOO_LARGE or UNDECODABLE_PIXELS.
    """
    segmentation = open_segmentation(path)
    numbers = [int(number) for number in segmentation.segment_numbers if number != 0]
    try:
        geometry = segmentation.get_volume_geometry()
        if geometry is None:
            raise Unusable("NO_GEOMETRY")
        labels = _numbered(segmentation, geometry.spatial_shape, numbers)
        if labels is None:
            labels = _channel_each(segmentation, geometry.spatial_shape, numbers)
    except Unusable:
        raise
    except Exception as error:  # its text may quote the header
        raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None
    return labels, np.asarray(geometry.affine, dtype=np.float64)


def _numbered(
    segmentation: "Segmentation", shape_zyx: tuple[int, ...], numbers: Sequence[int]
) -> NDArray[Any] | None:
    """Return each voxel's segment, or None where one number does not say it."""
    labels = np.zeros(shape_zyx, np.uint16)
    for number in numbers:
        segment = _segment(segmentation, number)
        if np.any(segment % 1) or np.any(labels[segment > 0]):
            return None
        labels[segment > 0] = number
    return labels


def _channel_each(
    segmentation: "Segmentation", shape_zyx: tuple[int, ...], numbers: Sequence[int]
) -> NDArray[Any]:
    channels_bytes = 4 * len(numbers) * int(np.prod(shape_zyx))
    if channels_bytes > MAX_BYTES:
        raise Unusable("TOO_LARGE", f"{MAX_BYTES >> 30} GiB")
    every = [_segment(segmentation, number).astype(np.float32) for number in numbers]
    return np.stack(every)


def _segment(segmentation: "Segmentation", number: int) -> NDArray[Any]:
    volume = segmentation.get_volume(segment_numbers=[number], combine_segments=False)
    segment: NDArray[Any] = volume.array[..., 0]
    return segment
