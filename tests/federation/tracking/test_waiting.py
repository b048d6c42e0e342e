"""Runs that wait for a store: each is recorded once there is one, and none stops another."""

import pytest

from federation import elsewhere
from federation.tracking.runs import LoggedRun
from federation.tracking.store import open_store
from federation.tracking.waiting import record_waiting
from tests.experiments import tiny_experiment
from tests.federation.export.conftest import finished_run
from tests.federation.tracking.test_track import runs_of


@pytest.fixture
def runs(tmp_path):
    for name in ("first", "second", "third"):
        finished_run(tmp_path / "runs" / name, tiny_experiment())
    return tmp_path / "runs"


def test_a_store_that_cannot_be_used_is_asked_once_and_nothing_is_forgotten(runs, tmp_path):
    (tmp_path / "gone").write_text("no folder")
    gone = f"sqlite:///{tmp_path / 'gone' / 'mlflow.db'}"
    for name in ("first", "second"):
        elsewhere.want(runs / name, gone)
    outcomes = list(record_waiting([runs]))
    assert [(folder.name, uri) for folder, uri, _ in outcomes] == [
        ("first", gone),
        ("second", gone),
    ]
    assert "could not record the run" in outcomes[0][2]
    assert outcomes[1][2] == "it did not take the run before this one"
    assert elsewhere.waiting([runs]) == [runs / "first", runs / "second"]


def test_a_damaged_run_does_not_hold_up_the_others(runs, tmp_path):
    uri = open_store(tmp_path / "mlflow")
    for name in ("first", "second"):
        elsewhere.want(runs / name, uri)
    (runs / "first" / "model.safetensors").write_bytes(b"x")
    (damaged, recorded) = record_waiting([runs])
    assert damaged[0] == runs / "first" and "Restore both files" in damaged[2]
    assert recorded[0] == runs / "second" and isinstance(recorded[2], LoggedRun)
    _, (parent,), _ = runs_of(uri)
    assert parent.info.run_id == recorded[2].run_id
    assert elsewhere.waiting([runs]) == [runs / "first"]
