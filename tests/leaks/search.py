"""Find planted identifiers in bytes and folders, after opening every container in them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.leaks.containers import Bounds, opened_bytes, opened_folder
from tests.leaks.variants import Pattern, Token, patterns_of

# Windows of four bytes are hashed into a table of this many bits (a Rabin filter), so that the
# cost of a search hardly depends on the number of patterns.
_TABLE_BITS = 20
_WINDOW = 4
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Hit:
    """A token, the form in which it was found, and the way to the place through containers."""

    token: Token
    form: str
    where: str


@dataclass
class Searcher:
    """Looks for all forms of all tokens.

    Args:
        bounds: How deep and how much to open; what is left out is in ``unsearched``.
    """

    tokens: Iterable[Token]
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        self.unsearched: list[str] = []
        every = {p for token in self.tokens for p in patterns_of(token) if len(p.data) >= _WINDOW}
        self._any_case = _Filter([p for p in every if not p.cased])
        self._cased = _Filter([p for p in every if p.cased])

    def in_bytes(self, data: bytes, where: str = "") -> list[Hit]:
        """Return what is found in ``data`` and in whatever it contains."""
        return self._all(opened_bytes(data, where, self.bounds, self.unsearched))

    def in_folder(self, folder: Path) -> list[Hit]:
        """Return what is found in a folder: contents, names, links' targets, attributes."""
        return self._all(opened_folder(folder, self.bounds, self.unsearched))

    def _all(self, pieces: Iterable[tuple[str, bytes]]) -> list[Hit]:
        found = {}
        for where, data in pieces:
            for pattern in self._matches(data):
                hit = Hit(pattern.token, pattern.form, where)
                found.setdefault((hit.token, hit.where), hit)
        return list(found.values())

    def _matches(self, data: bytes) -> Iterator[Pattern]:
        yield from self._any_case.matches(data.lower())
        yield from self._cased.matches(data)


def search_bytes(data: bytes, tokens: Iterable[Token]) -> list[Hit]:
    """Return what is found in ``data``; fails if anything in it could not be searched."""
    searcher = Searcher(tokens)
    return _complete(searcher, searcher.in_bytes(data))


def search_folder(folder: Path, tokens: Iterable[Token]) -> list[Hit]:
    """Return what is found in ``folder``; fails if anything in it could not be searched."""
    searcher = Searcher(tokens)
    return _complete(searcher, searcher.in_folder(folder))


def _complete(searcher: Searcher, hits: list[Hit]) -> list[Hit]:
    assert not searcher.unsearched, searcher.unsearched
    return hits


class _Filter:
    """Many byte strings at once."""

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self._starting: dict[bytes, list[Pattern]] = defaultdict(list)
        for pattern in patterns:
            self._starting[pattern.data[:_WINDOW]].append(pattern)
        self._table = np.zeros(1 << _TABLE_BITS, dtype=bool)
        for start in self._starting:
            self._table[_hashes(np.frombuffer(start, np.uint8))] = True

    def matches(self, data: bytes) -> Iterator[Pattern]:
        for place in self._candidates(data):
            for pattern in self._starting.get(data[place : place + _WINDOW], ()):
                end = place + len(pattern.data)
                if data[place:end] == pattern.data and _stands_alone(data, place, end, pattern):
                    yield pattern

    def _candidates(self, data: bytes) -> Iterator[int]:
        values = np.frombuffer(data, np.uint8)
        for start in range(0, max(0, len(values) - _WINDOW + 1), _BLOCK_BYTES):
            block = values[start : start + _BLOCK_BYTES + _WINDOW - 1]
            yield from (int(i) + start for i in np.flatnonzero(self._table[_hashes(block)]))


def _hashes(values: np.ndarray) -> np.ndarray:
    """Return the table place of each window of four bytes (Fibonacci hashing)."""
    last = len(values) - _WINDOW + 1
    keys = np.zeros(last, np.uint32)
    for offset in range(_WINDOW):
        keys |= values[offset : offset + last].astype(np.uint32) << np.uint32(8 * offset)
    return (keys * np.uint32(2654435769)) >> np.uint32(32 - _TABLE_BITS)


def _stands_alone(data: bytes, start: int, end: int, pattern: Pattern) -> bool:
    """Tell whether a short form is a word in text, not four bytes of a voxel."""
    if not pattern.word:
        return True
    before, after = data[max(0, start - 2) : start], data[end : end + 2]
    step = 2 if b"\0" in pattern.data else 1
    around = before[-step:].strip(b"\0") + after[:step].strip(b"\0")
    return not any(chr(b).isalnum() for b in around) and _printable(before + after)


def _printable(data: bytes) -> bool:
    return all(32 <= b < 127 or b in b"\0\t\r\n" for b in data)
