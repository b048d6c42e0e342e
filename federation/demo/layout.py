"""Three simulated sites on disk: two hospitals with DICOM, one lab with OME-Zarr."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from federation.demo.folders import Part, SiteFacts, SiteFolder, create_sites
from federation.demo.simulate import (
    AFFINE_RAS,
    LAB,
    NORTH,
    SOUTH,
    Scan,
    SiteStyle,
    simulate_subject,
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DemoSite:
    """One of the demo's sites: its scanner, how it names subjects, and its site file."""

    style: SiteStyle
    prefix: str
    facts: SiteFacts

    def subject_name(self, number: int) -> str:
        """Return what the site calls a subject, counted from 0.

        >>> DEMO_SITES[0].subject_name(0)
        'NH-0001'
        """
        return f"{self.prefix}-{number + 1:04d}"


def _facts(site: str, dataset: str, labels: Mapping[int, tuple[str, str]]) -> SiteFacts:
    return SiteFacts(
        site=site,
        kind="ome_zarr" if site == LAB.name else "dicom",
        dataset=dataset,
        licence="Apache-2.0 (simulated)",
        labels=labels,
        declared_by="cohortium demo",
        reason="simulated subjects",
        subjects_between=(40, 60),
    )


# Each site has its own words for the same two tissues; the site file translates.
DEMO_SITES = (
    DemoSite(
        NORTH,
        "NH",
        _facts(
            NORTH.name,
            "simulated-brain-mr-north",
            {1: ("Grey matter", "grey matter"), 2: ("White matter", "white matter")},
        ),
    ),
    DemoSite(
        SOUTH,
        "SH",
        _facts(
            SOUTH.name,
            "simulated-brain-mr-south",
            {1: ("cortex gray", "grey matter"), 2: ("cerebral white", "white matter")},
        ),
    ),
    DemoSite(
        LAB,
        "specimen",
        _facts(
            LAB.name,
            "simulated-brain-mr-lab",
            {1: ("1", "grey matter"), 2: ("2", "white matter")},
        ),
    ),
)


def lay_out_demo(  # noqa: PLR0913 - each is one independent choice, by keyword
    folder: Path,
    *,
    seed: int = 0,
    num_training: int = 48,
    num_public: int = 8,
    permute_labels: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write three sites of simulated subjects and return their site files.

    Args:
        folder: Receives one folder per site; created where needed.
        seed: The same seed gives the same pixels.
        num_training: Protected subjects of each site; the site files declare 40 to 60.
        num_public: Subjects of each site on which models are scored.
        permute_labels: The control: every training subject gets the labels of another one of the
            same site, so that only the average brain can be learned. Public subjects keep theirs.
        progress: Called with (subjects written, subjects in all).

    Raises:
        FederationError: A site's folder exists, or the template is not installed.
        ValueError: ``permute_labels`` with fewer than two training subjects.
    """
    if permute_labels and num_training < 2:
        raise ValueError(f"labels cannot be permuted between {num_training} training subjects")
    counter = _Counter(len(DEMO_SITES) * (num_training + num_public), progress)
    places = create_sites(folder, [site.facts for site in DEMO_SITES])
    for index, (site, place) in enumerate(zip(DEMO_SITES, places, strict=True)):
        subjects = [
            simulate_subject(subject_seed(seed, index, number), site.style, num_scans(number))
            for number in range(num_training + num_public)
        ]
        if permute_labels:
            donors = label_donors(np.random.default_rng([seed, index]), num_training)
            subjects[:num_training] = with_labels_of(subjects[:num_training], donors)
        for number, scans in enumerate(subjects):
            part: Part = "protected" if number < num_training else "public"
            _write_subject(place, (part, site.subject_name(number)), scans)
            counter.advance()
    return [place.site_file for place in places]


def subject_seed(seed: int, site_index: int, number: int) -> int:
    """Return a seed of one subject's own, so that no two subjects share a brain."""
    return int(np.random.SeedSequence([seed, site_index, number]).generate_state(1)[0])


def num_scans(number: int) -> int:
    """Return how many scans a subject has: every third one was scanned twice."""
    return 2 if number % 3 == 0 else 1


def label_donors(rng: np.random.Generator, num_subjects: int) -> list[int]:
    """Return for each subject another one, everyone giving once: a single random cycle."""
    order = rng.permutation(num_subjects)
    donors = np.empty(num_subjects, np.int64)
    donors[order] = np.roll(order, 1)
    return [int(donor) for donor in donors]


def with_labels_of(subjects: Sequence[list[Scan]], donors: Sequence[int]) -> list[list[Scan]]:
    """Give each subject's images the labels of its donor, scan by scan."""
    return [
        [
            (image, subjects[donor][n % len(subjects[donor])][1])
            for n, (image, _) in enumerate(scans)
        ]
        for scans, donor in zip(subjects, donors, strict=True)
    ]


def _write_subject(place: SiteFolder, where: tuple[Part, str], scans: list[Scan]) -> None:
    for number, (image, labels) in enumerate(scans):
        place.write_scan(where, number, image_zyx=image, labels_zyx=labels, affine_ras=AFFINE_RAS)


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def advance(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
