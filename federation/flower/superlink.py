"""Flower's SuperLink and SuperExec: how a hub starts them, and what it asks of them on loopback."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from federation.errors import FederationError
from federation.hub_folder import HubFolder, KnownSite

# Before flwr is imported anywhere below the hub: no telemetry, no updates, nothing installed.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# The app that Flower carries: it only names the app that is installed at the hub.
_APP = {
    "pyproject.toml": b"""\
[project]
name = "cohortium-hub"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "cohortium"

[tool.flwr.app.components]
serverapp = "cohortium_hub:server_app"
clientapp = "cohortium_hub:client_app"

[tool.flwr.app.config]
hub = ""
run = ""
""",
    "cohortium_hub.py": b"""\
from federation.flower.apps import client_app, server_app
""",
}


def environment(hub: HubFolder) -> dict[str, str]:
    """Return the environment of Flower's processes: quiet, and with its files in the folder."""
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, os.environ.get("PATH", "")])
    return {**os.environ, **QUIET, "FLWR_HOME": str(hub.path / "flower"), "PATH": path}


def superlink_command(hub: HubFolder) -> list[str]:
    """Return the command of the SuperLink: loopback, TLS, registered sites only, in memory.

    In memory, since all that must last is in the hub's folder and at the sites, and since its
    SQLite gives up on models of 400 MB.
    """
    home = hub.path
    return [
        _program("flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(hub.config.link_port)),
        *("--ssl-certfile", str(home / "link.crt"), "--ssl-keyfile", str(home / "link.key")),
        *("--ssl-ca-certfile", str(home / "ca.crt")),
        *("--isolation", "process", "--superexec-auth-secret-file", str(hub.secret_path)),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]


def superexec_command(hub: HubFolder) -> list[str]:
    """Return the command of the SuperExec, which starts the hub's side of each run."""
    return [
        _program("flower-superexec"),
        *("--runtime-api-address", f"127.0.0.1:{hub.config.link_port}"),
        *("--root-certificates", str(hub.path / "ca.crt")),
        *("--superexec-auth-secret-file", str(hub.secret_path)),
    ]


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else name


class Control:
    """Asks a running SuperLink. Use it as a context manager."""

    def __init__(self, hub: HubFolder) -> None:
        self._hub = hub
        ca = (hub.path / "ca.crt").read_bytes()
        address = f"127.0.0.1:{hub.config.link_port}"
        self._client = ControlHttpClient.from_server_address(address, False, ca, [])

    def __enter__(self) -> "Control":
        """Return this."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._client.close()

    def is_up(self) -> bool:
        """Tell whether the SuperLink answers."""
        try:
            self._client.ListNodes(ListNodesRequest())
        except (httpx.HTTPError, OSError):
            return False
        return True

    def wait_until_up(self, process: subprocess.Popen[bytes], timeout_s: float = 60.0) -> None:
        """Wait for a SuperLink that was started.

        Raises:
            FederationError: It ended, or did not answer in time.
        """
        end = time.monotonic() + timeout_s
        while not self.is_up():
            if process.poll() is not None or time.monotonic() > end:
                raise FederationError(
                    f"Flower's SuperLink does not start; {self._hub.path / 'superlink.log'} says "
                    f"why. Is port {self._hub.config.link_port} in use?"
                )
            time.sleep(0.2)

    def register(self, sites: Iterable[KnownSite]) -> dict[int, str]:
        """Admit sites; return their node ids."""
        nodes = {}
        for site in sites:
            key = load_pem_public_key(site.public_key.encode())
            request = RegisterNodeRequest(public_key=public_key_to_bytes(key), name=site.name)  # type: ignore[arg-type]
            nodes[self._client.RegisterNode(request).node_id] = site.name
        return nodes

    def unregister(self, node_id: int) -> None:
        """Admit a site no longer."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def node_states(self) -> dict[int, str]:
        """Return what Flower says of each node, by id: online, offline, registered."""
        found = self._client.ListNodes(ListNodesRequest())
        return {node.node_id: node.status for node in found.nodes_info}

    def start_run(self, run: str) -> int:
        """Let the SuperExec start the hub's side of a run; return Flower's id."""
        fab = build_fab_from_files(_APP)[0]
        request = StartRunRequest(
            fab=Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab), federation=""
        )
        config: Mapping[str, str] = {"hub": str(self._hub.path / "hub.yaml"), "run": run}
        for name, value in user_config_to_proto(dict(config)).items():
            request.override_config[name].CopyFrom(value)
        return int(self._client.StartRun(request).run_id)

    def stop_run(self, flower_run: int) -> None:
        """Stop a run at once."""
        self._client.StopRun(StopRunRequest(run_id=flower_run))

    def run_state(self, flower_run: int) -> tuple[str, str]:
        """Return Flower's status of a run and its sub-status; empty if it knows none."""
        try:
            found = self._client.ListRuns(ListRunsRequest(run_id=flower_run)).run_dict
        except httpx.HTTPStatusError:
            return "", ""
        if flower_run not in found:
            return "", ""
        status = found[flower_run].status
        return status.status, status.sub_status
