"""A cable between a site and its hub that a test can cut and mend: TCP below TLS."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_CHUNK = 4096


@dataclass
class Link:
    """Forwards every connection to a port on this machine.

    Attributes:
        up, down: Bytes that went to the hub, and to the site, since ``arm``.
        num_cuts: How often it was cut.
    """

    to_port: int
    up: int = 0
    down: int = 0
    num_cuts: int = 0
    _limits: dict[str, int] = field(default_factory=dict)
    _is_cut: bool = False
    _open: set[socket.socket] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut_after(self, **limits: int) -> None:
        """Cut once so many bytes went ``up`` or ``down``, counted from now."""
        self.up = self.down = 0
        self._limits = limits

    def cut(self) -> None:
        """End all connections, in the middle of whatever they carry, and take no more."""
        with self._lock:
            self._is_cut, self._limits = True, {}
            self.num_cuts += 1
            ended, self._open = self._open, set()
        for one in ended:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def mend(self) -> None:
        """Take connections again."""
        self._is_cut, self._limits = False, {}

    def close(self) -> None:
        """End it."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                here.close()
                continue
            try:
                there = socket.create_connection(("127.0.0.1", self.to_port), timeout=10)
            except OSError:
                here.close()
                continue
            there.settimeout(None)
            with self._lock:
                self._open |= {here, there}
            for way in (("up", here, there), ("down", there, here)):
                threading.Thread(target=self._carry, args=way, daemon=True).start()

    def _carry(self, way: str, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                target.sendall(data)
                setattr(self, way, getattr(self, way) + len(data))
                if getattr(self, way) >= self._limits.get(way, 1 << 62):
                    self.cut()
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def linked(to_port: int) -> Iterator[Link]:
    """Give a link and end it."""
    link = Link(to_port)
    try:
        yield link
    finally:
        link.close()
