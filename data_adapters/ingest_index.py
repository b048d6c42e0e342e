"""What earlier ingests made of each candidate, so that only new and changed ones are read again.

Keys and fingerprints are keyed hashes: neither a path nor an identifier is in the file.
"""

import json
import os
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_adapters.atomic import write_atomically
from data_adapters.staging import Staged

INDEX = "index.jsonl"


class IngestIndex:
    """Location to (fingerprint, staged scan), kept as lines that are only ever appended."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._path = cache_dir / INDEX
        self._known = _read(self._path)

    def staged(self, location: str, fingerprint: str) -> Staged | None:
        """Return what this candidate became, if nothing changed and the cache still has it."""
        known_fingerprint, staged = self._known.get(location, ("", None))
        if not fingerprint or staged is None or known_fingerprint != fingerprint:
            return None
        return staged if (self._cache_dir / staged.path).exists() else None

    def add(self, done: Collection[tuple[str, str, Staged]]) -> None:
        """Append (location, fingerprint, scan) of scans that are published."""
        lines = b"".join(_line(*entry) for entry in done if entry[1])
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(lines)
        self._known |= {location: (mark, staged) for location, mark, staged in done if mark}

    @property
    def locations(self) -> frozenset[str]:
        """Return the keyed names of all candidates that are known."""
        return frozenset(self._known)

    def keep_paths(self, paths: Collection[str]) -> None:
        """Forget scans whose place in the cache is none of these."""
        kept = {name for name, (_, staged) in self._known.items() if staged.path in paths}
        self.keep_only(kept)

    def keep_only(self, locations: Collection[str]) -> None:
        """Forget candidates that are gone, and write the file afresh."""
        self._known = {name: self._known[name] for name in sorted(locations) if name in self._known}
        lines = [_line(name, mark, staged) for name, (mark, staged) in self._known.items()]
        write_atomically(self._path, b"".join(lines))


def _line(location: str, fingerprint: str, staged: Staged) -> bytes:
    fields = {**asdict(staged), "temporary": None}
    document = {"location": location, "fingerprint": fingerprint, "scan": fields}
    # It starts with the line feed, so that a line cut short by a kill spoils no other.
    return b"\n" + json.dumps(document, sort_keys=True).encode("ascii")


def _read(path: Path) -> dict[str, tuple[str, Staged]]:
    known: dict[str, tuple[str, Staged]] = {}
    if not path.is_file():
        return known
    for line in path.read_bytes().splitlines():
        try:
            document: dict[str, Any] = json.loads(line)
            staged = _staged(document["scan"])
            known[document["location"]] = (document["fingerprint"], staged)
        except (ValueError, KeyError, TypeError):
            continue
    return known


def _staged(fields: dict[str, Any]) -> Staged:
    c, z, y, x = fields.pop("shape_czyx")
    dz, dy, dx = fields.pop("spacing_mm_zyx")
    return Staged(shape_czyx=(c, z, y, x), spacing_mm_zyx=(dz, dy, dx), **fields)
