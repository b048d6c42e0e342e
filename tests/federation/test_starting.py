"""Public weights that a run starts from, and what a head is trained on."""

import hashlib

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from federation.cli.app import app
from federation.errors import FederationError
from federation.experiment import Experiment, load_experiment
from federation.hub_folder import HubConfig, HubFolder
from federation.hub_runs import START, submit
from federation.run import approve, check_experiment, run_experiment
from federation.run_record import MODEL
from federation.starting import read_start
from federation.training import initial_weights, network_of
from models.errors import ModelError
from models.weights import weights_to_bytes
from tests.conftest import site_files
from tests.experiments import tiny_experiment


def written(folder, weights, **changes):
    """Write an experiment that trains a head on top of these weights."""
    data = weights if isinstance(weights, bytes) else weights_to_bytes(weights)
    (folder / "model.safetensors").write_bytes(data)
    start = {
        "file": "model.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "public": True,
    }
    values = tiny_experiment().model_dump(mode="json")
    values |= {"initial_weights": start, "trainable": "head"} | changes
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def trained():
    """Other weights than any seed gives."""
    drawn = initial_weights(tiny_experiment())
    return {name: values * np.float32(0.5) + np.float32(0.01) for name, values in drawn.items()}


def test_a_run_starts_from_them_and_moves_the_head_alone(sites, trained, tmp_path):
    path = written(tmp_path, trained)
    experiment = load_experiment(path)
    approve(experiment, sites, approver="a test")
    found = run_experiment(experiment, sites, out=tmp_path / "run", folder=tmp_path)
    parameters = network_of(experiment).named_parameters()
    head = {name for name, parameter in parameters if parameter.requires_grad}
    moved = {name for name in trained if not np.array_equal(found.weights[name], trained[name])}
    assert 0 < len(head) < len(trained) and moved == head


def test_the_order_is_the_networks_whatever_the_files_is(trained, tmp_path):
    backwards = dict(reversed(trained.items()))
    found = initial_weights(load_experiment(written(tmp_path, backwards)), tmp_path)
    assert list(found) == list(trained)
    assert all(np.array_equal(found[name], values) for name, values in trained.items())


def test_the_digest_is_bound_and_experiments_without_keep_theirs(trained, tmp_path):
    plain = tiny_experiment()
    assert "initial_weights" not in plain.model_dump(mode="json")
    one = load_experiment(written(tmp_path, trained))
    other = load_experiment(written(tmp_path, initial_weights(plain)))
    assert len({plain.digest(), one.digest(), other.digest()}) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file": "../secret.safetensors"}, "initial_weights"),
        ({"file": "/etc/weights.safetensors"}, "initial_weights"),
        ({"file": "weights.pt"}, "initial_weights"),
        ({"sha256": "abc"}, "sha256"),
        ({"public": False}, "public"),
    ],
)
def test_only_a_file_beside_the_experiment_that_is_declared_public_can_be_named(
    trained, tmp_path, change, said
):
    values = yaml.safe_load(written(tmp_path, trained).read_text())
    values["initial_weights"] |= change
    with pytest.raises(ValueError, match=said):
        Experiment.model_validate(values)


def test_another_file_than_was_meant_is_refused_and_its_digest_told(trained, tmp_path):
    experiment = load_experiment(written(tmp_path, trained))
    data = weights_to_bytes(initial_weights(tiny_experiment()))
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(FederationError, match=rf"has SHA-256 {hashlib.sha256(data).hexdigest()}"):
        read_start(experiment, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FederationError, match="cannot be read"):
        read_start(experiment, tmp_path)
    with pytest.raises(FederationError, match="looked for beside its file"):
        read_start(experiment, None)


def test_a_pickle_is_not_read(tmp_path):
    with pytest.raises(ModelError, match="safetensors"):
        read_start(load_experiment(written(tmp_path, b"\x80\x04K\x01.")), tmp_path)


def test_what_does_not_fit_the_network_or_is_not_finite_is_refused(trained, tmp_path):
    name = next(iter(trained))
    for bad, said in (
        ({**trained, name: trained[name][..., :1]}, "do not fit this network"),
        ({**trained, "another": trained[name]}, "do not fit this network"),
        ({key: values for key, values in trained.items() if key != name}, "do not fit"),
        ({**trained, name: np.full_like(trained[name], np.nan)}, "not finite"),
    ):
        with pytest.raises((ModelError, FederationError), match=said):
            initial_weights(load_experiment(written(tmp_path, bad)), tmp_path)


def test_a_head_on_top_of_drawn_weights_is_refused_before_any_site_is_asked(federation, tmp_path):
    path = written(tmp_path, {})
    values = yaml.safe_load(path.read_text())
    del values["initial_weights"]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(FederationError, match=r"trainable: head.*initial_weights: \{file"):
        check_experiment(load_experiment(path))
    file = site_files(federation)[0]
    command = ["run", str(path), "--site", str(file), "--out", str(tmp_path / "out"), "--yes"]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, FederationError), result.output
    assert not (tmp_path / "out").exists()


def test_a_hub_keeps_them_with_the_run_apart_from_its_results(trained, tmp_path):
    config = HubConfig(
        format="cohortium-hub/1", address="127.0.0.1:1", listen="127.0.0.1:1", link_port=2
    )
    hub, path = HubFolder(tmp_path / "hub", config), written(tmp_path, trained)
    run = submit(hub, path)
    assert not (run.path / MODEL).exists()
    kept = initial_weights(run.experiment, run.path / START)
    assert all(np.array_equal(kept[name], values) for name, values in trained.items())
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FederationError, match="SHA-256"):
        submit(hub, path)


def test_an_operator_sees_the_digest_before_approving(federation, trained, tmp_path, ingested):
    path = written(tmp_path, trained)
    command = ["site", "approve", str(site_files(federation)[0]), str(path)]
    shown = CliRunner().invoke(app, command, input="n\n")
    wanted = load_experiment(path).initial_weights.sha256
    assert wanted in "".join(shown.output.split())
