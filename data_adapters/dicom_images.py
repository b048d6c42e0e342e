"""One image of a DICOM series, whatever its kind: for ingest and for the MONAI reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.dicom_frames import frames_of
from data_adapters.dicom_headers import NO_PIXELS, Instance
from data_adapters.dicom_objects import Kind
from data_adapters.dicom_pixels import read_pixels
from data_adapters.dicom_planar import planar_geometry
from data_adapters.dicom_slides import read_slide, slide_geometry
from data_adapters.dicom_volume import VolumeGeometry, check_pixels, scaling, volume_geometry
from data_adapters.geometry import RAS_FROM_LPS
from data_adapters.reasons import Unusable

_STACKED = frozenset({Kind.SLICES, Kind.FRAMES})


@dataclass(frozen=True)
class Picture:
    """One image as stored: (channel, z, y, x); real-world value = stored * slope + intercept."""

    stored_czyx: NDArray[Any]
    slope: float
    intercept: float
    geometry: VolumeGeometry

    @property
    def affine_ras(self) -> NDArray[np.float64]:
        """Return the affine from (z, y, x) to RAS+ mm (of a slide: turned in the same way)."""
        affine: NDArray[np.float64] = RAS_FROM_LPS @ self.geometry.affine_lps
        return affine


def check_kind(series: Sequence[Instance]) -> None:
    """Refuse by name what holds no image that is read.

    Raises:
        Unusable: UNSUPPORTED_OBJECT or NO_PIXELS.
    """
    kinds = {instance.kind for instance in series}
    if len(kinds) > 1:
        raise Unusable("UNSUPPORTED_OBJECT", "A series of several kinds of object")
    for instance in series:
        several = instance.kind is Kind.SLICES and instance.num_frames != 1
        if several or instance.kind not in {*_STACKED, Kind.PLANAR, Kind.SLIDE}:
            raise Unusable("UNSUPPORTED_OBJECT", instance.object_name)
        if instance.pixels_at == NO_PIXELS:
            raise Unusable("NO_PIXELS")


def grid_of(series: Sequence[Instance], spacing_mm: float | None = None) -> VolumeGeometry:
    """Return the grid of a series, from headers alone.

    Args:
        spacing_mm: Of projections whose header has none; of slides, which level is meant.

    Raises:
        Unusable: The reason code for which it has none.
    """
    if series[0].kind is Kind.SLIDE:
        return slide_geometry(series, spacing_mm)
    check_pixels(series)
    if series[0].kind is Kind.PLANAR:
        return planar_geometry(series, spacing_mm)
    return volume_geometry(frames_of(series))


def read_picture(geometry: VolumeGeometry, *, real: bool = False) -> Picture:
    """Return the image on its grid.

    Args:
        real: Make float32 real-world values of it now.

    Raises:
        Unusable: NO_PIXELS, UNDECODABLE_PIXELS, UNSUPPORTED_PIXELS or NOT_FINITE.
    """
    if geometry.coordinates == "SLIDE":
        slope, intercept = scaling(geometry.frames[0])
        stored_czyx = read_slide(geometry)
        if real:
            stored_czyx = np.float32(slope) * stored_czyx + np.float32(intercept)
            slope, intercept = 1.0, 0.0
        return Picture(stored_czyx, slope, intercept, geometry)
    stored, slope, intercept = read_pixels(geometry, real=real)
    return Picture(stored[None], slope, intercept, geometry)
