"""Files that are either the old one or the new one, also after a power cut."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from federation.errors import FederationError


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write ``data`` so that a reader, or a crash, sees all of it or none of it."""
    write_atomically_by(path, lambda file: file.write(data), mode=mode)


def write_where_asked(path: Path, data: bytes, what: str = "", *, mode: int = 0o644) -> None:
    """Write a file whose place somebody typed.

    Args:
        what: What it is, for the error, as in ``"The report"``.

    Raises:
        FederationError: It cannot be written there.
    """
    try:
        write_atomically(path, data, mode=mode)
    except OSError as error:
        named = f"{what} {path}".strip()
        raise FederationError(
            f"{named} cannot be written ({error.strerror}). Give a file in a folder that exists."
        ) from error


def write_atomically_by(
    path: Path, write: Callable[[BinaryIO], object], *, mode: int = 0o600
) -> None:
    """Do the same for what ``write`` writes, which need not be in memory at once."""
    with _written(path, write, mode) as temporary:
        temporary.replace(path)
    sync_folder(path.parent)


def create_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Do the same for a file that must not be there yet.

    Raises:
        FileExistsError: It is, and stays as it was.
    """
    with _written(path, lambda file: file.write(data), mode) as temporary:
        os.link(temporary, path)  # unlike a rename, this refuses to replace a file
    sync_folder(path.parent)


@contextmanager
def _written(path: Path, write: Callable[[BinaryIO], object], mode: int) -> Iterator[Path]:
    """Give a durable file beside ``path``; whatever is left of it is removed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def append_durably(path: Path, line: bytes) -> None:
    """Add one line at the end of a file of its owner's; it is on the disk when this returns.

    A last line without its end, which a crash has left, was never acknowledged, and is cut off.

    Raises:
        OSError: The disk does not take it; nothing of the line stays in the file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        end = _end_of_lines(descriptor)
        os.ftruncate(descriptor, end)
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _end_of_lines(descriptor: int) -> int:
    """Return where the last whole line of a file ends."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 65_536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in ``folder`` durable (POSIX asks for this separately)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(path: Path) -> Path:
    """Create ``path`` readable by its owner only, and return it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path
