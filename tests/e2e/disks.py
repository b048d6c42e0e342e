"""A disk of a few MiB that a test can fill: a real file system, mounted where the data lie."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """A small file system.

    Attributes:
        why_not: Why this machine does not let us have one; then nothing of it can be full.
    """

    folder: Path
    why_not: str = ""

    @contextmanager
    def full(self, *, but_bytes: int = 0) -> Iterator[None]:
        """Leave no more room than this; afterwards there is room again."""
        if self.why_not:
            pytest.skip(self.why_not)
        filler = self.folder / ".filler"
        with filler.open("wb", buffering=0) as file:
            size = shutil.disk_usage(self.folder).free - but_bytes
            with suppress(OSError):
                file.write(bytes(max(0, size)))
                while not but_bytes:
                    file.write(bytes(4096))
        try:
            yield
        finally:
            filler.unlink()


@contextmanager
def disk(folder: Path, size_mib: int) -> Iterator[Disk]:
    """Mount one over a folder, with what is in it."""
    aside = folder.with_name(f"{folder.name}.aside")
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(aside)
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        folder.rmdir()
        aside.rename(folder)
        yield Disk(folder, f"nothing can be mounted here: {done.stderr.strip()}")
        return
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        shutil.rmtree(aside)
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
