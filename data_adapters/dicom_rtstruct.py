"""RTSTRUCT contours to class indices on the image's grid: a voxel is in if its centre is.

Our own, for rt-utils swaps row and column spacing (a disc of 1257 mm2 on 1 x 0.5 mm pixels came
out as 646), swaps the axes of matrices that are not square, and brings 150 MB of OpenCV.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.dicom_headers import integer, items, text
from data_adapters.dicom_label_rule import Canvas, LabelRule
from data_adapters.dicom_volume import VolumeGeometry
from data_adapters.reasons import Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# PS3.3 C.8.8.6.3. Contours of one region in one plane cut each other out: a hole is a second one,
# or is reached through a keyhole, which has no width.
_CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
# Of a slice's step: contours are drawn on slices, and written as rounded decimal text.
_OFF_SLICE = 0.25
_LEAST_POINTS = 3


def read_structures(path: Path, image: VolumeGeometry, rule: LabelRule) -> NDArray[np.uint8]:
    """Return class indices in the image's (z, y, x) grid.

    Raises:
        Unusable: UNMAPPED_LABEL, FRAME_OF_REFERENCE, NO_CONTOURS, LABEL_GRID, MISSING_SLICES,
            OVERLAPPING_LABELS or UNREADABLE_FILE.
    """
    structures = _opened(path)
    keys = rule.keys_of(_names(structures))
    wanted = {number: key for number, key in keys.items() if rule.values[key] != 0}
    _check_frames(structures, image, wanted)
    contours = _contours(structures)
    canvas = Canvas(image.shape_zyx, rule)
    to_voxels: NDArray[Any] = np.linalg.inv(image.affine_lps)
    for number, key in wanted.items():
        if not contours[number]:
            raise Unusable("NO_CONTOURS", repr(key))
        for place, mask in _masks(contours[number], to_voxels, image.shape_zyx):
            canvas.paint(mask, key, place)
    return canvas.labels


def _opened(path: Path) -> "Dataset":
    from pydicom import dcmread

    try:
        return dcmread(path)
    except Exception:  # its text may quote the header
        raise Unusable("UNREADABLE_FILE") from None


def _names(structures: "Dataset") -> dict[int, tuple[str, ...]]:
    return {
        integer(roi, "ROINumber", -1): (text(roi, "ROIName"),)
        for roi in items(structures, "StructureSetROISequence")
    }


def _check_frames(structures: "Dataset", image: VolumeGeometry, wanted: Mapping[int, str]) -> None:
    """Refuse contours in other coordinates than the image's (PS3.3 C.8.8.5)."""
    frames = {
        integer(roi, "ROINumber", -1): text(roi, "ReferencedFrameOfReferenceUID")
        for roi in items(structures, "StructureSetROISequence")
    }
    known = image.frame_of_reference
    if image.planar or not known or any(frames[number] != known for number in wanted):
        raise Unusable("FRAME_OF_REFERENCE")


def _contours(structures: "Dataset") -> defaultdict[int, list[NDArray[np.float64]]]:
    """Return the closed contours of each region as (point, x y z), LPS mm."""
    found: defaultdict[int, list[NDArray[np.float64]]] = defaultdict(list)
    for region in items(structures, "ROIContourSequence"):
        for contour in items(region, "ContourSequence"):
            if text(contour, "ContourGeometricType") in _CLOSED:
                found[integer(region, "ReferencedROINumber", -1)].append(_points(contour))
    return found


def _points(contour: "Dataset") -> NDArray[np.float64]:
    try:
        points = np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3)
    except Exception:  # not numbers, or not three for each point
        raise Unusable("UNREADABLE_FILE") from None
    if not np.all(np.isfinite(points)):
        raise Unusable("UNREADABLE_FILE")
    return points


def _masks(
    contours: Sequence[NDArray[np.float64]],
    to_voxels: NDArray[Any],
    shape_zyx: tuple[int, int, int],
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Give each slice that a region has contours on, with the voxels inside."""
    by_slice: defaultdict[int, list[NDArray[np.float64]]] = defaultdict(list)
    for points in contours:
        zyx = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        by_slice[_slice_of(zyx[:, 0], shape_zyx[0])].append(zyx[:, 1:])
    for place, polygons in sorted(by_slice.items()):
        yield place, inside(polygons, shape_zyx[1:])


def _slice_of(z: NDArray[np.float64], num_slices: int) -> int:
    place = round(float(z.mean()))
    if np.any(np.abs(z - place) > _OFF_SLICE):
        raise Unusable("LABEL_GRID")
    if not 0 <= place < num_slices:
        raise Unusable("MISSING_SLICES")
    return place


def inside(
    polygons_yx: Sequence[NDArray[np.float64]], shape_yx: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return the pixels whose centres lie inside an odd number of polygons.

    Args:
        polygons_yx: Corners (point, y x) in pixels; the centre of the first pixel is (0, 0).

    >>> square = np.array([[0.5, 0.5], [0.5, 2.5], [2.5, 2.5], [2.5, 0.5]])
    >>> inside([square], (4, 4)).astype(int)
    array([[0, 0, 0, 0],
           [0, 1, 1, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    rows, columns = shape_yx
    crossings = np.zeros((rows, columns + 1), dtype=np.int32)
    for polygon in polygons_yx:
        if len(polygon) >= _LEAST_POINTS:
            row, x = _crossings(polygon, rows)
            np.add.at(crossings, (row, np.clip(np.ceil(x), 0, columns).astype(int)), 1)
    odd: NDArray[np.bool_] = np.cumsum(crossings[:, :columns], axis=1) % 2 == 1
    return odd


def _crossings(polygon: NDArray[np.float64], rows: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return where the polygon's edges cross rows of pixel centres: (row, x) of each crossing.

    An edge has its upper end and not its lower one, so that a corner is counted once.
    """
    (ya, xa), (yb, xb) = polygon.T, np.roll(polygon, -1, axis=0).T
    first = np.clip(np.ceil(np.minimum(ya, yb)), 0, rows).astype(int)
    after = np.clip(np.ceil(np.maximum(ya, yb)), 0, rows).astype(int)
    counts = after - first
    edge = np.repeat(np.arange(len(polygon)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    x = xa[edge] + (row - ya[edge]) * (xb - xa)[edge] / (yb - ya)[edge]
    return row, x
