"""The body of a multipart answer as it arrives (RFC 2046, 5.1.1), for one part and no more.

A retrieval of one instance has one part. Whatever does not end with the closing delimiter was cut
short, and is told apart from a whole answer: a transfer that breaks off must not look complete.
"""

from collections.abc import Iterable, Iterator
from email.message import Message

# Of text before the first delimiter, and of a part's headers.
MAX_HEAD_BYTES = 1 << 16
MULTIPART = "multipart/related"


class MultipartError(Exception):
    """The answer is not one whole part. The text quotes nothing of it."""


def media_type(content_type: str) -> tuple[str, bytes]:
    """Return the type, lower case, and the boundary; empty where there is none.

    >>> media_type('multipart/related; type="application/dicom"; boundary="a b"')
    ('multipart/related', b'a b')
    """
    message = Message()
    message["content-type"] = content_type.replace("\r", "").replace("\n", "")
    boundary = message.get_boundary() or ""
    return message.get_content_type(), boundary.encode("latin-1", "replace")


def only_part(chunks: Iterable[bytes], boundary: bytes) -> Iterator[bytes]:
    """Yield the body of the only part of a message, piece by piece.

    Args:
        chunks: The message as it comes from the network, cut anywhere.
        boundary: As the Content-Type names it, without dashes.

    Raises:
        MultipartError: There is no part, or more than one; or the message was cut short.

    >>> message = [b"--x\\r\\nContent-Type: application/dicom\\r\\n\\r\\nDI", b"CM\\r\\n--x--"]
    >>> b"".join(only_part(message, b"x"))
    b'DICM'
    """
    delimiter = b"\r\n--" + boundary
    # The delimiter at the very start of a message has no line break before it.
    buffer = _Buffer(chunks, b"\r\n")
    buffer.skip_past(delimiter)
    if buffer.skip_past(b"\r\n").strip(b" \t"):
        raise MultipartError("it holds no part")
    # A part without headers has its empty line right here; put the line break back to find it.
    buffer.data[:0] = b"\r\n"
    buffer.skip_past(b"\r\n\r\n")
    yield from buffer.until(delimiter)
    if buffer.peek(2) != b"--":
        raise MultipartError("it holds more than one part")


class _Buffer:
    """What came in and is not yet consumed; never more than a chunk and a delimiter."""

    def __init__(self, chunks: Iterable[bytes], data: bytes) -> None:
        self._chunks = iter(chunks)
        self.data = bytearray(data)

    def _more(self) -> None:
        chunk = next(self._chunks, b"")
        if not chunk:
            raise MultipartError("it was cut short")
        self.data += chunk

    def peek(self, size: int) -> bytes:
        while len(self.data) < size:
            self._more()
        return bytes(self.data[:size])

    def skip_past(self, mark: bytes) -> bytes:
        """Drop everything up to and with ``mark``; return what stood before it."""
        while (place := self.data.find(mark)) < 0:
            if len(self.data) > MAX_HEAD_BYTES:
                raise MultipartError("its delimiters or headers are missing")
            self._more()
        before = bytes(self.data[:place])
        del self.data[: place + len(mark)]
        return before

    def until(self, mark: bytes) -> Iterator[bytes]:
        """Yield everything before ``mark``, holding back what may be the mark's beginning."""
        while (place := self.data.find(mark)) < 0:
            sure = len(self.data) - len(mark) + 1
            if sure > 0:
                yield bytes(self.data[:sure])
                del self.data[:sure]
            self._more()
        yield bytes(self.data[:place])
        del self.data[: place + len(mark)]
