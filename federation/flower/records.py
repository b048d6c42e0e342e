"""Flower records, read strictly: each check names the field and the limit it found broken.

Arrays travel as raw little-endian bytes, not as NumPy files: a NumPy header can claim any size
and ``numpy.load`` allocates it before looking at the data.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from models.weights import are_finite, bytes_of

MAX_TENSORS = 10_000
MAX_TENSOR_DIMENSIONS = 8
MAX_NAME_LENGTH = 200
MAX_TEXT_LENGTH = 65_536
MAX_WEIGHTS_BYTES = 2 * 1024**3
MAX_SCORES = 1_000

# Sizes along at most MAX_TENSOR_DIMENSIONS axes; none for a number.
_SHAPE = re.compile(rf"(\d{{1,10}}(,\d{{1,10}}){{0,{MAX_TENSOR_DIMENSIONS - 1}}})?", re.ASCII)
_PACKED = "values"

FLOAT32 = "cohortium.float32.little-endian"
SAFETENSORS = "cohortium.safetensors"

_Record = TypeVar("_Record", ArrayRecord, ConfigRecord, MetricRecord)
_Float32 = npt.NDArray[np.float32]


class MalformedRecordError(ValueError):
    """A record is not what the wire format asks for; ``wire`` decides who may hear why."""


def check(condition: bool, complaint: str) -> None:
    """Raise ``MalformedRecordError`` with the complaint unless the condition holds."""
    if not condition:
        raise MalformedRecordError(complaint)


def check_keys(found: Any, expected: set[str], what: str) -> None:
    """Refuse missing and unknown keys alike; unknown names are counted, not repeated."""
    missing = sorted(expected - set(found))
    extra = len(set(found) - expected)
    check(not missing, f"{what} lacks {', '.join(missing)}")
    check(not extra, f"{what} holds {extra} unknown fields")


def record(records: RecordDict, name: str, kind: type[_Record]) -> _Record:
    """Return one record of the expected type."""
    found = records[name]
    if not isinstance(found, kind):
        raise MalformedRecordError(f"record {name!r} is not a {kind.__name__}")
    return found


def fields(config: ConfigRecord, kinds: Mapping[str, type], what: str) -> dict[str, Any]:
    """Return the values of a record that must hold exactly these keys with exactly these types.

    Exactly, since ``True`` is an ``int`` to Python but not to a ledger.
    """
    check_keys(config, set(kinds), what)
    for key, kind in kinds.items():
        value = config[key]
        check(type(value) is kind, f"{what}: {key} is not {kind.__name__}")
        if isinstance(value, str):
            check(len(value) <= MAX_TEXT_LENGTH, f"{what}: {key} exceeds {MAX_TEXT_LENGTH}")
    return dict(config)


def check_name(name: str, what: str) -> None:
    """Refuse names that are empty, long, or could rewrite a terminal."""
    check(0 < len(name) <= MAX_NAME_LENGTH, f"{what}: a name must have 1 to {MAX_NAME_LENGTH}")
    check(name.isprintable(), f"{what}: a name holds control characters")


def from_weights(weights: Mapping[str, _Float32]) -> ArrayRecord:
    """Encode named float32 arrays, in their order."""
    return ArrayRecord({name: _from_array(array) for name, array in weights.items()})


def _from_array(array: _Float32) -> Array:
    data = bytes(bytes_of(array))
    return Array(dtype="float32", shape=tuple(array.shape), stype=FLOAT32, data=data)


def to_weights(arrays: ArrayRecord) -> dict[str, _Float32]:
    """Decode named float32 arrays, which cannot be written to; every value must be finite."""
    check(0 < len(arrays) <= MAX_TENSORS, f"there must be 1 to {MAX_TENSORS} weights")
    num_bytes = sum(len(array.data) for array in arrays.values())
    check(num_bytes <= MAX_WEIGHTS_BYTES, f"weights exceed {MAX_WEIGHTS_BYTES} bytes")
    for name in arrays:
        check_name(name, "weights")
    return {name: _to_array(name, array) for name, array in arrays.items()}


def _to_array(name: str, array: Array) -> _Float32:
    check(array.dtype == "float32" and array.stype == FLOAT32, f"weight {name!r} is not float32")
    shape = array.shape
    check(len(shape) <= MAX_TENSOR_DIMENSIONS, f"weight {name!r} has {len(shape)} dimensions")
    check(all(type(n) is int and n >= 0 for n in shape), f"weight {name!r} has no valid shape")
    check(len(array.data) == 4 * math.prod(shape), f"weight {name!r} does not fill its shape")
    values = np.frombuffer(array.data, dtype="<f4").reshape(shape).astype(np.float32, copy=False)
    check(are_finite(values), f"weight {name!r} holds NaN or infinity")
    return values


def pack_weights(weights: Mapping[str, _Float32]) -> tuple[ArrayRecord, ConfigRecord]:
    """Encode named float32 arrays, in their order, as one: Flower asks once for each Array.

    Returns:
        Their bytes one after the other, and their names and shapes.
    """
    data = b"".join(bytes_of(array) for array in weights.values())
    packed = Array(dtype="float32", shape=(len(data) // 4,), stype=FLOAT32, data=data)
    shapes = [",".join(map(str, array.shape)) for array in weights.values()]
    tensors = ConfigRecord({"names": list(weights), "shapes": shapes})
    return ArrayRecord({_PACKED: packed}), tensors


def unpack_weights(arrays: ArrayRecord, tensors: ConfigRecord) -> dict[str, _Float32]:
    """Decode what ``pack_weights`` made, likewise."""
    check_keys(arrays, {_PACKED}, "weights")
    names, shapes = fields(tensors, {"names": list, "shapes": list}, "tensors").values()
    check(0 < len(names) <= MAX_TENSORS, f"there must be 1 to {MAX_TENSORS} weights")
    check(len(shapes) == len(names) == len(set(names)), "tensors: a name has one shape")
    array = arrays[_PACKED]
    check(len(array.data) <= MAX_WEIGHTS_BYTES, f"weights exceed {MAX_WEIGHTS_BYTES} bytes")
    whole = _to_array(_PACKED, array)
    check(whole.ndim == 1, "weights are not one after the other")
    weights, start = {}, 0
    for name, text in zip(names, shapes, strict=True):
        shape = _shape(name, text)
        end = start + math.prod(shape)
        check(end <= whole.size, f"weight {name!r} goes beyond what was sent")
        weights[name], start = whole[start:end].reshape(shape), end
    check(start == whole.size, f"weights: {whole.size - start} values belong to no name")
    return weights


def _shape(name: Any, text: Any) -> tuple[int, ...]:
    check(type(name) is str and type(text) is str, "tensors: names and shapes are texts")
    check_name(name, "weights")
    check(bool(_SHAPE.fullmatch(text)), f"weight {name!r} has no valid shape")
    return tuple(map(int, text.split(","))) if text else ()


def from_payload(payload: bytes) -> ArrayRecord:
    """Carry bytes as they are. In an Array, since Flower sends large Arrays in chunks."""
    array = Array(dtype="uint8", shape=(len(payload),), stype=SAFETENSORS, data=payload)
    return ArrayRecord({"payload": array})


def to_payload(arrays: ArrayRecord) -> bytes:
    """Return the carried bytes."""
    check_keys(arrays, {"payload"}, "update")
    array = arrays["payload"]
    check(array.dtype == "uint8" and array.stype == SAFETENSORS, "update is not safetensors bytes")
    check(array.shape == (len(array.data),), "update does not fill its shape")
    check(len(array.data) <= MAX_WEIGHTS_BYTES, f"update exceeds {MAX_WEIGHTS_BYTES} bytes")
    return array.data


def to_scores(metrics: MetricRecord) -> dict[str, float]:
    """Decode named finite floats."""
    check(len(metrics) <= MAX_SCORES, f"more than {MAX_SCORES} scores")
    for name, value in metrics.items():
        check_name(name, "scores")
        check(type(value) is float and math.isfinite(value), f"score {name!r} is not finite")
    return {name: value for name, value in metrics.items() if isinstance(value, float)}
