"""onnxruntime gives the network's numbers, of any batch and grid, or nothing is written."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from federation.cli.app import app
from federation.errors import FederationError
from federation.experiment import Experiment
from federation.export import onnx_file
from federation.export.examples import example_input, outputs_of, trained_network
from federation.export.formats import export
from tests.experiments import demo_values, tiny_experiment
from tests.federation.classification import classification
from tests.federation.regression import regression


def outputs_in_onnxruntime(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [given] = session.run(None, {"image": images})
    return given


def told_by(path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.fixture(scope="module")
def exported(finish, about, tmp_path_factory):
    """Return a run and its file."""
    run = finish(tiny_experiment())
    out = tmp_path_factory.mktemp("onnx") / "out"
    export(run, about, "onnx", out)
    return run, out / "model.onnx"


class TestSegmentation:
    def test_it_gives_our_numbers_and_says_whose_it_is(self, exported, machines_words):
        run, model = exported
        record = run.record
        images, network = example_input(record.experiment), trained_network(run)
        ours = outputs_of(network, images)
        assert np.allclose(outputs_in_onnxruntime(model, images), ours, rtol=0, atol=1e-5)
        onnx.checker.check_model(onnx.load(model), full_check=True)

        told = told_by(model)
        assert told["experiment_digest"] == record.experiment.digest()
        assert told["run"] == record.run
        assert told["licence"] == "CC-BY-4.0"
        assert json.loads(told["epsilon_by_site"]) == {"bio-lab": 7.5, "north-hospital": 7.5}
        assert json.loads(told["classes"])[0] == "background"
        assert 0 <= float(told["max_absolute_difference"]) < 1e-4

        # Other batches and other grids.
        other = np.random.default_rng(1).standard_normal((5, 1, 32, 48), dtype=np.float32)
        theirs = outputs_in_onnxruntime(model, other)
        assert np.allclose(theirs, outputs_of(network, other), rtol=0, atol=1e-5)

        content = model.read_bytes()
        words = (*machines_words, "site-packages", "federation/export", ".py")
        assert not [word for word in words if word.encode() in content]

    def test_the_command_writes_the_same_bytes_again(self, exported, about_file, tmp_path):
        run, model = exported
        given = ["export", str(run.path), "--format", "onnx", "--about", str(about_file)]
        result = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
        assert (tmp_path / "out/model.onnx").read_bytes() == model.read_bytes()

    def test_changed_weights_and_a_broken_file_are_found(self, exported):
        run, model = exported
        network = trained_network(run)
        images = example_input(run.record.experiment)
        assert onnx_file.difference_from(onnx.load(model), network, images) < 1e-4
        with torch.no_grad():
            list(network.parameters())[-1].add_(0.01)
        with pytest.raises(FederationError, match=r"differ from the network's by .*, more than"):
            onnx_file.difference_from(onnx.load(model), network, images)

        broken = onnx.load(model)
        broken.graph.node[0].op_type = "NoSuchOperator"
        with pytest.raises(FederationError, match="onnxruntime does not take this network"):
            onnx_file.difference_from(broken, network, images)


class TestRefusal:
    def test_outputs_that_are_not_numbers_are_refused_and_nothing_is_left(
        self, finished, about, tmp_path
    ):
        name = next(iter(finished.weights))
        finished.weights[name][...] = np.nan
        with pytest.raises(FederationError, match="differ from the network's by nan"):
            export(finished, about, "onnx", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_network_that_torch_cannot_tell_is_refused_by_name(self, finished):
        class Branches(torch.nn.Module):
            def forward(self, image):
                return image if float(image.sum()) > 0 else -image

        with pytest.raises(FederationError, match="torch cannot tell this unet in ONNX"):
            onnx_file._exported(Branches().eval(), finished.record.experiment)


def test_a_classifier_is_told(finish, about, tmp_path):
    finished = finish(classification())
    export(finished, about, "onnx", tmp_path / "out")
    images = example_input(finished.record.experiment)
    theirs = outputs_in_onnxruntime(tmp_path / "out/model.onnx", images)
    ours = outputs_of(trained_network(finished), images)
    assert theirs.shape == (1, 2) and np.allclose(theirs, ours, rtol=0, atol=1e-5)


def test_a_regression_says_what_its_output_means(finish, about, tmp_path):
    export(finish(regression()), about, "onnx", tmp_path / "out")
    assert told_by(tmp_path / "out/model.onnx")["value"] == "width, mm = output * 4.0 + 8.0"


PLANE = {"kind": "slices", "shape_yx": [32, 32], "spacing_mm_yx": [1, 1]}


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "unet", "channels": [4, 8], "strides": [2], "weight_standardisation": True},
        {"kind": "segresnet", "blocks_down": [1, 1], "blocks_up": [1]},
        {"kind": "dynunet", "channels": [4, 8, 8], "strides": [2, 2]},
        {"kind": "attention_unet", "channels": [4, 8], "strides": [2]},
    ],
    ids=lambda values: values["kind"],
)
def test_the_other_networks_are_told(model, finish, about, tmp_path):
    values = demo_values() | {"input": PLANE, "model": {"spatial_dims": 2, **model}}
    finished = finish(Experiment.model_validate(values))
    assert export(finished, about, "onnx", tmp_path / "out") == [Path("model.onnx")]
