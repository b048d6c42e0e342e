"""``cohortium run`` as typed: what is shown before anything is approved."""

import pytest

from federation.errors import FederationError
from federation.experiment import load_experiment
from federation.run_record import open_finished
from federation.site import open_site
from tests.federation.cli.test_decide import (  # noqa: F401 - fixtures
    cohortium,
    experiment_file,
    file,
    kinds,
)
from tests.federation.tracking.test_track import runs_of

BASIS = ("--ethics-reference", "EK-7", "--legal-basis", "section 27", "--expires", "2999-12-31")


def test_all_that_would_be_approved_is_shown_before_the_question(
    file,  # noqa: F811
    experiment_file,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    shown = []
    monkeypatch.setattr(
        "federation.cli.show_decide.offer", lambda *_, **__: shown.append("offer"), raising=True
    )
    options = (experiment_file, "--site", file, "--out", tmp_path / "out")
    with pytest.raises(FederationError, match="Not approved"):
        cohortium("run", *options, answers="n\n")
    assert shown == ["offer"] and "approval" not in kinds(file)
    cohortium("site", "approve", file, experiment_file, "--yes")
    shown.clear()
    with pytest.raises(FederationError, match="Not approved"):
        cohortium("run", *options, answers="n\n")
    assert shown == [], "the operator has seen and approved just this"


def test_a_run_shows_the_terms_and_records_their_basis(file, experiment_file, tmp_path):  # noqa: F811
    options = (experiment_file, "--site", file, "--out", tmp_path / "out", *BASIS)
    done = cohortium("run", *options, answers="y\n")
    site, experiment = open_site(file), load_experiment(experiment_file)
    (approval,) = site.ledger.approvals.values()
    assert approval.body["ethics_reference"] == "EK-7"
    assert approval.body["legal_basis"] == "section 27"
    assert approval.body["expires"] == "2999-12-31T23:59:59Z"
    flat = "".join(done.output.split())
    told = (experiment.digest(), "EK-7", experiment.loss.kind, experiment.optimizer.kind)
    rate = f"learning_rate {experiment.optimizer.learning_rate}"
    for text in (*told, rate, f"trained: {experiment.trainable}", *site.leaves):
        assert "".join(text.split()) in flat, text


def test_a_run_is_recorded_elsewhere_too_and_a_store_that_is_down_stops_nothing(
    file,  # noqa: F811
    experiment_file,  # noqa: F811
    tmp_path,
):
    out, store = tmp_path / "out", tmp_path / "team" / "mlflow.db"
    store.parent.write_text("no folder")
    options = (experiment_file, "--site", file, "--out", out, "--yes")
    done = cohortium("run", *options, "--track", f"sqlite:///{store}")
    told = " ".join(done.output.split())
    assert "Not recorded in sqlite" in told and "Later: cohortium track" in told
    assert (out / "model.safetensors").is_file()
    store.parent.unlink()
    assert f"recorded in sqlite:///{store}" in cohortium("track", out).output
    (run,) = runs_of(f"sqlite:///{store}", load_experiment(experiment_file).name)[1]
    assert run.data.tags["run"] == open_finished(out).record.run


def test_an_address_that_cannot_be_kept_is_said_before_anything_is_read(
    file,  # noqa: F811
    experiment_file,  # noqa: F811
):
    with pytest.raises(FederationError, match="no address of an MLflow server"):
        cohortium("run", experiment_file, "--site", file, "--track", "mlruns")


def test_a_senseless_expiry_is_said_before_anything_is_read(file, experiment_file, tmp_path):  # noqa: F811
    with pytest.raises(FederationError):
        cohortium("run", experiment_file, "--site", file, "--expires", "soon")
