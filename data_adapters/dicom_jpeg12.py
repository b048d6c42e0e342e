"""Lossy JPEG of 12 bits (1.2.840.10008.1.2.4.51, process 4), a decoder for pydicom, through GDCM.

pydicom 3.0.2 does not hand such streams to GDCM, which decodes them all the same (its copy of the
Independent JPEG Group's library is built for 12 bits, too). That library writes a line to stderr
for each frame, from a first look with the 8-bit one.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

SYNTAX = "1.2.840.10008.1.2.4.51"
PLUGIN = "cohortium-gdcm-12-bit"
DECODER_DEPENDENCIES = {SYNTAX: ("python-gdcm>=3.0.24",)}
# ISO/IEC 10918-1, B.1.1.3: extended sequential DCT, and the marker that ends an image.
_START_OF_FRAME, _END = b"\xff\xc1", b"\xff\xd9"
_PRECISION = 12


@cache
def register() -> None:
    """Let pydicom know of this decoder, beside those that it has."""
    from pydicom.pixels.decoders.base import get_decoder

    get_decoder(SYNTAX).add_plugin(PLUGIN, (__name__, "decode_frame"))


def is_available(uid: str) -> bool:
    """Return whether a transfer syntax is decoded here; pydicom asks."""
    return uid == SYNTAX


def decode_frame(src: bytes, runner: "DecodeRunner") -> bytes:
    """Return the pixels of one frame, 16 bits each.

    Raises:
        ValueError: The stream is no grey 12-bit JPEG, is cut short, or holds another matrix.
    """
    # GDCM fills up with whatever is there. Fragments are padded to an even length (PS3.5, A.4).
    if _END not in src[-3:]:
        raise ValueError("the JPEG stream is cut short")
    expected = (_PRECISION, runner.rows, runner.columns, 1)
    if _frame_header(src) != expected or runner.bits_allocated != 16:
        raise ValueError("the JPEG stream is not what the header says")
    decoded: bytes = _image(src, runner).GetBuffer().encode("utf-8", "surrogateescape")
    if len(decoded) != 2 * runner.rows * runner.columns:
        raise ValueError("GDCM did not decode the JPEG stream")
    return decoded


def _frame_header(src: bytes) -> tuple[int, int, int, int]:
    """Return precision, lines, samples a line and components (ISO/IEC 10918-1, B.2.2)."""
    at = 2
    while at + 10 <= len(src) and src[at] == 0xFF:
        if src[at : at + 2] == _START_OF_FRAME:
            rows, columns = (int.from_bytes(src[at + n : at + n + 2], "big") for n in (5, 7))
            return src[at + 4], rows, columns, src[at + 9]
        at += 2 + int.from_bytes(src[at + 2 : at + 4], "big")
    raise ValueError("the JPEG stream has no frame of the extended process")


def _image(src: bytes, runner: "DecodeRunner") -> Any:
    import gdcm  # type: ignore[import-untyped, unused-ignore]

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(src)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    pixels = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    pixels.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(pixels)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(SYNTAX)))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, _PRECISION, _PRECISION - 1, 0))
    return image
