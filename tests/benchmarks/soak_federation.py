"""`python -m tests.benchmarks.soak_federation`: many sites, many rounds: does anything grow?

Every site is a process of its own with the agent that ships, through nginx over mutual TLS; each
answers at once with an update of a tiny model. Memory is looked at after each round.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from federation.checkpoint import Checkpoint
from federation.flower.server_app import run_rounds
from tests.benchmarks.bench_federation import connected_grid, weights_of
from tests.benchmarks.tables import Section
from tests.federation.flower.conftest import EXPERIMENT, RUN

MIB = 2**20
TINY = 1_000
# Memory is compared from here on: before, processes are still loading what they need.
SETTLED = 10


def soak(folder: Path, num_sites: int, rounds: int) -> dict[str, Any]:
    """Carry out the rounds; return what each looked like and what was left behind."""
    names = [f"site-{number:02}" for number in range(num_sites)]
    me, looks = psutil.Process(), []
    before = len(me.children(recursive=True))

    def look(_: Any) -> None:
        looks.append({"at_s": time.perf_counter(), **_memory(me)})
        sys.stderr.write(f"\r{len(looks) - 1}/{rounds} rounds")

    with connected_grid(folder, names) as grid, Checkpoint(folder / "checkpoint") as checkpoint:
        result = run_rounds(
            grid,
            experiment_digest=EXPERIMENT,
            run=RUN,
            weights=weights_of(TINY),
            rounds=rounds,
            min_sites=num_sites,
            on_event=look,
            timeout_s=300.0,
            checkpoint=checkpoint,
        )
        running = len(me.children(recursive=True))
    sys.stderr.write("\n")
    return {
        "sites": num_sites,
        "rounds": len(result.events) - 1,
        "whole_rounds": sum(list(event.returned) == names for event in result.events[1:]),
        "looks": looks,
        "processes": {
            "before": before,
            "during": running,
            "after": len(me.children(recursive=True)),
        },
    }


def _memory(me: psutil.Process) -> dict[str, float]:
    """Resident MiB of the run, of the SuperLink, and of all sites together."""
    found = {"run": me.memory_info().rss / MIB, "superlink": 0.0, "sites": 0.0}
    for child in me.children(recursive=True):
        line = " ".join(child.cmdline())
        kind = "sites" if "federation_site" in line else "superlink" if "superlink" in line else ""
        if kind:
            found[kind] += child.memory_info().rss / MIB
    return found


def shown(told: dict[str, Any]) -> Section:
    """Return the table."""
    looks = told["looks"]
    chosen = sorted({0, min(SETTLED, len(looks) - 1), len(looks) // 2, len(looks) - 1})
    settled, last = looks[min(SETTLED, len(looks) - 1)], looks[-1]
    seconds = (last["at_s"] - looks[0]["at_s"]) / max(1, told["rounds"])
    grown = ", ".join(
        f"{kind} {last[kind] - settled[kind]:+.0f} MiB" for kind in ("run", "superlink", "sites")
    )
    processes = told["processes"]
    return Section(
        f"{told['sites']} sites, {told['rounds']} rounds: resident MiB",
        ("after round", "the run", "SuperLink", "all sites"),
        tuple({"round": number, **looks[number]} for number in chosen),
        tuple(
            (str(n), *(f"{looks[n][kind]:,.0f}" for kind in ("run", "superlink", "sites")))
            for n in chosen
        ),
        (
            f"{seconds:.1f} s a round; every site's update was in {told['whole_rounds']} rounds.",
            f"from round {min(SETTLED, len(looks) - 1)} on: {grown}",
            f"processes below this one: {processes['before']} before, {processes['during']} "
            f"during, {processes['after']} after",
        ),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="soak_federation", description=__doc__)
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # Flower's deprecations; the tests hear them
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        told = soak(Path(folder), asked.sites, asked.rounds)
    shown(told).show(Console(width=110))
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
