"""``cohortium track`` to a real MLflow server: once, whatever happens in between."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation import elsewhere
from federation.cli.app import app
from federation.errors import FederationError
from federation.run_record import open_finished
from federation.tracking.finished import tracked_run, verification
from federation.tracking.log import log_run
from federation.tracking.store import open_store
from tests.e2e.processes import free_port
from tests.experiments import tiny_experiment
from tests.federation.export.conftest import RUN, SITES, finished_run

PATIENCE_S = 90


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("finished") / "run", tiny_experiment())


@contextmanager
def serving(folder: Path, port: int):
    """Run MLflow's own server over a store in ``folder``."""
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        *("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(process, port, folder)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _wait(process, port, folder):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as told:
                    assert told.status == 200
                return
        time.sleep(0.2)
    raise AssertionError("the server did not start")


def track(run, uri):
    result = CliRunner().invoke(app, ["track", str(run.path), "--to", uri])
    if isinstance(result.exception, FederationError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def track_what_waits(folder):
    result = CliRunner().invoke(app, ["track", str(folder)])
    return result.stdout, result.exception


def runs_of(uri, name=""):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(name or tiny_experiment().name)
    found = client.search_runs([experiment.experiment_id])
    parents = [one for one in found if "mlflow.parentRunId" not in one.data.tags]
    below = [one for one in found if one not in parents]
    return client, parents, below


@pytest.mark.slow
def test_a_server_that_is_down_loses_nothing_and_a_run_is_recorded_once(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    port = free_port()
    with pytest.raises(FederationError, match="results are not affected"):
        track(run, f"http://127.0.0.1:{port}")
    elsewhere.want(run.path, f"http://127.0.0.1:{port}")
    _, failed = track_what_waits(run.path.parent)
    assert isinstance(failed, FederationError) and "results are not affected" in str(failed)
    with serving(tmp_path / "server", port) as uri:
        shown, failed = track_what_waits(run.path.parent)
        assert failed is None and f"recorded in {uri} as MLflow run" in shown
        assert "Nothing waits" in track_what_waits(run.path.parent)[0]
        told = track(run, uri)
        assert track(run, uri) == told
        client, parents, below = runs_of(uri)
        (parent,) = parents
        assert parent.data.tags["run"] == RUN and parent.info.status == "FINISHED"
        assert {one.data.tags["site"] for one in below} == set(SITES)
        assert {one.data.tags["epsilon"] for one in below} == {"7.5000"}
        names = {dataset.dataset.name for dataset in parent.inputs.dataset_inputs}
        assert names == {f"{site}: brains-{site}" for site in SITES}
        (version,) = client.search_model_versions(f"run_id = '{parent.info.run_id}'")
        assert version.tags["verification"].startswith("unsigned: 0 of 0 receipts")
        assert client.get_model_version_by_alias(version.name, "newest").version == version.version
        _look(uri, parent, tmp_path)


def _look(uri, parent, tmp_path):
    """MLflow's own pages, in a real browser, show data sets, metrics and the model."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium")
    place = f"{uri}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    done = subprocess.run(
        [
            chromium,
            *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'c'}"),
            *("--virtual-time-budget=20000", "--window-size=1400,1800", "--dump-dom", place),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-500:]
    for words in (f"brains-{SITES[0]}", "mean/dice", "Registered models", RUN):
        assert words in done.stdout, words


def test_what_an_attempt_left_behind_is_no_second_record(run, tmp_path, monkeypatch):
    uri = open_store(tmp_path / "mlflow")
    told = tracked_run(run, uri)
    with monkeypatch.context() as patch:
        patch.setattr("federation.tracking.log._register", _dies)
        with pytest.raises(FederationError, match="not affected"):
            log_run(told)
    _, (left,), below = runs_of(uri)
    assert left.info.status == "FINISHED" and len(below) == len(SITES)
    logged = log_run(told)
    assert log_run(told) == logged
    _, (parent,), below = runs_of(uri)
    assert parent.info.run_id == logged.run_id and len(below) == len(SITES)


def _dies(*_):
    raise OSError("the disk is full")


def test_scores_and_rounds_of_a_site_are_in_its_own_run(run, tmp_path):
    uri = open_store(tmp_path / "mlflow")
    log_run(tracked_run(run, uri))
    client, _, below = runs_of(uri)
    for place, site in enumerate(SITES):
        (own,) = (one for one in below if one.data.tags["site"] == site)
        history = client.get_metric_history(own.info.run_id, "dice")
        assert [round(one.value, 6) for one in sorted(history, key=lambda m: m.step)] == [
            round(0.2 + 0.1 * (number + place), 6) for number in range(3)
        ]
        assert len(client.get_metric_history(own.info.run_id, "returned")) == 2
        assert own.data.tags["ledger_head"] == run.record.heads[site]


def test_a_run_that_another_process_records_is_left_alone(run, tmp_path):
    uri = open_store(tmp_path / "mlflow")
    told = tracked_run(run, uri)
    log_run(told)
    client, (parent,), _ = runs_of(uri)
    for version in client.search_model_versions(f"run_id = '{parent.info.run_id}'"):
        client.delete_model_version(version.name, version.version)
    client.update_run(parent.info.run_id, status="RUNNING")
    with pytest.raises(FederationError, match=r"being recorded in .* by another process"):
        log_run(told)


def test_statements_that_nobody_signed_are_contradicted(run):
    forged = replace(run, receipts=({"site": SITES[0]},))
    assert verification(forged).startswith("contradicted: 0 of 1 receipts")


def test_a_password_in_an_address_is_not_shown(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(FederationError) as caught:
        track(run, f"http://name:hunter2@127.0.0.1:{free_port()}")
    assert "127.0.0.1" in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_run_that_has_just_ended_is_known_as_signed(approved_sites, tmp_path):
    from federation.run import run_experiment

    summary = run_experiment(tiny_experiment(), approved_sites, out=tmp_path / "run")
    finished = open_finished(tmp_path / "run")
    told = "receipts and 3 of 3 closings signed with the sites' keys"
    assert verification(finished) == f"signed: 6 of 6 {told}; ledgers not held here"
    once, *others = finished.receipts
    assert verification(replace(finished, receipts=(once, *finished.receipts))).startswith(
        f"contradicted: 6 of 7 {told}"
    )
    alone = tuple(one for one in finished.receipts if one["site"] != once["site"])
    assert verification(replace(finished, receipts=alone)).startswith("unsigned: 4 of 4")
    for changes in ({"run": "cd" * 16}, {"model_digest": "sha256:" + "0" * 64}):
        other = replace(finished, record=replace(finished.record, **changes))
        assert verification(other).startswith("contradicted: ")
    assert others
    assert log_run(tracked_run(finished, summary.store)) == summary.tracked
