"""The whole path in one process: three sites, two formats, Flower, ledgers, MLflow, audit."""

import json
import sqlite3

import numpy as np
import pytest

from federation.audit.checking import read_trust
from federation.audit.sources import read_receipts
from federation.audit.verify import verify_ledgers
from federation.errors import FederationError, PrivacyBudgetError
from federation.flower.server_app import RunStoppedError
from federation.ledger.keys import fingerprint_of
from federation.run import approve, quote, run_experiment
from models.weights import weights_digest, weights_from_bytes
from tests.experiments import tiny_experiment


@pytest.fixture
def finished(approved_sites, tmp_path):
    events = []
    summary = run_experiment(
        tiny_experiment(), approved_sites, out=tmp_path / "out", on_event=events.append
    )
    return summary, events, approved_sites


def test_three_sites_and_two_formats_train_one_model_and_leave_all_records(finished):
    summary, events, sites = finished
    assert {s.kind for site in sites for s in site.config.protected} == {"dicom", "ome_zarr"}
    assert [event.round for event in events] == [0, 1, 2]
    assert all(event.returned == tuple(sorted(s.name for s in sites)) for event in events[1:])
    model = weights_from_bytes((summary.out / "model.safetensors").read_bytes())
    assert weights_digest(model) == weights_digest(
        {name: summary.weights[name] for name in sorted(summary.weights)}
    )
    for outcome in summary.sites:
        assert 0 < outcome.spent <= 8 and 0 <= outcome.after <= 1

    receipts = read_receipts(summary.out / "receipts.json")
    assert len(receipts) == 6
    report = verify_ledgers(
        [site.ledger for site in summary.sites],
        trust=read_trust([str(summary.out / "trust.txt")]),
        receipts=receipts,
    )
    assert report.ok, report


def test_the_average_of_the_receipted_updates_is_the_model(approved_sites, tmp_path):
    """Recompute federated averaging from what the sites' outboxes keep."""
    from federation.training import initial_weights

    summary = run_experiment(tiny_experiment(), approved_sites, out=tmp_path / "out")
    _, last = models_from_outboxes(initial_weights(tiny_experiment()), approved_sites)
    for name, value in summary.weights.items():
        np.testing.assert_allclose(value, last[name], atol=1e-6)


def test_a_run_with_a_moving_average_keeps_the_average_of_what_its_rounds_released(sites, tmp_path):
    from federation.training import initial_weights

    experiment = tiny_experiment(ema_decay=0.5)
    approve(experiment, sites, approver="test")
    summary = run_experiment(experiment, sites, out=tmp_path / "out")
    first, last = models_from_outboxes(initial_weights(experiment), sites)
    for name, value in summary.weights.items():
        np.testing.assert_allclose(value, (first[name] + 2 * last[name]) / 3, atol=1e-6)
        assert not np.allclose(value, last[name], atol=1e-6)


def models_from_outboxes(weights, sites):
    """Return the models of two rounds, from what the sites released."""
    models = []
    for number in (1, 2):
        updates = []
        for site in sites:
            charge = next(c for c in charges(site) if c.key.round == number)
            updates.append(weights_from_bytes(site.ledger.stored_release(charge)[0]))
        weights = {n: w + np.mean([u[n] for u in updates], axis=0) for n, w in weights.items()}
        models.append(weights)
    return models


def charges(site):
    return list(site.ledger._current().charges.values())


def test_the_mlflow_run_holds_data_sets_model_and_the_ledgers_heads(finished):
    summary, _, sites = finished
    database = sqlite3.connect(f"file:{summary.out / 'mlflow' / 'mlflow.db'}?mode=ro", uri=True)
    datasets = {name for (name,) in database.execute("select name from datasets")}
    assert datasets == {f"{site.name}: {site.config.dataset}" for site in sites}
    assert database.execute("select name from registered_models").fetchall() == [("tiny",)]
    metrics = {key for (key,) in database.execute("select distinct key from metrics")}
    assert any("dice" in key for key in metrics)
    (uri,) = database.execute(
        "select artifact_uri from runs where run_uuid = ?", (summary.tracked.run_id,)
    ).fetchone()
    database.close()
    heads_file = next((summary.out / "mlflow").rglob("heads.json"))
    assert heads_file.parent.as_posix() in uri or uri.removeprefix("file://") in str(heads_file)
    heads = json.loads(heads_file.read_text())
    assert heads == {site.name: site.ledger.head[1] for site in sites}


def test_no_identifier_path_or_root_is_in_anything_that_left_the_sites(finished, federation):
    summary, _, sites = finished
    needles = [b"NH-00", b"SH-00", b"specimen-00", b"FAKE^", str(federation).encode()]
    by_name = {site.name: site for site in sites}
    for site in (by_name["north-hospital"], by_name["south-hospital"], by_name["bio-lab"]):
        manifest = site.manifest("protected")
        needles.append(manifest.root.removeprefix("sha256:").encode())
        needles += [scan.subject.encode() for scan in manifest.scans]
    held = federation / "north-hospital" / "state" / "cache" / "protected" / "manifest.json"
    assert needles[5] in held.read_bytes()  # the search finds what is there to be found
    for path in summary.out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [n for n in needles if n in content], path


def test_the_same_experiment_again_does_not_fit_and_is_refused_before_training(finished):
    _, _, sites = finished
    assert not any(q.admitted for q in quote(tiny_experiment(), sites))
    with pytest.raises(PrivacyBudgetError, match="do not fit what is left"):
        approve(tiny_experiment(), sites, approver="test")


def test_without_approval_nothing_is_trained(sites, tmp_path):
    with pytest.raises(FederationError, match="not_approved"):
        run_experiment(tiny_experiment(), sites, out=tmp_path / "out")
    assert all(len(site.ledger.records) == 1 for site in sites)


def test_a_site_that_fails_ends_the_run_with_the_sites_name_and_keeps_the_evidence(
    approved_sites, tmp_path, monkeypatch
):
    import federation.rounds as rounds

    original = rounds.train_locally

    def fails_at_the_lab(experiment, plan, weights, dataset, **named):
        if "bio-lab" in str(dataset._cache):
            raise MemoryError("patient JANE DOE does not fit")
        return original(experiment, plan, weights, dataset, **named)

    monkeypatch.setattr(rounds, "train_locally", fails_at_the_lab)
    out = tmp_path / "out"
    with pytest.raises(RunStoppedError, match=r"bio-lab") as stopped:
        run_experiment(tiny_experiment(), approved_sites, out=out)
    assert "JANE" not in str(stopped.value)
    trust = (out / "trust.txt").read_text()
    assert all(fingerprint_of(site.key.public_bytes) in trust for site in approved_sites)
    assert {receipt.site for receipt in read_receipts(out / "receipts.json")} == {
        "north-hospital",
        "south-hospital",
    }
