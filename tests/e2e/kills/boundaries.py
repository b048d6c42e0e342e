"""Every call of a process that makes something durable or visible, counted; it can die at one."""

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Point(NamedTuple):
    """Where to die: ``before`` the n-th call, ``half`` through its bytes, or ``after`` it."""

    number: int
    way: str


class Boundaries:
    """Counts the calls from ``install`` on.

    Args:
        announce: Told the number of each call before it is made.

    Attributes:
        names: What was called on which file, in order.
    """

    def __init__(self, point: Point | None = None, announce: Callable[[int], None] | None = None):
        self._point, self._announce = point, announce
        self.names: list[str] = []
        # As they are, uncounted.
        self.write, self.fdopen = os.write, os.fdopen

    def around(self, name: str, call: Callable[[], Any], half: Callable[[], Any] | None = None):
        """Make one call, or die there."""
        number = len(self.names)
        self.names.append(name)
        if self._announce is not None:
            self._announce(number)
        way = self._point.way if self._point and self._point.number == number else None
        if way == "half" and half is not None:
            half()
        if way == "before" or way == "half":
            die()
        result = call()
        if way == "after":
            die()
        return result

    def install(self) -> None:
        """Count what this process does from here on."""
        for name in ("fsync", "ftruncate"):
            self._wrap(name, lambda descriptor, *_: _opened(descriptor))
        for name in ("replace", "rename", "link"):
            self._wrap(name, lambda _source, target, **_named: target)
        for name in ("unlink", "remove", "mkdir"):
            self._wrap(name, lambda path, *_, **_named: path)
        self._wrap_open()
        self._wrap_write()
        os.fdopen = self._fdopen

    def _wrap(self, name: str, place: Callable[..., object]) -> None:
        real = getattr(os, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            call = f"{name} {_kind(place(*arguments, **named))}"
            return self.around(call, lambda: real(*arguments, **named))

        setattr(os, name, counted)

    def _wrap_open(self) -> None:
        real = os.open

        def counted(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            def call() -> int:
                return real(path, flags, *arguments, **named)

            return self.around(f"create {_kind(path)}", call) if flags & os.O_CREAT else call()

        os.open = counted

    def _wrap_write(self) -> None:
        real = self.write

        def counted(descriptor: int, data: bytes) -> int:
            return self.around(
                f"write {_kind(_opened(descriptor))}",
                lambda: real(descriptor, data),
                lambda: real(descriptor, data[: len(data) // 2]),
            )

        os.write = counted

    def _fdopen(self, descriptor: int, mode: str = "r", **named: Any) -> Any:
        if mode != "wb":
            return self.fdopen(descriptor, mode, **named)
        return _Counted(io.FileIO(descriptor, "wb"), self)


class _Counted(io.BufferedWriter):
    """A file whose every write is one call."""

    def __init__(self, raw: io.FileIO, boundaries: Boundaries) -> None:
        super().__init__(raw)
        self._boundaries = boundaries

    def write(self, data: Any) -> int:
        def put(part: Any) -> int:
            count = super(_Counted, self).write(part)
            self.flush()
            return count

        name = f"write {_kind(_opened(self.fileno()))}"
        half = data[: len(data) // 2]
        written: int = self._boundaries.around(name, lambda: put(data), lambda: put(half))
        return written


def die() -> None:
    """Die as by a power cut: no handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def _opened(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _kind(path: object) -> str:
    """Return which of the site's files this is; names of temporary files begin with a dot."""
    text = str(path)
    for name, kind in (
        ("/vault", "mark"),
        # The hub's, see ``hub.py``.
        ("checkpoint.json", "checkpoint"),
        (".safetensors", "arrays"),
        ("/hub/spool", "spooled"),
        ("ledger.jsonl", "ledger"),
        (".receipt.json", "receipt"),
        (".update", "update"),
        ("/outbox", "outbox"),
        ("/audits", "self-audit"),
        ("site.log", "log"),
    ):
        if name in text:
            return kind
    return "state folder" if text.endswith("/state") else Path(text).name
