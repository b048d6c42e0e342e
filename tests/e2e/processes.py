"""A hub and its sites as people run them: separate processes, TLS, keys, nginx in between."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from federation.agent_state import AgentFolder
from federation.certificates import new_key, public_text
from federation.files import private_folder
from federation.flower.superlink import Control
from federation.hub_folder import HubFolder, init_hub
from federation.ledger.keys import SiteKey
from federation.site_config import load_site_config
from tests.e2e.moments import Moment, environment

GUARD = Path(__file__).parent / "guard"
COHORTIUM = str(Path(sys.executable).with_name("cohortium"))


def nginx_is_missing() -> bool:
    return shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None


# Marks of a module whose tests need the whole network.
OVER_THE_NETWORK = [
    pytest.mark.slow,
    pytest.mark.skipif(nginx_is_missing(), reason="nginx is not installed (Debian: nginx-light)"),
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Federation:
    """Folders and processes. ``attempts`` has what tried to leave this machine."""

    folder: Path
    hub: HubFolder
    site_files: dict[str, Path]
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    more_environment: dict[str, str] = field(default_factory=dict)
    namespaces: dict[str, str] = field(default_factory=dict)

    @property
    def moment(self) -> Moment:
        return Moment(self.folder / "moment")

    @property
    def second_moment(self) -> Moment:
        return Moment(self.folder / "second-moment")

    @property
    def attempts(self) -> Path:
        return self.folder / "attempts.log"

    @property
    def hub_file(self) -> Path:
        return self.hub.path / "hub.yaml"

    def environment(self):
        return {
            **os.environ,
            "PYTHONPATH": str(GUARD),
            "COHORTIUM_TEST_ATTEMPTS": str(self.attempts),
            "OMP_NUM_THREADS": "1",
            **environment(self.moment, self.second_moment),
            **self.more_environment,
        }

    def command(self, where, *arguments):
        """Return a command line, in the network namespace of a party if it has one."""
        inside = self.namespaces.get(where)
        prefix = ["ip", "netns", "exec", inside] if inside else []
        return [*prefix, *map(str, arguments)]

    def cohortium(self, *arguments, timeout=300, where="hub"):
        """Run a command to its end."""
        command = self.command(where, COHORTIUM, *arguments)
        return subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=timeout
        )

    def start(self, name, *arguments):
        command = self.command(name, COHORTIUM, *arguments)
        if name in self.processes:
            self.processes.pop(name).wait(30)  # it died by itself
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )
        return self.processes[name]

    def start_hub(self):
        log = self.folder / "hub.log"
        before = log.read_text().count("serving sites") if log.exists() else 0
        self.start("hub", "hub", "start", self.hub_file)
        self.until(lambda: log.read_text().count("serving sites") > before, "hub")

    @contextmanager
    def serving(self):
        """Let the hub serve with every site connected, and end what runs afterwards."""
        try:
            self.start_hub()
            for name in self.site_files:
                self.start_site(name)
            self.until_connected(*self.site_files)
            yield self
        finally:
            self.end()

    def start_site(self, name):
        self.start(name, "site", "start", self.site_files[name])

    def until_connected(self, *names):
        def connected():
            shown = self.cohortium("hub", "status", self.hub_file, "--json")
            return set(names) <= {
                n for n, s in json.loads(shown.stdout)["sites"].items() if s == "online"
            }

        if self.namespaces:
            self.until(connected, "connections")
            return
        with Control(self.hub) as control:
            self.until(lambda: set(names) <= self._online(control), "connections")

    def _online(self, control):
        states, known = control.node_states(), self.hub.nodes
        return {name for i, name in known.items() if states.get(i) == "online"}

    def until(self, condition, what, timeout=240):
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {timeout} s\n{self.logs()}")
            time.sleep(0.1)

    def logs(self):
        return "\n".join(f"== {p.name}\n{p.read_text()[-1500:]}" for p in self.folder.glob("*.log"))

    def kill(self, name, how=signal.SIGKILL):
        """End a process and what it has started."""
        process = self.processes.pop(name)
        for pid in [process.pid, *_children(process.pid)]:
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                continue
        process.wait(30)

    def end(self):
        for name in list(self.processes):
            self.kill(name, signal.SIGKILL)


def _children(pid):
    """Return the ids of all processes below one, whatever session they are in, parents first.

    An nginx whose worker is killed before it has a new one, which would keep the port.
    """
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                below = [int(one) for one in task.read_text().split()]
            except OSError:
                continue
            found += below
            todo += below
    return found


def make_federation(folder: Path, site_files: list[Path], *, host: str = "127.0.0.1") -> Federation:
    """Make a hub in ``folder`` and admit these sites, as their operators would."""
    address = f"{host}:{free_port()}"
    hub = init_hub(folder / "hub", address=address, listen=address, link_port=free_port())
    files = {}
    for path in site_files:
        config = load_site_config(path)
        join(hub, path, config)
        files[config.site] = path
    return Federation(folder, hub, files)


def join(hub, site_file, config):
    from cryptography.hazmat.primitives.asymmetric import ec

    private_folder(config.state)
    key = new_key(AgentFolder(config.state).key_path, ec.SECP384R1())
    public = site_file.with_name("node.pub")
    public.write_text(public_text(key.public_key()))
    certificate = hub.add_site(config.site, public)
    name_hub(site_file, hub, certificate)


def name_hub(site_file, hub, certificate, key: SiteKey | None = None, *, address=None):
    values = yaml.safe_load(site_file.read_text())
    values["hub"] = {
        "address": address or hub.config.address,
        "key": (key or hub.key).public_bytes.hex(),
        "ca": str(hub.path / "ca.crt"),
        "certificate": str(certificate),
        "tick_s": 0,
    }
    site_file.write_text(yaml.safe_dump(values, sort_keys=False))
