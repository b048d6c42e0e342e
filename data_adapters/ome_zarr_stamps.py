"""What tells that files of a Zarr array changed, of the whole array or of one region of it.

Size and time of last writing stand for a file's content, as in every build tool; a region is known
by the chunk files (of sharded arrays: the shards) that it touches.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from data_adapters.reasons import Unusable
from data_adapters.zarr_places import Place, ZarrFormat

ABSENT = "absent"
GROUP_FILES = ("zarr.json", ".zattrs", ".zgroup")
ARRAY_FILES = ("zarr.json", ".zarray")
_DOCUMENTS = {*GROUP_FILES, *ARRAY_FILES}


@dataclass(frozen=True)
class ChunkFiles:
    """How an array of this machine is cut into files.

    Args:
        grain: Size of what one file holds, along each axis of the array.
        prefix: Of each name: ``c`` and the separator in Zarr v3's default encoding, else nothing.
    """

    folder: Path
    grain: tuple[int, ...]
    prefix: str
    separator: str

    def stamp(self, touched: Sequence[Iterable[int]], meaning: str) -> str:
        """Return what changes when a file changes that holds any of the given indices.

        Args:
            touched: Along each axis of the array, the indices that are read.
            meaning: Whatever else decides on what is read from these files.
        """
        digest = hashlib.sha256(meaning.encode("utf-8"))
        for name in (*ARRAY_FILES, *self.names(touched)):
            digest.update(f"\0{name}\0{_file_stamp(self.folder / name)}".encode())
        return digest.hexdigest()

    def names(self, touched: Sequence[Iterable[int]]) -> Iterator[str]:
        """Yield the names of the files that hold any of the given indices along each axis."""
        return (self._name(cell) for cell in product(*self._cells(touched)))

    def num_names(self, touched: Sequence[Iterable[int]]) -> int:
        """Return how many ``names`` yields."""
        return math.prod(len(cells) for cells in self._cells(touched))

    def _cells(self, touched: Sequence[Iterable[int]]) -> list[list[int]]:
        return [
            sorted({index // size for index in indices})
            for indices, size in zip(touched, self.grain, strict=True)
        ]

    def _name(self, cell: tuple[int, ...]) -> str:
        return self.prefix + self.separator.join(str(index) for index in cell)


def chunk_files(array: Place, zarr_format: ZarrFormat, grain: Sequence[int]) -> ChunkFiles | None:
    """Return how an array is cut into files; None where its names follow no known encoding."""
    try:
        text = array.read("zarr.json" if zarr_format == 3 else ".zarray")
        document = json.loads(text or b"{}")
        encoding = document["chunk_key_encoding"] if zarr_format == 3 else document
        prefix, separator = _v3_key(encoding) if zarr_format == 3 else _v2_key(encoding)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return ChunkFiles(array.folder, tuple(grain), prefix, separator)


def _v2_key(document: dict[str, Any]) -> tuple[str, str]:
    return "", _checked(document.get("dimension_separator", "."))


def _v3_key(encoding: dict[str, Any]) -> tuple[str, str]:
    """Zarr v3 core, chunk key encoding: ``default`` is c/0/1, ``v2`` is 0.1."""
    names = {"default": "/", "v2": "."}
    usual = names[str(encoding["name"])]
    separator = _checked(encoding.get("configuration", {}).get("separator", usual))
    return ("c" + separator if encoding["name"] == "default" else ""), separator


def _checked(separator: str) -> str:
    if separator not in {"/", "."}:
        raise ValueError("another separator")
    return separator


def _file_stamp(path: Path) -> str:
    try:
        return _stamp(path.stat())
    except OSError:
        return ABSENT


def _stamp(found: os.stat_result) -> str:
    return f"{found.st_size}:{found.st_mtime_ns}"


def tree_stamp(groups: Iterable[Place], arrays: Iterable[Place]) -> str:
    """Return what changes when a file of the given groups' metadata or arrays changes.

    Raises:
        Unusable: PATH_OUTSIDE for a link among an array's files, UNREADABLE_FILE.
    """
    digest = hashlib.sha256()
    for group in groups:
        for name in GROUP_FILES:
            digest.update(f"{group.below}/{name}\0{_file_stamp(group.folder / name)}\0".encode())
    try:
        for array in arrays:
            for path, found in _files(array.folder):
                digest.update(f"{array.below}/{path}\0{_stamp(found)}\0".encode())
    except OSError:
        raise Unusable("UNREADABLE_FILE") from None
    return digest.hexdigest()


def holds_bytes(array: Place, num_bytes: int) -> bool:
    """Say whether an array's chunks are together so large; no more files are looked at.

    Raises:
        Unusable: PATH_OUTSIDE for a link among the files, UNREADABLE_FILE.
    """
    left = num_bytes
    try:
        for path, found in _files(array.folder):
            left -= found.st_size if path not in _DOCUMENTS else 0
            if left <= 0:
                return True
    except OSError:
        raise Unusable("UNREADABLE_FILE") from None
    return False


def _files(folder: Path, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and status of each file, in an order that depends on the names alone."""
    with os.scandir(folder / below) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path = f"{below}{entry.name}"
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield from _files(folder, f"{path}/")
        elif stat.S_ISREG(status.st_mode):
            yield path, status
        else:  # a link may lead anywhere, a pipe never ends
            raise Unusable("PATH_OUTSIDE")
