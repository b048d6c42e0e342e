"""OME-Zarr 0.4 and 0.5 metadata to axes, levels and millimetres; nothing is guessed."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.lengths import MILLIMETRES_IN
from data_adapters.reasons import Unusable
from data_adapters.zarr_places import Place, ZarrFormat, ome_attributes

SPATIAL = ("z", "y", "x")
# RFC-5 and the drafts before it; a type that is not listed is not quoted.
OTHER_TRANSFORMS = {
    *("affine", "rotation", "mapAxis", "sequence", "displacements", "coordinates"),
    *("bijection", "byDimension", "inverseOf"),
}
OLD_VERSIONS = ("0.1", "0.2", "0.3")
# What some writers put where a unit of length belongs; it states none.
NO_UNIT = {None, "", "pixel", "pixels"}
PLAIN_NAME = re.compile(r"[A-Za-z]{1,16}")
# A level this much coarser than asked for still counts as fine enough: scales are rounded.
SPACING_TOLERANCE = 1.01
# In any unit. Steps and places beyond it (or a step below its inverse) describe nothing that is
# imaged, and numbers near the end of the doubles overflow.
LONGEST = 1e12
# The step along z of a plane, which means nothing.
PLANE_STEP_MM = 1.0
LAYOUTS = {"plate": "A plate", "well": "A well of a plate"}
COLLECTION = "bioformats2raw.layout"


@dataclass(frozen=True)
class Level:
    """One resolution: its array, and its transformation along the array's axes in their units."""

    array: Place
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class Grid:
    """How a level's voxels lie.

    Args:
        scale_mm: Step along z, y, x.
        translation_mm: Centre of voxel 0 along z, y, x.
    """

    scale_mm: tuple[float, float, float]
    translation_mm: tuple[float, float, float]


@dataclass(frozen=True)
class ImageMetadata:
    """What a group says about its arrays.

    Args:
        axes: In array order, named by what they are: t, c, z, y, x. At least y and x.
        names: Of the axes as the group has them.
        units: Of each axis as the group states it; None where it states none.
        levels: Finest first.
        channel_names: From the omero metadata; empty where there is none.
    """

    place: Place
    zarr_format: ZarrFormat
    axes: tuple[str, ...]
    names: tuple[str, ...]
    units: tuple[str | None, ...]
    levels: tuple[Level, ...]
    channel_names: tuple[str, ...]

    def grid(self, level: Level, *, planar: bool, unit: str | None = None) -> Grid:
        """Return how the level lies in millimetres.

        Args:
            planar: It is a single plane: what z says of its step is left aside.
            unit: Of axes that state none.

        Raises:
            Unusable: MISSING_UNIT or UNKNOWN_UNIT.
        """
        steps, starts = [], []
        for name in SPATIAL:
            step, start = self._along(level, name, planar=planar, unit=unit)
            steps.append(step)
            starts.append(start)
        return Grid((steps[0], steps[1], steps[2]), (starts[0], starts[1], starts[2]))

    def _along(
        self, level: Level, name: str, *, planar: bool, unit: str | None
    ) -> tuple[float, float]:
        if name not in self.axes:
            return PLANE_STEP_MM, 0.0
        place = self.axes.index(name)
        stated = self.units[place] or unit
        if name == "z" and planar:
            known = MILLIMETRES_IN.get(stated or "", 0.0)
            return PLANE_STEP_MM, level.translation[place] * known
        if stated is None:
            raise Unusable("MISSING_UNIT")
        if stated not in MILLIMETRES_IN:
            raise Unusable("UNKNOWN_UNIT", _plain(stated))
        factor = MILLIMETRES_IN[stated]
        return level.scale[place] * factor, level.translation[place] * factor

    def unit_of(self, name: str) -> str | None:
        """Return the unit an axis states."""
        return self.units[self.axes.index(name)] if name in self.axes else None

    def level_for(self, spacing_mm: float, *, planar: bool, unit: str | None) -> Level:
        """Return the coarsest level that is no coarser than asked for; else the finest there is."""
        fine_enough = self.levels[0]
        for level in self.levels:
            steps = self.grid(level, planar=planar, unit=unit).scale_mm[1 if planar else 0 :]
            if max(steps) <= spacing_mm * SPACING_TOLERANCE:
                fine_enough = level
        return fine_enough


def read_metadata(place: Place) -> ImageMetadata:
    """Read and check the first multiscale of an image or label group.

    Raises:
        Unusable: INVALID_METADATA, MISSING_IMAGE, PATH_OUTSIDE, UNREACHABLE, UNSUPPORTED_VERSION,
            UNSUPPORTED_LAYOUT, UNSUPPORTED_AXES or UNSUPPORTED_TRANSFORM.
    """
    zarr_format, ome = ome_attributes(place)
    _refuse_other_groups(ome)
    _refuse_old_versions(ome)
    _refuse_other_transforms(ome)
    multiscale = _validated(zarr_format, ome).multiscales[0]
    axes = _axes(multiscale.axes)
    return ImageMetadata(
        place=place,
        zarr_format=zarr_format,
        axes=axes,
        names=tuple(axis.name for axis in multiscale.axes),
        units=tuple(_unit(axis.unit) for axis in multiscale.axes),
        levels=tuple(_level(place, dataset, multiscale) for dataset in multiscale.datasets),
        channel_names=_channel_names(ome),
    )


def _refuse_other_groups(ome: Mapping[str, Any]) -> None:
    for key, layout in {**LAYOUTS, COLLECTION: "A bioformats2raw collection"}.items():
        if key in ome:
            raise Unusable("UNSUPPORTED_LAYOUT", layout)


def _refuse_old_versions(ome: Mapping[str, Any]) -> None:
    for holder in (*_dictionaries(ome.get("multiscales")), ome):
        if holder.get("version") in OLD_VERSIONS:
            raise Unusable("UNSUPPORTED_VERSION", str(holder["version"]))


def _refuse_other_transforms(ome: Mapping[str, Any]) -> None:
    """Name the type before validation turns it into a general complaint."""
    for transform in _raw_transforms(ome):
        kind = transform.get("type")
        if isinstance(kind, str) and kind not in {"identity", "scale", "translation"}:
            named = repr(kind) if kind in OTHER_TRANSFORMS else "that is not known"
            raise Unusable("UNSUPPORTED_TRANSFORM", named)
        if "path" in transform:
            raise Unusable("UNSUPPORTED_TRANSFORM", f"{kind!r} with its values in a file")


def _raw_transforms(ome: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for multiscale in _dictionaries(ome.get("multiscales")):
        for holder in (multiscale, *_dictionaries(multiscale.get("datasets"))):
            found += _dictionaries(holder.get("coordinateTransformations"))
    return found


def _dictionaries(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _validated(zarr_format: ZarrFormat, ome: Mapping[str, Any]) -> Any:
    """Check what is needed of the specification; omero is looked at by ``_channel_names``.

    ome-zarr-models warns of what the specification only recommends; that is no obstacle.
    """
    from ome_zarr_models.v04.image import ImageAttrs as ImageAttrs04
    from ome_zarr_models.v05.image import ImageAttrs as ImageAttrs05

    model = ImageAttrs05 if zarr_format == 3 else ImageAttrs04
    needed = {key: ome[key] for key in ("multiscales", "version") if key in ome}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.model_validate(needed)
    except (ValueError, ArithmeticError, TypeError, RecursionError):
        raise Unusable("INVALID_METADATA") from None


def _axes(axes: Sequence[Any]) -> tuple[str, ...]:
    """Name axes by their type where it says enough (OME-Zarr 0.5, axes: names are free)."""
    found = tuple(_axis(axis) for axis in axes)
    if "" in found or len(set(found)) != len(found) or not {"y", "x"} <= set(found):
        raise Unusable("UNSUPPORTED_AXES", ", ".join(_plain(axis.name) for axis in axes))
    return found


def _axis(axis: Any) -> str:
    if axis.type == "space":
        return str(axis.name) if axis.name in SPATIAL else ""
    if axis.type == "time":
        return "t"
    return "c" if axis.type in ("channel", None) else ""


def _unit(unit: Any) -> str | None:
    stated = unit if unit is None or isinstance(unit, str) else "of another type"
    return None if stated in NO_UNIT else stated


def _plain(text: Any) -> str:
    """Quote a short word; anything else may hold what is nobody's business."""
    return repr(text) if isinstance(text, str) and PLAIN_NAME.fullmatch(text) else "another name"


def _channel_names(ome: Mapping[str, Any]) -> tuple[str, ...]:
    omero = ome.get("omero")
    channels = omero.get("channels") if isinstance(omero, dict) else None
    return tuple(str(channel.get("label", "")) for channel in _dictionaries(channels))


def _level(place: Place, dataset: Any, multiscale: Any) -> Level:
    """Apply the level's transformations, then the multiscale's (OME-Zarr 0.5, multiscales)."""
    rank = len(multiscale.axes)
    scale, translation = np.ones(rank), np.zeros(rank)
    shared = multiscale.coordinateTransformations or ()
    for transform in (*dataset.coordinateTransformations, *shared):
        if transform.type == "scale":
            factors = _numbers(transform.scale)
            scale, translation = scale * factors, translation * factors
        elif transform.type == "translation":
            translation = translation + _numbers(transform.translation)
    within = (scale >= 1 / LONGEST) & (scale <= LONGEST) & (np.abs(translation) <= LONGEST)
    if not within.all():
        raise Unusable("INVALID_METADATA")
    return Level(place.child(dataset.path), tuple(scale.tolist()), tuple(translation.tolist()))


def _numbers(values: Any) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise Unusable("INVALID_METADATA") from None
    if not np.all(np.abs(numbers) <= LONGEST):  # also where one is not a number
        raise Unusable("INVALID_METADATA")
    return numbers
