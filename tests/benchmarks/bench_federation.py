"""`python -m tests.benchmarks.bench_federation`: what a round costs besides the training in it.

Two sites answer at once with an update of the model's size, so that all the time is the
platform's. Three ways in one run: in this process; over the network as it is used (SuperLink,
nginx, mutual TLS, signed requests, checked and folded replies, checkpoints; ticks set to zero for
the measurement); and stock Flower: its SuperNodes, its FedAvg, over the same SuperLink and TLS.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from rich.console import Console

from federation.certificates import new_key, public_text
from federation.flower.client_app import client_app
from federation.flower.fleet import load_node_key
from federation.flower.grid import LocalGrid
from federation.flower.hub import HubProcesses
from federation.flower.hub_grid import HubGrid
from federation.flower.server_app import run_rounds
from federation.flower.superlink import Control, environment
from federation.hub_folder import HubFolder, init_hub
from tests.benchmarks.federation_apps import STOCK_APP, acquired_grid
from tests.benchmarks.tables import Section
from tests.e2e.processes import free_port
from tests.federation.flower.conftest import EXPERIMENT, RUN, FakeSite

NAMES = ("site-a", "site-b")
SIZES = {"0.1 M": 100_000, "10 M": 10_000_000, "100 M": 100_000_000}
PARTS = 8


def weights_of(size: int) -> dict[str, Any]:
    """Return float32 arrays with ``size`` numbers together."""
    random = np.random.default_rng(0)
    parts = {f"layer.{i}": size // PARTS for i in range(PARTS)}
    return {name: random.standard_normal(n, dtype=np.float32) for name, n in parts.items()} | {
        "a.bias": np.zeros(2, np.float32)
    }


def round_seconds(grid: Any, size: int, rounds: int) -> list[float]:
    """Run rounds over a grid; return how long each took, in seconds."""
    times = [time.perf_counter()]
    run_rounds(
        grid,
        experiment_digest=EXPERIMENT,
        run=RUN,
        weights=weights_of(size),
        rounds=rounds,
        min_sites=len(NAMES),
        on_event=lambda _: times.append(time.perf_counter()),
        timeout_s=600.0,
    )
    return [after - before for before, after in itertools.pairwise(times)]


def in_process(size: int, rounds: int) -> list[float]:
    """The same rounds without a network: what hashing, checking and folding cost."""
    return round_seconds(LocalGrid({n: client_app(FakeSite(n)) for n in NAMES}), size, rounds)


@contextmanager
def serving(folder: Path, *, proxy: bool) -> Iterator[HubFolder]:
    """Run a hub with two admitted sites, without SuperExec: this process takes the run itself."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    hub = init_hub(folder, address=address, listen=address, link_port=free_port())
    for name in NAMES:
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


def wait_until_online(hub: HubFolder) -> None:
    """Wait until both sites are connected."""
    with Control(hub) as control:
        for _ in range(600):
            if list(control.node_states().values()).count("online") == len(NAMES):
                return
            time.sleep(0.1)
    raise SystemExit(f"Sites did not connect; see {hub.path}.")


def over_the_network(folder: Path, size: int, rounds: int) -> list[float]:
    """Our agents through nginx."""
    with serving(folder, proxy=True) as hub:
        program = [sys.executable, "-m", "tests.benchmarks.federation_site", str(hub.path)]
        with running([[*program, n] for n in NAMES], environment(hub), folder / "sites.log"):
            wait_until_online(hub)
            grid = HubGrid(acquired_grid(hub, RUN), hub.nodes, hub.key, valid_s=600.0)
            return round_seconds(grid, size, rounds)


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
            grid = acquired_grid(hub, RUN, app=STOCK_APP)
            return STOCK_APP.round_seconds(grid, weights_of(size), rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    for name in asked.sizes:
        size = SIZES[name]
        rounds = asked.rounds if size < 50_000_000 else 2
        with tempfile.TemporaryDirectory(prefix="bench-federation-") as folder:
            home = Path(folder)
            ours = median(over_the_network(home / "ours", size, rounds))
            theirs = median(stock_flower(home / "stock", size, rounds))
            bare = median(in_process(size, rounds))
        rows.append(
            {"parameters": name, "in_process_s": bare, "network_s": ours, "stock_s": theirs}
        )
    section = shown(rows)
    section.show(Console(width=110))
    if asked.json:
        asked.json.write_text(json.dumps(section.document(), indent=1) + "\n")


def shown(rows: list[dict[str, Any]]) -> Section:
    """Return the table of what was measured."""
    return Section(
        "Seconds a round, two sites that answer at once (train and evaluate; stock: train alone)",
        ("parameters", "in one process", "over the network", "stock Flower", "stock / ours"),
        tuple(rows),
        tuple(
            (
                row["parameters"],
                f"{row['in_process_s']:.2f}",
                f"{row['network_s']:.2f}",
                f"{row['stock_s']:.2f}",
                f"{row['stock_s'] / row['network_s']:.1f}",
            )
            for row in rows
        ),
    )


if __name__ == "__main__":
    main()
