"""Where a run is to be recorded, too: kept without secrets, read with suspicion."""

import pytest

from federation import elsewhere
from federation.errors import FederationError


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000",
        "https://mlflow.example.org/team",
        "sqlite:////srv/mlflow.db",
        "postgresql+psycopg://db.example.org/mlflow",
    ],
)
def test_an_address_is_kept_as_it_is(tmp_path, uri):
    elsewhere.want(tmp_path, uri)
    assert elsewhere.address_of(tmp_path) == uri


@pytest.mark.parametrize(
    "uri", ["mlruns", "file:///srv", "ftp://a.example", "http://", "http://a b", "http://a\n"]
)
def test_what_is_no_address_is_refused_and_nothing_is_written(tmp_path, uri):
    with pytest.raises(FederationError, match="no address of an MLflow server"):
        elsewhere.want(tmp_path, uri)
    assert not list(tmp_path.iterdir())


def test_a_password_is_neither_kept_nor_shown(tmp_path):
    with pytest.raises(FederationError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        elsewhere.want(tmp_path, "https://me:hunter2@mlflow.example.org")
    assert "hunter2" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "cohortium-track/9", "to": "http://a"}']
)
def test_a_damaged_note_is_named(tmp_path, text):
    (tmp_path / elsewhere.WAITING).write_text(text)
    with pytest.raises(FederationError, match=r"track\.json"):
        elsewhere.address_of(tmp_path)


def test_only_finished_runs_wait(tmp_path):
    for name in ("finished", "going-on", "recorded"):
        (tmp_path / name).mkdir()
    for name in ("finished", "recorded"):
        (tmp_path / name / "run.json").write_text("{}")
    for name in ("finished", "going-on"):
        elsewhere.want(tmp_path / name, "http://127.0.0.1:5000")
    assert elsewhere.waiting([tmp_path]) == [tmp_path / "finished"]
    assert elsewhere.waiting([tmp_path / "finished", tmp_path]) == [tmp_path / "finished"]
    elsewhere.done(tmp_path / "finished")
    assert elsewhere.waiting([tmp_path]) == []
