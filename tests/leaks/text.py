"""Texts within texts: JSON strings, base64, hex, percent, HTML and backslash escapes, UTF-16.

Markers are looked for in printable runs only, so that voxels are not copied over and over.
"""

import base64
import binascii
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

Piece = tuple[str, bytes]

_RUN = re.compile(rb"[\t\r\n\x20-\x7e]{6,}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{12,}|[A-Za-z0-9_-]{12,}")
_WRAPPED = re.compile(rb"(?:[A-Za-z0-9+/]{40,}={0,2}\r?\n){2,}[A-Za-z0-9+/]*")
_HEX = re.compile(rb"[0-9a-fA-F]{12,}")
_PERCENT = re.compile(rb"%[0-9a-fA-F]{2}")
_HTML = re.compile(rb"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,8});")
_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[0-7]{3}|[/\"'\\])")
_UTF16 = re.compile(rb"(?:[\t\r\n\x20-\x7e]\0){6,}|(?:\0[\t\r\n\x20-\x7e]){6,}")
_BETWEEN = b"\n\0\n"
_MOST_JSON_BYTES = 1 << 26


def texts(data: bytes) -> Iterator[Piece]:
    """Yield every decoding of the texts in ``data`` that says something new."""
    yield from _json(data)
    yield from _joined("utf-16", (m.group().replace(b"\0", b"") for m in _UTF16.finditer(data)))
    yield from _base64(data)
    yield from _hex(data)
    runs = [run.group() for run in _RUN.finditer(data)]
    for name, mark, decode in (
        ("percent", _PERCENT, unquote_to_bytes),
        ("html", _HTML, _from_html),
        ("escapes", _ESCAPE, _unescaped),
    ):
        decoded = ((run, decode(run)) for run in runs if mark.search(run))
        # What an unknown entity leaves as it was is no news, and would be opened for ever.
        yield from _joined(name, (new for run, new in decoded if new != run))


def _joined(name: str, pieces: Iterator[bytes]) -> Iterator[Piece]:
    content = _BETWEEN.join(pieces)
    if content:
        yield name, content


def _json(data: bytes) -> Iterator[Piece]:
    """Yield the strings of a JSON document, or of JSON lines; strings with escapes matter."""
    if b"\\" not in data or data.lstrip()[:1] not in (b"{", b"[", b'"'):
        return
    if len(data) <= _MOST_JSON_BYTES:
        strings = [s.encode("utf-8", "surrogatepass") for s in _strings(_parsed(data))]
        yield from _joined("json", (s for s in strings if s))
        yield from (("json string", s) for s in strings if s[:1] in (b"{", b"["))


def _parsed(data: bytes) -> list[object]:
    try:
        return [json.loads(data)]
    except (ValueError, RecursionError):
        return [value for line in data.splitlines() for value in _line(line)]


def _line(line: bytes) -> Iterator[object]:
    try:
        yield json.loads(line)
    except (ValueError, RecursionError):
        return


def _strings(values: list[object]) -> Iterator[str]:
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value


def _base64(data: bytes) -> Iterator[Piece]:
    """Decode each run at each of four alignments: what stands before it may look alike."""
    runs = [run.group() for run in _BASE64.finditer(data)]
    wrapped = [b"".join(run.group().split()) for run in _WRAPPED.finditer(data)]
    for run in wrapped + [run for run in runs if len(run) >= 40]:
        yield "base64", _decoded(run, 0)
    for start in range(4):
        yield from _joined("base64", (_decoded(run, start) for run in runs))


def _decoded(run: bytes, start: int) -> bytes:
    run = run.replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")[start:]
    run = run[: len(run) - (len(run) % 4 == 1)]
    try:
        return base64.b64decode(run + b"=" * (-len(run) % 4))
    except binascii.Error:
        return b""


def _hex(data: bytes) -> Iterator[Piece]:
    runs = [run.group() for run in _HEX.finditer(data)]
    for start in (0, 1):
        even = (run[start : len(run) - (len(run) - start) % 2] for run in runs)
        yield from _joined("hex", (bytes.fromhex(run.decode()) for run in even))


def _from_html(run: bytes) -> bytes:
    return html.unescape(run.decode("ascii")).encode("utf-8", "surrogatepass")


def _unescaped(run: bytes) -> bytes:
    def plain(found: re.Match[bytes]) -> bytes:
        escape = found.group()[1:]
        if escape[:1] in b"ux":
            return chr(int(escape[1:], 16)).encode("utf-8", "surrogatepass")
        return bytes([int(escape, 8) & 255]) if len(escape) == 3 else escape

    return _ESCAPE.sub(plain, run)
