"""Self-audits of real rounds: kept at the site, gone on with, and never in the way."""

import json
import stat
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from federation.audit.report_sources import read_self_audits
from federation.cli.app import app
from federation.errors import FederationError, Refused
from federation.evidence import FOLDER, SelfAudits, run_audits
from federation.messages import TrainRequest
from federation.privacy.plan import make_plan
from federation.privacy.random import SecureRandomness
from federation.privacy.self_audit import SelfAudit
from federation.rounds import LocalRounds
from federation.run import approve
from federation.training import default_device, initial_weights
from tests.conftest import site_files
from tests.experiments import tiny_experiment, unprotected

DIGEST = "sha256:" + "0" * 64


def request(experiment, round_=1, run="run-1"):
    return TrainRequest(experiment.digest(), run, round_, 1, initial_weights(experiment))


def files_of(site):
    return sorted((site.config.state / FOLDER).glob("*"))


@pytest.fixture
def site(approved_sites):
    return approved_sites[0]


def test_each_round_adds_to_its_runs_audit_and_nothing_of_it_leaves(site):
    experiment, rounds = tiny_experiment(), LocalRounds(site)
    first = rounds.train(request(experiment))
    (path,) = files_of(site)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (audit,) = run_audits(site.config.state)
    assert (audit.report["rounds"], audit.report["steps"]) == (1, 2)
    rounds.train(request(experiment, round_=2))
    (audit,) = run_audits(site.config.state)
    assert (audit.report["rounds"], audit.report["steps"]) == (2, 4)
    assert audit.report["verdict"] != "violation"
    assert "Not covered" in audit.text
    names = set(initial_weights(experiment))
    from models.weights import weights_from_bytes

    assert set(weights_from_bytes(first.payload)) == names, "no canary left"


def test_the_same_request_again_takes_no_further_steps(site):
    experiment, rounds = tiny_experiment(), LocalRounds(site)
    rounds.train(request(experiment))
    (path,) = files_of(site)
    before = path.read_bytes()
    rounds.train(request(experiment))
    assert path.read_bytes() == before


def test_a_hub_that_renames_its_run_each_round_does_not_begin_anew(site):
    experiment, rounds = tiny_experiment(), LocalRounds(site)
    rounds.train(request(experiment, run="run-1"))
    with pytest.raises(Refused, match="approval_used_up"):
        rounds.train(request(experiment, round_=2, run="run-2"))
    approve(experiment, [site], approver="test")
    rounds.train(request(experiment, round_=2, run="run-2"))
    (audit,) = run_audits(site.config.state)
    assert (audit.report["rounds"], audit.runs, audit.run) == (2, ("run-1", "run-2"), "run-2")


def opened(audits, plan, randomness=None, run="run-1"):
    asked = {"num_subjects": 3, "device": default_device()}
    return audits.open(DIGEST, run, plan, randomness or SecureRandomness(), **asked)


def test_a_plan_that_changed_under_one_experiment_begins_anew_and_the_log_knows(tmp_path):
    told = []
    audits, plan = SelfAudits(tmp_path, told.append, site="lab"), make_plan(tiny_experiment())
    audits.keep(DIGEST, "run-1", opened(audits, plan))
    assert opened(audits, plan).evidence().rounds == 2
    other = opened(audits, replace(plan, noise_multiplier=9.0), run="run-2")
    assert other.evidence().rounds == 1
    assert told == ["reading the self-audit, which begins anew,"]
    audits.keep(DIGEST, "run-2", other)
    (audit,) = run_audits(tmp_path)
    assert audit.runs == ("run-2",)


@pytest.mark.parametrize("error", [OverflowError, RuntimeError, MemoryError])
def test_whatever_reading_or_beginning_raises_the_round_goes_on(tmp_path, monkeypatch, error):
    told = []
    audits, plan = SelfAudits(tmp_path, told.append, site="lab"), make_plan(tiny_experiment())
    audits.keep(DIGEST, "run-1", opened(audits, plan))

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("federation.privacy.self_audit.SelfAudit.resume", fails)
    assert opened(audits, plan).evidence().rounds == 1
    monkeypatch.setattr("federation.privacy.self_audit.CanaryBlock", fails)
    assert opened(audits, plan) is None
    assert told[-1] == "beginning the self-audit of a round, which has none,"


def test_an_audit_that_fails_in_a_round_is_in_the_log_and_in_the_next_report(site, monkeypatch):
    experiment, rounds = tiny_experiment(), LocalRounds(site)
    rounds.train(request(experiment))
    with monkeypatch.context() as broken:
        broken.setattr(SelfAudit, "_see", None)
        rounds.train(request(experiment, round_=2))
    (audit,) = run_audits(site.config.state)
    assert (audit.report["rounds"], audit.report["rounds_unobserved"]) == (1, 1)
    assert "the self-audit, which says nothing of this round" in site.log_path.read_text()


def test_damaged_evidence_stops_no_round_and_the_log_knows(site):
    experiment, rounds = tiny_experiment(), LocalRounds(site)
    rounds.train(request(experiment))
    (path,) = files_of(site)
    path.write_text("{")
    with pytest.raises(FederationError, match="Delete it"):
        list(run_audits(site.config.state))
    rounds.train(request(experiment, round_=2))
    (audit,) = run_audits(site.config.state)
    assert audit.report["rounds"] == 1, "it began anew"
    assert "self-audit" in site.log_path.read_text()


def test_evidence_that_cannot_be_kept_stops_no_round(site):
    (site.config.state / FOLDER).write_text("a file where the folder should be")
    LocalRounds(site).train(request(tiny_experiment()))
    assert "keeping the self-audit" in site.log_path.read_text()


def test_a_run_without_privacy_has_none(tmp_path):
    plan = make_plan(unprotected(tiny_experiment()))
    audits = SelfAudits(tmp_path, lambda what: pytest.fail(what), site="lab")
    assert opened(audits, plan) is None


def test_the_operator_sees_it_and_a_violation_is_exit_code_1(site, federation):
    (file, *_) = site_files(federation)
    shown = CliRunner().invoke(app, ["site", "audit", str(file)])
    assert shown.exit_code == 0 and "no run under privacy" in shown.output
    LocalRounds(site).train(request(tiny_experiment()))
    shown = CliRunner().invoke(app, ["site", "audit", str(file)])
    assert shown.exit_code == 0 and "epsilon >=" in shown.output
    (path,) = files_of(site)
    document = json.loads(path.read_text())
    document["report"]["verdict"] = "violation"
    path.write_text(json.dumps(document))
    shown = CliRunner().invoke(app, ["site", "audit", str(file), "--json"])
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["experiments"][0]["verdict"] == "violation"


def test_a_board_is_given_nothing_that_counts_real_subjects(site, federation, tmp_path):
    (file, *_) = site_files(federation)
    LocalRounds(site).train(request(tiny_experiment()))
    (path,) = files_of(site)
    kept = json.loads(path.read_text())
    assert {one["about"] for one in kept["report"]["tests"]} == {"canaries", "noise", "subjects"}
    shown = CliRunner().invoke(app, ["site", "audit", str(file), "--json"])
    (told,) = json.loads(shown.stdout)["experiments"]
    assert {one["about"] for one in told["tests"]} == {"canaries", "noise"}
    hidden = {one["name"] for one in kept["report"]["tests"] if one["about"] == "subjects"}
    assert hidden and not any(name in shown.stdout for name in hidden)
    assert "state" in kept and "state" not in told
    exported = tmp_path / "self-audits.json"
    exported.write_text(shown.stdout)
    (seen,) = read_self_audits([exported])
    assert (seen.verdict, seen.site) == (kept["report"]["verdict"], site.name)
    for given in (path, path.parent):
        with pytest.raises(FederationError, match="must not leave the site"):
            read_self_audits([given])


def test_help_teaches_by_example():
    shown = CliRunner().invoke(app, ["site", "audit", "--help"]).output
    assert "cohortium site audit site.yaml" in shown.split("Examples:")[1]
