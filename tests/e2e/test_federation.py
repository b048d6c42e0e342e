"""A hub and three sites as separate processes: nginx, mutual TLS, signed requests, real kills."""

import json
import shutil
import ssl
import subprocess
import sys
import time
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path

import pytest
import yaml

from federation.egress import EgressJournal, reconcile
from federation.run import open_sites
from federation.site_config import load_site_config
from models.weights import weights_digest
from tests.conftest import site_files
from tests.e2e.processes import OVER_THE_NETWORK, make_federation, name_hub
from tests.e2e.runs import (
    NAMES,
    approved,
    averaged_from_outboxes,
    experiment,
    folder_of,
    model_of,
    num_charges,
    records,
    records_of_kind,
    submitted,
    watched,
)

pytestmark = OVER_THE_NETWORK


@pytest.fixture(scope="module")
def parts(ingested, tmp_path_factory):
    """A hub that serves and three sites that are connected, for the tests of this module."""
    folder = tmp_path_factory.mktemp("network")
    shutil.copytree(ingested, folder / "sites")
    made = make_federation(folder, site_files(folder / "sites"))
    with made.serving():
        yield made


def test_a_run_ends_with_the_model_that_sites_released_and_everything_verifies(parts):
    wanted = experiment("whole")
    run = submitted(parts, approved(parts, wanted))
    rounds, status, code = watched(parts, run)
    assert (status["state"], code) == ("completed", 0), status
    assert [one["round"] for one in rounds] == [0, 1, 2, 3]
    assert all(one["returned"] == list(NAMES) and not one["refused"] for one in rounds)
    expected = averaged_from_outboxes(parts, wanted, run)
    assert weights_digest(model_of(parts, run)) == weights_digest(expected)
    trust = parts.folder / "trust.txt"
    sites = open_sites(list(parts.site_files.values()))
    trust.write_text("".join(f"{site.name} {site.key.fingerprint}\n" for site in sites))
    papers = folder_of(parts, run)
    verified = parts.cohortium(
        *("audit", "verify", "--trust", trust),
        *("--receipts", papers / "receipts.json", "--closings", papers / "closings.json"),
        *(site.ledger.path for site in sites),
    )
    assert verified.returncode == 0, verified.stdout
    for site in sites:
        hub_keys = {r.body["hub_key"] for r in site.ledger.records if r.kind == "approval"}
        assert hub_keys == {parts.hub.key.public_bytes.hex()}
        site.ledger.close()
    for file in parts.site_files.values():
        shown = parts.cohortium("site", "egress", file, "--json")
        assert shown.returncode == 0, shown.stdout
        value = json.loads(shown.stdout)
        assert value["updates_sent"] and not value["updates_not_in_the_ledger"]


def test_nobody_reached_beyond_this_machine(parts):
    assert not parts.attempts.exists(), parts.attempts.read_text()


def test_the_guard_sees_a_planted_call(parts, tmp_path):
    environment = parts.environment() | {"COHORTIUM_TEST_ATTEMPTS": str(tmp_path / "attempts")}
    call = "import socket; s = socket.socket(); s.settimeout(0.01); s.connect(('192.0.2.1', 9))"
    subprocess.run([sys.executable, "-c", call], env=environment, capture_output=True, check=False)
    assert "192.0.2.1" in (tmp_path / "attempts").read_text()


def _proxy(parts, *, name=None):
    host, _, port = parts.hub.config.address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=parts.hub.path / "ca.crt")
    if name is not None:
        config = load_site_config(parts.site_files[name])
        context.load_cert_chain(config.hub.certificate, config.state / "node-key.pem")
    return HTTPSConnection(host, int(port), context=context, timeout=10)


def _status(connection, path):
    with closing(connection):
        connection.request("POST", path, b"")
        with connection.getresponse() as answer:
            return answer.status


class TestTheProxy:
    def test_without_a_certificate_nothing_is_answered(self, parts):
        assert _status(_proxy(parts), "/v1/fleet/pull-messages") == 400

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/control/list-runs",
            "/v1/control/start-run",
            "/v1/runtime/acquire-task",
            "/v1/fleet/register-node",
            "/v1/fleet/get-fab",
            "/v1/fleet/../control/list-runs",
            "/docs",
            "/",
        ],
    )
    def test_a_site_reaches_nothing_that_steers(self, parts, path):
        assert _status(_proxy(parts, name="bio-lab"), path) == 404

    def test_the_superlink_listens_on_loopback_alone(self, parts):
        port = f"{parts.hub.config.link_port:04X}"
        tables = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
        lines = [line.split() for table in tables for line in table.read_text().splitlines()]
        rows = [line[1] for line in lines if line[3] == "0A"]
        bound = [row.split(":")[0] for row in rows if row.split(":")[1] == port]
        assert bound == ["0100007F"]


def test_an_experiment_that_nobody_approved_is_refused_by_everybody(parts):
    path = parts.folder / "unapproved.yaml"
    path.write_text(yaml.safe_dump(experiment("unapproved").model_dump(mode="json")))
    _, status, code = watched(parts, submitted(parts, path))
    assert (status["state"], code) == ("stopped", 1)
    assert status["why"].count("(not_approved: ") == 3


def test_a_hub_killed_with_all_it_had_goes_on_to_the_same_model(parts):
    """The average follows from the bytes that sites had released, and nobody paid twice."""
    wanted = experiment("hub-killed")
    run = submitted(parts, approved(parts, wanted))
    folder = folder_of(parts, run)
    parts.until(lambda: num_charges(parts, run) >= len(NAMES) + 1, "the second round")
    parts.kill("hub")
    parts.start_hub()
    parts.until_connected(*NAMES)
    rounds, status, code = watched(parts, run, "resume")
    assert (status["state"], code) == ("completed", 0), status
    assert [one["round"] for one in rounds] == [0, 1, 2, 3]
    expected = averaged_from_outboxes(parts, wanted, run)
    assert weights_digest(model_of(parts, run)) == weights_digest(expected)
    assert {name: len(records(parts, name, "charge", run)) for name in NAMES} == dict.fromkeys(
        NAMES, 3
    )
    assert not (folder / "checkpoint" / "checkpoint.json").exists()


def test_a_site_killed_in_a_round_costs_at_most_one_more(parts):
    wanted = experiment(
        "site-killed",
        algorithm={"rounds": 2, "retries": 2},
        cohort={"deadline_s": 20, "below_minimum": "wait", "waits": 5, "wait_s": 30},
    )
    run = submitted(parts, approved(parts, wanted))
    parts.until(lambda: records(parts, "bio-lab", "charge", run), "the first charge")
    parts.kill("bio-lab")
    parts.start_site("bio-lab")
    _, status, code = watched(parts, run)
    assert (status["state"], code) == ("completed", 0), status
    charges = {name: len(records(parts, name, "charge", run)) for name in NAMES}
    assert charges["north-hospital"] == charges["south-hospital"] == 2
    assert charges["bio-lab"] in (2, 3)
    config = load_site_config(parts.site_files["bio-lab"])
    released = [one["update_digest"] for one in records_of_kind(config, "release")]
    found = reconcile(list(EgressJournal(config.state).entries()), released)
    assert not found.unpaid


def test_a_site_that_is_stopped_ends_within_a_step_and_sends_nothing(parts):
    wanted = experiment("stopped", algorithm={"rounds": 1, "steps_per_round": 2_000})
    run = submitted(parts, approved(parts, wanted))
    parts.until(lambda: records(parts, "bio-lab", "charge", run), "a charge")
    config = load_site_config(parts.site_files["bio-lab"])
    before = len(list(EgressJournal(config.state).entries()))
    began = time.monotonic()
    assert parts.cohortium("site", "stop", parts.site_files["bio-lab"]).returncode == 0
    assert parts.processes.pop("bio-lab").wait(30) == 0
    assert time.monotonic() - began < 30
    assert len(list(EgressJournal(config.state).entries())) == before
    assert not records(parts, "bio-lab", "release", run)
    assert parts.cohortium("cancel", run, "--hub", parts.hub_file).returncode == 0
    _, status, _ = watched(parts, run)
    assert status["state"] == "cancelled"
    parts.start_site("bio-lab")
    parts.until_connected("bio-lab")


class TestASiteThatIsNotAdmitted:
    def test_a_second_agent_of_one_site_is_refused(self, parts):
        twice = parts.cohortium("site", "start", parts.site_files["bio-lab"])
        assert twice.returncode == 2
        assert "an agent runs already" in twice.stderr

    def test_another_authority_is_no_hub(self, parts, tmp_path):
        file = self._copy(parts, tmp_path)
        values = yaml.safe_load(file.read_text())
        other = make_federation(tmp_path / "other", [])
        values["hub"]["ca"] = str(other.hub.path / "ca.crt")
        file.write_text(yaml.safe_dump(values))
        refused = parts.cohortium("site", "start", file)
        assert refused.returncode == 2
        assert "is not signed by the authority in the site file" in refused.stderr
        assert "Traceback" not in refused.stderr

    def test_a_removed_site_is_told_so(self, parts, tmp_path):
        """Last: it takes a site away. Its key was registered and is no more."""
        file = self._copy(parts, tmp_path)
        parts.kill("south-hospital")
        assert (
            parts.cohortium("hub", "remove-site", parts.hub_file, "south-hospital").returncode == 0
        )
        refused = parts.cohortium("site", "start", file)
        assert refused.returncode == 2
        assert "certificate is missing, expired or revoked" in refused.stderr

    @staticmethod
    def _copy(parts, tmp_path):
        """Return the site file of south-hospital's twin, in a place of its own."""
        source = parts.site_files["south-hospital"].parent
        shutil.copytree(source, tmp_path / source.name)
        file = tmp_path / source.name / "site.yaml"
        config = load_site_config(parts.site_files["south-hospital"])
        own = shutil.copy(config.hub.certificate, tmp_path / "own.crt")  # as an operator keeps it
        name_hub(file, parts.hub, own)
        return file
