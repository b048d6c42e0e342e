"""Each measurement in a fresh process whose packages are imported but have not done anything yet.

A fork server imports once and forks for each measurement: no measurement inherits another one's
caches, threads or event loop, and none pays for imports.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# tensorstore is not among them: it starts threads at its import, and aborts after a fork.
PRELOADED = [
    "torch",
    "zarr",
    "monai.data",
    "monai.transforms",
    "psutil",
    "pydicom.pixels",
    "highdicom.spatial",
    "ome_zarr_models.v05.image",
    "data_adapters.ingest",
    "data_adapters.monai_readers",
    "data_adapters.ome_zarr",
]


class MeasurementError(RuntimeError):
    """A measurement failed; its traceback is in the text."""


def prepare() -> None:
    """Name what the fork server imports; before the first measurement."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Return what a module-level function returns when a fresh process calls it.

    Raises:
        MeasurementError: It raised, or its process died.
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    # Not a daemon: some peers start workers of their own.
    process = context.Process(target=_report, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        ok, result = receiver.recv()
    except EOFError:
        process.join()
        raise MeasurementError(f"{function.__name__} died with {process.exitcode}") from None
    process.join()
    if not ok:
        raise MeasurementError(result)
    return result


def _report(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send((True, function(*arguments)))
    except BaseException:
        sender.send((False, traceback.format_exc()))


def files_in(*paths: Path) -> list[Path]:
    """Return every file in some folders, and those that are files themselves."""
    return [
        file
        for path in paths
        for file in ([path] if path.is_file() else sorted(path.rglob("*")))
        if file.is_file()
    ]


def evict(*paths: Path) -> None:
    """Drop files from the page cache (Linux; needs no rights). They must have been synced."""
    for file in files_in(*paths):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def warm(*paths: Path) -> None:
    """Read files, so that they are in the page cache."""
    for file in files_in(*paths):
        with file.open("rb") as opened:
            while opened.read(2**22):
                pass


def stays_in_memory(path: Path) -> bool:
    """Say whether the file system keeps pages that are evicted, as tmpfs does."""
    os.sync()
    warm(path)
    evict(path)
    before = _bytes_from_disk()
    warm(path)
    return _bytes_from_disk() - before < path.stat().st_size // 2


def _bytes_from_disk() -> int:
    """Linux, proc_pid_io(5): bytes that this process really caused to be fetched from storage."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0
