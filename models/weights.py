"""Model weights as named float32 arrays: their digest, and their bytes (safetensors, no pickle)."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.errors import ModelError

Array = npt.NDArray[np.float32]


def weights_digest(weights: Mapping[str, Array]) -> str:
    """Return ``"sha256:<hex>"`` over names, shapes and little-endian float32 values, in order."""
    total = hashlib.sha256()
    for name, array in weights.items():
        header = f"{name}\0{','.join(map(str, array.shape))}\0"
        total.update(header.encode())
        total.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
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
