"""A hub's side of a run: what it leaves when it dies between two files, or its disk is full."""

import json
from dataclasses import replace

import pytest
import yaml

from federation.elsewhere import WAITING, waiting
from federation.errors import FederationError
from federation.flower import hub_main
from federation.flower.client_app import client_app
from federation.flower.grid import LocalGrid
from federation.flower.hub import _note_interrupted
from federation.hub_folder import open_hub
from federation.hub_runs import RunFolder, submit
from tests.e2e.disks import disk
from tests.experiments import tiny_experiment
from tests.federation.tracking.test_track import runs_of

NAMES = ("a", "b")


class Killed(BaseException):
    """The process is gone; no handler of ours catches this."""


@pytest.fixture
def hub(tmp_path):
    from federation.hub_folder import init_hub

    made = init_hub(tmp_path / "hub", address="127.0.0.1:1", listen="127.0.0.1:1", link_port=1)
    (made.path / "sites.json").write_text(json.dumps(dict.fromkeys(NAMES, "no key")))
    made.write_nodes({2: "a", 3: "b"})
    return open_hub(made.path / "hub.yaml")


@pytest.fixture
def run(hub, tmp_path):
    path = tmp_path / "tiny.yaml"
    wanted = tiny_experiment(rounds=2, min_sites=2)
    path.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    return submit(hub, path)


@pytest.fixture
def carry_out(hub, run, paying_site, monkeypatch):
    """Carry the run out, or go on with it, over the same two sites; MLflow is left away."""
    monkeypatch.setattr("federation.flower.whole_run.log_run", lambda *_: None)
    monkeypatch.setattr("federation.flower.whole_run.open_store", str)
    sites = [paying_site(name) for name in NAMES]

    def carry_out(of=hub, one=run, taking_part=sites):
        grid = LocalGrid({site.name: client_app(site) for site in taking_part})
        hub_main.carry_out(of, one, grid, flower_run=1)

    carry_out.sites = sites
    return carry_out


def dying(monkeypatch, owner, name, number, way):
    """Die once, before or after the n-th call."""
    real, calls = getattr(owner, name), []

    def call(*arguments, **named):
        calls.append(named)
        if way == "before" and len(calls) == number:
            raise Killed
        result = real(*arguments, **named)
        if way == "after" and len(calls) == number:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("way", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("name", ["append", "note"])
def test_every_round_is_told_of_once_wherever_it_died(
    carry_out, run, monkeypatch, name, number, way
):
    with monkeypatch.context() as patch:
        dying(patch, RunFolder, name, number, way)
        with pytest.raises(Killed):
            carry_out()
    carry_out()
    assert [event["round"] for event in run.events()] == [0, 1, 2]
    assert (run.status.state, run.status.done) == ("completed", 2)
    receipts = json.loads((run.path / "receipts.json").read_text())
    assert [(r["round"], r["site"]) for r in receipts] == [(n, s) for n in (1, 2) for s in NAMES]
    assert [len(site.charges) for site in carry_out.sites] == [2, 2]


def test_a_run_that_had_ended_and_did_not_say_so_is_not_begun_anew(carry_out, run):
    carry_out()
    model = (run.path / "model.safetensors").read_bytes()
    run.note(state="running")
    seen = [len(site.seen) for site in carry_out.sites]
    carry_out()
    assert run.status.state == "completed"
    assert [len(site.seen) for site in carry_out.sites] == seen
    assert (run.path / "model.safetensors").read_bytes() == model


def test_a_store_that_is_down_ends_no_run_and_gets_it_with_the_next(
    hub, run, carry_out, paying_site, tmp_path, caplog
):
    store = tmp_path / "not-mounted-yet" / "mlflow.db"
    store.parent.write_text("no folder")
    config = hub.config.model_copy(update={"tracking": f"sqlite:///{store}"})
    tracked = replace(hub, config=config)
    carry_out(tracked)
    assert run.status.state == "completed" and (run.path / WAITING).is_file()
    assert "is not recorded" in caplog.text and run.run in caplog.text
    store.parent.unlink()
    second = submit(hub, tmp_path / "tiny.yaml")
    carry_out(tracked, second, [paying_site(name) for name in NAMES])
    assert second.status.state == "completed" and not waiting([hub.path / "runs"])
    _, parents, _ = runs_of(config.tracking)
    assert {one.data.tags["run"] for one in parents} == {run.run, second.run}


def test_the_hub_file_names_a_server_and_no_password(hub):
    file = hub.path / "hub.yaml"
    text = file.read_text()
    file.write_text(text.replace("# tracking:", "tracking:"))
    assert open_hub(file).config.tracking == "http://127.0.0.1:5000"
    file.write_text(f"{text}tracking: http://me:secret@127.0.0.1:5000\n")
    with pytest.raises(FederationError, match="tracking"):
        open_hub(file)


# How much room there is left decides which file is the first that does not fit.
@pytest.mark.parametrize("room_kib", [0, 4, 40, 80, 120])
def test_a_full_disk_stops_it_with_clear_words_and_it_goes_on_once_there_is_room(
    hub, run, carry_out, room_kib, record_property
):
    with disk(hub.path / "runs", 4) as small:
        with small.full(but_bytes=1024 * room_kib), pytest.raises(Exception) as stopped:
            carry_out()
        record_property("stopped by", str(stopped.value))
        assert "No space left on device" in str(stopped.value), stopped.value
        assert "Make room, then go on" in str(stopped.value)
        assert run.status.state in ("submitted", "running", "stopped")
        carry_out()
        assert [event["round"] for event in run.events()] == [0, 1, 2]
        assert [len(site.charges) for site in carry_out.sites] == [2, 2]
        assert run.status.state == "completed"


def test_a_run_that_was_submitted_to_a_hub_that_died_says_so(hub, run):
    _note_interrupted(hub)
    assert (run.status.state, run.status.why) == (
        "stopped",
        "the hub was restarted; resume the run",
    )
