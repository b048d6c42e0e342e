"""The judge is bioimageio.core, offline, in a process of its own."""

import getpass
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from federation.cli.app import app
from federation.errors import FederationError
from federation.experiment import Experiment
from federation.export.bioimage import RDF, STATE_DICT, TORCHSCRIPT, write
from federation.export.bioimage_tensors import expected_output, preprocessed, spacing_of
from federation.export.examples import example_input, outputs_of, trained_network
from federation.export.formats import export
from federation.export.torch_files import save_torchscript
from federation.run_record import FinishedRun
from tests.experiments import demo_values, tiny_experiment, unprotected
from tests.federation.classification import classification
from tests.federation.export.conftest import finished_run
from tests.federation.regression import regression

ROOT = Path(__file__).resolve().parents[3]
VOLUME = {"kind": "volume", "shape_zyx": [8, 16, 16], "spacing_mm_zyx": [2, 1, 1]}
PATCHES = {"kind": "patches", "shape_zyx": [1, 16, 16], "spacing_mm_zyx": [1, "0.65 um", "0.65 um"]}


def segmentation(model: dict, given: dict = VOLUME) -> Experiment:
    return Experiment.model_validate(demo_values() | {"input": given, "model": model})


UNET_3D = {"kind": "unet", "spatial_dims": 3, "channels": [4, 8], "strides": [2]}
STANDARDISED = {
    "kind": "unet",
    "spatial_dims": 2,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
    "weight_standardisation": True,
}
DYNUNET = {"kind": "dynunet", "spatial_dims": 3, "channels": [4, 8, 8], "strides": [2, 2]}
ATTENTION = {"kind": "attention_unet", "spatial_dims": 3, "channels": [4, 8], "strides": [2]}
SEGRESNET = {"kind": "segresnet", "spatial_dims": 2, "blocks_down": [1, 1], "blocks_up": [1]}
RESNET = {"kind": "resnet", "spatial_dims": 2, "channels": [8, 8, 8, 8]}

EXPERIMENTS = {
    "unet-3d": lambda: segmentation(UNET_3D),
    "unet-2d": tiny_experiment,
    "standardised": lambda: segmentation(STANDARDISED, PATCHES),
    "segresnet": lambda: segmentation(SEGRESNET, PATCHES),
    "dynunet": lambda: unprotected(segmentation(DYNUNET)),
    "attention": lambda: segmentation(ATTENTION),
    "densenet": classification,
    "resnet": lambda: Experiment.model_validate(
        classification().model_dump(mode="json") | {"model": RESNET}
    ),
    "regression": regression,
}
REPAIRED = ("attention", "resnet")


def judge(folder: Path, packages: list[Path]) -> dict[Path, dict]:
    """Return what bioimageio.core says; it finds an empty home and no network."""
    home, attempts = folder / "home", folder / "attempts"
    home.mkdir()
    environment = os.environ | {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT / "tests/e2e/guard"),
        "COHORTIUM_TEST_ATTEMPTS": str(attempts),
        "OMP_NUM_THREADS": "1",
    }
    script, result = Path(__file__).with_name("judge_bioimage.py"), folder / "result.json"
    command = [sys.executable, str(script), str(result), *map(str, packages)]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [path for path in home.rglob("*") if "bioimage" in path.name]
    said = json.loads(result.read_text())
    return {Path(package): told for package, told in said.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, FinishedRun]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: finished_run(folder / name, make()) for name, make in EXPERIMENTS.items()}


@pytest.fixture(scope="module")
def packages(tmp_path_factory, runs, published) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    for name, run in runs.items():
        export(run, published, "bioimageio", folder / name)
    return {name: folder / name for name in runs}


@pytest.fixture(scope="module")
def said(packages, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("judged")
    told = judge(folder, [package / RDF for package in packages.values()])
    assert not (folder / "attempts").exists()
    return {name: told[package / RDF] for name, package in packages.items()}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_zoos_own_test_passes_offline_for_each_weight_format(said, name):
    assert said[name]["status"] == "passed", said[name]["errors"]
    formats = {"torchscript"} if name in REPAIRED else {"pytorch_state_dict", "torchscript"}
    assert set(said[name]["formats"]) == formats
    assert all(set(statuses) == {"passed"} for statuses in said[name]["formats"].values())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_zoos_own_pipeline_gives_our_numbers(said, runs, packages, name):
    run, images = runs[name], example_input(runs[name].record.experiment)
    network = trained_network(run)
    for weight_format in said[name]["formats"]:
        raw = np.load(f"{packages[name] / RDF}.{weight_format}.raw.npy")
        np.testing.assert_allclose(raw, outputs_of(network, images), atol=1e-5)
        found = np.load(f"{packages[name] / RDF}.{weight_format}.npy")
        expected = expected_output(run.record.experiment, network, images)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_the_zip_is_a_package_too_and_what_was_tampered_with_fails(packages, tmp_path):
    broken, other = tmp_path / "broken", tmp_path / "other"
    for folder in (broken, other):
        shutil.copytree(packages["unet-2d"], folder)
    data = bytearray((broken / STATE_DICT).read_bytes())
    data[len(data) // 2] ^= 1
    (broken / STATE_DICT).write_bytes(data)
    rewrite_weights(other)
    whole = packages["unet-2d"] / "package.zip"
    told = judge(tmp_path, [whole, broken / RDF, other / RDF])
    assert told[whole]["status"] == "passed"
    assert told[broken / RDF]["status"] != "passed"
    assert told[other / RDF]["status"] != "passed"
    assert "failed" in told[other / RDF]["formats"]["pytorch_state_dict"]
    assert set(told[other / RDF]["formats"]["torchscript"]) == {"passed"}


def rewrite_weights(package: Path) -> None:
    """Put other weights into a package, and their digest into its description."""
    from hashlib import sha256

    state = torch.load(package / STATE_DICT, weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, package / STATE_DICT)
    description = yaml.safe_load((package / RDF).read_text())
    digest = sha256((package / STATE_DICT).read_bytes()).hexdigest()
    description["weights"]["pytorch_state_dict"]["sha256"] = digest
    (package / RDF).write_text(yaml.safe_dump(description))


def test_an_address_without_a_doi_is_what_the_zoos_test_tries_to_reach(finished, about, tmp_path):
    cite = ({"text": "Example", "url": "https://cohortium.invalid/paper"},)
    changed = type(about).model_validate(about.model_dump() | {"cite": cite})
    export(finished, changed, "bioimageio", tmp_path / "package")
    told = judge(tmp_path, [tmp_path / "package" / RDF])
    assert told[tmp_path / "package" / RDF]["status"] == "passed"
    assert "cohortium.invalid" in (tmp_path / "attempts").read_text()


def everything_in(data: bytes) -> Iterator[bytes]:
    """Yield a file's bytes, and those of what is packed in it."""
    yield data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            for entry in package.infolist():
                yield entry.filename.encode()
                yield from everything_in(package.read(entry))


def places(tmp_path: Path) -> list[bytes]:
    own = [str(tmp_path), str(tmp_path.parent), str(ROOT), sys.prefix, "site-packages"]
    return [text.encode() for text in (*own, getpass.getuser(), socket.gethostname())]


def test_no_path_user_or_host_is_in_any_file(packages, tmp_path):
    for package in packages.values():
        for path in package.iterdir():
            for part in everything_in(path.read_bytes()):
                assert not [text for text in places(tmp_path) if text in part], path.name


def test_torchs_own_file_would_tell_where_it_was_made(finished, tmp_path):
    network, images = trained_network(finished), example_input(finished.record.experiment)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, torch.from_numpy(images)).save(tmp_path / "plain.pt")
    parts = everything_in((tmp_path / "plain.pt").read_bytes())
    assert any(b"site-packages" in part for part in parts)
    save_torchscript(network, images, tmp_path / "ours.pt")
    parts = everything_in((tmp_path / "ours.pt").read_bytes())
    assert not any(b"site-packages" in part for part in parts)


def test_a_trace_that_gives_other_numbers_is_refused(tmp_path):
    class Moody(torch.nn.Module):
        def forward(self, x):
            return x * 2 if x.mean() > 0 else x

    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x + self.calls

    with pytest.raises(FederationError, match="differ"):
        save_torchscript(Counting(), np.ones((1, 1, 4, 4), np.float32), tmp_path / "x.pt")


def test_test_tensors_are_made_from_seed_and_shape_alone(packages, runs):
    for name, package in packages.items():
        expected = example_input(runs[name].record.experiment)
        np.testing.assert_array_equal(np.load(package / "test_input.npy"), expected)


def test_the_state_dict_is_tensors_alone_and_holds_the_runs_weights(packages, runs):
    state = torch.load(packages["unet-2d"] / STATE_DICT, weights_only=True)
    for name, values in runs["unet-2d"].weights.items():
        np.testing.assert_array_equal(state[name].numpy(), values)


def test_the_cover_is_what_the_zoo_wants(packages):
    for package in packages.values():
        data = (package / "cover.png").read_bytes()
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        assert (width, height) == (1200, 600) and len(data) < 500_000


def test_the_documentation_states_privacy_and_how_to_check_it(packages, runs):
    text = (packages["unet-2d"] / "documentation.md").read_text()
    record = runs["unet-2d"].record
    named = (record.experiment.digest(), record.run, record.model_digest, *record.heads.values())
    assert all(name in text for name in named)
    assert "| ward | 7.5000 | 1e-05 |" in text and "cohortium audit verify" in text
    bare = (packages["dynunet"] / "documentation.md").read_text()
    assert "epsilon is infinite" in bare


def test_fine_spacing_is_told_in_micrometres(runs):
    assert spacing_of(runs["standardised"].record.experiment)["x"] == (0.65, "micrometer")
    assert spacing_of(runs["unet-3d"].record.experiment)["z"] == (2.0, "millimeter")


def test_the_formats_normalisation_is_trainings_up_to_the_deviations_divisor():
    from data_adapters.prepare import _normalised

    image = np.random.default_rng(0).normal(40, 9, (1, 2, 16, 16)).astype(np.float32)
    trained = _normalised(torch.from_numpy(image[0])[:, None]).numpy()[:, 0]
    np.testing.assert_allclose(preprocessed(image)[0], trained * np.sqrt(256 / 255), rtol=1e-4)


def test_a_licence_or_author_that_the_format_refuses_is_named(finished, about, tmp_path):
    for change, field in (
        ({"licence": "My-Own-1.0"}, "license"),
        ({"authors": ({"name": "Ada/Example"},)}, "authors"),
    ):
        told = type(about).model_validate(about.model_dump() | change)
        with pytest.raises(FederationError, match=field):
            export(finished, told, "bioimageio", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_the_same_run_gives_the_same_files(finished, about, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(finished, about, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        # Traced code numbers its classes by what the process traced before.
        if path.name not in (TORCHSCRIPT, RDF, "package.zip"):
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_the_command_line(finished, about, tmp_path):
    (tmp_path / "about.yaml").write_text(yaml.safe_dump(about.model_dump(mode="json")))
    where = ["--about", str(tmp_path / "about.yaml"), "--out", str(tmp_path / "zoo")]
    command = ["export", str(finished.path), "--format", "bioimageio", *where]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "bioimageio, 11 files" in done.output and "rdf.yaml" in done.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code != 0
