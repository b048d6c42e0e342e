"""Experiments over a federation of processes: approve, submit, watch; what follows from files."""

import json

import yaml

from federation.algorithms import fedavg
from federation.canonical import digest_bytes
from federation.privacy.plan import make_plan
from federation.site import Permission, open_site
from federation.site_config import load_site_config
from federation.training import initial_weights
from models.weights import weights_from_bytes
from tests.experiments import tiny_experiment

NAMES = ("bio-lab", "north-hospital", "south-hospital")


def experiment(name, **changes):
    """Return an experiment that costs little, so that several fit one site's budget."""
    values = tiny_experiment(rounds=3).model_dump(mode="json")
    values["name"] = name
    values["privacy"]["epsilon"] = 1.0
    values["algorithm"] |= changes.pop("algorithm", {})
    values |= changes
    return type(tiny_experiment()).model_validate(values)


def approved(parts, wanted):
    """Write an experiment down and approve it at every site, as each operator would."""
    path = parts.folder / f"{wanted.name}.yaml"
    path.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    plan = make_plan(wanted)
    for file in parts.site_files.values():
        site = open_site(file)
        hub = site.config.hub
        site.approve(wanted, plan, Permission("test", hub_key=hub.key))
        site.ledger.close()
    return path


def submitted(parts, path):
    done = parts.cohortium("submit", path, "--hub", parts.hub_file, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["run"]


def watched(parts, run, command="watch"):
    """Follow a run to its end; return its rounds, its status and the exit code."""
    arguments = ["watch", run, "--hub", parts.hub_file, "--json"]
    if command == "resume":
        again = parts.cohortium("resume", run, "--hub", parts.hub_file)
        assert again.returncode == 0, again.stderr
    done = parts.cohortium(*arguments, timeout=300)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, f"{done.stderr}\n{parts.logs()}"
    return lines[:-1], lines[-1], done.returncode


def folder_of(parts, run):
    return parts.hub.path / "runs" / run


def records(parts, name, kind, run):
    path = load_site_config(parts.site_files[name]).state / "ledger.jsonl"
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    bodies = [one["body"] | {"seq": one["seq"]} for one in found if one["kind"] == kind]
    return [body for body in bodies if body.get("run") == run]


def averaged_from_outboxes(parts, wanted, run):
    """Return the model that follows from what every site keeps of what it sent."""
    weights = initial_weights(wanted)
    receipts = json.loads((folder_of(parts, run) / "receipts.json").read_text())
    for number in range(1, wanted.algorithm.rounds + 1):
        updates = {}
        for receipt in (r for r in receipts if r["round"] == number):
            outbox = load_site_config(parts.site_files[receipt["site"]]).state / "outbox"
            (payload,) = [
                path.read_bytes()
                for path in outbox.glob("*.update")
                if _digest(path) == receipt["update_digest"]
            ]
            updates[receipt["site"]] = weights_from_bytes(payload)
        weights = fedavg.server_step(weights, updates)
    return {name: weights[name] for name in sorted(weights)}


def _digest(path):
    return digest_bytes(path.read_bytes())


def model_of(parts, run):
    return weights_from_bytes((folder_of(parts, run) / "model.safetensors").read_bytes())


def records_of_kind(config, kind):
    lines = (config.state / "ledger.jsonl").read_bytes().splitlines()
    return [one["body"] for one in map(json.loads, lines) if one["kind"] == kind]


def num_charges(parts, run):
    return sum(len(records(parts, name, "charge", run)) for name in NAMES)
