"""``cohortium hub …``, the running side of ``cohortium site …``, and runs, as typed. No network."""

import json
import os
import re
import shutil

import pytest
import yaml
from typer.testing import CliRunner

from federation.agent_state import AgentFolder
from federation.cli.app import app
from federation.errors import FederationError
from federation.hub_folder import open_hub
from federation.hub_runs import submit
from federation.ledger.records import now
from federation.messages import RoundFinished
from federation.site import open_site
from federation.site_config import load_site_config
from tests.e2e.processes import free_port
from tests.experiments import tiny_experiment


def cohortium(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if isinstance(result.exception, FederationError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def hub_file(tmp_path):
    folder = tmp_path / "hub"
    port = free_port()
    made = cohortium(
        *("hub", "init", folder, "--address", f"127.0.0.1:{port}", "--link-port", free_port())
    )
    assert "It signs its requests with the key" in made.output
    return folder / "hub.yaml"


@pytest.fixture
def file(federation):
    return federation / "bio-lab" / "site.yaml"


@pytest.fixture
def joined(hub_file, file):
    """A site whose file has what ``add-site`` printed, with its files beside it."""
    cohortium("site", "keygen", file)
    shown = cohortium("hub", "add-site", hub_file, "bio-lab", file.with_name("bio-lab.pub")).output
    section = shown[shown.index("hub:") :]
    file.write_text(file.read_text() + "\n" + section)
    shutil.copy(hub_file.with_name("ca.crt"), file.with_name("ca.crt"))
    shutil.copy(hub_file.parent / "sites" / "bio-lab.crt", file.with_name("bio-lab.crt"))
    return file


HELP = [
    *(
        ("hub", name)
        for name in ("init", "start", "status", "add-site", "remove-site", "protect-keys")
    ),
    *(("site", n) for n in ("keygen", "start", "status", "pause", "resume", "stop", "egress")),
    *((name,) for name in ("submit", "runs", "watch", "cancel", "resume")),
]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_teaches_by_example(command):
    shown = cohortium(*command, "--help").output
    assert re.search(rf"Examples?:\s+cohortium {' '.join(command)}", shown), shown


@pytest.mark.parametrize("address", ["hub.example.org", "hub:", ":443", "hub:port"])
def test_an_address_needs_host_and_port(tmp_path, address):
    with pytest.raises(FederationError, match="write HOST:PORT"):
        cohortium("hub", "init", tmp_path / "hub", "--address", address)
    assert not (tmp_path / "hub").exists()


def test_what_add_site_prints_is_what_a_site_file_needs(joined, hub_file):
    config = load_site_config(joined)
    assert config.hub.key == open_hub(hub_file).key.public_bytes.hex()
    checked = cohortium("site", "start", joined, "--check")
    assert checked.exit_code == 0, checked.output
    lines = [line.split()[:2] for line in checked.output.splitlines() if line[:1] != " "]
    assert [what for _, what in lines] == [
        *("hub", "certificate", "clock", "key", "protected", "public", "budget", "disk", "device")
    ]
    assert "BLOCKS" not in checked.output


def test_keygen_again_keeps_the_key(joined):
    before = joined.with_name("bio-lab.pub").read_bytes()
    cohortium("site", "keygen", joined)
    assert joined.with_name("bio-lab.pub").read_bytes() == before


class TestWhatBlocks:
    def test_no_hub_in_the_site_file(self, file):
        checked = cohortium("site", "start", file, "--check")
        assert checked.exit_code == 1
        assert re.search(r"BLOCKS\s+hub\s+none in the site file", checked.output)
        with pytest.raises(FederationError, match="add a 'hub' section"):
            cohortium("site", "start", file)

    def test_a_certificate_for_another_key(self, joined):
        config = load_site_config(joined)
        AgentFolder(config.state).key_path.unlink()
        cohortium("site", "keygen", joined)
        checked = cohortium("site", "start", joined, "--check")
        assert checked.exit_code == 1
        assert re.search(r"BLOCKS\s+certificate", checked.output)

    def test_no_key_at_all(self, joined):
        AgentFolder(load_site_config(joined).state).key_path.unlink()
        checked = cohortium("site", "start", joined, "--check")
        assert checked.exit_code == 1
        assert "site keygen" in checked.output

    def test_data_that_was_not_ingested(self, joined):
        for path in load_site_config(joined).state.rglob("manifest*.json"):
            path.unlink()
        checked = cohortium("site", "start", joined, "--check")
        assert checked.exit_code == 1
        assert re.search(r"BLOCKS\s+protected data\s+not ingested", checked.output)


def test_an_approval_is_for_the_hub_that_the_site_file_names(joined, hub_file, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_experiment().model_dump(mode="json")))
    shown = cohortium("site", "approve", joined, path, "--yes").output
    key = open_hub(hub_file).key
    assert key.fingerprint[:20] in shown.replace("\n", "")
    (approval,) = [r for r in open_site(joined).ledger.records if r.kind == "approval"]
    assert approval.body["hub_key"] == key.public_bytes.hex()


def test_status_pause_resume_and_stop_without_an_agent(joined):
    assert cohortium("site", "status", joined).exit_code == 1
    cohortium("site", "pause", joined)
    value = json.loads(cohortium("site", "status", joined, "--json").output)
    assert (value["runs"], value["paused"]) == (False, True)
    cohortium("site", "resume", joined)
    assert not json.loads(cohortium("site", "status", joined, "--json").output)["paused"]
    with pytest.raises(FederationError, match="no agent runs"):
        cohortium("site", "stop", joined)


def test_a_unit_is_printed_whole(joined):
    text = cohortium("site", "start", joined, "--unit").output
    assert text.startswith("[Unit]\n") and text.endswith("WantedBy=multi-user.target\n")


def test_egress_of_a_site_that_sent_nothing(joined):
    shown = cohortium("site", "egress", joined)
    assert shown.exit_code == 0
    assert "0 replies sent; of 0 updates released" in shown.output


def test_a_hub_that_does_not_run_says_so(joined, hub_file):
    shown = cohortium("hub", "status", hub_file)
    assert shown.exit_code == 1 and "NOT RUNNING" in shown.output
    value = json.loads(cohortium("hub", "status", hub_file, "--json").output)
    assert value["sites"] == {"bio-lab": "not connected"} and not value["serves"]
    cohortium("hub", "remove-site", hub_file, "bio-lab")
    value = json.loads(cohortium("hub", "status", hub_file, "--json").output)
    assert value["sites"] == {}


class TestRuns:
    @pytest.fixture
    def run(self, hub_file, tmp_path):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(tiny_experiment().model_dump(mode="json")))
        return submit(open_hub(hub_file), path)

    def test_none_yet(self, hub_file):
        assert "No runs yet" in cohortium("runs", "--hub", hub_file).output
        assert json.loads(cohortium("runs", "--hub", hub_file, "--json").output)["runs"] == []

    def test_a_run_in_plain_words(self, hub_file, run):
        run.append(RoundFinished(0, ("ward-a", "ward-b"), {}, {}))
        run.append(RoundFinished(1, ("ward-a",), {"ward-b": "budget"}, {}, late=("ward-c",)))
        run.append(RoundFinished(2, (), {}, {}, late=("ward-a",), outcome="skipped"))
        run.note(state="stopped", done=1, why="too few sites")
        watched = cohortium("watch", run.run[:8], "--hub", hub_file)
        assert watched.exit_code == 1
        assert watched.output.splitlines()[:3] == [
            "sites described, 2 of 2 sites returned",
            "round 1 of 2 aggregated, 1 of 3 sites returned, ward-b refused: budget, "
            "ward-c was late",
            "round 2 of 2 SKIPPED, the model is as it was, 0 of 1 sites returned, ward-a was late",
        ]
        assert "stopped, 1 of 2 rounds" in watched.output and "too few sites" in watched.output
        assert run.run[:8] in cohortium("runs", "--hub", hub_file).output

    def test_one_whose_process_died_is_said_to_have_stopped(self, hub_file, run):
        run.note(state="running", pid=2**22 + 1)
        assert cohortium("watch", run.run, "--hub", hub_file).exit_code == 1
        assert (run.status.state, "died" in run.status.why) == ("stopped", True)

    def test_one_under_way_is_not_resumed(self, hub_file, run):
        run.note(state="running", pid=os.getpid())
        with pytest.raises(FederationError, match="is under way"):
            cohortium("resume", run.run, "--hub", hub_file)

    def test_one_that_is_over_is_neither_resumed_nor_cancelled(self, hub_file, run):
        run.note(state="completed", done=2)
        for command in ("resume", "cancel"):
            with pytest.raises(FederationError, match=r"is over|has ended already"):
                cohortium(command, run.run, "--hub", hub_file)

    def test_without_a_hub_nothing_starts_and_the_way_on_is_told(self, hub_file, run):
        with pytest.raises(FederationError, match=r"hub does not run.*cohortium resume"):
            cohortium("resume", run.run, "--hub", hub_file)
        assert run.status.state == "submitted"

    def test_cancelling_needs_no_hub(self, hub_file, run):
        cohortium("cancel", run.run, "--hub", hub_file)
        assert run.status.state == "cancelled"
        assert run.status.since <= now()
