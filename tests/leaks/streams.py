"""Compressed streams, at the start of data or anywhere inside it."""

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator

Piece = tuple[str, bytes]

_STEP_BYTES = 4096
_LEAST_BYTES = 8
# RFC 1950: CMF 0x78 and a check value modulo 31; RFC 1952; RFC 8878; bzip2; xz.
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")
_GZIP = re.compile(rb"\x1f\x8b\x08")
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd")
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_XZ = re.compile(rb"\xfd7zXZ\x00")
_LZ4 = re.compile(rb"\x04\x22\x4d\x18")
_BLOSC_HEADER_BYTES = 16


def streams(data: bytes, limit: int) -> Iterator[Piece]:
    """Yield what every compressed stream in ``data`` holds, as far as it can be inflated."""
    makers: tuple[tuple[str, re.Pattern[bytes], Callable[[], object]], ...] = (
        ("zlib", _ZLIB, zlib.decompressobj),
        ("gzip", _GZIP, lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)),
        ("bzip2", _BZIP2, bz2.BZ2Decompressor),
        ("xz", _XZ, lzma.LZMADecompressor),
    )
    for name, start, make in makers:
        for found in start.finditer(data):
            yield from _enough(name, inflated(data, found.start(), make(), limit))
    for name, start in (("zstd", _ZSTD), ("lz4", _LZ4)):
        for found in start.finditer(data):
            yield from _enough(name, _through_arrow(data[found.start() :], name, limit))
    yield from _enough("deflate", _whole_deflate(data, limit))
    yield from _enough("blosc", _blosc(data, limit))


def inflated(data: bytes, start: int, machine, limit: int) -> bytes:
    """Return what comes out before the stream ends or breaks."""
    view, out = memoryview(data), bytearray()
    try:
        while start < len(data) and not machine.eof:
            out += machine.decompress(view[start : start + _STEP_BYTES])
            start += _STEP_BYTES
            check(len(out), limit)
    except (zlib.error, OSError, lzma.LZMAError, EOFError):
        pass
    return bytes(out)


class TooLargeError(Exception):
    """More came out than the bounds allow: it must be said, not passed over."""


def check(size: int, limit: int) -> None:
    if size > limit:
        raise TooLargeError(f"more than {limit} bytes")


def _enough(name: str, content: bytes) -> Iterator[Piece]:
    if len(content) >= _LEAST_BYTES:
        yield name, content


def _whole_deflate(data: bytes, limit: int) -> bytes:
    """Raw deflate has no mark: only data that is one stream from end to end counts."""
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    out = inflated(data, 0, machine, limit)
    return out if machine.eof and not machine.unused_data else b""


def _through_arrow(data: bytes, codec: str, limit: int) -> bytes:
    import pyarrow

    out = bytearray()
    try:
        with pyarrow.input_stream(io.BytesIO(data), compression=codec) as stream:
            while piece := stream.read(_STEP_BYTES):
                out += piece
                check(len(out), limit)
    except (OSError, pyarrow.ArrowException):
        pass  # trailing bytes that are no frame
    return bytes(out)


def _blosc(data: bytes, limit: int) -> bytes:
    """Blosc 1 has a header of 16 bytes: its last four are the size of the whole."""
    header = data[:_BLOSC_HEADER_BYTES]
    is_blosc = (
        len(header) == _BLOSC_HEADER_BYTES
        and header[0] in (1, 2)
        and int.from_bytes(header[12:], "little") == len(data)
    )
    if not is_blosc:
        return b""
    import numcodecs.blosc

    check(int.from_bytes(header[4:8], "little"), limit)
    try:
        return bytes(numcodecs.blosc.decompress(data))
    except (RuntimeError, ValueError):
        return b""
