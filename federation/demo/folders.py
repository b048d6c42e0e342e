"""One site's folder on disk, as the demo and the hippocampus script lay it out.

SITE/site.yaml                      the site file, with comments for whoever runs the site
SITE/protected/SUBJECT/SCAN/*.dcm   or SITE/protected/SUBJECT/SCAN.ome.zarr
SITE/public/...                     the same for subjects declared public
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from data_adapters.writing import write_dicom_scan, write_ome_zarr_scan
from federation.errors import FederationError
from federation.files import write_atomically

Part = Literal["protected", "public"]
PARTS: tuple[Part, ...] = ("protected", "public")
Pixel = TypeVar("Pixel", bound=np.generic)
Affine = npt.NDArray[np.float64]

LABELS_GROUP = "tissue"
"""Name of the labels group inside each OME-Zarr image."""


@dataclass(frozen=True)
class SiteFacts:
    """What a site file says, apart from where things lie.

    Attributes:
        labels: Label value to (the name this site gives it, the class it is for the experiment).
            DICOM SEG stores the first as SegmentLabel; OME-Zarr stores the value alone.
        subjects_between: Public bounds on the number of protected subjects.
        epsilon: Lifetime budget of each protected subject, at ``delta``.
    """

    site: str
    kind: Literal["dicom", "ome_zarr"]
    dataset: str
    licence: str
    labels: Mapping[int, tuple[str, str]]
    declared_by: str
    reason: str
    subjects_between: tuple[int, int]
    epsilon: float = 10.0
    delta: float = 1e-5
    allow_unprotected: bool = False
    modality: str = "MR"


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder, ready for scans. Make some with ``create_sites``."""

    path: Path
    facts: SiteFacts

    @property
    def site_file(self) -> Path:
        """Return the path of the site file."""
        return self.path / "site.yaml"

    def write_scan(
        self,
        subject_folder: tuple[Part, str],
        number: int,
        *,
        image_zyx: npt.NDArray[np.int16],
        labels_zyx: npt.NDArray[np.uint8],
        affine_ras: Affine,
    ) -> None:
        """Write one scan of a subject in this site's format.

        Args:
            subject_folder: Part of the site's data, and the subject's identifier there.
            number: Counts the subject's scans from 0.
        """
        part, subject = subject_folder
        scan = self.path / part / subject / f"scan-{number + 1}"
        if self.facts.kind == "dicom":
            write_dicom_scan(
                scan,
                image_zyx=image_zyx,
                labels_zyx=labels_zyx,
                affine_ras=affine_ras,
                segment_labels={value: name for value, (name, _) in self.facts.labels.items()},
                patient_id=subject,
                study_index=number,
            )
            return
        image_zyx, flipped_ras = face_ras(image_zyx, affine_ras)
        labels_zyx, _ = face_ras(labels_zyx, affine_ras)
        scan.parent.mkdir(exist_ok=True)
        write_ome_zarr_scan(
            scan.with_name(f"{scan.name}.ome.zarr"),
            image_zyx=image_zyx,
            labels_zyx=labels_zyx,
            affine_ras=flipped_ras,
            labels_name=LABELS_GROUP,
        )


def create_sites(parent: Path, sites: Sequence[SiteFacts]) -> list[SiteFolder]:
    """Make each site's empty folder and its site file.

    Raises:
        FederationError: One of the folders exists: it may hold a ledger, which must not be lost.
    """
    places = [SiteFolder(parent / facts.site, facts) for facts in sites]
    for place in places:
        if place.path.exists():
            raise FederationError(
                f"{place.path} exists already and may hold a privacy ledger, so nothing was "
                "written. Choose another folder, or remove this one if nothing in it is needed."
            )
    for place in places:
        for part in PARTS:
            (place.path / part).mkdir(parents=True)
        write_atomically(place.site_file, site_file(place.facts).encode(), mode=0o644)
    return places


def face_ras(
    array_zyx: npt.NDArray[Pixel], affine_ras: Affine
) -> tuple[npt.NDArray[Pixel], Affine]:
    """Flip axes until z runs upwards, y to the front and x to the right; nothing moves in space.

    OME-Zarr 0.5 has scale and translation only, so it cannot say that an axis runs backwards.

    Args:
        affine_ras: Axis-aligned: z, y and x along the subject's axes, either way round.
    """
    affine = affine_ras.copy()
    for axis, world in enumerate((2, 1, 0)):
        if affine[world, axis] < 0:
            array_zyx = np.flip(array_zyx, axis)
            affine[:3, 3] += affine[:3, axis] * (array_zyx.shape[axis] - 1)
            affine[:3, axis] *= -1
    return np.ascontiguousarray(array_zyx), affine


def site_file(facts: SiteFacts) -> str:
    """Return the text of a site file, with comments that explain it to a site operator."""
    low, high = facts.subjects_between
    return f"""\
# The site file of {facts.site}. It stays at the site. Relative paths start at its folder.

# These travel: they name the site and its data set in tables, ledgers and tracking.
site: {facts.site}
dataset: {facts.dataset}
licence: {_quoted(facts.licence)}
modality: {facts.modality}

# Keys, privacy ledger, cache and outbox. Keep backups of it, but never put an older one back:
# its ledger would have forgotten what was spent since.
state: state

# Images that are trained on, under privacy. Their pixels and identifiers never leave the site.
# `classes` maps the labels as this site writes them to the names that experiments use. A scan
# with a label that is not listed is set aside, with the reason, and the others go on.
protected: {_source(facts, "protected")}

# Subjects whose exact scores may leave: only images that anyone may see. Without this block the
# site trains but reports no scores. Whoever declares them public answers for it, by name.
public:
  source: {_source(facts, "public")}
  declared_by: {_quoted(facts.declared_by)}
  reason: {_quoted(facts.reason)}

policy:
  # What all experiments together may ever cost one protected subject (differential privacy, the
  # subject as the unit). The ledger refuses, before any training, what would go past it.
  epsilon: {facts.epsilon!r}
  # Chance that the promise of epsilon fails; at most 1 / (number of subjects)^2.
  delta: {facts.delta:.1e}
  # true permits experiments without any privacy on the protected subjects.
  allow_unprotected: {str(facts.allow_unprotected).lower()}
  # Public bounds on the number of protected subjects; outside them the site does not start. The
  # exact number stays here.
  subjects_between: [{low}, {high}]
  # How the number of subjects is told: withheld, rounded (to ten) or exact.
  release_counts: withheld
"""


def _source(facts: SiteFacts, part: Part) -> str:
    if facts.kind == "dicom":
        pairs = (f"{_quoted(name)}: {_quoted(cls)}" for name, cls in facts.labels.values())
        return f"{{kind: dicom, path: {part}, classes: {{{', '.join(pairs)}}}}}"
    pairs = (f"{value}: {_quoted(cls)}" for value, (_, cls) in facts.labels.items())
    return (
        f"{{kind: ome_zarr, path: {part}, labels: {LABELS_GROUP}, classes: {{{', '.join(pairs)}}}}}"
    )


def _quoted(text: str) -> str:
    """A JSON string is a YAML string; no name can then be read as a number, a truth or a map."""
    return json.dumps(text, ensure_ascii=False)
