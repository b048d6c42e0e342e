"""Model weights in a safetensors file, written and read one array at a time.

A hub folds the updates of many sites: with these, memory holds one array of one of them.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from models.errors import ModelError
from models.weights import bytes_of

Array = npt.NDArray[np.float32]

# https://github.com/huggingface/safetensors#format: length of the header, header, values.
_LENGTH = struct.Struct("<Q")
_ALIGNED_TO_BYTES = 8
_ITEM_BYTES = 4


class WeightFile(Mapping[str, Array]):
    """Named float32 arrays on disk, in the order of their bytes; each is read when it is asked for.

    Nothing is kept open. Whoever makes one of bytes that others wrote has them checked here.

    Raises:
        ModelError: The file is not safetensors, or holds another type than float32.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="numpy"):
                pass
            self._places = _places(path)
        except (SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
            raise ModelError(f"{path} is not model weights in safetensors format.") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an array's shape without reading it."""
        return self._places[name][0]

    def __getitem__(self, name: str) -> Array:
        shape, offset = self._places[name]
        size = math.prod(shape)
        values = np.fromfile(self.path, dtype="<f4", count=size, offset=offset)
        if values.size != size:
            raise ModelError(f"{self.path} ends inside {name!r}: it was changed while it was read.")
        return values.reshape(shape).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def write_weights(file: BinaryIO, weights: Mapping[str, Array]) -> None:
    """Write weights in their own order, without a second copy of them in memory.

    ``models.weights.weights_to_bytes`` makes the same format; its arrays come sorted.
    """
    start, header = 0, {}
    for name, array in weights.items():
        end = start + _ITEM_BYTES * array.size
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED_TO_BYTES)
    file.write(_LENGTH.pack(len(text)) + text)
    for array in weights.values():
        file.write(bytes_of(array))


def _places(path: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return each array's shape and where its bytes begin, in the order of the bytes."""
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    places = {}
    for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if about["dtype"] != "F32":
            raise ModelError(f"Weight {name!r} is {about['dtype']}, expected float32.")
        begin = _LENGTH.size + length + about["data_offsets"][0]
        places[name] = (tuple(about["shape"]), begin)
    return places
