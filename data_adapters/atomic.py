"""Files that are there whole or not at all. (The adapters import nothing of the federation.)"""

import os
import secrets
from pathlib import Path

LEFTOVER = ".unfinished-"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path``, readable by its owner only; a crash leaves the old file or the new one."""
    temporary = path.with_name(f"{LEFTOVER}{secrets.token_hex(6)}.{path.name}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def clear_unfinished(folder: Path) -> None:
    """Delete what killed writers left in ``folder``; nobody else may be writing there now."""
    for leftover in folder.glob(f"{LEFTOVER}*"):
        leftover.unlink()


def sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` durable (POSIX asks for this separately)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
