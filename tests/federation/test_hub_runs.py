"""The folders of a hub's runs."""

import json
import os
import subprocess

import pytest
import yaml

from federation.errors import FederationError
from federation.hub_folder import HubConfig, HubFolder
from federation.hub_runs import all_runs, is_alive, open_run, submit
from federation.messages import RoundFinished
from tests.experiments import tiny_experiment


@pytest.fixture
def hub(tmp_path):
    config = HubConfig(
        format="cohortium-hub/1", address="127.0.0.1:1", listen="127.0.0.1:1", link_port=2
    )
    return HubFolder(tmp_path, config)


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(tiny_experiment().model_dump(mode="json")))
    return path


def finished(number, **refused):
    return RoundFinished(number, ("ward-a",), refused, {"ward-a": {"dice": 0.5}})


def test_a_run_is_submitted_whole(hub, experiment):
    run = submit(hub, experiment)
    assert run.experiment == tiny_experiment()
    assert (run.status.state, run.status.done, run.status.run) == ("submitted", 0, run.run)
    assert open_run(hub, run.run[:6]) == run
    assert [one.run for one in all_runs(hub)] == [run.run]


def test_the_authors_signature_goes_with_it(hub, experiment):
    signature = experiment.with_name("experiment.yaml.sig")
    signature.write_text("{}")
    assert (submit(hub, experiment).path / "experiment.yaml.sig").read_text() == "{}"


def test_what_is_no_experiment_makes_no_run(hub, experiment):
    experiment.write_text("format: other")
    with pytest.raises(FederationError):
        submit(hub, experiment)
    assert all_runs(hub) == []


def test_changes_of_state_have_a_time(hub, experiment):
    run = submit(hub, experiment)
    before = run.status
    assert run.note(done=1).since == before.since
    after = run.note(state="stopped", why="too few")
    assert (run.status, after.done, after.why) == (after, 1, "too few")


def test_rounds_are_read_as_they_were_written_last(hub, experiment):
    run = submit(hub, experiment)
    assert list(run.events()) == []
    for event in (finished(0), finished(1), finished(1, **{"ward-b": "budget"})):
        run.append(event)
    found = list(run.events())
    assert [event["round"] for event in found] == [0, 1]
    assert found[1]["refused"] == {"ward-b": "budget"}


def test_a_line_that_a_crash_cut_short_is_left_out(hub, experiment):
    run = submit(hub, experiment)
    run.append(finished(0))
    run.append(finished(1))
    run.events_path.write_bytes(run.events_path.read_bytes()[:-9])
    assert [event["round"] for event in run.events()] == [0]


@pytest.mark.parametrize("run", ["", "abc", "../x", "g" * 8])
def test_what_is_no_id_names_no_folder(hub, run):
    with pytest.raises(FederationError, match="no id of a run"):
        open_run(hub, run)


def test_an_unknown_run_says_where_to_look(hub):
    with pytest.raises(FederationError, match=r"No run begins with 0123.*cohortium runs"):
        open_run(hub, "0123")


def test_a_damaged_status_is_told(hub, experiment):
    run = submit(hub, experiment)
    (run.path / "status.json").write_text(json.dumps({"run": 1}))
    with pytest.raises(FederationError, match=r"status\.json is damaged"):
        _ = run.status


def test_who_is_alive():
    assert is_alive(os.getpid())
    assert not is_alive(2**22 + 1)


def test_who_was_killed_and_not_reaped_yet_is_not_alive():
    with subprocess.Popen(["sleep", "60"]) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.kill(process.pid, 0)  # the system still knows it
        assert not is_alive(process.pid)
