"""Open everything: containers in containers, texts in texts, folders with names and links."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.leaks.formats import formats, is_sqlite, sqlite_contents, zarr_contents
from tests.leaks.streams import TooLargeError, streams
from tests.leaks.text import texts

Piece = tuple[str, bytes]


@dataclass(frozen=True)
class Bounds:
    """How far to go.

    Args:
        depth: Containers within containers.
        content_bytes: The most that one container may hold when opened.
    """

    depth: int = 8
    content_bytes: int = 1 << 29


def opened_bytes(
    data: bytes, where: str, bounds: Bounds, unsearched: list[str], depth: int = 0
) -> Iterator[Piece]:
    """Yield ``data`` and, recursively, all that is packed in it, each with the way there.

    Args:
        unsearched: Gets a line for each container that the bounds left closed.
    """
    yield where, data
    seen = {data}
    try:
        for name, content in _contents(data, bounds.content_bytes):
            if content in seen:
                continue
            seen.add(content)
            inner = f"{where} > {name}"
            if depth == bounds.depth:
                unsearched.append(f"{inner}: deeper than {bounds.depth} containers")
                return
            yield from opened_bytes(content, inner, bounds, unsearched, depth + 1)
    except TooLargeError as error:
        unsearched.append(f"{where}: {error}")


def _contents(data: bytes, limit: int) -> Iterator[Piece]:
    yield from formats(data, limit)
    yield from streams(data, limit)
    yield from texts(data)


def opened_folder(folder: Path, bounds: Bounds, unsearched: list[str]) -> Iterator[Piece]:
    """Yield names, links' targets, extended attributes and contents of all that is in a folder.

    Links are not followed.
    """
    for path in sorted(folder.rglob("*")):
        where = os.fsencode(path.relative_to(folder)).decode("utf-8", "replace")
        for piece in _around(path, where):
            yield from opened_bytes(piece[1], piece[0], bounds, unsearched)
        if path.is_symlink():
            continue
        if path.is_dir():
            for name, content in zarr_contents(path):
                yield from opened_bytes(content, f"{where} > {name}", bounds, unsearched)
        elif path.is_file():
            yield from _file(path, where, bounds, unsearched)


def _around(path: Path, where: str) -> Iterator[Piece]:
    yield f"{where} (name)", os.fsencode(path.name)
    if path.is_symlink():
        yield f"{where} (link)", os.fsencode(path.readlink())
        return
    for name in os.listxattr(path) if hasattr(os, "listxattr") else ():
        value = os.getxattr(path, name)
        yield f"{where} (attribute)", os.fsencode(name) + b"\n" + value


def _file(path: Path, where: str, bounds: Bounds, unsearched: list[str]) -> Iterator[Piece]:
    data = path.read_bytes()
    yield from opened_bytes(data, where, bounds, unsearched)
    wal = path.with_name(path.name + "-wal")
    if is_sqlite(data) and wal.is_file() and wal.stat().st_size:
        for name, content in sqlite_contents(data, wal.read_bytes()):
            yield from opened_bytes(content, f"{where} with WAL > {name}", bounds, unsearched)
