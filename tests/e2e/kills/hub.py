"""Runs a hub with two sites in forked children, kills them and goes on; a program of its own.

Everything is real but the training itself, as in ``site.py``. The children are killed at the hub's
durable calls and at the sites', which run in the same process.
``python -m tests.e2e.kills.hub FOLDER STRIDE [forgetful]`` prints JSON: every ``STRIDE``-th call is
died at, and all of the hub's own but the writing of single arrays. A ``forgetful`` hub, which asks
anew after a crash, must be found out.
"""

import gc
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from federation import rounds
from federation.algorithms import fedavg
from federation.checkpoint import Checkpoint
from federation.flower.client_app import client_app
from federation.flower.grid import LocalGrid
from federation.flower.server_app import run_rounds
from federation.rounds import LocalRounds
from federation.site import open_site
from federation.software import software_digest
from federation.training import initial_weights, require_trainable
from models.weights import weights_digest, weights_from_bytes
from tests.e2e.kills.boundaries import Boundaries, Point
from tests.e2e.kills.program import in_child
from tests.experiments import tiny_experiment
from tests.federation.ledger.second_verifier import second_verdict, second_verifier
from tests.leaks.planting import lay_out

ROUNDS = 2
EXPERIMENT = tiny_experiment(rounds=ROUNDS, retries=20, min_sites=2, ema_decay=0.5)
SITES = ("clinic", "lab")
RUN = "cd" * 16
OF_THE_HUB = ("checkpoint", "arrays", "spooled")


class Trials:
    """Two sites and a hub, put back to how they were before each trial."""

    def __init__(self, folder: Path, *, forgetful: bool) -> None:
        self.folder, self.forgetful = folder, forgetful
        self.hub, self.result = folder / "hub", folder / "result.json"
        self.wrong: list[str] = []
        in_child(self._prepare)
        self.trust = {name: open_site(self.file(name)).key.fingerprint for name in SITES}
        for name in SITES:
            shutil.copytree(self.state(name), folder / "fresh" / name, ignore=_but_cache)
        gc.freeze()

    def file(self, name: str) -> Path:
        return self.folder / "sites" / name / "site.yaml"

    def state(self, name: str) -> Path:
        return self.file(name).parent / "state"

    def _prepare(self) -> None:
        from federation.run import approve, ingest_sites, open_sites

        for name in SITES:
            lay_out(self.folder / "sites", name, "dicom")
        sites = open_sites([self.file(name) for name in SITES])
        ingest_sites(sites)
        approve(EXPERIMENT, sites, approver="test")

    def put_back(self) -> None:
        for name in SITES:
            for path in self.state(name).iterdir():
                if path.is_file():
                    path.unlink()
                elif path.name != "cache":
                    shutil.rmtree(path)
            shutil.copytree(self.folder / "fresh" / name, self.state(name), dirs_exist_ok=True)
        shutil.rmtree(self.hub, ignore_errors=True)
        self.result.unlink(missing_ok=True)

    def run(self, point: Point | None = None) -> bool:
        """Carry the run out in a new process, or go on with it; return whether it was killed."""
        boundaries = Boundaries(point)

        def work() -> None:
            boundaries.install()
            files = [self.file(name) for name in SITES]
            told = carry_out(self.hub, files, forgetful=self.forgetful)
            self.result.write_text(json.dumps({**told, "calls": boundaries.names}))

        return in_child(work)

    def trial(self, how: str, *points: Point) -> None:
        """Kill at each of these points in a row, then let the run come to its end, and judge."""
        self.put_back()
        killed = [self.run(point) for point in points]
        if not killed[0]:
            self.wrong.append(f"{how}: nothing died")
        self.run()
        self.wrong += [f"{how}: {what}" for what in self.judge(sum(killed))]

    def judge(self, num_kills: int) -> list[str]:
        """Recompute the model from what is in the sites' outboxes, and count what they paid."""
        told = json.loads(self.result.read_text())
        wrong, released = [], {}
        for name in SITES:
            bodies = _bodies(self.state(name) / "ledger.jsonl")
            charges = {seq: body for seq, kind, body in bodies if kind == "charge"}
            paid_for = Counter(
                charges[body["charge_seq"]]["round"]
                for _, kind, body in bodies
                if kind == "release"
            )
            if paid_for != Counter(range(1, ROUNDS + 1)):
                wrong.append(f"{name} released {dict(paid_for)}")
            if len(charges) > ROUNDS + num_kills:
                wrong.append(f"{name}: {num_kills} kills, and {len(charges)} charges")
            receipts = [r for r in told["receipts"] if r["site"] == name]
            released |= {(r["round"], name): self._update(name, r["charge_seq"]) for r in receipts}
            state = self.state(name) / "ledger.jsonl"
            verdict = second_verdict(state, trust=self.trust[name], receipts=receipts)
            if verdict["verdict"] != "verified":
                wrong.append(f"{name}'s ledger is {verdict['verdict']}: {verdict['problems']}")
        if _folded(released) != told["model"]:
            wrong.append("the model is not what the released updates make")
        return wrong

    def _update(self, name: str, seq: int) -> dict[str, Any]:
        (path,) = (self.state(name) / "outbox").glob(f"{seq:08d}-*.update")
        return weights_from_bytes(path.read_bytes())


def carry_out(hub: Path, site_files: list[Path], *, forgetful: bool) -> dict[str, Any]:
    """Be the hub and its sites."""

    def noise(_experiment, _plan, weights, _dataset, *, randomness, before_step, **_):
        before_step()
        return {
            name: randomness.gaussians(w.size).reshape(w.shape).astype(np.float32)
            for name, w in weights.items()
        }

    rounds.train_locally = noise
    sites = [open_site(file) for file in site_files]
    with Checkpoint(hub) as checkpoint:
        state, weights = None, initial_weights(EXPERIMENT)
        if checkpoint.exists:
            state, weights = checkpoint.load(EXPERIMENT.digest())
        result = run_rounds(
            LocalGrid({site.name: client_app(LocalRounds(site)) for site in sites}),
            experiment_digest=EXPERIMENT.digest(),
            run=RUN,
            weights=weights,
            rounds=ROUNDS,
            min_sites=2,
            ema_decay=EXPERIMENT.algorithm.ema_decay,
            retries=EXPERIMENT.algorithm.retries,
            attempt=2 if forgetful and state is not None else 1,
            checkpoint=checkpoint,
            state=state,
        )
    model = weights_digest(result.weights)
    return {"model": model, "receipts": list(result.receipts), "ended": len(result.closings)}


def _folded(released: dict[tuple[int, str], dict[str, Any]]) -> str:
    weights = initial_weights(EXPERIMENT)
    average = weights
    for number in range(1, ROUNDS + 1):
        updates = {name: released[number, name] for name in SITES}
        weights = fedavg.server_step(weights, updates)
        average = fedavg.average_step(average, weights, decay=0.5, num_averaged=number - 1)
    return weights_digest(average)


def _bodies(ledger: Path) -> list[tuple[int, str, dict[str, Any]]]:
    records = [json.loads(line) for line in ledger.read_bytes().splitlines()]
    return [(record["seq"], record["kind"], record["body"]) for record in records]


def _but_cache(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "cache"]


def main() -> None:
    folder, stride = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    software_digest()
    second_verifier()
    require_trainable(EXPERIMENT)
    trials = Trials(folder, forgetful="forgetful" in sys.argv)
    trials.put_back()
    trials.run()
    told = json.loads(trials.result.read_text())
    calls, died = told["calls"], []
    for number, call in enumerate(calls):
        if trials.forgetful or (
            number % stride and (call == "write arrays" or not call.endswith(OF_THE_HUB))
        ):
            continue
        way = "half" if call.startswith("write") else "before"
        trials.trial(f"{call} {number}", Point(number, way))
        died.append(call)
    after = calls.index("replace spooled")
    trials.trial("with an update here", Point(after, "before"))
    # Killed in what comes after a kill, too.
    trials.trial("four in a row", *(Point(len(calls) // 5, "before") for _ in range(4)))
    assert "tensorstore" not in sys.modules, "it does not survive a fork"
    sys.stdout.write(json.dumps({"died": died, "wrong": trials.wrong, "calls": calls}) + "\n")


if __name__ == "__main__":
    main()
