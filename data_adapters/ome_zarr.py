"""OME-Zarr images of a source: which are there, and each as a scan that is read where it lies."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_adapters import zarr_remote
from data_adapters.errors import DataError
from data_adapters.ome_zarr_images import OpenedImage, Wanted, open_image
from data_adapters.ome_zarr_labels import ClassTable, ClassVoxels, open_labels
from data_adapters.ome_zarr_plates import (
    Refused,
    fields_of,
    layout_of,
    load_wells,
    series_of,
)
from data_adapters.ome_zarr_stamps import GROUP_FILES, tree_stamp
from data_adapters.reasons import Unusable
from data_adapters.sources import OmeZarrSource, class_values
from data_adapters.tables import read_table
from data_adapters.targets import TargetTable, load_targets
from data_adapters.types import Discovery, Quarantined, Scan, relative
from data_adapters.zarr_places import Place
from data_adapters.zarr_remote_stamps import remote_stamp
from data_adapters.zarr_voxels import ZarrVoxels

SUFFIX = ".zarr"
ZIPPED = (".zarr.zip", ".ozx")
# Settings that decide which images there are, not what is read of one.
_NOT_READING = {"path", "images", "wells", "targets", "subjects"}


@dataclass(frozen=True)
class OmeZarrCandidate:
    """One image group with the labels group that is asked for.

    Args:
        place: The image group; its own root, so that nothing leads out of it.
        target: From the table of targets: a value, or why there is none.
    """

    where: str
    place: Place
    subject: str = field(repr=False)
    source: OmeZarrSource = field(repr=False)
    target: float | Unusable | None = field(repr=False, default=None)

    def fingerprint(self) -> str:
        """Return text that changes with the image's files or with what is read of them."""
        settings = self.source.model_dump_json(exclude=_NOT_READING)
        try:  # all levels and labels: which of them are used is known only once they are read
            files = self._remote_stamp() if self.place.remote else tree_stamp((), (self.place,))
        except Unusable:
            return ""
        if not files:
            return ""
        text = f"{self.subject}\0{self.target!r}\0{settings}\0{files}"
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def read(self) -> Scan:
        """Return the scan; its pixels stay where they are, every label was looked at once.

        Raises:
            Unusable: The reason code for which it is left out.
        """
        return self.read_again({})

    def read_again(self, known: Mapping[int, str]) -> Scan:
        """Return the scan as ``read`` does; blocks of labels with a known stamp are not looked at.

        Raises:
            Unusable: The reason code for which it is left out.
        """
        scan = self.reopen()
        if isinstance(scan.labels_zyx, ClassVoxels):
            scan.labels_zyx.check(known)
        return scan

    def reopen(self) -> Scan:
        """Return the scan without a look at its labels: for one whose ``stamp`` is known.

        Raises:
            Unusable: The reason code for which it is left out.
        """
        if isinstance(self.target, Unusable):
            raise self.target
        image = open_image(self.place, _wanted(self.source))
        labels = self._labels(image)
        # Also where it is copied: the walk refuses links among the files.
        stamp = "" if self.place.remote else self._stamp(image, labels)
        in_place = not (self.place.remote or self.source.rechunk)
        num_channels = image.voxels.shape[0]
        return Scan(
            image_czyx=image.voxels,
            slopes=(1.0,) * num_channels,
            intercepts=(0.0,) * num_channels,
            affine_ras=image.affine_ras,
            subject=self.subject,
            modality=self.source.modality,
            labels_zyx=labels,
            target=self.target,
            planar=image.planar,
            in_place=in_place,
            stamp=stamp if in_place else "",
        )

    def _remote_stamp(self) -> str:
        """Ask the server what it has of the level that is read, and of its labels."""
        image = open_image(self.place, _wanted(self.source))
        labels = self._labels(image)
        objects = [(self.place, name) for name in GROUP_FILES]
        arrays: list[ZarrVoxels | ClassVoxels] = [image.voxels]
        if labels is not None:
            group = self.place.child(f"labels/{self.source.labels}")
            objects += [(group, name) for name in GROUP_FILES]
            arrays.append(labels)
        for voxels in arrays:
            names = voxels.objects()
            if names is None:
                return ""
            objects += [(voxels.place, name) for name in names]
        return remote_stamp(objects)

    def _labels(self, image: OpenedImage) -> ClassVoxels | None:
        if self.source.labels is None:
            return None
        return open_labels(image, self.source.labels, class_table(self.source), self.source.unit)

    def _stamp(self, image: OpenedImage, labels: ClassVoxels | None) -> str:
        groups, arrays = [self.place], [image.level.array]
        if labels is not None:
            groups.append(self.place.child(f"labels/{self.source.labels}"))
            arrays.append(labels.place)
        return tree_stamp(groups, arrays)


def class_table(source: OmeZarrSource) -> ClassTable:
    """Return how label values become class indices."""
    if source.instances is not None:
        names = source.class_names()
        return ClassTable((), interior=names.index(source.instances.interior))
    return ClassTable.of(class_values(source, source.classes))


def _wanted(source: OmeZarrSource) -> Wanted:
    return Wanted(source.channels, source.time, source.spacing, source.unit)


@dataclass(frozen=True)
class _Entry:
    """A store that is named or found, before it is known what it holds.

    Args:
        subject: None where only a table of wells can say.
    """

    where: str
    place: Place
    subject: str | None


def discover_ome_zarr(source: OmeZarrSource) -> Discovery:
    """Look for ``<subject>/<anything>.ome.zarr`` (or ``.zarr``), or read the table of images.

    Plates and collections become one candidate for each image in them. Pixels, and stores behind a
    URL, are not touched.

    Raises:
        DataError: A table that the source names is missing or no table.
    """
    finder = _Finder(source)
    if source.images is not None:
        finder.look_into_table(source.images)
    else:
        finder.look_into_folders()
    notes: tuple[str, ...] = ()
    if finder.num_loose:
        notes = (
            f"{finder.num_loose} images lie beside the subject folders, not in one; passed over.",
        )
    return Discovery(tuple(finder.candidates), tuple(finder.quarantined), {}, notes)


class _Finder:
    """Collects what is found in one source."""

    def __init__(self, source: OmeZarrSource) -> None:
        self._source = source
        self._wells = load_wells(source.wells)
        self._targets = _load_targets(source)
        self.candidates: list[OmeZarrCandidate] = []
        self.quarantined: list[Quarantined] = []
        self.num_loose = 0

    def look_into_table(self, table: Path) -> None:
        """Take each image that the table names once; two subjects for one image are refused."""
        subjects: dict[str, set[str]] = {}
        for path, subject in read_table(table, ("path", "subject")):
            name = path.rstrip("/") if zarr_remote.is_url(path) else str(PurePosixPath(path))
            subjects.setdefault(name, set()).add(subject)
        for path, named in subjects.items():
            where = zarr_remote.shown_url(path) if zarr_remote.is_url(path) else path
            try:
                if len(named) > 1:
                    raise Unusable("MIXED_SUBJECTS")
                self._take(_Entry(where, self._named_place(path), next(iter(named))))
            except Unusable as reason:
                self.quarantined.append(reason.at(where))

    def _named_place(self, path: str) -> Place:
        if path.endswith(ZIPPED):
            raise Unusable("UNSUPPORTED_LAYOUT", "An image in a zip file")
        if zarr_remote.is_url(path):
            return Place(path)
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            raise Unusable("PATH_OUTSIDE")
        return Place(str(self._source.path / path))

    def look_into_folders(self) -> None:
        """Look at the source's subfolders; plates may also lie beside them."""
        root = self._source.path
        if root.suffix == SUFFIX:
            self._take_loose(root)
            return
        for path in self._listed(root):
            if path.name.endswith(ZIPPED):
                self._refuse_zipped(path)
            elif path.suffix == SUFFIX:
                self._take_loose(path)
            elif path.is_dir():
                self._look_into_subject(path)

    def _look_into_subject(self, folder: Path) -> None:
        for path in self._listed(folder):
            if path.name.endswith(ZIPPED):
                self._refuse_zipped(path)
            elif path.suffix == SUFFIX and path.is_dir():
                self._take(_Entry(self._where(path), Place(str(path)), folder.name))

    def _listed(self, folder: Path) -> list[Path]:
        try:
            return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError:
            self.quarantined.append(Unusable("UNREADABLE_FILE").at(self._where(folder)))
            return []

    def _where(self, path: Path) -> str:
        return relative(path, self._source.path)

    def _refuse_zipped(self, path: Path) -> None:
        reason = Unusable("UNSUPPORTED_LAYOUT", "An image in a zip file")
        self.quarantined.append(reason.at(self._where(path)))

    def _take_loose(self, path: Path) -> None:
        """A plate's wells say whose they are; an image in no subject's folder does not."""
        entry = _Entry(self._where(path), Place(str(path)), None)
        if layout_of(entry.place) == "plate":
            self._take_fields(entry)
        elif path.is_dir():
            self.num_loose += 1

    def _take(self, entry: _Entry) -> None:
        layout = "image" if entry.place.remote else layout_of(entry.place)
        if layout == "plate":
            # A folder's name says nothing of a plate; a row of the table of images does.
            from_row = self._source.images is not None and self._source.wells is None
            self._take_fields(entry if from_row else _Entry(entry.where, entry.place, None))
        elif layout == "collection":
            self._take_series(entry)
        else:
            self._add(entry.where, entry.place, entry.subject or "")

    def _take_fields(self, entry: _Entry) -> None:
        for found in fields_of(entry.place):
            where = _below(entry.where, found.path)
            try:
                if isinstance(found, Refused):
                    raise found.reason
                subject = entry.subject or self._wells.subject_of(entry.where, found.well)
                self._add(where, _inside(entry.place, found.path), subject)
            except Unusable as reason:
                self.quarantined.append(reason.at(where))

    def _take_series(self, entry: _Entry) -> None:
        for found in series_of(entry.place):
            path = found.path if isinstance(found, Refused) else found
            try:
                if isinstance(found, Refused):
                    raise found.reason
                place = _inside(entry.place, path)
                self._add(_below(entry.where, path), place, entry.subject or "")
            except Unusable as reason:
                self.quarantined.append(reason.at(_below(entry.where, path)))

    def _add(self, where: str, place: Place, subject: str) -> None:
        target = self._target(where, subject)
        self.candidates.append(OmeZarrCandidate(where, place, subject, self._source, target))

    def _target(self, where: str, subject: str) -> float | Unusable | None:
        if self._targets is None or self._source.targets is None:
            return None
        try:
            return self._targets.target_of(
                where if self._source.targets.key == "image" else subject
            )
        except Unusable as reason:
            return reason


def _load_targets(source: OmeZarrSource) -> TargetTable | None:
    if source.targets is None:
        return None
    if source.targets.key not in {"subject", "image"}:
        raise DataError(
            f"OME-Zarr knows no {source.targets.key}: `key` of the table of targets is 'subject', "
            "or 'image' for the path below the source's folder."
        )
    return load_targets(source.targets)


def _inside(group: Place, path: str) -> Place:
    """Return an image of a plate or collection as a root of its own."""
    return Place(str(group.child(path).folder))


def _below(where: str, path: str) -> str:
    return "/".join(part for part in (where, path) if part and part != ".") or "."
