"""Runs that the benchmark takes itself, in place of a SuperExec; and the stock app beside ours."""

import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from federation.hub_folder import HubFolder

PROJECT = b"""\
[project]
name = "bench"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "bench_app:server_app"
clientapp = "bench_app:client_app"
"""
# What a stock tutorial's app does, with an update that is there at once.
STOCK = b"""\
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server_app, client_app = ServerApp(), ClientApp()

@client_app.train()
def train(message, context):
    content = {
        "arrays": message.content["arrays"],
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(RecordDict(content), reply_to=message)
"""
TASK = "flwr-serverapp"


def stock_round_seconds(grid: Grid, weights: dict[str, Any], rounds: int) -> list[float]:
    """Run Flower's FedAvg; return how long each round took, in seconds."""
    times: list[float] = []

    class Timed(FedAvg):
        def configure_train(self, *arguments: Any, **more: Any) -> Any:
            times.append(time.perf_counter())
            return super().configure_train(*arguments, **more)

    strategy = Timed(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2
    )
    arrays = ArrayRecord(list(weights.values()))
    strategy.start(grid, arrays, num_rounds=rounds, timeout=600.0, train_config=ConfigRecord())
    times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]


@contextmanager
def acquired_grid(hub: HubFolder) -> Iterator[Grid]:
    """Start a run at the SuperLink, take its task as a SuperExec would, and give its grid.

    Like ``flwr-serverapp`` it sends heartbeats: after half a minute without one the run is over.
    """
    address, ca = f"127.0.0.1:{hub.config.link_port}", (hub.path / "ca.crt").read_bytes()
    fab = build_fab_from_files({"pyproject.toml": PROJECT, "bench_app.py": STOCK})[0]
    with ControlHttpClient.from_server_address(address, False, ca, []) as control:
        carried = Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab)
        control.StartRun(StartRunRequest(fab=carried, federation=""))
    secret = hub.secret_path.read_bytes()
    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperExec"),
        SuperExecAuthHttpInterceptor(
            master_secret=secret,
            protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"}),
        ),
    ]
    with RuntimeHttpClient.from_server_address(address, False, ca, interceptors) as runtime:
        taken = runtime.AcquireTask(AcquireTaskRequest(supported_task_types=[TASK]))
    grid = HttpGrid(address, False, ca, token=taken.token)
    given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id = given.task_id
    TaskIdentity.run_id = given.run.run_id
    TaskIdentity.node_id = given.context.node_id
    grid.set_run(run_from_proto(given.run))
    heart = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    heart.start()
    try:
        yield grid
    finally:
        heart.stop()
