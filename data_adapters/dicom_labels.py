"""DICOM SEG to class indices on the image's grid, by world position and never by frame index."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.dicom_volume import VolumeGeometry
from data_adapters.reasons import Unusable

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from highdicom.volume import Volume

# Fraction of a voxel by which SEG and image may disagree (both are rounded decimal text).
GRID_TOLERANCE_VOXELS = 0.05
# highdicom's own test of directions (1 - cosine) and steps; the corners are checked after it.
MATCH_TOLERANCE = 1e-3


def read_labels(path: Path, image: VolumeGeometry, values: Mapping[str, int]) -> NDArray[np.uint8]:
    """Return class indices in the image's (z, y, x) grid.

    Args:
        values: SegmentLabel to the value that is stored for it.

    Raises:
        Unusable: FRACTIONAL_LABELS, UNMAPPED_LABEL, FRAME_OF_REFERENCE, LABEL_GRID,
            OVERLAPPING_LABELS or UNDECODABLE_PIXELS.
    """
    from highdicom.seg import segread

    try:
        segmentation = segread(path)
    except Exception as error:  # its text may quote the header
        raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None
    if segmentation.segmentation_type.value == "FRACTIONAL":
        raise Unusable("FRACTIONAL_LABELS")
    if segmentation.get("FrameOfReferenceUID") != image.frame_of_reference:
        raise Unusable("FRAME_OF_REFERENCE")
    numbers = _segment_values(segmentation, values)
    return _classes(_on_grid(segmentation, image, list(numbers)), list(numbers.values()))


def _segment_values(segmentation: "Segmentation", values: Mapping[str, int]) -> dict[int, int]:
    """Return segment number to stored value; segment 0 is a labelmap's background."""
    labels = {
        int(number): str(segmentation.get_segment_description(number).segment_label)
        for number in segmentation.segment_numbers
        if number != 0
    }
    unmapped = sorted(set(labels.values()) - set(values))
    if unmapped:
        raise Unusable("UNMAPPED_LABEL", ", ".join(repr(label) for label in unmapped))
    return {number: values[label] for number, label in labels.items()}


def _on_grid(
    segmentation: "Segmentation", image: VolumeGeometry, numbers: list[int]
) -> NDArray[Any]:
    """Return (z, y, x, segment) on the image's grid."""
    import highdicom

    grid = highdicom.VolumeGeometry(
        image.affine_lps, image.shape_zyx, "PATIENT", image.frame_of_reference
    )
    volume = _with_slice_step(_volume(segmentation, numbers), image)
    try:
        matched = volume.match_geometry(grid, tol=MATCH_TOLERANCE)
    except (RuntimeError, ValueError, IndexError):
        raise Unusable("LABEL_GRID") from None
    if matched.spatial_shape != image.shape_zyx or not _same_corners(matched.affine, image):
        raise Unusable("LABEL_GRID")
    array: NDArray[Any] = matched.array
    return array


def _volume(segmentation: "Segmentation", numbers: list[int]) -> "Volume":
    try:
        return segmentation.get_volume(segment_numbers=numbers, combine_segments=False)
    except RuntimeError:  # highdicom: the frames are not one regular volume
        raise Unusable("LABEL_GRID") from None
    except Exception as error:  # its text may quote the header
        raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None


def _with_slice_step(volume: "Volume", image: VolumeGeometry) -> "Volume":
    """Give a one-slice SEG the image's slice step: alone it cannot know it (empty ones are left
    out), and its SpacingBetweenSlices is optional."""
    import highdicom

    if volume.spatial_shape[0] != 1:
        return volume
    affine = volume.affine.copy()
    affine[:3, 0] *= np.linalg.norm(image.affine_lps[:3, 0]) / np.linalg.norm(affine[:3, 0])
    return highdicom.Volume(
        volume.array,
        affine,
        coordinate_system=volume.coordinate_system,
        frame_of_reference_uid=volume.frame_of_reference_uid,
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


def _classes(segments: NDArray[Any], values: list[int]) -> NDArray[np.uint8]:
    """Segments of one class may overlap; segments of two classes may not."""
    labels = np.zeros(segments.shape[:3], dtype=np.uint8)
    for place, value in enumerate(values):
        mask = segments[..., place] > 0
        if np.any(labels[mask] != 0) and np.any((labels[mask] != value) & (labels[mask] != 0)):
            raise Unusable("OVERLAPPING_LABELS")
        labels[mask] = value
    return labels
