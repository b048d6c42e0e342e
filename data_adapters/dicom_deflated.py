"""Deflated DICOM files (PS3.5 A.5): how much they may unpack to."""

import io
import zlib
from pathlib import Path

from data_adapters.reasons import Unusable

# One byte of deflate can stand for a thousand; a series of 512 by 512 by 500 has this many.
MAX_INFLATED_BYTES = 256 * 2**20
CHUNK_BYTES = 1 << 20


class BoundedReader(io.BufferedReader):
    """A file whose rest is handed out at once only where it does not unpack to too much.

    pydicom asks for all that is left, ``read()`` without a size, of deflated files only, and
    unpacks that whole even to read the header. Where it has other reasons to ask, what it gets is
    the same; looking at the file's syntax beforehand would be a second reading of every header.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file.

        Raises:
            Unusable: UNPACKS_TOO_LARGE.
        """
        if size is None or size < 0:
            at = self.tell()
            self._require_bounded()
            self.seek(at)
        return super().read(size)

    def _require_bounded(self) -> None:
        inflater, left = zlib.decompressobj(-zlib.MAX_WBITS), MAX_INFLATED_BYTES
        while not inflater.eof and (packed := self.read(CHUNK_BYTES)):
            while packed:
                try:
                    left -= len(inflater.decompress(packed, CHUNK_BYTES))
                except zlib.error:  # pydicom will say so
                    return
                if left < 0:
                    raise Unusable("UNPACKS_TOO_LARGE", f"{MAX_INFLATED_BYTES // 2**20} MiB")
                packed = inflater.unconsumed_tail


def open_bounded(path: Path) -> BoundedReader:
    """Open a file for pydicom to read.

    Raises:
        OSError: It cannot be read.
    """
    return BoundedReader(io.FileIO(path))
