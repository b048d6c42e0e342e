import json
import socket
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from federation.errors import FederationError
from federation.messages import Description, RoundFinished
from federation.tracking.runs import TrackedModel, TrackedRun
from federation.tracking.store import open_store
from models.build import build_network, weights_of
from models.specs import UNetSpec

SPEC = UNetSpec(spatial_dims=2, channels=(4, 8), strides=(2,))
CLASSES = ("background", "grey matter", "white matter")
HOST_PATH = "/srv/hospital/doe_jane/run.py"


def description(site):
    return Description(
        site=site,
        public_key="ab" * 32,
        commitment="sha256:" + site[-1] * 64,
        dataset="brains",
        source_kind="dicom",
        modality="MR",
        num_subjects="about 50",
        licence="CC0-1.0",
        data_use="DUO:0000006; DUO:0000021",
    )


def tracked(folder, **changes):
    values = {
        "store": open_store(folder / "mlflow"),
        "experiment": "brains",
        "name": "first run",
        "parameters": {"privacy": {"epsilon": 8.0}, "input": {"shape": [16, 16]}, "seed": 0},
        "experiment_yaml": "format: cohortium-experiment/1\n",
        "experiment_digest": "sha256:" + "e" * 64,
        "events": (
            RoundFinished(0, ("ward-a", "ward-b"), {}, {"ward-a": {"dice": 0.2}}),
            RoundFinished(
                1,
                ("ward-a",),
                {"ward-b": "budget"},
                {"ward-a": {"dice": 0.5}, "ward-b": {"dice": 0.7, "dice/grey (all)": 0.6}},
                late=("ward-c",),
            ),
        ),
        "descriptions": (description("ward-a"), description("ward-b")),
        "receipts": ({"site": "ward-a", "round": 1},),
        "closings": ({"site": "ward-a", "run": "1"},),
        "heads": {"ward-a": {"seq": 3, "hash": "sha256:" + "1" * 64}},
        "tags": {"epsilon/ward-a": "7.94", "epsilon/ward-b": "0"},
        "model": TrackedModel(
            SPEC.model_dump(mode="json"),
            CLASSES,
            weights_of(build_network(SPEC, num_classes=3, seed=5)),
            np.zeros((1, 1, 16, 16), np.float32),
        ),
    }
    return TrackedRun(**(values | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def run(folder):
    return tracked(folder)


@pytest.fixture(scope="module")
def logged(run):
    """The run, recorded where every connection fails and the host's names must not show."""
    from federation.tracking.log import log_run

    def refuse(*args):
        raise AssertionError(f"recording a run must not connect anywhere, tried {args[1:]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [HOST_PATH])
        patch.setenv("USER", "doe_jane")
        patch.setenv("LOGNAME", "doe_jane")
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        return log_run(run)


@pytest.fixture(scope="module")
def client(run, logged):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=run.store, registry_uri=run.store)


@pytest.fixture(scope="module")
def found(client, logged):
    return client.get_run(logged.run_id)


class TestTheRecordedRun:
    def test_is_finished_and_named(self, found):
        assert (found.info.status, found.info.run_name) == ("FINISHED", "first run")

    def test_has_the_parameters_flat_and_the_tags(self, found):
        assert found.data.params == {
            "privacy.epsilon": "8.0",
            "input.shape": "[16, 16]",
            "seed": "0",
        }
        assert found.data.tags["experiment_digest"] == "sha256:" + "e" * 64
        assert found.data.tags["epsilon/ward-a"] == "7.94"

    def test_has_each_rounds_scores_and_cohort(self, client, logged):
        def history(name):
            return [(m.step, m.value) for m in client.get_metric_history(logged.run_id, name)]

        assert history("ward-a/dice") == [(0, 0.2), (1, 0.5)]
        assert history("ward-b/dice/grey _all_") == [(1, 0.6)]
        assert history("mean/dice") == [(0, 0.2), (1, 0.6)]
        assert history("num_sites_returned") == [(0, 2.0), (1, 1.0)]
        assert history("num_sites_refused") == [(0, 0.0), (1, 1.0)]
        assert history("num_sites_late") == [(0, 0.0), (1, 1.0)]
        assert history("num_sites") == [(0, 2.0), (1, 3.0)]
        assert history("round_skipped") == [(0, 0.0), (1, 0.0)]

    def test_says_on_the_run_and_on_its_model_that_sites_were_missing(self, client, found, logged):
        model = client.get_model_version(logged.model_name, logged.model_version)
        for tags in (found.data.tags, model.tags):
            assert tags["rounds_without_all_sites"] == "1 of 1"
            assert tags["rounds_skipped"] == "0 of 1"

    def test_has_the_evidence_as_artifacts_and_nothing_else(self, client, run, logged, tmp_path):
        names = {artifact.path for artifact in client.list_artifacts(logged.run_id)}
        files = ("receipts.json", "closings.json", "heads.json", "rounds.json", "sites.json")
        assert names == {"experiment.yaml", *files}
        texts = {
            name: Path(client.download_artifacts(logged.run_id, name, str(tmp_path))).read_text()
            for name in names
        }
        assert texts["experiment.yaml"] == run.experiment_yaml
        assert json.loads(texts["receipts.json"]) == [dict(receipt) for receipt in run.receipts]
        assert json.loads(texts["closings.json"]) == [dict(closing) for closing in run.closings]
        assert json.loads(texts["heads.json"]) == run.heads
        assert json.loads(texts["rounds.json"])[1]["refused"] == {"ward-b": "budget"}
        assert json.loads(texts["sites.json"])[0]["commitment"] == run.descriptions[0].commitment


class TestItsDataSets:
    def test_are_training_inputs_of_each_site(self, found):
        inputs = found.inputs.dataset_inputs
        assert [i.dataset.name for i in inputs] == ["ward-a: brains", "ward-b: brains"]
        assert {(t.key, t.value) for i in inputs for t in i.tags} == {
            ("mlflow.data.context", "training")
        }

    def test_carry_the_commitment_and_only_public_facts(self, found, run):
        dataset = found.inputs.dataset_inputs[0].dataset
        assert len(dataset.digest) == 36
        commitment = run.descriptions[0].commitment
        assert commitment.removeprefix("sha256:").startswith(dataset.digest)
        assert json.loads(dataset.profile) == {"num_subjects": "about 50"}
        source = json.loads(dataset.source)
        assert source["commitment"] == commitment
        assert {source["source_kind"], source["licence"]} == {"dicom", "CC0-1.0"}
        assert source["data_use"] == "DUO:0000006; DUO:0000021"
        assert not {"path", "uri", "url"} & set(source)

    def test_cannot_be_opened_here_and_say_whom_to_ask(self, found):
        import mlflow.data

        source = mlflow.data.get_source(found.inputs.dataset_inputs[0])
        with pytest.raises(FederationError, match="images stay at ward-a"):
            source.load()


@pytest.fixture(scope="module")
def loaded(run, logged):
    import mlflow

    mlflow.set_tracking_uri(run.store)
    model = mlflow.pyfunc.load_model(logged.model_uri)
    mlflow.set_tracking_uri(None)
    return model


class TestItsModel:
    def test_is_registered_under_the_experiment_with_alias_and_epsilon(self, client, logged):
        found = client.get_model_version_by_alias("brains", "newest")
        assert (logged.model_name, logged.model_version) == ("brains", str(found.version))
        assert logged.model_uri == "models:/brains/1"
        assert found.run_id == logged.run_id
        assert found.tags["epsilon/ward-a"] == "7.94"

    def test_loads_back_and_predicts_what_the_network_does(self, loaded, run):
        import torch

        images = np.random.default_rng(0).normal(size=(9, 1, 16, 16)).astype(np.float32)
        network = build_network(SPEC, num_classes=3, seed=5)
        with torch.inference_mode():
            expected = network.eval()(torch.from_numpy(images)).argmax(1).numpy()
        predicted = loaded.predict(images)
        assert predicted.dtype == np.uint8
        np.testing.assert_array_equal(predicted, expected)
        assert len(np.unique(predicted)) > 1

    def test_has_a_signature_and_an_example(self, loaded, run):
        signature = loaded.metadata.signature
        (images,) = signature.inputs.inputs
        assert (images.type, images.shape) == (np.float32, (-1, 1, 16, 16))
        assert signature.outputs.inputs[0].type == np.uint8
        np.testing.assert_array_equal(loaded.input_example, run.model.input_example)

    def test_is_code_json_and_safetensors_without_any_pickle(self, folder, logged):
        files = {
            path.name: path for path in folder.rglob("artifacts/models/**/*") if path.is_file()
        }
        assert {"served_model.py", "weights.safetensors", "model.json", "MLmodel"} <= set(files)
        assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth"))]
        assert all(not path.read_bytes().startswith(b"\x80") for path in files.values())
        requirements = files["requirements.txt"].read_text()
        assert "torch==" in requirements
        assert "+cpu" not in requirements


def test_nothing_of_the_host_is_in_the_store(folder, logged):
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"doe_jane" not in path.read_bytes(), path
            assert str(Path(__file__).parents[3]).encode() not in path.read_bytes(), path


class TestASecondRun:
    def test_becomes_the_next_version_and_moves_the_alias(self, folder, client, logged):
        from federation.tracking.log import log_run

        second = log_run(tracked(folder, name="second run"))
        assert (second.model_version, second.model_uri) == ("2", "models:/brains/2")
        assert client.get_model_version_by_alias("brains", "newest").run_id == second.run_id

    def test_whose_model_does_not_run_is_marked_failed_and_not_registered(self, folder, client):
        from federation.tracking.log import log_run

        bad = tracked(folder, experiment="odd shapes")
        model = TrackedModel(
            bad.model.spec, CLASSES, bad.model.weights, np.zeros((1, 3, 16, 16), np.float32)
        )
        with pytest.raises(FederationError, match="not registered"):
            log_run(tracked(folder, experiment="odd shapes", model=model))
        experiment = client.get_experiment_by_name("odd shapes")
        (found,) = client.search_runs([experiment.experiment_id])
        assert found.info.status == "FAILED"
        assert not client.search_registered_models("name = 'odd shapes'")

    def test_in_a_deleted_experiment_says_how_to_restore_it(self, folder, client):
        from federation.tracking.log import log_run

        client.delete_experiment(client.create_experiment("gone"))
        with pytest.raises(FederationError, match="mlflow experiments restore"):
            log_run(tracked(folder, experiment="gone"))


def test_mlflows_own_settings_are_left_as_they_were(folder, logged):
    import mlflow

    assert not mlflow.is_tracking_uri_set()
    assert mlflow.active_run() is None


def test_a_store_that_is_no_store_is_an_error_with_a_way_out(tmp_path):
    from federation.tracking.log import log_run

    run = tracked(tmp_path)
    Path(run.store.removeprefix("sqlite:///")).write_bytes(b"not a database" * 100)
    with pytest.raises(FederationError, match="Choose another store, or repair this one"):
        log_run(run)


def test_the_store_is_one_sqlite_file(folder, logged):
    with sqlite3.connect(folder / "mlflow" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone()[0] >= 1
    database.close()
