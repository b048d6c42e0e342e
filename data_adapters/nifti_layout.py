"""Which NIfTI files are images, whose they are, and which labels belong to which.

Two layouts: BIDS (https://bids-specification.readthedocs.io, "Common principles": entities in file
names, derived data below ``derivatives/``), and a folder of subject folders.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_adapters.nifti_volume import SUFFIXES
from data_adapters.subject_ids import names_a_subject

DESCRIPTION = "dataset_description.json"
DERIVATIVES = "derivatives"
SUBJECT_PREFIX = "sub-"


@dataclass(frozen=True)
class NiftiFile:
    """One file and what its name says.

    Args:
        stem: The name without ``.nii`` and ``.nii.gz``.
        entities: Of BIDS: ``ses``, ``acq``, ``run`` and so on.
        derived: Lies below ``derivatives/``: it may be labels, and is no image of its own.
    """

    path: Path
    subject: str = field(repr=False)
    stem: str
    entities: Mapping[str, str] = field(repr=False)
    derived: bool = False


def is_bids(root: Path) -> bool:
    """Return whether a folder is a BIDS data set."""
    return (root / DESCRIPTION).is_file()


def find_files(root: Path) -> list[NiftiFile]:
    """Return every NIfTI file that belongs to a subject, in the order of their paths."""
    bids = is_bids(root)
    subjects = [path for path in root.iterdir() if path.is_dir()]
    if bids:
        subjects = [path for path in subjects if path.name.startswith(SUBJECT_PREFIX)]
    found = [
        _bids_file(path, folder.name) if bids else NiftiFile(path, folder.name, _stem(path), {})
        for folder in subjects
        for path in _nifti_below(folder)
    ]
    if bids:
        found += _derived(root / DERIVATIVES)
    return sorted(found, key=lambda file: file.path)


def raw_subject(file: NiftiFile) -> str:
    """Return the identifier as it stands on disk; empty where it names nobody (``sub-anon``)."""
    return file.subject if names_a_subject(file.subject.removeprefix(SUBJECT_PREFIX)) else ""


def labels_of(
    images: Iterable[NiftiFile],
    labels: Sequence[NiftiFile],
    *,
    image_end: str,
    labels_end: str,
) -> tuple[dict[Path, tuple[Path, ...]], list[Path]]:
    """Give labels to the one image that each can mean.

    Returns:
        Label files by image, and those whose image is missing or not clear.
    """
    by_subject: defaultdict[str, list[NiftiFile]] = defaultdict(list)
    for image in images:
        by_subject[image.subject].append(image)
    given: defaultdict[Path, tuple[Path, ...]] = defaultdict(tuple)
    orphans = []
    for file in labels:
        fits = _by_entities if file.entities else _by_name
        meant = fits(file, by_subject[file.subject], image_end, labels_end)
        if len(meant) == 1:
            given[meant[0].path] += (file.path,)
        else:
            orphans.append(file.path)
    return dict(given), orphans


def _by_entities(
    labels: NiftiFile, images: Sequence[NiftiFile], _image_end: str, _labels_end: str
) -> list[NiftiFile]:
    """Return the images that agree in every entity both have, and have the most in common.

    Labels may say more (``desc``, ``space``); what they leave out must not matter.
    """
    fitting = [image for image in images if _agree(labels.entities, image.entities)]
    apart = [len(image.entities.keys() ^ labels.entities.keys()) for image in fitting]
    return [i for i, distance in zip(fitting, apart, strict=True) if distance == min(apart)]


def _agree(labels: Mapping[str, str], image: Mapping[str, str]) -> bool:
    same_session = labels.get("ses") == image.get("ses")
    return same_session and all(labels[key] == image[key] for key in labels.keys() & image.keys())


def _by_name(
    labels: NiftiFile, images: Sequence[NiftiFile], image_end: str, labels_end: str
) -> list[NiftiFile]:
    """Return the images whose name is the labels' with another end; else the subject's only one."""
    start = labels.stem.removesuffix(labels_end)
    named = [i for i in images if start in (i.stem, i.stem.removesuffix(image_end))]
    beside = [image for image in named if image.path.parent == labels.path.parent]
    return beside or named or list(images)


def _bids_file(path: Path, subject: str, *, derived: bool = False) -> NiftiFile:
    pairs = (part.split("-", 1)[:2] for part in _stem(path).split("_") if "-" in part)
    return NiftiFile(path, subject, _stem(path), dict(pairs), derived)


def _derived(folder: Path) -> list[NiftiFile]:
    found = []
    for path in _nifti_below(folder):
        name = _bids_file(path, "").entities.get("sub")
        if name:
            found.append(_bids_file(path, SUBJECT_PREFIX + name, derived=True))
    return found


def _nifti_below(folder: Path) -> list[Path]:
    """Return files and links to them: a link that leads nowhere is a file that was not fetched."""
    if not folder.is_dir():
        return []
    return [
        path
        for path in folder.rglob("*.nii*")
        if path.name.endswith(SUFFIXES) and (path.is_file() or path.is_symlink())
    ]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
