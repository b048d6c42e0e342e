"""Pixels of a series into one array that is there from the start, one frame at a time."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import BufferedReader
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_adapters import dicom_jpeg12
from data_adapters.dicom_frames import Frame
from data_adapters.dicom_headers import INSIDE_DEFLATED, Instance
from data_adapters.dicom_volume import VolumeGeometry, scaling
from data_adapters.reasons import Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# PS3.5 annex A. Uncompressed syntaxes, and how their bytes lie.
_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = frozenset({_IMPLICIT, "1.2.840.10008.1.2.1", _BIG_ENDIAN})
# Decoders by name where pydicom's own order is not the best. For JPEG-LS it begins with GDCM 3.2.6,
# which takes 1.5 times as long and ends the whole process on some damaged files.
_PLUGINS = {
    "1.2.840.10008.1.2.4.80": ("pyjpegls",),
    "1.2.840.10008.1.2.4.81": ("pyjpegls",),
    "1.2.840.10008.1.2.5": ("pylibjpeg", "pydicom"),
    dicom_jpeg12.SYNTAX: (dicom_jpeg12.PLUGIN, ""),
}
# What is stored, by (BitsAllocated, PixelRepresentation); int8 has no place in the cache.
_STORED: dict[tuple[int, int], np.dtype[Any]] = {
    (8, 0): np.dtype(np.uint8),
    (8, 1): np.dtype(np.int8),
    (16, 0): np.dtype(np.uint16),
    (16, 1): np.dtype(np.int16),
    (32, 0): np.dtype(np.uint32),
    (32, 1): np.dtype(np.int32),
}
_KEPT: dict[str, type[np.generic]] = {
    "int8": np.int16,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
}
_UNDEFINED_LENGTH = 0xFFFFFFFF
# (place in the volume, frame) of every frame that one file holds.
_Places = list[tuple[int, Frame]]


def read_pixels(
    geometry: VolumeGeometry, *, real: bool = False
) -> tuple[NDArray[Any], float, float]:
    """Return (image_zyx, slope, intercept) with stored values in their own type where possible.

    Frames with slopes of their own (usual in PET) become float32 real-world values, slope 1.

    Args:
        real: Make float32 real-world values in any case: cheaper than to make them afterwards.

    Raises:
        Unusable: NO_PIXELS, UNDECODABLE_PIXELS, UNSUPPORTED_PIXELS or NOT_FINITE.
    """
    scalings = {scaling(frame) for frame in geometry.frames}
    scaled = real or len(scalings) > 1
    stored = _stored_type(geometry.frames[0].instance)
    kept = np.float32 if scaled else _KEPT.get(stored.name, np.float32)
    image = np.empty(geometry.shape_zyx, kept)
    by_file: defaultdict[Instance, _Places] = defaultdict(list)
    for place, frame in enumerate(geometry.frames):
        by_file[frame.instance].append((place, frame))
    fill = _Fill(image, scaled)
    # In a row: the decoders keep Python's lock, so that threads gained nothing (2 cores; RLE,
    # JPEG-LS and JPEG 2000).
    for instance, places in by_file.items():
        fill.file(instance, places)
    # Integers are always finite, and asking costs as much as reading them.
    if image.dtype.kind == "f" and not _all_finite(image):
        raise Unusable("NOT_FINITE")
    return (image, 1.0, 0.0) if scaled else (image, *scalings.pop())


def _all_finite(image: NDArray[Any]) -> bool:
    return all(np.isfinite(plane).all() for plane in image)


def _stored_type(instance: Instance) -> "np.dtype[Any]":
    allocated, _, _, signed = instance.pixel_format
    if (allocated, signed) not in _STORED:
        raise Unusable("UNSUPPORTED_PIXELS", f"{allocated} bits")
    return _STORED[allocated, signed]


@dataclass(frozen=True)
class _Fill:
    """Puts frames where they belong.

    Args:
        scaled: Make real values; else keep stored ones.
    """

    image: NDArray[Any]
    scaled: bool

    def file(self, instance: Instance, places: _Places) -> None:
        """Read every frame of one file."""
        try:
            with instance.path.open("rb") as file:
                if not self._native(file, instance, places):
                    self._decoded(file, instance, places)
        except (Unusable, KeyboardInterrupt, SystemExit):
            raise
        # Each decoder raises its own (Rust's panics are no Exception); the text may quote values.
        except BaseException as error:
            raise Unusable("UNDECODABLE_PIXELS", type(error).__name__) from None

    def _native(self, file: BufferedReader, instance: Instance, places: _Places) -> bool:
        """Read uncompressed frames straight into place; say whether that could be done."""
        stored = _stored_type(instance)
        swapped = instance.transfer_syntax == _BIG_ENDIAN
        if instance.transfer_syntax not in NATIVE or (swapped and stored.itemsize == 1):
            return False
        start, length = _value(file, instance)
        rows, columns = instance.shape_yx or (0, 0)
        size = rows * columns * stored.itemsize
        if length != _UNDEFINED_LENGTH and length < size * instance.num_frames:
            raise Unusable("UNDECODABLE_PIXELS", "there are fewer than the header says")
        for place, frame in places:
            file.seek(start + frame.index * size)
            target = self.image[place]
            direct = not self.scaled and target.dtype == stored
            pixels = target if direct else np.empty(target.shape, stored)
            if file.readinto(pixels.data) != size:
                raise Unusable("UNDECODABLE_PIXELS", "the file is cut short")
            if swapped:
                pixels.byteswap(inplace=True)
            _drop_unused_bits(pixels, instance)
            if not direct:
                self._put(place, frame, pixels)
        return True

    def _decoded(self, file: BufferedReader, instance: Instance, places: _Places) -> None:
        failures: list[BaseException] = []
        ordered = sorted(places, key=_index)
        for plugin in _plugins(instance.transfer_syntax):
            for decode in _ways(instance):
                try:
                    decoded = decode(file, instance, plugin)
                    for (place, frame), pixels in zip(ordered, decoded, strict=True):
                        self._put(place, frame, pixels)
                    return
                except (Unusable, KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:  # the next one may do better
                    failures.append(error)
        raise failures[-1]

    def _put(self, place: int, frame: Frame, pixels: NDArray[Any]) -> None:
        target = self.image[place]
        if pixels.shape != target.shape:
            raise Unusable("UNDECODABLE_PIXELS", "the matrix differs from the header")
        exact = pixels if np.can_cast(pixels.dtype, target.dtype) else _exact(pixels, target.dtype)
        if not self.scaled:
            target[...] = exact
            return
        slope, intercept = (np.float32(number) for number in scaling(frame))
        np.multiply(exact, slope, out=target)
        if intercept:
            np.add(target, intercept, out=target)


def _exact(pixels: NDArray[Any], kept: "np.dtype[Any]") -> NDArray[Any]:
    """Return 32-bit integers as float32, or whatever a decoder handed out as what was announced."""
    cast = pixels.astype(kept)
    if not np.array_equal(cast, pixels):
        raise Unusable("UNSUPPORTED_PIXELS", pixels.dtype.name)
    return cast


def _index(place: tuple[int, Frame]) -> int:
    return place[1].index


def _value(file: BufferedReader, instance: Instance) -> tuple[int, int]:
    """Return where the pixels start and how many bytes they are (PS3.5 7.1)."""
    file.seek(instance.pixels_at)
    header = file.read(12)
    used = 8 if instance.transfer_syntax == _IMPLICIT else 12
    order = "big" if instance.transfer_syntax == _BIG_ENDIAN else "little"
    length = int.from_bytes(header[used - 4 : used], order)  # type: ignore[arg-type]
    if len(header) < used:
        raise Unusable("UNDECODABLE_PIXELS", "the file is cut short")
    if length == 0:
        raise Unusable("NO_PIXELS")
    return instance.pixels_at + used, length


def _drop_unused_bits(pixels: NDArray[Any], instance: Instance) -> None:
    """Clear what lies outside BitsStored (overlays in old files), keeping the sign (PS3.5 8.1)."""
    allocated, stored, high_bit, _ = instance.pixel_format
    if 0 < stored < allocated and stored - 1 <= high_bit < allocated:
        np.left_shift(pixels, allocated - 1 - high_bit, out=pixels)
        np.right_shift(pixels, allocated - stored, out=pixels)


_Decode = Callable[[BufferedReader, Instance, str], Iterator[NDArray[Any]]]


def _ways(instance: Instance) -> tuple[_Decode, ...]:
    """In a row is fast without an offset table; pydicom 3.0.2 fails in it on some signed pixels."""
    return (_one_by_one,) if instance.num_frames == 1 else (_in_a_row, _one_by_one)


def _in_a_row(file: BufferedReader, instance: Instance, plugin: str) -> Iterator[NDArray[Any]]:
    decoder, source, options = _prepared(file, instance, plugin)
    frames = decoder.iter_array(source, raw=True, **options)
    for _, (pixels, _) in zip(range(instance.num_frames), frames, strict=False):
        yield pixels


def _one_by_one(file: BufferedReader, instance: Instance, plugin: str) -> Iterator[NDArray[Any]]:
    for index in range(instance.num_frames):
        decoder, source, options = _prepared(file, instance, plugin)
        yield decoder.as_array(source, index=index, raw=True, **options)[0]


def _prepared(
    file: BufferedReader, instance: Instance, plugin: str
) -> tuple[Any, Any, dict[str, Any]]:
    """Return pydicom's decoder, what it reads from, and the options for that."""
    from pydicom.pixels.decoders.base import get_decoder

    decoder = get_decoder(instance.transfer_syntax)
    if instance.pixels_at == INSIDE_DEFLATED or not decoder.is_encapsulated:
        return decoder, _whole(instance), {}
    start, _ = _value(file, instance)
    file.seek(start)
    return decoder, file, {"decoding_plugin": plugin, **_options(instance)}


def _whole(instance: Instance) -> "Dataset":
    """Deflated files have no place to seek to, and swapped bytes of 8-bit pixels are rare."""
    from pydicom import dcmread

    dataset = dcmread(instance.path)
    if not dataset.get("PixelData"):
        raise Unusable("NO_PIXELS")
    return dataset


def _options(instance: Instance) -> dict[str, Any]:
    from pydicom.uid import UID

    allocated, stored, _, signed = instance.pixel_format
    rows, columns = instance.shape_yx or (0, 0)
    return {
        "transfer_syntax_uid": UID(instance.transfer_syntax),
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": instance.samples,
        "photometric_interpretation": instance.photometric,
        "bits_allocated": allocated,
        "bits_stored": stored,
        "pixel_representation": signed,
        "number_of_frames": instance.num_frames,
        "pixel_keyword": "PixelData",
    }


def _plugins(transfer_syntax: str) -> tuple[str, ...]:
    """Return decoders in the order to try them; "" is pydicom's own order."""
    dicom_jpeg12.register()
    return _PLUGINS.get(transfer_syntax, ("",))


@cache
def use_gpu_decoders() -> bool:
    """Put nvImageCodec first among pydicom's decoders, where it is installed and has a GPU."""
    try:
        installed = find_spec("nvidia.nvimgcodec.tools.dicom") is not None
    except ModuleNotFoundError:
        return False
    return installed and _gpu_is_there() and _registered()


def _gpu_is_there() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def _registered() -> bool:
    from importlib import import_module

    plugin = import_module("nvidia.nvimgcodec.tools.dicom.pydicom_plugin")
    register: Callable[[], bool] = plugin.register
    return bool(register())
