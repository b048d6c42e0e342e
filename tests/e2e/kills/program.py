"""Runs rounds in forked children and kills them; a program of its own, as for ingest.

It forks from a process that has imported everything but never opened tensorstore, which does not
survive a fork. ``python -m tests.e2e.kills.program FOLDER (random|points)`` prints JSON.
"""

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from federation.messages import TrainRequest
from federation.site import open_site
from federation.software import software_digest
from federation.training import initial_weights, require_trainable
from tests.e2e.kills.boundaries import Boundaries, Point
from tests.e2e.kills.oracle import PHASES, Kept, Left, judge, judge_in_the_end, phase
from tests.e2e.kills.recorder import Recorder
from tests.e2e.kills.site import RUN, Witness, answer
from tests.experiments import tiny_experiment
from tests.federation.ledger.second_verifier import second_verifier
from tests.leaks.planting import lay_out

EXPERIMENT = tiny_experiment(retries=20, min_sites=1)
MOST_KILLS = 400
MOST_AIMED = 5
# States to begin with, and how often the site was interrupted by then.
STARTS = {"fresh": 0, "charged": 1, "released": 1, "torn": 1}


def in_child(
    work: Callable[[], object], patience_s: float | None = None, wait: Callable[[], object] = int
) -> bool:
    """Run ``work`` in a fork; kill it ``patience_s`` after ``wait``. Return whether it was."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if patience_s is not None:
        wait()
        time.sleep(patience_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if status and not killed:
        raise SystemExit(f"the site failed by itself, wait status {status}")
    return killed


@dataclass
class Trials:
    """One site, put back to how it was before each trial, and the hub that asks it."""

    folder: Path
    slowly: bool = False

    def __post_init__(self) -> None:
        self.weights = initial_weights(EXPERIMENT)
        self.wrong: list[str] = []
        self.phases: Counter[str] = Counter()
        in_child(self._prepare)
        self.trust = open_site(self.site_file).key.fingerprint
        self.witness.touch()
        self.recorder = Recorder(self.witness)
        self.keep("fresh")
        # Once in this process, so that its children have imported and read everything.
        self.answer(Boundaries(), attempt=1, updates=1)
        self.recorder.drain()
        assert "tensorstore" not in sys.modules, "it does not survive a fork"
        self.put_back("fresh")
        gc.freeze()

    @property
    def home(self) -> Path:
        return self.folder / "sites" / "clinic"

    @property
    def site_file(self) -> Path:
        return self.home / "site.yaml"

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def witness(self) -> Path:
        return self.home / "witness"

    def _prepare(self) -> None:
        # In a child, so that the process that forks for each kill stays small.
        from federation.run import approve, ingest_sites, open_sites

        lay_out(self.folder / "sites", "clinic", "dicom")
        (self.home / "vault").mkdir()
        with self.site_file.open("a") as file:
            file.write("\nhigh_water_mark: vault/mark.json\n")
        sites = open_sites([self.site_file])
        ingest_sites(sites)
        approve(EXPERIMENT, sites, approver="test")

    def keep(self, name: str) -> None:
        """Remember how things are now."""
        kept = self.folder / name
        shutil.copytree(self.state, kept / "state", ignore=shutil.ignore_patterns("cache"))
        shutil.copytree(self.home / "vault", kept / "vault")
        shutil.copy(self.witness, kept / "witness")

    def put_back(self, name: str) -> None:
        kept = self.folder / name
        for path in self.state.iterdir():
            if path.is_file():
                path.unlink()
            elif path.name != "cache":
                shutil.rmtree(path)
        shutil.rmtree(self.home / "vault")
        shutil.copytree(kept / "state", self.state, dirs_exist_ok=True)
        shutil.copytree(kept / "vault", self.home / "vault")
        shutil.copy(kept / "witness", self.witness)

    def asked(self, attempt: int) -> TrainRequest:
        heads = {"another": "sha256:" + "5" * 64}
        return TrainRequest(EXPERIMENT.digest(), RUN, 1, attempt, self.weights, heads)

    def answer(self, boundaries: Boundaries, *, attempt: int, updates: int) -> None:
        """Be the site."""
        pause_s, work_s = (0.003, 0.02) if self.slowly else (0.0, 0.0)
        with Witness(self.recorder.address, boundaries, pause_s) as witness:
            answer(
                self.site_file,
                witness,
                self.asked,
                attempt=attempt,
                updates=updates,
                work_s=work_s,
            )

    def ask(
        self,
        *,
        updates: int = 1,
        point: Point | None = None,
        after: int = -1,
        patience_s: float | None = None,
    ) -> bool:
        """Let a new process answer the hub's next request; return whether it was killed.

        Args:
            after: The call that ``patience_s`` counts from; the start, if it is not given.
        """
        attempt = Left.read(self.witness).attempt
        come, gone = os.pipe()

        def announce(number: int) -> None:
            if number == after:
                boundaries.write(gone, b".")

        boundaries = Boundaries(point, announce)

        def work() -> None:
            boundaries.install()
            self.answer(boundaries, attempt=attempt, updates=updates)
            (self.home / "points").write_text(json.dumps(boundaries.names))

        def wait() -> None:
            os.close(gone)  # a child that never makes the call closes its own end
            if after >= 0:
                os.read(come, 1)

        try:
            return in_child(work, patience_s, wait)
        finally:
            os.close(come)
            if patience_s is None:
                os.close(gone)
            self.recorder.drain()

    @property
    def points(self) -> list[str]:
        """Return the calls of the newest process that came to its end."""
        names: list[str] = json.loads((self.home / "points").read_text())
        return names

    def kill(self, **how: Any) -> bool:
        """Ask, kill, judge; return whether there was something to kill."""
        num_records, num_bytes = Kept.read(self.state).num_records, self.witness.stat().st_size
        killed = self.ask(**how)
        if killed:
            reached = phase(self.state, self.witness, num_records=num_records, num_bytes=num_bytes)
            self.phases[reached] += 1
        self.wrong += [f"{how}: {what}" for what in judge(self.state, self.witness)]
        return killed

    def finish(self, num_kills: int, how: object) -> None:
        """Let the hub have the update after all, then another one; judge everything."""
        self.ask(updates=2)
        found = judge_in_the_end(
            self.state, self.witness, trust=self.trust, num_kills=num_kills, num_asked=2
        )
        self.wrong += [f"{how}: {what}" for what in found]


def at_every_point(trials: Trials) -> dict[str, object]:
    """Kill at each call, before it, halfway or after it, from four states to begin with."""
    trials.ask()
    names = trials.points
    # What a process finds that was killed while it trained, and before it sent.
    for start, call in (("charged", "note reading"), ("released", "send")):
        trials.put_back("fresh")
        trials.ask(point=Point(names.index(call), "before" if call == "send" else "after"))
        trials.keep(start)
    trials.put_back("fresh")
    with (trials.state / "ledger.jsonl").open("ab") as file:
        file.write(b'{"at":"2026')
    trials.keep("torn")
    return {"points": {start: _at_every_point_from(start, trials) for start in STARTS}}


def _at_every_point_from(start: str, trials: Trials) -> list[str]:
    trials.put_back(start)
    trials.ask()
    names = trials.points
    # Once a torn line was cut off, or a loss recorded, a round goes on as any other.
    until = names.index("note reading") if start in ("torn", "charged") else len(names)
    for number, call in enumerate(names[:until]):
        ways = ["before"]
        ways += ["half"] if call.startswith(("write", "send")) else []
        # After any other call comes what is before the next one.
        ways += ["after"] if call == names[-1] else []
        for way in ways:
            trials.put_back(start)
            if not trials.kill(point=Point(number, way)):
                trials.wrong.append(f"{start}: nothing died {way} {number}, {call}")
            trials.finish(1 + STARTS[start], (start, number, call, way))
    return names


def at_random(trials: Trials, num_kills: int) -> dict[str, object]:
    """Kill at random times, a few times in a row, until every phase was hit.

    Some are random in the whole of a round, more soon after a random call: most calls take no time,
    and a round spends most of its own in two or three places. Phases that chance has missed are
    aimed at in the end: soon after each call in turn.
    """
    generator, kills, lives, trials.slowly = random.Random(0), 0, 0, True
    started = time.monotonic()
    trials.ask()
    seconds, num_calls = time.monotonic() - started, len(trials.points)
    while kills < num_kills or (kills < MOST_KILLS and len(trials.phases) < len(PHASES)):
        trials.put_back("fresh")
        here = 0
        for turn in range(12):
            if turn % 3:
                after = generator.randrange(num_calls)
                here += trials.kill(after=after, patience_s=generator.uniform(0, 0.002))
            else:
                here += trials.kill(patience_s=generator.uniform(0, seconds))
        trials.finish(here, ("random", lives))
        kills, lives = kills + here, lives + 1
    for number in [*range(num_calls)] * MOST_AIMED:
        if len(trials.phases) == len(PHASES):
            break
        trials.put_back("fresh")
        here = trials.kill(after=number, patience_s=generator.uniform(0, 0.001))
        trials.finish(int(here), ("aimed", number))
        kills += here
    return {"kills": kills, "lives": lives, "seconds": seconds}


def main() -> None:
    folder, how = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    # Once, before the first fork: children then start at once.
    software_digest()
    second_verifier()
    require_trainable(EXPERIMENT)
    trials = Trials(folder)
    found = at_every_point(trials) if how == "points" else at_random(trials, int(sys.argv[3]))
    trials.recorder.stop()
    phases = {name: trials.phases[name] for name in PHASES}
    sys.stdout.write(json.dumps({**found, "phases": phases, "wrong": trials.wrong}) + "\n")


if __name__ == "__main__":
    main()
