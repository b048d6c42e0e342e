"""The hippocampus script: how subjects are dealt, what happens to pixels, what goes wrong."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from federation.demo import hippocampus
from federation.demo.hippocampus import Case, find_cases, lay_out_hippocampus, read_case, to_int16
from federation.errors import FederationError

REAL = (
    Path(os.environ.get("COHORTIUM_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
    / "hippocampus"
)


def write_case(data: Path, name: str, image_xyz: np.ndarray, labels_xyz: np.ndarray) -> Case:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    for folder, array in (("images", image_xyz), ("labels", labels_xyz)):
        (data / folder).mkdir(parents=True, exist_ok=True)
        Nifti1Image(array, affine).to_filename(data / folder / f"{name}.nii.gz")
    return Case(name, data / "images" / f"{name}.nii.gz", data / "labels" / f"{name}.nii.gz")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(12):
        image = rng.integers(0, 200, (6, 7, 8)).astype(np.uint8)
        labels = np.zeros((6, 7, 8), np.uint8)
        labels[2:4, 2:4, 2:4], labels[2:4, 4:6, 2:4] = 1, 2
        write_case(tmp_path / "msd", f"hippocampus_{number:03d}", image, labels)
    return tmp_path / "msd"


def test_subjects_are_dealt_by_a_hash_of_their_name() -> None:
    cases = [Case(f"hippocampus_{n:03d}", Path(), Path()) for n in range(394)]
    for case in cases:
        number = int(hashlib.sha256(case.name.encode()).hexdigest(), 16)
        assert (case.part == "public") == (number % 5 == 0)
    dealt = [sum(case.dealt_to(3) == site for case in cases) for site in range(3)]
    assert min(dealt) > 100


def test_a_marker_keeps_its_world_point(tmp_path: Path) -> None:
    image = np.zeros((4, 5, 6), np.uint8)
    image[1, 2, 3] = 200
    scan = read_case(write_case(tmp_path, "case", image, (image > 0).astype(np.uint8)))
    assert scan.image_zyx.shape == (6, 5, 4)
    (index,) = np.argwhere(scan.image_zyx)
    np.testing.assert_allclose((scan.affine_ras @ [*index, 1])[:3], [10 + 1, 20 + 4, 30 + 9])
    np.testing.assert_array_equal(np.argwhere(scan.labels_zyx), [index])


def test_whole_numbers_that_fit_are_kept_and_others_keep_their_proportions() -> None:
    kept = np.array([0, 7, 3000], np.float32)
    np.testing.assert_array_equal(to_int16(kept), kept)
    large = np.array([0.0, 0.5e6, 1.2e6], np.float32)
    np.testing.assert_allclose(to_int16(large) / 32767, large / 1.2e6, atol=2e-5)
    assert to_int16(np.zeros(3)).tolist() == [0, 0, 0]


def test_every_subject_lands_at_its_site_once(data: Path, tmp_path: Path) -> None:
    places = lay_out_hippocampus(data, tmp_path / "out")
    for case in find_cases(data):
        found = list((tmp_path / "out").glob(f"*/*/{case.name}"))
        assert found == [places[case.dealt_to(len(places))].path / case.part / case.name]


def test_the_command_prints_counts_and_passes_the_policy_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--data", str(data), "--out", str(out), "--allow-unprotected", "--epsilon", "8"]
    assert hippocampus.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines] == [site for site, _ in hippocampus.SITES]
    assert all("public subjects" in line for line in lines)
    policy = (out / "hippocampus-lab" / "site.yaml").read_text().split("policy:")[1]
    assert "epsilon: 8.0" in policy
    assert "allow_unprotected: true" in policy


def test_a_missing_folder_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hippocampus.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "is not a folder: --data must hold the folders 'images' and 'labels'" in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_case_without_labels_is_named_by_count(data: Path) -> None:
    next((data / "labels").iterdir()).unlink()
    with pytest.raises(FederationError, match=r"1 of 12 images .* have no file of the same name"):
        find_cases(data)


def test_a_truncated_file_is_an_error_with_the_case(data: Path) -> None:
    case = find_cases(data)[0]
    case.image.write_bytes(case.image.read_bytes()[:120])
    with pytest.raises(FederationError, match="hippocampus_000: not a readable NIfTI image"):
        read_case(case)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the shared hippocampus data is not at {REAL}")
def test_the_200_real_subjects_fit_what_the_site_files_declare() -> None:
    cases = find_cases(REAL)
    assert len(cases) == 200
    for site, facts in enumerate(hippocampus.site_facts()):
        protected = sum(case.dealt_to(3) == site and case.part == "protected" for case in cases)
        assert facts.subjects_between[0] <= protected <= facts.subjects_between[1]
    scan = read_case(cases[0])
    assert set(np.unique(scan.labels_zyx)) == {0, 1, 2}
    assert scan.image_zyx.max() > 100
