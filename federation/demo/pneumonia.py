"""Turn PneumoniaMNIST into sites that hold its radiographs in clinical formats.

    python -m federation.demo.pneumonia --data pneumoniamnist.npz --out DIR

The file is MedMNIST v2's (28x28 chest X-rays of children, CC BY 4.0; not part of this project). It
names no subjects, so one image is one subject. The published training part is protected, the
published validation part is declared public. Which site an image goes to follows from its name
alone: sha256("train-00017") as a number, modulo the number of sites. Sites take turns in holding
DICOM CR, DICOM DX and NIfTI; findings are in a table beside the images.
"""

import argparse
import csv
import hashlib
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from federation.demo.folders import PARTS, Part
from federation.errors import FederationError
from federation.files import write_atomically

Kind = Literal["CR", "DX", "NIfTI"]
KINDS: tuple[Kind, ...] = ("CR", "DX", "NIfTI")
FINDINGS = ("normal", "pneumonia")
PUBLISHED: dict[Part, str] = {"protected": "train", "public": "val"}
STORAGE = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1"}
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
TABLE = "findings.csv"
IMAGE = "chest.nii"


@dataclass(frozen=True)
class Radiograph:
    """One image of the published file, taken for one subject.

    Attributes:
        name: Published part and place in it, such as ``train-00017``.
        pixels_yx: uint8; rows run to the patient's left, columns to the foot.
        finding: Index into ``FINDINGS``.
    """

    name: str
    part: Part
    pixels_yx: npt.NDArray[np.uint8]
    finding: int

    def dealt_to(self, num_sites: int) -> int:
        """Return the index of this image's site; stable, whatever other images there are."""
        return image_number(self.name) % num_sites


def image_number(name: str) -> int:
    """Return the number that deals an image.

    >>> [image_number(f"train-{index:05d}") % 3 for index in range(4)]
    [1, 2, 2, 0]
    """
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def read_radiographs(data: Path) -> list[Radiograph]:
    """Return the images of the file, each one once.

    The published file holds some images twice, a few of them in both parts. A repeated image
    would be two subjects who are one person, or a training image that is scored: of each, the
    first stays, training part before validation part.

    Raises:
        FederationError: The file is missing or is not PneumoniaMNIST.
    """
    arrays = _load(data)
    found: dict[bytes, Radiograph] = {}
    for part, published in PUBLISHED.items():
        images, labels = arrays[f"{published}_images"], arrays[f"{published}_labels"].ravel()
        for index, (pixels_yx, finding) in enumerate(zip(images, labels, strict=True)):
            one = Radiograph(f"{published}-{index:05d}", part, pixels_yx, int(finding))
            found.setdefault(pixels_yx.tobytes(), one)
    return list(found.values())


def _load(data: Path) -> dict[str, npt.NDArray[Any]]:
    names = [f"{part}_{what}" for part in PUBLISHED.values() for what in ("images", "labels")]
    try:
        with np.load(data, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise FederationError(
            f"{data} cannot be read as PneumoniaMNIST ({type(error).__name__}): --data must be "
            f"pneumoniamnist.npz of MedMNIST v2 with the arrays {', '.join(names)}."
        ) from error
    if any(not _fits(arrays[f"{p}_images"], arrays[f"{p}_labels"]) for p in PUBLISHED.values()):
        raise FederationError(
            f"{data} holds other arrays than PneumoniaMNIST: images must be uint8 (image, y, x), "
            "with one label of 0 or 1 each."
        )
    return arrays


def _fits(images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> bool:
    planes = images.ndim == 3 and images.dtype == np.uint8 and len(images) > 0
    return planes and labels.size == len(images) and set(np.unique(labels)) <= {0, 1}


@dataclass(frozen=True)
class RadiographSite:
    """A site's folder: ``site.yaml``, ``findings.csv``, ``protected`` and ``public``."""

    path: Path
    kind: Kind

    @property
    def name(self) -> str:
        """Return the site's public name."""
        return self.path.name

    @property
    def site_file(self) -> Path:
        """Return the path of the site file."""
        return self.path / "site.yaml"

    def write(self, images: Sequence[Radiograph]) -> None:
        """Write this site's images in its format, and the table of findings."""
        writer = _write_nifti if self.kind == "NIfTI" else DicomWriter(self.kind).write
        for part in PARTS:
            (self.path / part).mkdir(parents=True)
        for image in images:
            writer(self.path / image.part, image)
        with (self.path / TABLE).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("subject", "finding"))
            table.writerows((image.name, image.finding) for image in images)


class DicomWriter:
    """Writes radiographs as one-file DICOM series; what all files share is made once."""

    def __init__(self, modality: Literal["CR", "DX"]) -> None:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import UID

        self._dataset = dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT_LITTLE_ENDIAN)
        dataset.file_meta.MediaStorageSOPClassUID = UID(STORAGE[modality])
        dataset.SOPClassUID = STORAGE[modality]
        dataset.Modality = modality
        dataset.ImageType = ["DERIVED", "PRIMARY"]
        dataset.PatientOrientation = ["L", "F"]
        # 28 x 28 pixels show no text; who laid the files out has looked at the published images.
        dataset.BurnedInAnnotation = "NO"
        dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
        dataset.PatientBirthDate = dataset.PatientSex = dataset.ReferringPhysicianName = ""
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0

    def write(self, folder: Path, image: Radiograph) -> None:
        """Write ``<folder>/<name>.dcm``. The same image gives the same bytes."""
        from pydicom.uid import generate_uid

        dataset = self._dataset
        dataset.PatientID, dataset.PatientName = image.name, f"FAKE^{image.name}"
        for level in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(
                dataset, level, generate_uid(entropy_srcs=["pneumoniamnist", image.name, level])
            )
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.Rows, dataset.Columns = image.pixels_yx.shape
        pixels = image.pixels_yx.tobytes()
        dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
        dataset.save_as(folder / f"{image.name}.dcm", enforce_file_format=True)


def _write_nifti(folder: Path, image: Radiograph) -> None:
    """Write ``<folder>/<name>/chest.nii``, two-dimensional, x to the left and y to the foot."""
    from nibabel.nifti1 import Nifti1Image

    affine = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=float)
    nifti = Nifti1Image(image.pixels_yx.T, affine)  # type: ignore[no-untyped-call]
    nifti.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    (folder / image.name).mkdir()
    nifti.to_filename(folder / image.name / IMAGE)


def subjects_between(num_subjects: int, num_sites: int) -> tuple[int, int]:
    """Return public bounds of a site's size: the published number dealt, six deviations around.

    >>> subjects_between(4708, 3), subjects_between(4708, 1)
    ((1331, 1808), (4296, 5120))
    """
    mean = num_subjects / num_sites
    spread = 6 * sqrt(mean)
    return max(1, floor(mean - spread)), ceil(mean + spread)


def largest_delta(most_subjects: int) -> float:
    """Return the largest delta of one digit that is at most 1 / (number of subjects)^2.

    >>> largest_delta(1808), largest_delta(5120)
    (3e-07, 3e-08)
    """
    limit = 1 / most_subjects**2
    exponent = floor(log10(limit))
    digit = floor(limit / 10.0**exponent)
    return float(f"{digit}e{exponent}")


@dataclass(frozen=True)
class SitePolicyFacts:
    """What the policy of every site says.

    Attributes:
        epsilon: Lifetime budget of each protected subject.
        bounds: Public bounds on the number of protected subjects.
    """

    epsilon: float
    allow_unprotected: bool
    bounds: tuple[int, int]


def site_file(site: RadiographSite, policy: SitePolicyFacts) -> str:
    """Return the text of a site file."""
    low, high = policy.bounds
    return f"""\
# The site file of {site.name}. It stays at the site. Relative paths start at its folder.
site: {site.name}
state: state
dataset: pneumoniamnist-{site.name}
licence: CC BY 4.0
modality: {"DX" if site.kind == "NIfTI" else site.kind}

# Trained on, under privacy: what MedMNIST published as its training part.
protected: {_source(site, "protected")}

# Its validation part. Whoever declares images public answers for it, by name.
public:
  source: {_source(site, "public")}
  declared_by: MedMNIST v2
  reason: published data set, its own validation part

policy:
  epsilon: {policy.epsilon!r}
  delta: {largest_delta(high):.0e}
  allow_unprotected: {str(policy.allow_unprotected).lower()}
  subjects_between: [{low}, {high}]
  release_counts: withheld
"""


def _source(site: RadiographSite, part: Part) -> str:
    classes = ", ".join(f'"{value}": {name}' for value, name in enumerate(FINDINGS))
    targets = (
        f"{{path: {TABLE}, key: subject, id_column: subject, column: finding, "
        f"classes: {{{classes}}}}}"
    )
    if site.kind == "NIfTI":
        own = 'kind: nifti, image: "", modality: DX'
    else:
        # The published images lost their spacing when they were shrunk to 28 x 28.
        own = "kind: dicom, spacing: 1.0"
    return f"{{{own}, path: {part}, targets: {targets}}}"


def lay_out_pneumonia(
    data: Path,
    out: Path,
    *,
    num_sites: int = 3,
    epsilon: float = 10.0,
    allow_unprotected: bool = False,
) -> list[RadiographSite]:
    """Write the sites and return them; one site holds everything: what centralised training has.

    Raises:
        FederationError: The file cannot be read, a site would have no image of a part, or a site's
            folder exists already.
    """
    images = read_radiographs(data)
    sites = [RadiographSite(out / name, kind) for name, kind in _names(num_sites)]
    dealt = [[i for i in images if i.dealt_to(num_sites) == at] for at in range(num_sites)]
    _require_room(sites, dealt)
    num_protected = sum(image.part == "protected" for image in images)
    policy = SitePolicyFacts(epsilon, allow_unprotected, subjects_between(num_protected, num_sites))
    for site, own in zip(sites, dealt, strict=True):
        site.write(own)
        write_atomically(site.site_file, site_file(site, policy).encode(), mode=0o644)
    return sites


def _names(num_sites: int) -> Iterator[tuple[str, Kind]]:
    if num_sites == 1:
        yield "pneumonia-pooled", KINDS[0]
        return
    for number in range(num_sites):
        kind = KINDS[number % len(KINDS)]
        yield f"pneumonia-{number + 1}-{kind.lower()}", kind


def _require_room(sites: Sequence[RadiographSite], dealt: Sequence[Sequence[Radiograph]]) -> None:
    for site, images in zip(sites, dealt, strict=True):
        if site.path.exists():
            raise FederationError(
                f"{site.path} exists already and may hold a privacy ledger, so nothing was "
                "written. Choose another folder, or remove this one if nothing in it is needed."
            )
        if {image.part for image in images} != set(PARTS):
            raise FederationError(
                f"{site.name} would have no image of one of the parts, so nothing was written. "
                "Choose fewer sites."
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 with one sentence on stderr."""
    given = _parser().parse_args(arguments)
    try:
        sites = lay_out_pneumonia(
            given.data,
            given.out,
            num_sites=1 if given.pooled else given.sites,
            epsilon=given.epsilon,
            allow_unprotected=given.allow_unprotected,
        )
    except FederationError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    for site in sites:
        sys.stdout.write(_counts(site) + "\n")
    return 0


def _counts(site: RadiographSite) -> str:
    counts = Counter({part: len(list((site.path / part).iterdir())) for part in PARTS})
    return (
        f"{site.name} ({site.kind}): {counts['protected']} protected and {counts['public']} public "
        f"subjects, {site.site_file}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m federation.demo.pneumonia",
        description="Turn PneumoniaMNIST into sites that hold it in clinical formats.",
    )
    parser.add_argument("--data", type=Path, required=True, help="pneumoniamnist.npz")
    parser.add_argument("--out", type=Path, required=True, help="receives one folder per site")
    parser.add_argument("--sites", type=_num_sites, default=3, help="number of sites (3)")
    parser.add_argument(
        "--pooled", action="store_true", help="one site with all subjects, to compare with"
    )
    parser.add_argument(
        "--epsilon", type=float, default=10.0, help="lifetime budget of each subject (10)"
    )
    parser.add_argument(
        "--allow-unprotected", action="store_true", help="permit training without privacy"
    )
    return parser


def _num_sites(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 26:
        raise argparse.ArgumentTypeError("1 to 26 sites")
    return number


if __name__ == "__main__":
    sys.exit(main())
