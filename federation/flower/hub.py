"""A hub's processes: SuperLink and SuperExec on loopback, the proxy before them, kept running."""

import fcntl
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from federation.errors import FederationError
from federation.flower.superlink import (
    Control,
    environment,
    superexec_command,
    superlink_command,
)
from federation.hub_folder import NGINX_FILE, HubFolder
from federation.hub_runs import all_runs

# So many restarts of one process in so many seconds are no accident.
MAX_RESTARTS, WITHIN_S = 5, 60.0
_GRACE_S = 5.0
Told = Callable[[str], None]


@dataclass
class _Process:
    """One program, with its output in the hub's folder, in a session of its own."""

    name: str
    command: list[str]
    env: dict[str, str]
    folder: Path

    def __post_init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._started: deque[float] = deque(maxlen=MAX_RESTARTS)

    def start(self) -> subprocess.Popen[bytes]:
        """Start it (again).

        Raises:
            FederationError: It ends again and again.
        """
        now = monotonic()
        if len(self._started) == MAX_RESTARTS and now - self._started[0] < WITHIN_S:
            raise FederationError(
                f"{self.name} ended {MAX_RESTARTS} times within {WITHIN_S:.0f} s; "
                f"{self.folder / self.name}.log says why."
            )
        self._started.append(now)
        descriptor = os.open(
            self.folder / f"{self.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        with os.fdopen(descriptor, "ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - a program of this installation
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    @property
    def ended(self) -> bool:
        """Tell whether it was started and runs no more."""
        return self.process is not None and self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def stop(self) -> None:
        """End it and what it has started: politely, then not."""
        if self.process is None:
            return
        for how, patience in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, how)
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class HubProcesses:
    """Starts a hub's processes and starts again what dies.

    Args:
        proxy: Whether to run nginx, too; without, a proxy of your own uses the configuration.
        executor: Whether to run SuperExec, too; without, somebody else carries runs out.
        told: Called with a few words whenever something changes.
    """

    def __init__(
        self,
        hub: HubFolder,
        *,
        proxy: bool = True,
        executor: bool = True,
        told: Told = lambda _: None,
    ) -> None:
        self._hub = hub
        self._told = told
        env = environment(hub)
        self._link = _Process("superlink", superlink_command(hub), env, hub.path)
        runs_runs = _Process("superexec", superexec_command(hub), env, hub.path)
        self._exec = runs_runs if executor else None
        self._proxy = _Process("nginx", _nginx(hub), env, hub.path) if proxy else None
        self._proxy_file = hub.path / NGINX_FILE
        self._proxied = b""

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop`` is set.

        Raises:
            FederationError: Another process serves this hub, a program is missing, or one of them
                ends again and again.
        """
        with _held(self._hub.path):
            try:
                self._start_all()
                while not stop.wait(0.5):
                    self._restart_what_ended()
            finally:
                self._stop_all()

    def _start_all(self) -> None:
        self._start_link()
        self._start_proxy()
        self._told(f"serving sites at {self._hub.config.address}")

    def _start_link(self) -> None:
        _note_interrupted(self._hub)
        process = self._link.start()
        with Control(self._hub) as control:
            control.wait_until_up(process)
            self._hub.write_nodes(control.register(self._hub.sites.values()))
        if self._exec is not None:
            self._exec.start()

    def _restart_what_ended(self) -> None:
        if self._link.ended:
            self._told("SuperLink ended; it is started again")
            if self._exec is not None:
                self._exec.stop()  # what it ran cannot go on: its runs are resumed by hand
            self._start_link()
        if self._exec is not None and self._exec.ended:
            self._told("SuperExec ended; it is started again")
            self._exec.start()
        if self._proxy is not None and self._proxy.ended:
            self._told("the proxy ended; it is started again")
            self._start_proxy()
        self._reload_proxy()

    def _start_proxy(self) -> None:
        if self._proxy is not None:
            self._proxied = self._proxy_file.read_bytes()
            self._proxy.start()

    def _reload_proxy(self) -> None:
        """Let nginx read its file again once it has changed: connections that are open end."""
        if self._proxy is None or self._proxied == (now := self._proxy_file.read_bytes()):
            return
        self._proxied = now
        self._proxy.signal(signal.SIGHUP)
        self._told("the proxy reads anew which certificates are admitted")

    def _stop_all(self) -> None:
        for process in (self._proxy, self._exec, self._link):
            if process is not None:
                process.stop()


def _nginx(hub: HubFolder) -> list[str]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise FederationError(
            "nginx is not installed, and sites reach a hub through it alone. Install it (Debian: "
            f"apt install nginx-light), or run a proxy of your own as {hub.path}/nginx.conf shows "
            "and start the hub with --no-proxy."
        )
    return [program, "-p", str(hub.path / "proxy"), "-c", str(hub.write_proxy()), "-e", "stderr"]


def _note_interrupted(hub: HubFolder) -> None:
    """Runs of a SuperLink that is no more do not run, whatever their status says.

    Nor do those that were submitted to it and had not begun.
    """
    for run in all_runs(hub):
        if run.status.state in ("running", "submitted"):
            run.note(state="stopped", why="the hub was restarted; resume the run", flower_run=0)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Let one process at a time serve a hub."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FederationError(f"Another process serves the hub in {folder}.") from error
        yield
    finally:
        os.close(descriptor)
