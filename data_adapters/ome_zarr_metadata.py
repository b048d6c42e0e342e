"""OME-Zarr 0.4 and 0.5 metadata to axes, millimetres and level paths; nothing is guessed."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_adapters.reasons import Unusable

# OME-Zarr 0.5 "axes metadata": UDUNITS-2 names of length; here, millimetres in one of each.
MILLIMETRES_IN = {
    "angstrom": 1e-7,
    "picometer": 1e-9,
    "nanometer": 1e-6,
    "micrometer": 1e-3,
    "millimeter": 1.0,
    "centimeter": 10.0,
    "decimeter": 100.0,
    "meter": 1000.0,
    "inch": 25.4,
}
SPATIAL = ("z", "y", "x")
LAYOUTS = {
    "plate": "A plate",
    "well": "A well of a plate",
    "bioformats2raw.layout": "A bioformats2raw collection",
}


@dataclass(frozen=True)
class Level:
    """One resolution: where its array is, and how its spatial axes lie.

    Args:
        scale_mm: Step along z, y, x.
        translation_mm: Centre of voxel 0 along z, y, x.
    """

    path: Path
    scale_mm: tuple[float, float, float]
    translation_mm: tuple[float, float, float]


@dataclass(frozen=True)
class ImageMetadata:
    """What a group says about its arrays.

    Args:
        axes: Names in array order; a permutation of z, y, x, and perhaps c.
        levels: Finest first.
    """

    zarr_format: Literal[2, 3]
    axes: tuple[str, ...]
    levels: tuple[Level, ...]


def read_metadata(group: Path) -> ImageMetadata:
    """Read and check the first multiscale of an image or label group.

    Raises:
        Unusable: INVALID_METADATA, UNSUPPORTED_LAYOUT, UNSUPPORTED_AXES, UNSUPPORTED_TRANSFORM,
            MISSING_UNIT or UNKNOWN_UNIT.
    """
    zarr_format, ome = _ome_attributes(group)
    for key, layout in LAYOUTS.items():
        if key in ome:
            raise Unusable("UNSUPPORTED_LAYOUT", layout)
    _refuse_other_transforms(ome)
    multiscale = _validated(zarr_format, ome).multiscales[0]
    units = _spatial_units(multiscale.axes)
    axes = tuple(axis.name for axis in multiscale.axes)
    levels = tuple(
        _level(group, dataset, multiscale, axes, units) for dataset in multiscale.datasets
    )
    return ImageMetadata(zarr_format, axes, levels)


def _ome_attributes(group: Path) -> tuple[Literal[2, 3], dict[str, Any]]:
    v3, v2 = group / "zarr.json", group / ".zattrs"
    try:
        if v3.is_file():
            attributes = json.loads(v3.read_text("utf-8")).get("attributes", {})
            return 3, dict(attributes["ome"])
        return 2, dict(json.loads(v2.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Unusable("INVALID_METADATA") from None


def _refuse_other_transforms(ome: Mapping[str, Any]) -> None:
    """Name the type before validation turns it into a general complaint."""
    for transform in _raw_transforms(ome):
        kind = transform.get("type") if isinstance(transform, dict) else None
        if isinstance(kind, str) and kind not in {"identity", "scale", "translation"}:
            raise Unusable("UNSUPPORTED_TRANSFORM", repr(kind))
        if isinstance(transform, dict) and "path" in transform:
            raise Unusable("UNSUPPORTED_TRANSFORM", f"{kind!r} with its values in a file")


def _raw_transforms(ome: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = []
    multiscales = ome.get("multiscales")
    for multiscale in multiscales if isinstance(multiscales, list) else []:
        if not isinstance(multiscale, dict):
            continue
        datasets = multiscale.get("datasets")
        holders = [multiscale, *(datasets if isinstance(datasets, list) else [])]
        for holder in holders:
            transforms = holder.get("coordinateTransformations") if isinstance(holder, dict) else []
            found += transforms if isinstance(transforms, list) else []
    return found


def _validated(zarr_format: Literal[2, 3], ome: Mapping[str, Any]) -> Any:
    """ome-zarr-models warns of what the specification only recommends; that is no obstacle."""
    from ome_zarr_models.v04.image import ImageAttrs as ImageAttrs04
    from ome_zarr_models.v05.image import ImageAttrs as ImageAttrs05
    from pydantic import ValidationError

    model = ImageAttrs05 if zarr_format == 3 else ImageAttrs04
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.model_validate(ome)
    except ValidationError:
        raise Unusable("INVALID_METADATA") from None


def _spatial_units(axes: Sequence[Any]) -> dict[str, float]:
    """Return millimetres in one unit of each spatial axis."""
    names = [axis.name for axis in axes]
    if sorted(names) not in (sorted(SPATIAL), sorted(("c", *SPATIAL))):
        raise Unusable("UNSUPPORTED_AXES", ", ".join(repr(name) for name in names))
    units = {}
    for axis in axes:
        if axis.name in SPATIAL:
            if not axis.unit:
                raise Unusable("MISSING_UNIT")
            if axis.unit not in MILLIMETRES_IN:
                raise Unusable("UNKNOWN_UNIT", repr(axis.unit))
            units[axis.name] = MILLIMETRES_IN[axis.unit]
    return units


def _level(
    group: Path, dataset: Any, multiscale: Any, axes: tuple[str, ...], units: Mapping[str, float]
) -> Level:
    """Apply the level's transformations, then the multiscale's (OME-Zarr 0.5, multiscales)."""
    scale, translation = np.ones(len(axes)), np.zeros(len(axes))
    shared = multiscale.coordinateTransformations or ()
    for transform in (*dataset.coordinateTransformations, *shared):
        if transform.type == "scale":
            scale = scale * transform.scale
            translation = translation * transform.scale
        elif transform.type == "translation":
            translation = translation + transform.translation
    if not (np.all(np.isfinite(scale)) and np.all(scale > 0) and np.all(np.isfinite(translation))):
        raise Unusable("INVALID_METADATA")
    path = (group / dataset.path).resolve()
    if not path.is_relative_to(group.resolve()):
        raise Unusable("INVALID_METADATA")
    return Level(path, _in_mm(scale, axes, units), _in_mm(translation, axes, units))


def _in_mm(
    values: NDArray[np.float64], axes: tuple[str, ...], units: Mapping[str, float]
) -> tuple[float, float, float]:
    z, y, x = (float(values[axes.index(name)]) * units[name] for name in SPATIAL)
    return z, y, x
