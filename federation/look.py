"""A quick look at a folder that a person points to: which kinds of images, which labels.

It serves ``cohortium site init``, which writes what was seen into a site file for a person to
correct. What can be used, and why not, is found by an ingest.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from data_adapters.dicom_deflated import open_bounded
from data_adapters.errors import DataError
from data_adapters.nifti_volume import read_header
from data_adapters.ome_zarr_images import open_level
from data_adapters.ome_zarr_metadata import read_metadata
from data_adapters.reasons import Unusable
from data_adapters.zarr_places import Place, ome_attributes
from data_adapters.zarr_voxels import Stored

Kind = Literal["dicom", "ome_zarr", "nifti"]
# Headers that are read of each kind; more say nothing new.
MOST_HEADERS = 2_000
MOST_FILES = 200_000
_MOST_LABEL_BYTES = 32 << 20
_MOST_LABELS = 64
_NO_IMAGES = frozenset({"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "DOC"})
_CODE = re.compile(r"[A-Z]{2,16}")
# Images whose labels are looked into where the metadata do not list them.
_FEW = 5


@dataclass(frozen=True)
class Seen:
    """One kind of images in a folder.

    Attributes:
        path: The folder, or a DICOMDIR file.
        labels: Label to what it is called, as far as the files say.
        group: Of OME-Zarr: the labels group. Of NIfTI: the end of label files' names.
        image: Of NIfTI: the end of image files' names.
        modalities: Of image series, most frequent first.
        num_subjects: As far as was looked.
    """

    kind: Kind
    path: Path
    labels: dict[str, str]
    group: str = ""
    image: str = ""
    modalities: tuple[str, ...] = ()
    num_subjects: int = 0


def look(folder: Path) -> tuple[Seen, ...]:
    """Return every kind of images in ``folder``.

    Raises:
        DataError: There is no such folder, or no image of a known kind in it.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Give the folder that holds the images.")
    found = _walk(folder)
    seen = [
        _zarr(folder, found.zarr) if found.zarr else None,
        _nifti(folder, found.nifti) if found.nifti else None,
        _dicom(folder, found.others),
    ]
    kinds = tuple(one for one in seen if one is not None)
    if not kinds:
        raise DataError(
            f"In {folder} there is nothing that is known here: DICOM files, OME-Zarr images "
            "(folders *.zarr) or NIfTI files (*.nii, *.nii.gz). Give the folder that holds them."
        )
    return kinds


@dataclass
class _Files:
    zarr: list[Path]
    nifti: list[Path]
    others: list[Path]


def _walk(folder: Path) -> _Files:
    """Sort files by their names; the inside of a Zarr is not looked through."""
    files, waiting, left = _Files([], [], []), [folder], MOST_FILES
    while waiting and left > 0:
        for path in sorted(waiting.pop(0).iterdir()):
            left -= 1
            if path.is_dir() and not path.is_symlink():
                target = files.zarr if _is_zarr(path) else waiting
                target.append(path)
            elif path.name.endswith((".nii", ".nii.gz")):
                files.nifti.append(path)
            elif path.is_file():
                files.others.append(path)
    return files


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))


# DICOM


def _dicom(folder: Path, files: list[Path]) -> Seen | None:
    modalities: Counter[str] = Counter()
    labels: dict[str, str] = {}
    subjects: set[str] = set()
    for header in _headers(files):
        modalities[str(header.get("Modality", ""))] += 1
        subjects.add(str(header.get("PatientID", "")))
        labels |= {name: name for name in _label_names(header)}
    if not modalities:
        return None
    images = tuple(
        modality
        for modality, _ in modalities.most_common()
        if modality not in _NO_IMAGES and _CODE.fullmatch(modality)
    )
    directory = next((f for f in files if f.parent == folder and f.name == "DICOMDIR"), folder)
    return Seen("dicom", directory, labels, modalities=images, num_subjects=len(subjects))


def _headers(files: Iterable[Path]) -> Iterator[Any]:
    from pydicom import dcmread

    tags = ["Modality", "PatientID", "SegmentSequence", "StructureSetROISequence"]
    candidates = (file for file in files if file.name != "DICOMDIR" and _says_dicom(file))
    for file in islice(candidates, MOST_HEADERS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with open_bounded(file) as opened:
                    header = dcmread(opened, stop_before_pixels=True, specific_tags=tags)
                # Values are decoded when they are asked for; better here than later.
                header.decode()
            except Exception:  # noqa: S112  (a damaged header can raise anything; ingest says it)
                continue
        yield header


def _says_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _label_names(header: Any) -> Iterator[str]:
    for sequence, name in (("SegmentSequence", "SegmentLabel"),
                           ("StructureSetROISequence", "ROIName")):  # fmt: skip
        for item in header.get(sequence) or ():
            text = str(item.get(name, "")).strip()
            if text:
                yield text


# OME-Zarr


def _zarr(folder: Path, images: list[Path]) -> Seen:
    groups: Counter[str] = Counter()
    values: dict[str, str] = {}
    for image in images[:MOST_HEADERS]:
        for name, place in _label_groups(image):
            groups[name] += 1
            values |= _label_values(place)
    group = groups.most_common(1)[0][0] if groups else ""
    if group and not values:
        named = (dict(_label_groups(image)).get(group) for image in images[:_FEW])
        stored = (_stored_labels(place) for place in named if place is not None)
        values = _named({value for found in stored for value in found})
    return Seen(
        "ome_zarr", folder, values, group=group, num_subjects=len(_first_parts(folder, images))
    )


def _label_groups(image: Path) -> Iterator[tuple[str, Place]]:
    """Yield the labels groups that an image lists; a name or link that leads out of it is none."""
    try:
        labels = Place(str(image)).child("labels")
    except Unusable:
        return
    for name in _listed(_ome(labels), "labels"):
        try:
            yield str(name), labels.child(str(name))
        except Unusable:
            continue


def _ome(place: Place) -> dict[str, Any]:
    """Return the OME metadata of a group, of version 0.4 or 0.5; empty where there is none."""
    try:
        return ome_attributes(place)[1]
    except Unusable:
        return {}


def _listed(document: Any, name: str) -> list[Any]:
    found = document.get(name) if isinstance(document, dict) else None
    return found if isinstance(found, list) else []


def _label_values(group: Place) -> dict[str, str]:
    about = _ome(group).get("image-label")
    listed = [*_listed(about, "colors"), *_listed(about, "properties")]
    values = {
        item["label-value"]
        for item in listed
        if isinstance(item, dict) and isinstance(item.get("label-value"), int)
    }
    return _named(values)


def _named(values: set[int]) -> dict[str, str]:
    return {str(value): f"class {value}" for value in sorted(values - {0})[:_MOST_LABELS]}


def _stored_labels(group: Place) -> list[int]:
    """Return the values of the finest level that is small enough to be read in passing."""
    try:
        metadata = read_metadata(group)
        for level in metadata.levels:
            stored = open_level(metadata, level)
            if _is_small(stored):
                return _whole_values(stored.store.read().result())
    except (OSError, ValueError, Unusable):
        pass
    return []


def _is_small(stored: Stored) -> bool:
    """A chunk is decoded whole, and may be larger than the array that it belongs to."""
    sizes = (stored.shape, stored.chunk)
    return all(stored.num_bytes(stored.axes, size) <= _MOST_LABEL_BYTES for size in sizes)


# NIfTI


def _nifti(folder: Path, files: list[Path]) -> Seen:
    ends = Counter(_end(file) for file in files)
    label_ends = [end for end in ends if end in ("_dseg", "_seg", "_mask", "_label", "_labels")]
    group = label_ends[0] if label_ends else ""
    images = [end for end, _ in ends.most_common() if end != group]
    labels = _nifti_labels(folder, [f for f in files if _end(f) == group]) if group else {}
    return Seen(
        "nifti",
        folder,
        labels,
        group=group,
        image=images[0] if images else "",
        modalities=("MR",),
        num_subjects=len(_first_parts(folder, [f for f in files if _end(f) != group])),
    )


def _end(file: Path) -> str:
    """Return the last part of a name: ``sub-01_T1w.nii.gz`` ends in ``_T1w``.

    >>> _end(Path("sub-01_T1w.nii.gz")), _end(Path("image.nii"))
    ('_T1w', 'image')
    """
    stem = file.name.removesuffix(".gz").removesuffix(".nii")
    return f"_{stem.rpartition('_')[2]}" if "_" in stem else stem


def _nifti_labels(folder: Path, files: list[Path]) -> dict[str, str]:
    """Return what BIDS's table says, or else the values in the smallest file of labels."""
    for table in sorted(folder.rglob("*dseg.tsv"))[:1]:
        try:
            return dict(_table_of_labels(table))
        except DataError:
            break
    smallest = min(files, key=lambda file: file.stat().st_size, default=None)
    if smallest is None or smallest.stat().st_size > _MOST_LABEL_BYTES:
        return {}
    return _named(set(_values(smallest)))


def _table_of_labels(table: Path) -> Iterator[tuple[str, str]]:
    """Yield value and name; BIDS separates by tabs, so commas cannot be what separates."""
    lines = table.read_text(encoding="utf-8").splitlines()
    header = lines[0].split("\t") if lines else []
    if not {"index", "name"} <= set(header):
        raise DataError(f"{table} names no labels.")
    index, name = header.index("index"), header.index("name")
    for line in lines[1 : _MOST_LABELS + 1]:
        cells = line.split("\t")
        if len(cells) == len(header) and cells[index].isdigit() and cells[index] != "0":
            yield cells[index], cells[name]


def _values(file: Path) -> list[int]:
    import numpy as np

    try:
        volume = read_header(file, placed=False)
        num_bytes = int(np.prod(volume.shape_zyx, dtype=object)) * volume.stored_type.itemsize
        return _whole_values(volume.label_values()) if num_bytes <= _MOST_LABEL_BYTES else []
    except Unusable:
        return []


def _whole_values(array: Any) -> list[int]:
    import numpy as np

    found = np.unique(np.asarray(array))
    return [int(value) for value in found if float(value).is_integer() and value > 0]


def _first_parts(folder: Path, paths: Iterable[Path]) -> set[str]:
    return {path.relative_to(folder).parts[0] for path in paths}
