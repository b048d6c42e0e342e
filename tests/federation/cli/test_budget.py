"""``cohortium budget`` as it is typed."""

import dataclasses
import json

import pytest
import yaml
from typer.testing import CliRunner

from data_adapters.errors import DataError
from federation.cli.app import app
from federation.errors import FederationError
from federation.experiment import load_experiment
from federation.privacy.plan import make_plan
from federation.run import approve, run_experiment
from federation.site import open_site
from tests.conftest import site_files
from tests.experiments import demo_values, tiny_experiment


def budget(*arguments):
    result = CliRunner().invoke(app, ["budget", *map(str, arguments)])
    if isinstance(result.exception, FederationError | DataError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def experiment_file(tmp_path):
    values = demo_values()
    values["algorithm"] |= {"rounds": 2, "steps_per_round": 2}
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("command", ["forecast", "show"])
def test_help_teaches_by_example(command):
    assert f"cohortium budget {command}" in budget(command, "--help").output.split("Examples:")[1]


def test_a_forecast_before_there_is_a_ledger_starts_none(laid_out, tmp_path, experiment_file):
    (site, *_) = site_files(laid_out)
    shown = budget("forecast", experiment_file, "--site", site)
    assert shown.exit_code == 0
    assert "more such run" in shown.output and "Noise for a wanted epsilon" in shown.output
    assert not (site.parent / "state" / "ledger.jsonl").exists()


def test_a_forecast_that_does_not_fit_exits_with_one(federation, experiment_file):
    (site, *_) = site_files(federation)
    values = yaml.safe_load(experiment_file.read_text())
    values["privacy"]["epsilon"] = 80.0
    experiment_file.write_text(yaml.safe_dump(values))
    shown = budget("forecast", experiment_file, "--site", site)
    assert shown.exit_code == 1
    assert "does not fit" in shown.output
    as_json = json.loads(budget("forecast", experiment_file, "--site", site, "--json").stdout)
    assert as_json["admitted"] is False and as_json["cost"] > as_json["left"]


def test_the_largest_epsilon_written_into_the_experiment_lets_the_whole_run_finish(
    federation, tmp_path, experiment_file
):
    files = site_files(federation)
    shown = budget("forecast", experiment_file, "--site", files[0]).output
    arguments = ("forecast", experiment_file, "--site", files[0], "--json")
    wanted = json.loads(budget(*arguments).stdout)["epsilon_that_fits"]
    assert f"The largest privacy.epsilon with which all of them fit what is left: {wanted:g}." in (
        " ".join(shown.split())
    )
    values = yaml.safe_load(experiment_file.read_text())
    values["privacy"]["epsilon"] = wanted
    experiment_file.write_text(yaml.safe_dump(values))
    sites, experiment = [open_site(file) for file in files], load_experiment(experiment_file)
    approve(experiment, sites, approver="a test")
    run_experiment(experiment, sites, out=tmp_path / "run")
    again = json.loads(budget(*arguments).stdout)
    assert (again["admitted"], again["more_runs"]) == (False, 0)
    one_more = dataclasses.replace(make_plan(experiment).round_event, steps=1)
    assert not open_site(files[0]).ledger.fits(one_more, "another")


def test_an_experiment_without_privacy_is_refused_with_the_way_out(federation, experiment_file):
    (site, *_) = site_files(federation)
    values = yaml.safe_load(experiment_file.read_text())
    values["privacy"] = {"kind": "none", "sampling_rate": 0.1, "expected_batch": 2}
    experiment_file.write_text(yaml.safe_dump(values))
    with pytest.raises(FederationError, match="subject_dp"):
        budget("forecast", experiment_file, "--site", site)


def test_show_before_anything_says_so(laid_out):
    (site, *_) = site_files(laid_out)
    with pytest.raises(FederationError, match="no ledger yet"):
        budget("show", site)


def test_show_after_a_run_has_what_the_ledger_has(federation, tmp_path):
    files = site_files(federation)
    sites, experiment = [open_site(file) for file in files], tiny_experiment()
    approve(experiment, sites, approver="a test")
    run_experiment(experiment, sites, out=tmp_path / "run")
    found = json.loads(budget("show", files[0], "--json").stdout)
    ledger = open_site(files[0]).ledger
    assert found["spent"] == ledger.spent_epsilon > 0
    assert found["promised"] == found["spent"], "no round is left"
    (share,) = found["experiments"]
    assert (share["charges"], share["releases"]) == (2, 2)
    assert share["experiment_digest"] == experiment.digest()
    assert share["epsilon"] == found["spent"], "the only experiment"
    assert [month["charges"] for month in found["months"]] == [2]
    assert make_plan(experiment).charges == 2
    shown = budget("show", files[0]).output
    assert experiment.name in shown and "Not covered:" in shown
    (used,) = found["used_by"]
    ((run, sent),) = used["runs"].items()
    assert sent == 2
    title = shown.index("Models that used the data")
    assert run[:12] in shown[title:]
    assert used["models"][run].removeprefix("sha256:")[:20] in shown[title:].replace("\n", "")
