"""What goes wrong between machines, made to go wrong: processes, nginx, TLS and keys are real."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from federation.agent_state import AgentFolder
from federation.egress import EgressJournal, reconcile
from federation.flower import superlink
from federation.flower.superlink import Control
from federation.hub_runs import submit
from federation.site_config import load_site_config
from models.weights import weights_digest
from tests.conftest import site_files
from tests.e2e import moments
from tests.e2e.disks import disk
from tests.e2e.links import linked
from tests.e2e.processes import OVER_THE_NETWORK, make_federation, name_hub
from tests.e2e.runs import (
    NAMES,
    approved,
    averaged_from_outboxes,
    experiment,
    folder_of,
    model_of,
    records,
    records_of_kind,
    submitted,
    watched,
)

pytestmark = OVER_THE_NETWORK
BIO, NORTH, SOUTH = NAMES


@pytest.fixture(scope="module")
def parts(ingested, tmp_path_factory):
    """A hub and three sites. BIO and NORTH have cables to cut, hub and SOUTH small disks."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(ingested, folder / "sites")
    made = make_federation(folder, site_files(folder / "sites"))
    port = int(made.hub.config.listen.rpartition(":")[2])
    with (
        linked(port) as first,
        linked(port) as second,
        disk(made.hub.path / "runs", 64) as runs,
        disk(load_site_config(made.site_files[SOUTH]).state, 64) as state,
    ):
        made.links, made.runs_disk, made.state_disk = {BIO: first, NORTH: second}, runs, state
        for name, link in made.links.items():
            config = load_site_config(made.site_files[name])
            place = f"127.0.0.1:{link.port}"
            name_hub(made.site_files[name], made.hub, config.hub.certificate, address=place)
        with made.serving():
            yield made


@pytest.fixture(autouse=True)
def mended(request, parts):
    """Mend what a test that failed has left broken, so that the next ones do not fail with it."""
    yield
    if request.cls is TestWhoIsLetIn:
        return  # sites are removed there for good
    for moment in (parts.moment, parts.second_moment):
        moment.forget()
    for link in parts.links.values():
        link.mend()
    if "rogue" in parts.processes:
        parts.kill("rogue")
    running = {name for name, one in parts.processes.items() if one.poll() is None}
    for name in running:
        if moments.is_stopped(parts.processes[name].pid):
            moments.go_on(parts.processes[name].pid)
    for name in sorted(set(NAMES) - running):
        parts.start_site(name)
    parts.until_connected(*NAMES)


def state_of(parts, name):
    return load_site_config(parts.site_files[name]).state


def charges(parts, run):
    return {name: len(records(parts, name, "charge", run)) for name in NAMES}


def check_model(parts, wanted, run):
    """The model is what the outboxes make, and nothing was sent that was not paid for."""
    expected = averaged_from_outboxes(parts, wanted, run)
    assert weights_digest(model_of(parts, run)) == weights_digest(expected)
    for name in NAMES:
        config = load_site_config(parts.site_files[name])
        released = [one["update_digest"] for one in records_of_kind(config, "release")]
        assert not reconcile(list(EgressJournal(config.state).entries()), released).unpaid


def completed(parts, run, command="watch"):
    rounds, status, code = watched(parts, run, command)
    assert (status["state"], code) == ("completed", 0), f"{status}\n{parts.logs()}"
    return rounds


def test_sites_killed_before_and_after_they_sent_are_asked_once_more_and_pay_as_little(
    parts, record_property
):
    """BIO has paid and sent nothing; NORTH has sent all and written down nothing of it.

    Both are started again at once, while the hub still holds their leases.
    """
    wanted = experiment("killed", algorithm={"rounds": 2, "retries": 1})
    parts.moment.at(r"os.rename .*bio-lab/state/outbox/.*\.update")
    outbox = r"os.rename .*north-hospital/state/outbox/.*\.update"
    parts.second_moment.at(outbox, how=signal.SIGSTOP)
    run = submitted(parts, approved(parts, wanted))
    parts.moment.wait(parts.until)
    north = parts.second_moment.wait(parts.until)
    # It would say next that it waits for requests again.
    parts.second_moment.at(r"os.rename .*north-hospital/state/agent\.json", how=signal.SIGSTOP)
    moments.go_on(north)
    assert parts.second_moment.wait(parts.until) == north
    spool = folder_of(parts, run) / "checkpoint" / "spool"
    (node,) = [i for i, name in parts.hub.nodes.items() if name == NORTH]
    parts.until((spool / f"{node}.update").is_file, "NORTH's update")
    doing = AgentFolder(state_of(parts, NORTH)).status().doing
    parts.kill(NORTH)
    assert doing == "answering a train request"
    died, log = time.monotonic(), parts.folder / f"{NORTH}.log"
    before = log.stat().st_size
    for name in (NORTH, BIO):
        parts.start_site(name)
    parts.until(lambda: b"device" in log.read_bytes()[before:], "NORTH's preflight")
    within_the_lease = time.monotonic() - died < 15
    rounds = completed(parts, run)
    assert [one["returned"] for one in rounds] == [list(NAMES)] * 3
    assert charges(parts, run) == {BIO: 3, NORTH: 2, SOUTH: 2}
    assert [one["attempt"] for one in records(parts, BIO, "charge", run)] == [1, 2, 1]
    said = log.read_bytes()[before:].decode()
    assert "connected to" in said
    record_property("started again within the lease", within_the_lease)
    assert "HTTP 412" in said or not within_the_lease, "it was admitted at once"
    check_model(parts, wanted, run)


def test_a_site_past_the_deadline_is_late_in_its_round_and_in_no_other(parts):
    """The deadline is long enough for the others on a loaded machine, and shorter than a lease.

    That is 20 s, and renewed every 5 s: a site that has stopped for 15 s may have lost it, and the
    next round would be told that it is not there.
    """
    wanted = experiment("slow", algorithm={"rounds": 3, "min_sites": 2}, cohort={"deadline_s": 14})
    parts.moment.at(r"os.rename .*bio-lab/state/outbox/.*\.update", how=signal.SIGSTOP)
    run = submitted(parts, approved(parts, wanted))
    slow = parts.moment.wait(parts.until)
    try:
        events = folder_of(parts, run) / "events.jsonl"
        parts.until(lambda: events.is_file() and '"round": 1' in events.read_text(), "round 1")
        assert moments.is_stopped(slow)
    finally:
        moments.go_on(slow)
    rounds = completed(parts, run)
    assert [(one["late"], one["returned"]) for one in rounds[1:]] == [
        ([BIO], [NORTH, SOUTH]),
        ([], list(NAMES)),
        ([], list(NAMES)),
    ]
    # It had paid and did send: into a round that was over, and none took it.
    assert charges(parts, run) == dict.fromkeys(NAMES, 3)
    receipts = json.loads((folder_of(parts, run) / "receipts.json").read_text())
    assert [r["round"] for r in receipts if r["site"] == BIO] == [2, 3]
    late = records(parts, BIO, "charge", run)[0]["seq"]
    config = load_site_config(parts.site_files[BIO])
    released = {
        one["charge_seq"]: one["update_digest"] for one in records_of_kind(config, "release")
    }
    sent = [entry.update_digest for entry in EgressJournal(config.state).entries()]
    assert released[late] in sent
    check_model(parts, wanted, run)


def test_a_link_that_is_cut_in_mid_download_and_mid_upload_costs_nothing(parts):
    wanted = experiment("cut", algorithm={"rounds": 2})
    link = parts.links[BIO]
    path = approved(parts, wanted)
    link.cut_after(down=20_000)
    run = submitted(parts, path)
    parts.until(lambda: link.num_cuts == 1, "the first cut")
    assert not records(parts, BIO, "charge", run), "the request had arrived before"
    time.sleep(1.0)
    link.mend()
    parts.until(lambda: records(parts, BIO, "charge", run), "a charge")
    link.cut_after(up=20_000)
    parts.until(lambda: link.num_cuts == 2, "the second cut")
    assert (one := records(parts, BIO, "charge", run)) and one[0]["round"] == 1
    time.sleep(1.0)
    link.mend()
    rounds = completed(parts, run)
    assert [one["returned"] for one in rounds] == [list(NAMES)] * 3
    assert charges(parts, run) == dict.fromkeys(NAMES, 2)
    check_model(parts, wanted, run)


# When the process that carries a run out dies, by what it does next. A phase for each.
PHASES = {
    "before anybody was asked": (r"os.rename .*checkpoint/checkpoint\.json", 1),
    "while updates come": (r"os.rename .*/spool/\d+\.update", 2),
    "with all updates, before the checkpoint": (r"os.rename .*/weights-000001\.safetensors", 1),
    "after the checkpoint, with the scores": (r"os.rename .*checkpoint/checkpoint\.json", 1),
    "before it tells of a round": (r"open .*events\.jsonl", 1),
    "closing": (r"os.rename .*/closings\.json", 1),
    # The third time: it had said that it runs, and told again of the rounds that there were.
    "with everything done but said": (r"os.rename .*/status\.json", 3),
}


def test_a_hub_that_dies_in_each_phase_goes_on_to_the_one_model_at_no_charge(parts):
    wanted = experiment("phases", algorithm={"rounds": 1})
    path = approved(parts, wanted)
    run = ""
    for what, (call, number) in PHASES.items():
        parts.moment.at(call, number=number)
        if run:
            done = parts.cohortium("resume", run, "--hub", parts.hub_file)
            assert done.returncode == 0, (what, done.stderr)
        else:
            run = submitted(parts, path)
        parts.moment.wait(parts.until)
        _, status, code = watched(parts, run)
        assert (status["state"], code) == ("stopped", 1), what
        assert "resume" in status["why"], what
    rounds = completed(parts, run, "resume")
    assert [one["round"] for one in rounds] == [0, 1]
    assert charges(parts, run) == dict.fromkeys(NAMES, 1)
    assert not (folder_of(parts, run) / "checkpoint").exists()
    check_model(parts, wanted, run)


def test_a_full_disk_at_the_hub_stops_a_run_that_goes_on_once_there_is_room(parts):
    wanted = experiment("disk", algorithm={"rounds": 2})
    run = submitted(parts, approved(parts, wanted))
    parts.until(lambda: records(parts, BIO, "charge", run), "a charge")
    with parts.runs_disk.full():
        _, status, code = watched(parts, run)
        assert (status["state"], code) == ("stopped", 1)
    before = charges(parts, run)
    assert [one["round"] for one in completed(parts, run, "resume")] == [0, 1, 2]
    assert max(before.values()) <= 2 and charges(parts, run) == dict.fromkeys(NAMES, 2)
    check_model(parts, wanted, run)


def test_a_site_whose_disk_is_full_is_left_out_loudly_until_there_is_room(parts):
    """It has paid when it finds out that its update has no room."""
    wanted = experiment("full", algorithm={"rounds": 1, "retries": 1, "min_sites": 2})
    parts.moment.at(r"open .*south-hospital/state/outbox/", how=signal.SIGSTOP)
    run = submitted(parts, approved(parts, wanted))
    filling = parts.moment.wait(parts.until)
    with parts.state_disk.full():
        moments.go_on(filling)
        rounds = completed(parts, run)
    assert [(one["refused"], one["returned"]) for one in rounds[1:]] == [
        ({SOUTH: "round_failed"}, [BIO, NORTH])
    ]
    paid = charges(parts, run)
    assert paid == {BIO: 1, NORTH: 1, SOUTH: paid[SOUTH]} and paid[SOUTH] in (1, 2)
    log = (parts.folder / f"{SOUTH}.log").read_text()
    assert "Traceback" not in log and "connected to" in log
    check_model(parts, wanted, run)
    again = experiment("room", algorithm={"rounds": 1})
    run = submitted(parts, approved(parts, again))
    assert [one["returned"] for one in completed(parts, run)] == [list(NAMES)] * 2
    check_model(parts, again, run)


# Flower's own, where it packs an app.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_a_hub_that_lies_gets_one_charge_and_a_code_for_each_lie(parts, monkeypatch):
    app = superlink._APP | {"cohortium_hub.py": b"from tests.e2e.rogue_hub import *\n"}
    monkeypatch.setattr(superlink, "_APP", app)
    wanted = experiment("rogue", algorithm={"rounds": 1})
    folder = submit(parts.hub, approved(parts, wanted))
    before = len(list(EgressJournal(state_of(parts, BIO)).entries()))
    with Control(parts.hub) as control:
        control.start_run(folder.run)
    parts.until((folder.path / "rogue.json").is_file, "the rogue")
    found = json.loads((folder.path / "rogue.json").read_text())
    said = found["said"]
    (update,) = {said[n] for n in ("honest", "replayed", "asked again", "honest in the end")}
    assert update.startswith("sha256:")
    assert {n: code for n, code in said.items() if code not in ("reply", update)} == {
        "other weights": "equivocation",
        "other heads": "equivocation",
        "other shapes, of the round that was charged": "equivocation",
        "unapproved, of the round that was charged": "equivocation",
        "unapproved": "not_approved",
        "another plan": "not_approved",
        "another run": "approval_used_up",
        "one round more": "approval_used_up",
        "one attempt more": "approval_used_up",
        "other shapes": "invalid_request",
        "no numbers": "invalid_request",
        "unsigned": "not_from_hub",
        "for another site": "not_from_hub",
        "another hub": "not_from_hub",
        "under this hub's name": "not_from_hub",
        "too late": "expired",
        "from ahead": "expired",
        "with more in it": "invalid_request",
        "another kind": "invalid_request",
        "scores of an unapproved one": "not_approved",
    }
    (charge,) = records(parts, BIO, "charge", folder.run)
    config = load_site_config(parts.site_files[BIO])
    of_run = [r for r in records_of_kind(config, "release") if r["charge_seq"] == charge["seq"]]
    assert [one["update_digest"] for one in of_run] == [update]
    log = (config.state / "site.log").read_text()
    assert len(set(found["correlations"])) == 20 and all(c in log for c in found["correlations"])
    sent = list(EgressJournal(config.state).entries())[before:]
    assert {e.update_digest for e in sent} == {None, update}
    assert sorted(e.answer for e in sent if e.answer != "reply") == sorted(
        code for code in said.values() if code not in ("reply", update)
    )


def test_a_site_that_lies_is_left_out_of_each_round_loudly_and_the_others_go_on(parts):
    wanted = experiment(
        "liar",
        algorithm={"rounds": 7, "min_sites": 2},
        cohort={"max_update_norm": 1e6},
    )
    assert parts.cohortium("site", "stop", parts.site_files[BIO]).returncode == 0
    parts.processes.pop(BIO).wait(30)
    program = [sys.executable, "-m", "tests.e2e.rogue_site", str(parts.site_files[BIO])]
    root = Path(__file__).parents[2]
    with (parts.folder / "rogue.log").open("ab") as log:
        parts.processes["rogue"] = subprocess.Popen(
            program, cwd=root, env=parts.environment(), stdout=log, stderr=log
        )
    parts.until(lambda: "connected to" in (parts.folder / "rogue.log").read_text(), "the rogue")
    run = submitted(parts, approved(parts, wanted))
    rounds = completed(parts, run)
    lied = [one["refused"] for one in rounds[1:]]
    assert lied == [{BIO: "invalid_reply"}] * 6 + [{}]
    assert [one["returned"] for one in rounds[1:]] == [[NORTH, SOUTH]] * 6 + [list(NAMES)]
    shown = parts.cohortium("watch", run, "--hub", parts.hub_file).stdout
    assert shown.count(f"2 of 3 sites returned, {BIO} refused: invalid_reply") == 6
    expected = averaged_from_outboxes(parts, wanted, run)
    assert weights_digest(model_of(parts, run)) == weights_digest(expected)
    assert charges(parts, run) == dict.fromkeys(NAMES, 7)
    parts.kill("rogue", signal.SIGTERM)
    parts.start_site(BIO)
    parts.until_connected(BIO)


def test_a_clock_that_is_wrong_is_named_before_and_refused_at_the_door(parts, faketime):
    file = parts.site_files[SOUTH]
    assert parts.cohortium("site", "stop", file).returncode == 0
    parts.processes.pop(SOUTH).wait(30)
    for offset, words in (("+600", "600 s ahead of the hub's"), ("-600", "600 s behind the hub's")):
        parts.more_environment |= faketime(offset)
        checked = parts.cohortium("site", "start", file, "--check")
        begun = parts.cohortium("site", "start", file)
        parts.more_environment.clear()
        assert checked.returncode == 1 and f"BLOCKS  clock           {words}" in checked.stderr
        assert "they may differ by seconds only" in checked.stderr, "the hub itself refuses it, too"
        assert begun.returncode == 2 and f"clock: {words}; set it" in begun.stderr
    checked = parts.cohortium("site", "start", file, "--check")
    assert checked.returncode == 0, checked.stderr
    assert "as the hub's" in checked.stderr and "registered: the hub admits" in checked.stderr
    parts.start_site(SOUTH)
    parts.until_connected(SOUTH)


@pytest.fixture
def faketime():
    """Return what lets a program see another time, by libfaketime."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("libfaketime is not installed (Debian: faketime)")
    return lambda offset: {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME": f"{offset}s",
        "DONT_FAKE_MONOTONIC": "1",
    }


class TestWhoIsLetIn:
    """Last: SOUTH is removed while its agent runs."""

    def test_a_certificate_of_another_authority_is_told(self, parts, tmp_path):
        other = make_federation(tmp_path, [])
        certificate = other.hub.add_site(SOUTH, parts.site_files[SOUTH].with_name("node.pub"))
        shown = self.checked(parts, SOUTH, certificate)
        assert "its certificate is missing, expired or revoked" in shown.replace("\n", " ")

    def test_a_key_that_is_not_registered_is_told(self, parts):
        """NORTH's certificate and key are in order at the proxy; Flower knows another for SOUTH."""
        hub = parts.hub
        config = load_site_config(parts.site_files[NORTH])
        with Control(hub) as control:
            (node,) = [i for i, name in hub.nodes.items() if name == NORTH]
            self.stop(parts, NORTH)
            control.unregister(node)
            shown = self.checked(parts, NORTH, config.hub.certificate)
            assert "is not registered, or was removed" in shown.replace("\n", " ")

    def test_a_removed_site_is_cut_off_while_it_runs_and_its_certificate_opens_nothing(self, parts):
        config = load_site_config(parts.site_files[SOUTH])
        own = parts.folder / "own.crt"
        own.write_bytes(config.hub.certificate.read_bytes())
        name_hub(parts.site_files[SOUTH], parts.hub, own)
        self.stop(parts, SOUTH)
        parts.start_site(SOUTH)
        parts.until_connected(SOUTH)
        agent, log = parts.processes[SOUTH], parts.folder / f"{SOUTH}.log"
        before = len(log.read_text())
        assert parts.cohortium("hub", "remove-site", parts.hub_file, SOUTH).returncode == 0
        began = time.monotonic()
        parts.until(lambda: "waiting for the hub" in log.read_text()[before:], "the cut", 10)
        assert time.monotonic() - began < 10
        # The hub forgets its key and the proxy its certificate; whichever the next call meets.
        said = log.read_text()[before:]
        assert "its certificate is missing, expired or revoked" in said or "(HTTP 401)" in said
        assert agent.wait(90) == 2
        assert self.checked(parts, SOUTH, own).count("revoked") >= 1

    @staticmethod
    def stop(parts, name):
        parts.cohortium("site", "stop", parts.site_files[name])
        parts.processes.pop(name).wait(30)

    def checked(self, parts, name, certificate):
        file = parts.site_files[name]
        text = file.read_text()
        values = yaml.safe_load(text)
        values["hub"]["certificate"] = str(certificate)
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        running = name in parts.processes and parts.processes[name].poll() is None
        if running:
            self.stop(parts, name)
        done = parts.cohortium("site", "start", file, "--check")
        file.write_text(text)
        if running:
            parts.start_site(name)
            parts.until_connected(name)
        assert done.returncode in (0, 1), done.stderr
        return done.stderr
