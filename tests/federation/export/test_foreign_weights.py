"""Weights come out of other tools' packages as numbers, and nothing of theirs runs."""

import io
import pickle
import zipfile

import pytest
import torch
import yaml
from typer.testing import CliRunner

from federation.cli.app import app
from federation.errors import FederationError
from federation.experiment import load_experiment
from federation.export.formats import export
from federation.foreign_weights import foreign_weights
from federation.training import initial_weights
from models.build import build_network
from models.weights import weights_digest, weights_to_bytes
from tests.experiments import tiny_experiment


@pytest.fixture
def weights():
    return initial_weights(tiny_experiment())


@pytest.fixture
def state(weights):
    return {name: torch.from_numpy(array.copy()) for name, array in weights.items()}


def same(found, weights):
    return weights_digest(found) == weights_digest(weights)


def save(value, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def test_a_monai_bundle_and_a_zoo_package_that_were_exported_come_back(
    finished, about, weights, tmp_path
):
    """Round trip: export, then start another experiment from it."""
    for form in ("monai-bundle", "bioimageio"):
        export(finished, about, form, tmp_path / form)
        assert same(foreign_weights(tmp_path / form, tiny_experiment()), weights)
    assert same(foreign_weights(tmp_path / "bioimageio/package.zip", tiny_experiment()), weights)


def test_files_are_read_in_every_form(weights, state, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights_to_bytes(weights))
    assert same(foreign_weights(path, tiny_experiment()), weights)
    parallel = {f"module.{name}": value for name, value in state.items()}
    for number, value in enumerate((state, {"state_dict": state}, {"model": parallel})):
        saved = save(value, tmp_path / f"{number}.pt")
        assert same(foreign_weights(saved, tiny_experiment()), weights)


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_nothing_that_would_run_is_opened(state, tmp_path):
    for name, value in (("whole.pt", build_network(tiny_experiment().model, num_classes=3)),):
        saved = save(value, tmp_path / name)
        with pytest.raises(FederationError, match="may hold code"):
            foreign_weights(saved, tiny_experiment())
    trap = tmp_path / "trap.pt"
    trap.write_bytes(pickle.dumps({**state, "x": Trap()}, protocol=2))
    with pytest.raises(FederationError, match="may hold code"):
        foreign_weights(trap, tiny_experiment())


def test_a_bundles_configuration_is_not_looked_at(state, weights, tmp_path):
    save(state, tmp_path / "b/models/model.pt")
    config = tmp_path / "b/configs/inference.json"
    config.parent.mkdir()
    config.write_text('{"network_def": "$__import__(\'os\').abort()"}')
    (tmp_path / "b/scripts.py").write_text("raise SystemExit('ran')")
    assert same(foreign_weights(tmp_path / "b", tiny_experiment()), weights)


@pytest.mark.parametrize("place", ["../w.pt", "/etc/passwd", "https://example.org/w.pt"])
def test_a_package_cannot_lead_out_of_itself(state, place, tmp_path):
    save(state, tmp_path / "w.pt")
    described = {"weights": {"pytorch_state_dict": {"source": place}}}
    package = tmp_path / "p"
    package.mkdir()
    (package / "rdf.yaml").write_text(yaml.safe_dump(described))
    with pytest.raises(FederationError, match="Nothing is fetched"):
        foreign_weights(package, tiny_experiment())
    (package / "rdf.yaml").write_text(
        yaml.safe_dump({"weights": {"pytorch_state_dict": {"source": "w.pt"}}})
    )
    (package / "w.pt").symlink_to(tmp_path / "w.pt")
    with pytest.raises(FederationError, match="leads out of"):
        foreign_weights(package, tiny_experiment())


def test_what_does_not_fit_says_why_and_what_to_do(state, tmp_path):
    first = next(iter(state))
    short = save({n: v for n, v in state.items() if n != first}, tmp_path / "short.pt")
    with pytest.raises(FederationError, match=r"lacks 1 of the .*Let 'model'"):
        foreign_weights(short, tiny_experiment())
    odd = save({**state, first: torch.zeros(3)}, tmp_path / "odd.pt")
    with pytest.raises(FederationError, match="do not fit this network"):
        foreign_weights(odd, tiny_experiment())
    bad = save({**state, first: torch.full_like(state[first], torch.nan)}, tmp_path / "nan.pt")
    with pytest.raises(FederationError, match="not finite"):
        foreign_weights(bad, tiny_experiment())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FederationError, match="neither a MONAI bundle nor"):
        foreign_weights(tmp_path / "empty", tiny_experiment())
    with pytest.raises(FederationError, match="There is nothing at"):
        foreign_weights(tmp_path / "none.pt", tiny_experiment())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("rdf.yaml", yaml.safe_dump({"weights": {"torchscript": {}}}))
    (tmp_path / "t.zip").write_bytes(packed.getvalue())
    with pytest.raises(FederationError, match="without running code"):
        foreign_weights(tmp_path / "t.zip", tiny_experiment())


def test_the_command_prints_the_lines_with_which_an_experiment_starts_from_them(
    weights, state, tmp_path
):
    save(state, tmp_path / "bundle/models/model.pt")
    values = tiny_experiment().model_dump(mode="json")
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(yaml.safe_dump(values))
    arguments = ["weights", str(tmp_path / "bundle"), str(experiment)]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "start.safetensors")])
    assert done.exit_code == 0, done.output
    lines = yaml.safe_load(done.output[done.output.index("initial_weights:") :])
    experiment.write_text(yaml.safe_dump(values | lines))
    assert same(initial_weights(load_experiment(experiment), tmp_path), weights)
    wrong = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "start.bin")])
    assert "must end in .safetensors" in str(wrong.exception)
