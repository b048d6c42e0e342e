"""Several series of one study as the channels of one image, all on the first one's grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.dicom_images import Picture, read_picture
from data_adapters.dicom_volume import VolumeGeometry
from data_adapters.reasons import Unusable
from data_adapters.resampling import onto_grid, same_grid

Scaled = tuple[NDArray[Any], tuple[float, ...], tuple[float, ...]]


def check_frames(grids: Sequence[VolumeGeometry]) -> None:
    """Refuse channels whose coordinates do not mean the same place.

    Raises:
        Unusable: FRAME_OF_REFERENCE.
    """
    frames = {grid.frame_of_reference for grid in grids}
    placed = all(grid.frame_of_reference and not grid.is_projection for grid in grids)
    if len(grids) > 1 and (len(frames) > 1 or not placed):
        raise Unusable("FRAME_OF_REFERENCE")


def check_colour(grids: Sequence[VolumeGeometry], *, colour: bool) -> None:
    """Refuse an image that is in colour or is not, other than the site file says.

    Raises:
        Unusable: COLOUR_IMAGE: two of its channels would never be looked at. NOT_COLOUR.
    """
    for grid in grids:
        if (grid.frames[0].instance.samples > 1) != colour:
            raise Unusable("NOT_COLOUR" if colour else "COLOUR_IMAGE")


def read_channels(grids: Sequence[VolumeGeometry]) -> Scaled:
    """Return (image_czyx, slopes, intercepts): stored values, or float32 once one is resampled.

    Raises:
        Unusable: As ``read_picture``.
    """
    pictures = [read_picture(grid) for grid in grids]
    arrays = [_on_first(picture, grids[0]) for picture in pictures]
    num_each = [len(array) for array in arrays]
    slopes = [p.slope for p, num in zip(pictures, num_each, strict=True) for _ in range(num)]
    intercepts = [
        p.intercept for p, num in zip(pictures, num_each, strict=True) for _ in range(num)
    ]
    return _joined(arrays), tuple(slopes), tuple(intercepts)


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if len(arrays) == 1:
        return arrays[0]
    types = {array.dtype for array in arrays}
    kept = types.pop() if len(types) == 1 else np.dtype(np.float32)
    return np.concatenate([array.astype(kept, copy=False) for array in arrays])


def _on_first(picture: Picture, first: VolumeGeometry) -> NDArray[Any]:
    grid = picture.geometry
    if _is_same(grid, first):
        return picture.stored_czyx
    # Beyond the channel lies its least real value, which of a turned greyscale is stored highest.
    least = np.max if picture.slope < 0 else np.min
    resampled = [
        onto_grid(
            channel,
            grid.affine_lps,
            first.affine_lps,
            first.shape_zyx,
            outside=float(least(channel)),
        )
        for channel in picture.stored_czyx
    ]
    return np.stack(resampled)


def onto_first(
    labels_zyx: NDArray[np.uint8], grid: VolumeGeometry, first: VolumeGeometry
) -> NDArray[np.uint8]:
    """Return labels that lie on one channel's grid at the voxels of the first, nearest."""
    if grid is first or _is_same(grid, first):
        return labels_zyx
    return onto_grid(labels_zyx, grid.affine_lps, first.affine_lps, first.shape_zyx, nearest=True)


def _is_same(grid: VolumeGeometry, first: VolumeGeometry) -> bool:
    return same_grid(grid.affine_lps, grid.shape_zyx, first.affine_lps, first.shape_zyx)
