"""``cohortium run`` killed with -9 in a process of its own, and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from federation.algorithms import fedavg
from federation.training import initial_weights
from models.weights import weights_digest, weights_from_bytes
from tests.conftest import site_files
from tests.experiments import tiny_experiment

COMMAND = Path(sys.executable).with_name("cohortium")
EXPERIMENT = tiny_experiment(rounds=3, retries=2)


@pytest.fixture
def arguments(federation, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT.model_dump(mode="json")))
    options = [part for file in site_files(federation) for part in ("--site", str(file))]
    return ["run", str(path), *options]


def records(site_file, kind):
    lines = (site_file.parent / "state" / "ledger.jsonl").read_bytes().splitlines()
    return [r["body"] | {"seq": r["seq"]} for r in map(json.loads, lines) if r["kind"] == kind]


def round_of(checkpoint):
    if not checkpoint.is_file():
        return -1
    return json.loads(checkpoint.read_bytes())["body"]["state"]["round"]


def kill_in_round(number, arguments, out):
    """Start a run and kill it some time in this round, once one site has paid for it."""
    command = [COMMAND, *arguments, "--out", str(out), "--yes"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while round_of(out / "checkpoint" / "checkpoint.json") < number - 1:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_run_killed_in_its_second_round_goes_on_to_the_model_that_was_released(
    federation, arguments, tmp_path
):
    out = tmp_path / "out"
    kill_in_round(2, arguments, out)
    before = {file: set(updates(file)) for file in site_files(federation)}
    assert all(before.values())
    done = subprocess.run(
        [COMMAND, *arguments, "--resume", str(out), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [(r["round"], len(r["returned"])) for r in summary["rounds"]] == [
        (number, 3) for number in range(4)
    ]
    assert "Going on after round 1 of 3" in done.stderr
    assert "Approve" not in done.stderr
    assert not (out / "checkpoint").exists()

    for file in site_files(federation):
        released = {update["charge_seq"] for update in records(file, "release")}
        charges = {c["seq"]: c["round"] for c in records(file, "charge")}
        # What had left before left no second time, and a kill costs one charge at most.
        assert Counter(charges[seq] for seq in released) == Counter([1, 2, 3])
        assert len(charges) <= 4
        assert before[file] <= set(updates(file))
    model = weights_from_bytes((out / "model.safetensors").read_bytes())
    assert weights_digest(model) == weights_digest(folded(federation))
    again = subprocess.run(
        [COMMAND, *arguments, "--resume", str(out)], capture_output=True, text=True, timeout=60
    )
    assert again.returncode == 2
    assert "it came to its end and left its results" in again.stderr.replace("\n", " ")


def updates(site_file):
    return sorted((site_file.parent / "state" / "outbox").glob("*.update"))


def folded(federation):
    """Return the model that what the sites released makes, bit by bit."""
    weights = initial_weights(EXPERIMENT)
    for number in (1, 2, 3):
        released = {}
        for file in site_files(federation):
            of_round = {c["seq"] for c in records(file, "charge") if c["round"] == number}
            (seq,) = of_round & {r["charge_seq"] for r in records(file, "release")}
            (path,) = [path for path in updates(file) if path.name.startswith(f"{seq:08d}-")]
            released[yaml.safe_load(file.read_text())["site"]] = weights_from_bytes(
                path.read_bytes()
            )
        weights = fedavg.server_step(weights, released)
    return {name: weights[name] for name in sorted(weights)}


def test_out_and_resume_do_not_go_together(arguments, tmp_path):
    done = subprocess.run(
        [COMMAND, *arguments, "--resume", str(tmp_path), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Leave --out away" in done.stderr


def test_there_must_be_something_to_go_on_from(arguments, tmp_path):
    done = subprocess.run(
        [COMMAND, *arguments, "--resume", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "holds no checkpoint" in done.stderr
    assert not (tmp_path / "none").exists()
