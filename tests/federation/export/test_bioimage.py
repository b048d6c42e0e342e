"""The judge is bioimageio.core, offline, in a process of its own."""

import getpass
import shutil
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from federation.cli.app import app
from federation.errors import FederationError
from federation.export.bioimage import RDF, STATE_DICT, TORCHSCRIPT, write
from federation.export.bioimage_tensors import preprocessed
from federation.export.examples import example_input, trained_network
from federation.export.formats import export
from federation.export.torch_files import save_torchscript
from federation.run_record import FinishedRun
from tests.federation.export.conftest import finished_run
from tests.federation.export.zoo import (
    EXPERIMENTS,
    FIRST,
    everything_in,
    judge,
    nothing_tells_of_this_machine,
    pipeline_gives_our_numbers,
    traces_in,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, FinishedRun]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: finished_run(folder / name, EXPERIMENTS[name]()) for name in FIRST}


@pytest.fixture(scope="module")
def packages(tmp_path_factory, runs, about) -> dict[str, Path]:
    """One of each run, and such as were tampered with, or cite an address."""
    folder = tmp_path_factory.mktemp("packages")
    for name, run in runs.items():
        export(run, about, "bioimageio", folder / name)
    for name in ("broken", "rewritten"):
        shutil.copytree(folder / "unet-2d", folder / name)
    flip_a_bit(folder / "broken" / STATE_DICT)
    rewrite_weights(folder / "rewritten")
    return {name: folder / name for name in (*FIRST, "broken", "rewritten")}


@pytest.fixture(scope="module")
def said(packages, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("judged")
    files = {name: package / RDF for name, package in packages.items()}
    files["zip"] = packages["unet-2d"] / "package.zip"
    told = judge(folder, list(files.values()))
    assert not (folder / "attempts").exists(), "something tried to leave this machine"
    return {name: told[path] for name, path in files.items()}


@pytest.mark.parametrize("name", [*FIRST, "zip"])
def test_the_zoos_own_test_passes_offline_for_both_weight_formats(said, name):
    assert said[name]["status"] == "passed", said[name]["errors"]
    assert set(said[name]["formats"]) == {"pytorch_state_dict", "torchscript"}
    assert all(set(statuses) == {"passed"} for statuses in said[name]["formats"].values())


@pytest.mark.parametrize("name", FIRST)
def test_the_zoos_own_pipeline_gives_our_numbers(said, runs, packages, name):
    pipeline_gives_our_numbers(runs[name], packages[name] / RDF, list(said[name]["formats"]))


def test_what_was_tampered_with_fails_the_zoos_own_test(said):
    assert said["broken"]["status"] != "passed" and "256" in str(said["broken"]["errors"])
    assert said["rewritten"]["status"] != "passed"
    assert "failed" in said["rewritten"]["formats"]["pytorch_state_dict"]
    assert set(said["rewritten"]["formats"]["torchscript"]) == {"passed"}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewrite_weights(package: Path) -> None:
    """Put other weights into a package, and their digest into its description."""
    from hashlib import sha256

    state = torch.load(package / STATE_DICT, weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, package / STATE_DICT)
    description = yaml.safe_load((package / RDF).read_text())
    digest = sha256((package / STATE_DICT).read_bytes()).hexdigest()
    description["weights"]["pytorch_state_dict"]["sha256"] = digest
    (package / RDF).write_text(yaml.safe_dump(description))


def test_no_path_user_or_host_is_in_any_file(packages, tmp_path):
    for name in FIRST:
        nothing_tells_of_this_machine(packages[name], tmp_path)


def test_the_search_finds_what_is_planted(tmp_path):
    for planted in (str(tmp_path / "x"), f"by {getpass.getuser()}.", socket.gethostname()):
        assert traces_in(planted.encode(), tmp_path)


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
    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x + self.calls

    with pytest.raises(FederationError, match="differ"):
        save_torchscript(Counting(), np.ones((1, 1, 4, 4), np.float32), tmp_path / "x.pt")


def test_test_tensors_are_made_from_seed_and_shape_alone(packages, runs):
    for name, run in runs.items():
        given = np.load(packages[name] / "test_input.npy")
        np.testing.assert_array_equal(given, example_input(run.record.experiment))


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
    assert "| north-hospital | 7.5000 | 1e-05 |" in text and "cohortium audit verify" in text


def test_the_formats_normalisation_is_trainings_up_to_the_deviations_divisor():
    from data_adapters.prepare import _normalised

    ratio = np.sqrt(256 / 255)
    image = np.random.default_rng(0).normal(40, 9, (1, 2, 16, 16)).astype(np.float32)
    trained = _normalised(torch.from_numpy(image[0])[:, None]).numpy()[:, 0]
    np.testing.assert_allclose(preprocessed(image)[0], trained * ratio, atol=1e-5)


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
