"""Model weights as named float32 arrays: their digest, and their bytes (safetensors, no pickle)."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.errors import ModelError

Array = npt.NDArray[np.float32]

# Of numbers at a time: what is made of so many stays in the processor's cache, and its memory is
# used again. Fresh memory for whole models costs more than the arithmetic.
_BLOCK = 2**18


def in_blocks(*arrays: npt.NDArray[np.floating]) -> Iterator[tuple[npt.NDArray[np.floating], ...]]:
    """Yield the same stretch of each of these arrays of one shape, flat, until all are through.

    >>> [len(block) for (block,) in in_blocks(np.zeros((3, 100_000)))]
    [262144, 37856]
    """
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _BLOCK):
        yield tuple(array[start : start + _BLOCK] for array in flat)


def are_finite(array: npt.NDArray[np.floating]) -> bool:
    """Tell whether no value is NaN or infinite."""
    return all(np.isfinite(block).all() for (block,) in in_blocks(array))


def bytes_of(array: Array) -> memoryview:
    """Return the values as little-endian bytes, without a copy where that is how they lie."""
    return np.asarray(array, dtype="<f4", order="C").reshape(-1).view(np.uint8).data


def weights_digest(weights: Mapping[str, Array]) -> str:
    """Return ``"sha256:<hex>"`` over names, shapes and little-endian float32 values.

    In the order of the names, so that a model's file, which keeps no other, has the digest that
    sites have signed.
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name]
        header = f"{name}\0{','.join(map(str, array.shape))}\0"
        total.update(header.encode())
        total.update(bytes_of(array))
    return "sha256:" + total.hexdigest()


def weights_to_bytes(weights: Mapping[str, Array]) -> bytes:
    """Return the weights in safetensors format."""
    # ascontiguousarray would turn a number (shape ()) into an array of one.
    return save({name: np.asarray(array, order="C") for name, array in weights.items()})


def weights_from_bytes(data: bytes) -> dict[str, Array]:
    """Read safetensors bytes; names come back sorted.

    Raises:
        ModelError: The bytes are not safetensors, or hold another type than float32.
    """
    try:
        weights = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError("These bytes are not model weights in safetensors format.") from error
    for name, array in weights.items():
        if array.dtype != np.float32:
            raise ModelError(f"Weight {name!r} is {array.dtype}, expected float32.")
    return {name: weights[name] for name in sorted(weights)}
