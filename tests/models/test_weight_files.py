import io
import json
import struct

import numpy as np
import pytest

from models.errors import ModelError
from models.weight_files import WeightFile, write_weights
from models.weights import weights_digest, weights_from_bytes, weights_to_bytes


def some_weights():
    # Not in alphabetical order; empty arrays, a number, and one that is not contiguous.
    return {
        "z.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "none": np.zeros((0, 4), dtype=np.float32),
        "a.bias": np.float32([1, 2]),
        "nothing": np.zeros(0, dtype=np.float32),
        "scale": np.array(2.5, dtype=np.float32),
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        write_weights(file, some_weights())
    return path


def test_what_was_written_is_read_in_its_order_with_its_bits(path):
    read = WeightFile(path)
    assert list(read) == list(some_weights())
    assert weights_digest(read) == weights_digest(some_weights())
    for name, array in some_weights().items():
        assert read.shape(name) == read[name].shape == array.shape
        assert read[name].dtype == np.float32
        assert read[name].flags.writeable


def test_it_is_the_format_that_others_read_and_write(path, tmp_path):
    theirs = weights_from_bytes(path.read_bytes())
    assert weights_digest(theirs) == weights_digest(dict(sorted(some_weights().items())))
    other = tmp_path / "theirs.safetensors"
    other.write_bytes(weights_to_bytes(some_weights()))
    read = WeightFile(other)
    for name, array in some_weights().items():
        np.testing.assert_array_equal(read[name], array)


def test_its_values_begin_where_eight_bytes_do():
    file = io.BytesIO()
    write_weights(file, {"abc": np.float32([1])})
    (length,) = struct.unpack("<Q", file.getvalue()[:8])
    assert length % 8 == 0
    assert len(file.getvalue()) == 8 + length + 4


def header(**about):
    text = json.dumps({"w": about}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01.",
        struct.pack("<Q", 2**62) + b"{}",
        header(dtype="F32", shape=[2], data_offsets=[0, 8]),
        header(dtype="F32", shape=[2], data_offsets=[0, 4]) + b"\0" * 4,
        header(dtype="F32", shape=[-1], data_offsets=[0, 4]) + b"\0" * 4,
        header(dtype="F32", shape=[1]) + b"\0" * 4,
        header(dtype="F32", shape=[1], data_offsets=[0, 4]) + b"\0" * 12,
    ],
)
def test_bytes_that_are_not_weights_are_refused(tmp_path, data):
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="is not model weights in safetensors format"):
        WeightFile(path)


def test_another_type_than_float32_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights_to_bytes({"w": np.zeros(2, np.float64)}))
    with pytest.raises(ModelError, match="'w' is F64, expected float32"):
        WeightFile(path)


def test_a_file_that_is_cut_after_it_was_opened_is_not_read_short(path):
    read = WeightFile(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"ends inside 'a\.bias'"):
        read["a.bias"]


def test_a_digest_is_that_of_the_names_whatever_their_order():
    weights = {"b": np.zeros((2,), np.float32), "a": np.ones((1, 2), np.float32)}
    read = weights_from_bytes(weights_to_bytes(weights))
    assert list(read) != list(weights)
    assert weights_digest(read) == weights_digest(weights)
    swapped = {"a": weights["b"], "b": weights["a"]}
    assert weights_digest(swapped) != weights_digest(weights)
