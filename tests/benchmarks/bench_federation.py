"""`python -m tests.benchmarks.bench_federation`: what a round costs besides the training in it.

Two sites answer at once with an update of the model's size, so that all the time is the
platform's. Three ways in one run: in this process; over the network as it is used (SuperLink,
nginx, mutual TLS, signed requests, journalled, checked and folded replies, checkpoints; ticks set
to zero for the measurement); and stock Flower: its SuperNodes, its FedAvg, over the same SuperLink
and TLS. Ours is measured twice: with scores of the new model in each round, as it is used where
sites have public subjects, and training alone, which is what the run of stock Flower does.
"""

import argparse
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from rich.console import Console

from federation.certificates import new_key, public_text
from federation.checkpoint import Checkpoint
from federation.flower.client_app import client_app
from federation.flower.fleet import load_node_key
from federation.flower.grid import LocalGrid
from federation.flower.hub import HubProcesses
from federation.flower.hub_grid import HubGrid
from federation.flower.server_app import run_rounds
from federation.flower.superlink import Control, environment
from federation.hub_folder import HubFolder, init_hub
from tests.benchmarks.federation_apps import acquired_grid, stock_round_seconds
from tests.benchmarks.tables import Section
from tests.e2e.processes import free_port
from tests.federation.flower.conftest import EXPERIMENT, RUN, FakeSite

NAMES = ("site-a", "site-b")
SIZES = {"0.1 M": 100_000, "10 M": 10_000_000, "100 M": 100_000_000}
PARTS = 8
# From here on fewer rounds are enough.
LARGE = 50_000_000
MOST_OVERHEAD_S, LEAST_RATIO = 0.5, 10.0
WAYS = ("in_process_s", "network_s", "training_s", "stock_s")


def weights_of(size: int) -> dict[str, Any]:
    """Return float32 arrays with ``size`` numbers together."""
    random = np.random.default_rng(0)
    parts = {f"layer.{i}": size // PARTS for i in range(PARTS)}
    return {name: random.standard_normal(n, dtype=np.float32) for name, n in parts.items()} | {
        "a.bias": np.zeros(2, np.float32)
    }


def round_seconds(grid: Any, size: int, rounds: int, checkpoint: Path | None) -> list[float]:
    """Run rounds over a grid; return how long each took, in seconds."""
    times = [time.perf_counter()]
    with Checkpoint(checkpoint) if checkpoint else nullcontext() as kept:
        run_rounds(
            grid,
            experiment_digest=EXPERIMENT,
            run=RUN,
            weights=weights_of(size),
            rounds=rounds,
            min_sites=len(NAMES),
            on_event=lambda _: times.append(time.perf_counter()),
            timeout_s=600.0,
            checkpoint=kept,
        )
    return [after - before for before, after in itertools.pairwise(times)][-rounds:]


def in_process(size: int, rounds: int) -> list[float]:
    """The same rounds without a network: what hashing, checking and folding cost."""
    grid = LocalGrid({name: client_app(FakeSite(name)) for name in NAMES})
    return round_seconds(grid, size, rounds, None)


@contextmanager
def serving(folder: Path, *, proxy: bool, names: Sequence[str] = NAMES) -> Iterator[HubFolder]:
    """Run a hub with admitted sites, without SuperExec: this process takes the run itself."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    hub = init_hub(folder, address=address, listen=address, link_port=free_port())
    for name in names:
        key = new_key(folder / f"{name}.pem", ec.SECP384R1())
        public = folder / f"{name}.pub"
        public.write_text(public_text(key.public_key()))
        hub.add_site(name, public)
    stop, up = threading.Event(), threading.Event()
    processes = HubProcesses(hub, proxy=proxy, executor=False, told=lambda _: up.set())
    thread = threading.Thread(target=processes.run, args=[stop])
    thread.start()
    try:
        if not up.wait(90):
            raise SystemExit("The hub does not start; see its logs.")
        yield hub
    finally:
        stop.set()
        thread.join()


@contextmanager
def running(commands: list[list[str]], env: dict[str, str], log: Path) -> Iterator[None]:
    """Keep programs running, and end them and what they started."""
    with log.open("ab") as output:
        started = [
            subprocess.Popen(c, env=env, stdout=output, stderr=output, start_new_session=True)
            for c in commands
        ]
    try:
        yield
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_online(hub: HubFolder, names: Sequence[str] = NAMES) -> None:
    """Wait until all sites are connected."""
    with Control(hub) as control:
        for _ in range(1200):
            if list(control.node_states().values()).count("online") == len(names):
                return
            time.sleep(0.1)
    raise SystemExit(f"Sites did not connect; see {hub.path}.")


@contextmanager
def connected_grid(
    folder: Path, names: Sequence[str] = NAMES, *, scored: bool = True
) -> Iterator[HubGrid]:
    """Run a hub and our agents through nginx, each in a process of its own."""
    with serving(folder, proxy=True, names=names) as hub:
        program = [sys.executable, "-m", "tests.benchmarks.federation_site", str(hub.path)]
        commands = [[*program, name, *([] if scored else ["train"])] for name in names]
        with running(commands, environment(hub), folder / "sites.log"):
            wait_until_online(hub, names)
            with acquired_grid(hub) as grid:
                yield HubGrid(grid, hub.nodes, hub.key, valid_s=600.0)


def over_the_network(folder: Path, size: int, rounds: int, *, scored: bool) -> list[float]:
    """Our agents and our hub's run."""
    with connected_grid(folder, scored=scored) as grid:
        return round_seconds(grid, size, rounds, folder / "checkpoint")


def _supernode(hub: HubFolder, folder: Path, name: str) -> list[str]:
    key = folder / f"{name}.key"  # the site's key, in the form that a SuperNode reads
    form = (Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    key.write_bytes(load_node_key(folder / f"{name}.pem").private_bytes(*form))
    return [
        str(Path(sys.executable).with_name("flower-supernode")),
        *("--superlink", f"127.0.0.1:{hub.config.link_port}"),
        *("--root-certificates", str(folder / "ca.crt")),
        *("--auth-supernode-private-key", str(key)),
        *("--port", str(free_port())),
    ]


def stock_flower(folder: Path, size: int, rounds: int) -> list[float]:
    """Flower's SuperNodes and FedAvg, started as its documentation does."""
    with serving(folder, proxy=False) as hub:
        env = environment(hub) | {"FLWR_HOME": str(folder / "flower-sites")}
        commands = [_supernode(hub, folder, name) for name in NAMES]
        with running(commands, env, folder / "sites.log"):
            wait_until_online(hub)
            with acquired_grid(hub) as grid:
                return stock_round_seconds(grid, weights_of(size), rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench_federation", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # Flower's deprecations; the tests hear them
    logging.getLogger("flwr").setLevel(logging.ERROR)
    section = shown([_measured(name, asked.rounds) for name in asked.sizes])
    section.show(Console(width=110))
    if asked.json:
        asked.json.write_text(json.dumps(section.document(), indent=1) + "\n")


def _measured(name: str, rounds: int) -> dict[str, Any]:
    size = SIZES[name]
    rounds = rounds if size < LARGE else 2
    with tempfile.TemporaryDirectory(prefix="bench-federation-") as folder:
        home = Path(folder)
        ours = median(over_the_network(home / "ours", size, rounds, scored=True))
        trained = median(over_the_network(home / "trained", size, rounds, scored=False))
        theirs = median(stock_flower(home / "stock", size, rounds))
        bare = median(in_process(size, rounds))
    return {
        "parameters": name,
        "in_process_s": bare,
        "network_s": ours,
        "training_s": trained,
        "stock_s": theirs,
    }


def shown(rows: list[dict[str, Any]]) -> Section:
    """Return the table of what was measured."""
    ratios = [row["stock_s"] / row["training_s"] for row in rows]
    smallest = rows[0]
    met = "MET" if smallest["network_s"] <= MOST_OVERHEAD_S else "MISSED"
    faster = "MET" if min(ratios) >= LEAST_RATIO else "MISSED"
    return Section(
        "Seconds a round, two sites that answer at once",
        (
            "parameters",
            "in one process",
            "over the network",
            "training alone",
            "stock Flower",
            "stock / training alone",
        ),
        tuple(rows),
        tuple(
            (
                row["parameters"],
                *(f"{row[way]:.2f}" for way in WAYS),
                f"{ratio:.1f}",
            )
            for row, ratio in zip(rows, ratios, strict=True)
        ),
        (
            "Medians over rounds, ticks set to zero. In one process, over the network: with scores "
            "in each round; training alone: over the network without them, like stock Flower.",
            f"{smallest['parameters']} over the network: {smallest['network_s']:.2f} s (aim "
            f"{MOST_OVERHEAD_S:g}): {met}",
            f"stock / ours, least: {min(ratios):.1f} (aim {LEAST_RATIO:g}): {faster}",
        ),
    )


if __name__ == "__main__":
    main()
