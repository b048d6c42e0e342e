"""Turn the hippocampus images of the Medical Segmentation Decathlon into three sites.

    python -m federation.demo.hippocampus --data DIR --out DIR

DIR holds ``images`` and ``labels`` with one NIfTI file per subject (Task04, CC BY-SA 4.0; not
part of this project). Two sites get DICOM MR + DICOM SEG, one OME-Zarr + labels. Which site a
subject goes to and whether it is held back follow from its file name alone:

    h = sha256("hippocampus_001") as a number;  held back (public): h % 5 == 0;
    site: (h // 5) % 3
"""

import argparse
import hashlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from federation.demo.folders import PARTS, Part, SiteFacts, SiteFolder, create_sites
from federation.errors import FederationError

LABELS = {
    1: ("Anterior hippocampus", "anterior hippocampus"),
    2: ("Posterior hippocampus", "posterior hippocampus"),
}
SITES = (
    ("hippocampus-north", "dicom"),
    ("hippocampus-south", "dicom"),
    ("hippocampus-lab", "ome_zarr"),
)
POOLED = (("hippocampus-pooled", "dicom"),)
INT16_MAX = 32_767


@dataclass(frozen=True)
class Case:
    """One subject of the decathlon, with one image of one hippocampus and its surroundings."""

    name: str
    image: Path
    labels: Path

    def dealt_to(self, num_sites: int) -> int:
        """Return the index of this case's site; stable, whatever other subjects there are."""
        return case_number(self.name) // 5 % num_sites

    @property
    def part(self) -> Part:
        """Return whether the subject is trained on or held back."""
        return "public" if case_number(self.name) % 5 == 0 else "protected"


def case_number(name: str) -> int:
    """Return the number that deals a case.

    >>> case_number("hippocampus_001") % 5
    1
    """
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def find_cases(data: Path) -> list[Case]:
    """Return the cases of a folder with ``images`` and ``labels``, in the order of their names.

    Raises:
        FederationError: A folder or a label file is missing, or there is no image.
    """
    images, labels = data / "images", data / "labels"
    for folder in (images, labels):
        if not folder.is_dir():
            raise FederationError(
                f"{folder} is not a folder: --data must hold the folders 'images' and 'labels' of "
                "the decathlon's hippocampus task (Task04, imagesTr and labelsTr)."
            )
    cases = [
        Case(path.name.removesuffix(".nii.gz"), path, labels / path.name)
        for path in sorted(images.glob("*.nii.gz"))
    ]
    if not cases:
        raise FederationError(f"{images} holds no .nii.gz file; the images are expected there.")
    unlabelled = [case for case in cases if not case.labels.is_file()]
    if unlabelled:
        raise FederationError(
            f"{len(unlabelled)} of {len(cases)} images in {images} have no file of the same name "
            f"in {labels}. Remove the images or add their labels."
        )
    return cases


@dataclass(frozen=True)
class NiftiScan:
    """A NIfTI image and its labels with array axes (z, y, x)."""

    image_zyx: npt.NDArray[np.int16]
    labels_zyx: npt.NDArray[np.uint8]
    affine_ras: npt.NDArray[np.float64]


def read_case(case: Case) -> NiftiScan:
    """Read one subject; NIfTI is RAS+ with axes (x, y, z), so axes and columns swap together.

    Raises:
        FederationError: A file cannot be read, the two disagree, or nibabel is not installed.
    """
    try:
        from nibabel.filebasedimages import ImageFileError
        from nibabel.nifti1 import Nifti1Image
        from nibabel.spatialimages import HeaderDataError
    except ImportError as error:
        raise FederationError(
            "Reading NIfTI needs nibabel, which is not installed. "
            "Install the demo's extra: pip install 'cohortium[demo]'"
        ) from error
    try:
        image = Nifti1Image.from_filename(case.image)
        labels = Nifti1Image.from_filename(case.labels)
        image_xyz, labels_xyz = np.asarray(image.dataobj), np.asarray(labels.dataobj)
    except (OSError, EOFError, ValueError, zlib.error, HeaderDataError, ImageFileError) as error:
        raise FederationError(f"{case.name}: not a readable NIfTI image ({error}).") from error
    if image_xyz.shape != labels_xyz.shape or not np.allclose(image.affine, labels.affine):
        raise FederationError(
            f"{case.name}: image {image_xyz.shape} and labels {labels_xyz.shape} do not lie on the "
            "same grid. Download the pair again."
        )
    if not np.isfinite(image_xyz).all():
        raise FederationError(f"{case.name}: the image holds values that are not numbers.")
    affine = np.asarray(image.affine, np.float64)[:, [2, 1, 0, 3]]
    return NiftiScan(to_int16(image_xyz.T), np.rint(labels_xyz.T).astype(np.uint8), affine)


def to_int16(values: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Return whole numbers that fit as they are; anything else scaled to use int16 fully.

    A quarter of the decathlon's images are uint8, the rest float32 with maxima from 1e2 to 1e6.
    Scaling is linear through 0, so relative brightness stays to 1 part in 32,767 of the brightest
    voxel. DICOM MR stores no common unit, and training normalises each image by itself.

    >>> to_int16(np.array([0, 255], np.uint8)).tolist(), to_int16(np.array([0.0, 0.5])).tolist()
    ([0, 255], [0, 32767])
    """
    largest = float(np.abs(values).max())
    whole = bool(np.array_equal(values, np.rint(values)))
    factor = 1.0 if (whole and largest <= INT16_MAX) or largest == 0 else INT16_MAX / largest
    return np.rint(values * factor).astype(np.int16)


def site_facts(*, pooled: bool = False) -> Iterator[SiteFacts]:
    """Yield what the site files say, with the default budget."""
    for site, kind in POOLED if pooled else SITES:
        yield SiteFacts(
            site=site,
            kind="dicom" if kind == "dicom" else "ome_zarr",
            dataset=f"msd-{site}",
            licence="CC BY-SA 4.0",
            labels=LABELS,
            declared_by="Medical Segmentation Decathlon",
            reason="published data set, held back by sha256(case) mod 5 == 0",
            subjects_between=(120, 240) if pooled else (40, 80),
        )


def lay_out_hippocampus(
    data: Path,
    out: Path,
    *,
    epsilon: float = 10.0,
    allow_unprotected: bool = False,
    pooled: bool = False,
) -> list[SiteFolder]:
    """Write the three sites and return their folders.

    Args:
        pooled: Write one site that holds everything instead: what centralised training has.

    Raises:
        FederationError: Data missing or unreadable, or a site's folder exists already.
    """
    cases = find_cases(data)
    sites = [
        replace(facts, epsilon=epsilon, allow_unprotected=allow_unprotected)
        for facts in site_facts(pooled=pooled)
    ]
    places = create_sites(out, sites)
    for case in cases:
        scan = read_case(case)
        places[case.dealt_to(len(places))].write_scan(
            (case.part, case.name),
            0,
            image_zyx=scan.image_zyx,
            labels_zyx=scan.labels_zyx,
            affine_ras=scan.affine_ras,
        )
    return places


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 with one sentence on stderr."""
    given = _parser().parse_args(arguments)
    try:
        places = lay_out_hippocampus(
            given.data,
            given.out,
            epsilon=given.epsilon,
            allow_unprotected=given.allow_unprotected,
            pooled=given.pooled,
        )
    except FederationError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    for place in places:
        sys.stdout.write(_counts(place) + "\n")
    return 0


def _counts(place: SiteFolder) -> str:
    protected, public = (len(list((place.path / part).iterdir())) for part in PARTS)
    return (
        f"{place.facts.site} ({place.facts.kind}): {protected} protected and {public} public "
        f"subjects, {place.site_file}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m federation.demo.hippocampus",
        description="Turn the decathlon's hippocampus images into three sites.",
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with 'images' and 'labels' (Task04)"
    )
    parser.add_argument("--out", type=Path, required=True, help="receives one folder per site")
    parser.add_argument(
        "--epsilon", type=float, default=10.0, help="lifetime budget of each subject (10)"
    )
    parser.add_argument(
        "--allow-unprotected", action="store_true", help="permit training without privacy"
    )
    parser.add_argument(
        "--pooled", action="store_true", help="one site with all subjects, to compare with"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
