"""Slices of a series: one a file, or many in a multi-frame file (PS3.3 C.7.6.16)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_adapters.dicom_headers import (
    Instance,
    floats,
    items,
    number_or,
    read_header,
    slice_step,
)
from data_adapters.dicom_objects import Kind
from data_adapters.reasons import Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice: where it lies, and which pixels of which file it has.

    Args:
        index: Place in the file; 0 in a single-frame file.
        position_mm: Centre of the first voxel, LPS.
        orientation: Direction of a row, then of a column, LPS.
        spacing_yx_mm: Between rows, between columns.
        slice_step_mm: Between slices, else a slice's thickness.
    """

    instance: Instance
    index: int
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_yx_mm: tuple[float, ...] | None
    slice_step_mm: float | None
    slope: float
    intercept: float


def frames_of(series: Sequence[Instance]) -> tuple[Frame, ...]:
    """Return every slice of a series, in the order of its files.

    The headers of multi-frame files are read here, once more: a candidate does not carry them.

    Raises:
        Unusable: UNREADABLE_FILE.
    """
    return tuple(frame for instance in series for frame in _frames(instance))


def _frames(instance: Instance) -> Iterator[Frame]:
    if instance.kind is not Kind.FRAMES:
        yield Frame(
            instance=instance,
            index=0,
            position_mm=instance.position_mm,
            orientation=instance.orientation,
            spacing_yx_mm=instance.spacing_yx_mm,
            slice_step_mm=instance.slice_step_mm,
            slope=instance.slope,
            intercept=instance.intercept,
        )
        return
    try:
        header, _ = read_header(instance.path)
    except Exception:  # it was read before, so the file has changed; the text may quote it
        raise Unusable("UNREADABLE_FILE") from None
    shared = items(header, "SharedFunctionalGroupsSequence")[:1]
    own = items(header, "PerFrameFunctionalGroupsSequence")
    # A damaged NumberOfFrames may be billions; one frame without a place is enough to refuse.
    for index in range(min(instance.num_frames, len(own) + 1)):
        yield _frame(instance, index, (*own[index : index + 1], *shared))


def _frame(instance: Instance, index: int, groups: "tuple[Dataset, ...]") -> Frame:
    """A frame's own functional groups go before those that all frames share."""
    measures = _group(groups, "PixelMeasuresSequence")
    values = _group(groups, "PixelValueTransformationSequence")
    return Frame(
        instance=instance,
        index=index,
        position_mm=floats(_group(groups, "PlanePositionSequence"), "ImagePositionPatient", 3),
        orientation=floats(
            _group(groups, "PlaneOrientationSequence"), "ImageOrientationPatient", 6
        ),
        spacing_yx_mm=floats(measures, "PixelSpacing", 2),
        slice_step_mm=slice_step(measures),
        slope=number_or(values, "RescaleSlope", instance.slope),
        intercept=number_or(values, "RescaleIntercept", instance.intercept),
    )


def _group(groups: "tuple[Dataset, ...]", keyword: str) -> "Dataset":
    from pydicom.dataset import Dataset

    return next((item for group in groups for item in items(group, keyword)[:1]), Dataset())
