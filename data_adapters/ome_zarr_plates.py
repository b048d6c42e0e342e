"""Groups that hold several OME-Zarr images: HCS plates, and what bioformats2raw writes.

OME-Zarr 0.4 and 0.5, "plate", "well" and "bioformats2raw.layout".
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_adapters.ome_zarr_metadata import COLLECTION
from data_adapters.reasons import Unusable
from data_adapters.tables import read_table
from data_adapters.zarr_places import Place, ZarrFormat, ome_attributes, read_attributes

Layout = Literal["image", "plate", "collection"]
# B/3, B3 and B/03 are one well; a path of a plate may stand in front.
_WELL = re.compile(r"(?:(?P<plate>.*)/)?(?P<row>[A-Za-z]{1,3})/?0*(?P<column>[1-9]\d*)")


@dataclass(frozen=True)
class FieldOfView:
    """One image of a plate.

    Args:
        path: Below the plate: row/column/field.
        well: Row/column.
    """

    path: str
    well: str


@dataclass(frozen=True)
class Refused:
    """A part of a plate or collection that cannot be looked at, and why."""

    path: str
    reason: Unusable


@dataclass(frozen=True)
class Wells:
    """Whose specimen is in which well. Make one with ``load_wells``."""

    subjects: Mapping[str, frozenset[str]]

    def subject_of(self, plate: str, well: str) -> str:
        """Return the donor: of this well in this plate, or of this well in any plate.

        Args:
            plate: Path of the plate below the source's folder.

        Raises:
            Unusable: WELL_WITHOUT_SUBJECT.
        """
        found = self.subjects.get(well_name(f"{plate}/{well}")) or self.subjects.get(
            well_name(well), frozenset()
        )
        if len(found) != 1 or "" in found:
            raise Unusable("WELL_WITHOUT_SUBJECT")
        return next(iter(found))


def load_wells(path: Path | None) -> Wells:
    """Read the table of wells; without one, no well has a subject.

    Raises:
        DataError: It is missing, no table, or without the columns ``well`` and ``subject``.
    """
    subjects: defaultdict[str, set[str]] = defaultdict(set)
    if path is not None:
        for well, subject in read_table(path, ("well", "subject")):
            subjects[well_name(well)].add(subject)
    return Wells({well: frozenset(found) for well, found in subjects.items()})


def well_name(text: str) -> str:
    """Return one spelling for a well, with the plate in front if it was.

    >>> well_name("B3"), well_name("B/03"), well_name("day 1/plate.zarr/AA/12")
    ('B/3', 'B/3', 'day 1/plate.zarr/AA/12')
    """
    found = _WELL.fullmatch(text)
    if found is None:
        return text
    plate = found["plate"] + "/" if found["plate"] else ""
    return f"{plate}{found['row']}/{found['column']}"


def layout_of(place: Place) -> Layout:
    """Say what a group holds; what is damaged is left to the reader of one image."""
    try:
        _, ome = ome_attributes(place)
    except Unusable:
        return "image"
    if "plate" in ome:
        return "plate"
    return "collection" if COLLECTION in ome else "image"


def fields_of(plate: Place) -> Iterator[FieldOfView | Refused]:
    """Yield every field of view of every well, in the order of the plate's metadata."""
    try:
        wells = _plate_wells(plate)
    except Unusable as reason:
        yield Refused("", reason)
        return
    for well in wells:
        try:
            yield from [FieldOfView(f"{well}/{name}", well) for name in _fields(plate, well)]
        except Unusable as reason:
            yield Refused(well, reason)


def _plate_wells(plate: Place) -> list[str]:
    from ome_zarr_models.v04.hcs import HCSAttrs as HCSAttrs04
    from ome_zarr_models.v05.hcs import HCSAttrs as HCSAttrs05

    zarr_format, ome = ome_attributes(plate)
    checked = _validated(HCSAttrs05 if zarr_format == 3 else HCSAttrs04, ome, "plate")
    return [well.path for well in checked.plate.wells]


def _fields(plate: Place, well: str) -> list[str]:
    from ome_zarr_models.v04.well import WellAttrs as WellAttrs04
    from ome_zarr_models.v05.well import WellAttrs as WellAttrs05

    zarr_format, ome = ome_attributes(plate.child(well))
    checked = _validated(WellAttrs05 if zarr_format == 3 else WellAttrs04, ome, "well")
    return [image.path for image in checked.well.images]


def _validated(model: Any, ome: Mapping[str, Any], key: str) -> Any:
    import warnings

    needed = {name: ome[name] for name in (key, "version") if name in ome}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.model_validate(needed)
    except (ValueError, TypeError, RecursionError):
        raise Unusable("INVALID_METADATA") from None


def series_of(collection: Place) -> Iterator[str | Refused]:
    """Yield the path of each image: as the OME group lists them, or else 0, 1, 2 and so on."""
    try:
        listed = _listed_series(collection)
        paths = _numbered(collection) if listed is None else listed
    except Unusable as reason:
        yield Refused("", reason)
        return
    if not paths:
        yield Refused("", Unusable("INVALID_METADATA"))
    yield from paths


def _listed_series(collection: Place) -> list[str] | None:
    found = read_attributes(collection.child("OME"))
    if found is None:
        return None
    series = _ome_part(*found).get("series")
    if series is None:
        return None
    if not isinstance(series, list) or not all(isinstance(path, str) for path in series):
        raise Unusable("INVALID_METADATA")
    return series


def _ome_part(zarr_format: ZarrFormat, attributes: dict[str, Any]) -> dict[str, Any]:
    ome = attributes.get("ome", {}) if zarr_format == 3 else attributes
    return ome if isinstance(ome, dict) else {}


def _numbered(collection: Place) -> list[str]:
    paths: list[str] = []
    while read_attributes(collection.child(str(len(paths)))) is not None:
        paths.append(str(len(paths)))
    return paths
