"""Three sites on disk: what is there, what the control changes, and that it reads back."""

import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml

from data_adapters.cache import open_scan
from data_adapters.discover import locate
from data_adapters.ingest import ingest
from data_adapters.sources import DicomSource, OmeZarrSource
from federation.demo.folders import SiteFacts, face_ras, site_file
from federation.demo.layout import (
    DEMO_SITES,
    label_donors,
    lay_out_demo,
    num_scans,
    subject_seed,
    with_labels_of,
)
from federation.demo.simulate import AFFINE_RAS, LAB, NORTH, SHAPE_ZYX, simulate_subject
from federation.errors import FederationError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    lay_out_demo(folder, seed=3, num_training=3, num_public=1)
    return folder


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("control")
    lay_out_demo(folder, seed=3, num_training=3, num_public=1, permute_labels=True)
    return folder


def contents(folder: Path, pattern: str) -> dict[str, str]:
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
    assert found, f"nothing matches {pattern}"
    return found


def pixels_of_segments(seg: Path) -> bytes:
    return bytes(pydicom.dcmread(seg).PixelData)


def test_there_are_three_sites_with_subjects_and_scans(demo: Path) -> None:
    for site in DEMO_SITES:
        place = demo / site.facts.site
        assert len(list((place / "protected").iterdir())) == 3
        assert len(list((place / "public").iterdir())) == 1
        assert len(list(place.glob("p*/*/scan-*"))) == 6  # subjects 0 and 3 have two scans
    assert len(list(demo.glob("*-hospital/*/*/*/slice_*.dcm"))) == 2 * 6 * SHAPE_ZYX[0]


def test_a_third_of_the_subjects_have_two_scans() -> None:
    assert [num_scans(number) for number in range(48)].count(2) == 16


def test_progress_counts_every_subject(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    lay_out_demo(tmp_path, num_training=1, num_public=1, progress=lambda *done: seen.append(done))
    assert seen == [(number, 6) for number in range(1, 7)]


def test_no_two_subjects_share_a_seed() -> None:
    seeds = {subject_seed(0, site, number) for site in range(3) for number in range(56)}
    assert len(seeds) == 168


def test_site_files_say_what_the_demo_needs(demo: Path) -> None:
    text = (demo / "south-hospital" / "site.yaml").read_text()
    values = yaml.safe_load(text)
    assert values["protected"]["classes"] == {
        "cortex gray": "grey matter",
        "cerebral white": "white matter",
    }
    assert values["policy"] == {
        "epsilon": 10,
        "delta": 1e-5,
        "allow_unprotected": False,
        "subjects_between": [40, 60],
        "release_counts": "withheld",
    }
    lab = yaml.safe_load((demo / "bio-lab" / "site.yaml").read_text())
    assert lab["protected"] == {
        "kind": "ome_zarr",
        "path": "protected",
        "labels": "tissue",
        "classes": {1: "grey matter", 2: "white matter"},
    }


def test_a_name_that_yaml_would_read_as_something_else_stays_a_name() -> None:
    facts = SiteFacts(
        site="a",
        kind="dicom",
        dataset="b",
        licence="no: really",
        labels={1: ("yes", 'a "quoted" {name}')},
        declared_by="1",
        reason="# none",
        subjects_between=(1, 2),
    )
    values = yaml.safe_load(site_file(facts))
    assert values["licence"] == "no: really"
    assert values["protected"]["classes"] == {"yes": 'a "quoted" {name}'}
    assert (values["public"]["declared_by"], values["public"]["reason"]) == ("1", "# none")


def test_patients_are_plainly_fake(demo: Path) -> None:
    header = pydicom.dcmread(next((demo / "north-hospital").glob("protected/*/*/slice_001.dcm")))
    assert header.PatientID == "NH-0001"
    assert str(header.PatientName).startswith("FAKE")


def test_an_existing_site_is_never_written_over(demo: Path) -> None:
    before = contents(demo, "*/site.yaml")
    with pytest.raises(FederationError, match=r"exists already and may hold a privacy ledger"):
        lay_out_demo(demo, num_training=1, num_public=1)
    assert contents(demo, "*/site.yaml") == before


def test_a_refused_layout_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "bio-lab").mkdir()
    with pytest.raises(FederationError):
        lay_out_demo(tmp_path, num_training=1, num_public=1)
    assert [path.name for path in tmp_path.iterdir()] == ["bio-lab"]


def test_the_control_changes_the_labels_of_training_subjects_only(
    demo: Path, control: Path
) -> None:
    images = "*/p*/*/*/slice_*.dcm"
    assert contents(demo, images) == contents(control, images)
    lab_images = "bio-lab/p*/*/*/0/**/*"
    assert contents(demo, lab_images) == contents(control, lab_images)
    lab_public = "bio-lab/public/**/*"
    assert contents(demo, lab_public) == contents(control, lab_public)
    for seg in sorted(demo.glob("*/p*/*/*/seg.dcm")):
        other = control / seg.relative_to(demo)
        is_public = "public" in seg.parts
        assert (pixels_of_segments(seg) == pixels_of_segments(other)) == is_public
    lab_labels = "bio-lab/protected/*/*/labels/**/*"
    assert contents(demo, lab_labels) != contents(control, lab_labels)


def test_every_subject_gives_its_labels_once_and_keeps_none() -> None:
    donors = label_donors(np.random.default_rng(0), 48)
    assert sorted(donors) == list(range(48))
    assert all(donor != subject for subject, donor in enumerate(donors))


def test_labels_are_taken_scan_by_scan_from_the_donor() -> None:
    subjects = [simulate_subject(seed, NORTH, 2 - seed) for seed in range(2)]
    permuted = with_labels_of(subjects, [1, 0])
    assert permuted[0][0][0] is subjects[0][0][0]
    assert all(np.array_equal(labels, subjects[1][0][1]) for _, labels in permuted[0])


def test_the_control_needs_somebody_to_swap_with(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be permuted between 1"):
        lay_out_demo(tmp_path, num_training=1, num_public=0, permute_labels=True)


def test_facing_ras_moves_no_voxel() -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    flipped, affine = face_ras(array, AFFINE_RAS)
    assert np.all(np.diag(affine[[2, 1, 0], :3]) > 0)
    for index in np.ndindex(array.shape):
        world = AFFINE_RAS @ [*index, 1]
        there = np.rint(np.linalg.inv(affine) @ world)[:3].astype(int)
        assert flipped[tuple(there)] == array[index]


def keyed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_what_was_simulated_is_what_a_site_ingests(demo: Path, tmp_path: Path) -> None:
    for index, site in enumerate(DEMO_SITES):
        spec = yaml.safe_load((demo / site.facts.site / "site.yaml").read_text())["protected"]
        spec["path"] = demo / site.facts.site / "protected"
        source = (OmeZarrSource if spec["kind"] == "ome_zarr" else DicomSource)(**spec)
        cache = tmp_path / site.facts.site
        report = ingest(source, cache, pseudonymise=keyed)
        assert report.quarantined == ()
        assert report.manifest.classes == ("background", "grey matter", "white matter")
        assert [scan.subject for scan in report.manifest.scans].count(
            keyed(site.subject_name(0))
        ) == 2
        entry = next(s for s in report.manifest.scans if s.subject == keyed(site.subject_name(1)))
        found = open_scan(cache, entry, locate([source], keyed))
        image, labels = simulate_subject(subject_seed(3, index, 1), site.style)[0]
        image, affine = face_ras(image, AFFINE_RAS)
        labels, _ = face_ras(labels, AFFINE_RAS)
        found_image, found_affine = face_ras(found.image()[0], found.affine_ras)
        found_labels, _ = face_ras(found.labels(), found.affine_ras)
        np.testing.assert_allclose(found_affine, affine, atol=1e-4)
        np.testing.assert_array_equal(found_image, image)
        np.testing.assert_array_equal(found_labels, labels)


def test_the_lab_is_the_only_site_without_dicom() -> None:
    kinds = {site.facts.site: site.facts.kind for site in DEMO_SITES}
    assert [site for site, kind in kinds.items() if kind == "ome_zarr"] == [LAB.name]
