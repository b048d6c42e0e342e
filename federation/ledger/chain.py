"""The file itself: append one line, durable before the call returns; never rewrite one."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from federation.errors import LedgerError
from federation.files import create_atomically
from federation.ledger.records import MAX_LINE_BYTES


def create_file(path: Path, first_line: bytes) -> None:
    """Make the file with its first line, whole or not at all.

    Raises:
        LedgerError: The file exists. FileNotFoundError: Its folder does not.
    """
    try:
        create_atomically(path, first_line)
    except FileExistsError as error:
        raise LedgerError(
            f"{path} exists already. A ledger is never reset: open it, and if it is damaged "
            "restore it from backup."
        ) from error


class ChainFile:
    """An open ledger file. Several processes and threads may hold one; they take turns."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise LedgerError(
                f"There is no ledger {path} that can be read and written ({error.strerror}). "
                "Restore it from backup; a new one would forget what was spent."
            ) from error
        self.path = path
        self._read_to = 0
        self._process = os.getpid()
        self._threads = threading.RLock()
        self._depth = 0

    def close(self) -> None:
        """Close the file. The ledger cannot be used afterwards."""
        os.close(self._descriptor)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads and processes out; what they wrote before can now be read."""
        with self._threads:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self._depth += 1
            try:
                self._require_same_file()
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:  # flock does not count how often it was taken
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def new_lines(self) -> Iterator[bytes]:
        """Yield the complete lines that were not read yet, and cut a torn last line off.

        A line without its newline was never acknowledged (``append`` had not returned), so
        nothing can have been released on the strength of it. Call under ``locked``.
        """
        size = os.fstat(self._descriptor).st_size
        if size < self._read_to:
            raise LedgerError(f"{self.path} became shorter while open. Restore it from backup.")
        if size == self._read_to:
            return
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(self._read_to)
            while line := file.readline(MAX_LINE_BYTES + 1):
                if not line.endswith(b"\n"):
                    break
                yield line[:-1]
                self._read_to += len(line)  # only now: an interrupted reader reads it again
        if len(line) > MAX_LINE_BYTES:
            raise LedgerError(f"{self.path} has a line too long to be a record. Restore a backup.")
        if line:
            self._cut()

    def rewind(self) -> None:
        """Let ``new_lines`` give every line again."""
        self._read_to = 0

    def append(self, line: bytes) -> None:
        """Write ``line`` at the end and wait until it is on the disk. Call under ``locked``.

        Every complete line must have been read. Who appends knows this one: ``new_lines`` does
        not give it.

        Raises:
            LedgerError: The disk is full or failing; the file is as it was.
        """
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"a record is at most {MAX_LINE_BYTES} bytes long")
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError("only a part was written")
            os.fsync(self._descriptor)
        except OSError as error:
            self._cut()
            raise LedgerError(
                f"{self.path} could not be written ({error}). Nothing was charged or released. "
                "Free or repair the disk, then repeat."
            ) from error
        self._read_to += len(line)

    def _cut(self) -> None:
        os.ftruncate(self._descriptor, self._read_to)
        os.fsync(self._descriptor)

    def _require_same_file(self) -> None:
        """Refuse to write into a file that was replaced or deleted: the charge would be lost."""
        if os.getpid() != self._process:  # a forked child would share this process's lock
            raise LedgerError(f"{self.path} was opened before a fork. Open it again in the child.")
        try:
            same = os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            same = False
        if not same:
            raise LedgerError(
                f"{self.path} was deleted or replaced while open. Stop the site and restore the "
                "newest copy: an older one would forget what was spent."
            )
