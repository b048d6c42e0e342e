"""A recorder of the wire, in a process of its own: what has come to it has left the site.

It knows nothing of the site. It takes one connection after the other and appends every byte to a
file, so that what a killed sender had handed to the kernel is kept, and nothing else is.
``python -m tests.e2e.kills.recorder SOCKET FILE`` runs until its standard input ends.
"""

import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
_PATIENCE_S = 30


class Recorder:
    """A recorder that this process has started, and ends with it.

    Args:
        record: File that it appends to.

    Attributes:
        address: Of its socket; here and not in ``record``'s folder, since these are short.
    """

    def __init__(self, record: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="wire-"))
        self.address = self._folder / "socket"
        command = [sys.executable, "-m", "tests.e2e.kills.recorder", self.address, record]
        self._process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the recorder did not start"

    def drain(self) -> None:
        """Return once everything is written that was sent on connections before this one."""
        with connected(self.address) as last:
            last.settimeout(_PATIENCE_S)
            last.shutdown(socket.SHUT_WR)
            assert last.recv(1) == b""

    def stop(self) -> None:
        """End it."""
        self._process.communicate(timeout=_PATIENCE_S)
        shutil.rmtree(self._folder)


def connected(address: Path) -> socket.socket:
    """Return a connection to a recorder."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(address))
    return connection


def record(address: str, path: str) -> None:
    """Append what comes, connection by connection, until standard input ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(address)
        server.listen()
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        waiting = selectors.DefaultSelector()
        waiting.register(server, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)
        while all(key.fileobj is server for key, _ in waiting.select()):
            connection, _ = server.accept()
            with connection, Path(path).open("ab", buffering=0) as file:
                while some := connection.recv(2**16):
                    file.write(some)
                os.fsync(file.fileno())


if __name__ == "__main__":
    record(*sys.argv[1:])
