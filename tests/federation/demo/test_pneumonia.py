"""The PneumoniaMNIST script: who is dealt where, that formats agree, what goes wrong."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from data_adapters.inputs import SliceInput
from data_adapters.subjects import SubjectDataset
from federation.demo import pneumonia
from federation.demo.pneumonia import FINDINGS, lay_out_pneumonia, read_radiographs
from federation.errors import FederationError
from federation.run import ingest_sites, open_sites

REAL = (
    Path(os.environ.get("COHORTIUM_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
    / "pneumoniamnist.npz"
)


def write_npz(path: Path, num_train: int = 24, num_val: int = 12, **changed: np.ndarray) -> Path:
    random = np.random.default_rng(0)
    arrays = {
        "train_images": random.integers(0, 256, (num_train, 28, 28)).astype(np.uint8),
        "train_labels": (np.arange(num_train) % 2).astype(np.uint8)[:, None],
        "val_images": random.integers(0, 256, (num_val, 28, 28)).astype(np.uint8),
        "val_labels": (np.arange(num_val) % 2).astype(np.uint8)[:, None],
    }
    np.savez(path, **(arrays | changed))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_npz(tmp_path / "published.npz")


def test_images_are_dealt_by_a_hash_of_their_name(data: Path) -> None:
    for image in read_radiographs(data):
        number = int(hashlib.sha256(image.name.encode()).hexdigest(), 16)
        assert image.dealt_to(3) == number % 3
        assert image.part == ("protected" if image.name.startswith("train") else "public")


def test_an_image_that_is_published_twice_is_one_subject_and_is_not_scored(tmp_path: Path) -> None:
    with np.load(write_npz(tmp_path / "once.npz")) as file:
        train, val = file["train_images"], file["val_images"]
    train[7], val[3] = train[2], train[2]
    twice = write_npz(tmp_path / "twice.npz", train_images=train, val_images=val)
    names = {image.name for image in read_radiographs(twice)}
    assert len(names) == 24 + 12 - 2
    assert "train-00002" in names
    assert names.isdisjoint({"train-00007", "val-00003"})


def test_all_three_formats_give_training_the_published_pixels_and_findings(
    data: Path, tmp_path: Path
) -> None:
    laid_out = lay_out_pneumonia(data, tmp_path / "out")
    assert [site.kind for site in laid_out] == ["CR", "DX", "NIfTI"]
    sites = open_sites([site.site_file for site in laid_out])
    reports = ingest_sites(sites)
    assert not [
        r.quarantined for parts in reports.values() for r in parts.values() if r.quarantined
    ]
    inputs = SliceInput(shape_yx=(28, 28), spacing_mm_yx=(1, 1), cap=1)
    expected = {
        (image.part, _standard(image.pixels_yx).tobytes()): image
        for image in read_radiographs(data)
    }
    for at, site in enumerate(sites):
        for part in site.parts:
            dataset = SubjectDataset(
                site.cache(part), site.manifest(part), inputs, FINDINGS, learns="targets"
            )
            for index in range(len(dataset)):
                record = dataset.record(index, np.ones)
                image = expected.pop((part, _rounded(record.images[0, 0].numpy()).tobytes()))
                assert int(record.labels[0]) == image.finding
                assert image.dealt_to(3) == at
    assert not expected


def _standard(pixels_yx: np.ndarray) -> np.ndarray:
    values = pixels_yx.astype(np.float64)
    return _rounded((values - values.mean()) / values.std(ddof=1))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values.astype(np.float64) * 1000).astype(np.int64)


def test_the_command_prints_counts_and_passes_the_policy_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--data", str(data), "--out", str(out), "--pooled", "--allow-unprotected"]
    assert pneumonia.main([*arguments, "--epsilon", "8"]) == 0
    assert "pneumonia-pooled (CR): 24 protected and 12 public subjects" in capsys.readouterr().out
    policy = (out / "pneumonia-pooled" / "site.yaml").read_text().split("policy:")[1]
    assert "epsilon: 8.0" in policy
    assert "allow_unprotected: true" in policy


def test_nothing_is_written_over_a_site(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--sites", "2"]
    assert pneumonia.main(arguments) == 0
    assert pneumonia.main(arguments) == 2
    assert "may hold a privacy ledger, so nothing was written" in capsys.readouterr().err


def test_more_sites_than_images_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="would have no image of one of the parts"):
        lay_out_pneumonia(data, tmp_path / "out", num_sites=26)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val_labels": np.array([[0], [2]] * 6)}, "holds other arrays than PneumoniaMNIST"),
        ({"train_images": np.zeros((24, 28, 28))}, "holds other arrays than PneumoniaMNIST"),
        ({"train_labels": np.array([[0], {}], dtype=object)}, "cannot be read as PneumoniaMNIST"),
    ],
)
def test_other_arrays_are_refused(
    tmp_path: Path, changed: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(FederationError, match=message):
        read_radiographs(write_npz(tmp_path / "other.npz", **changed))


def test_a_missing_file_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent.npz"
    assert pneumonia.main(["--data", str(absent), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "cannot be read as PneumoniaMNIST (FileNotFoundError)" in message
    assert len(message.splitlines()) == 1


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_file(), reason=f"the shared PneumoniaMNIST is not at {REAL}")
def test_the_published_images_fit_what_the_site_files_declare() -> None:
    images = read_radiographs(REAL)
    counts = {part: sum(image.part == part for image in images) for part in ("protected", "public")}
    assert counts == {"protected": 4690, "public": 516}
    for num_sites in (1, 3):
        low, high = pneumonia.subjects_between(counts["protected"], num_sites)
        for site in range(num_sites):
            own = [i for i in images if i.part == "protected" and i.dealt_to(num_sites) == site]
            assert low <= len(own) <= high
        assert pneumonia.largest_delta(high) <= 1 / high**2
