"""A message as it leaves: the same content whole and in parts, and what is no message."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from federation.errors import FederationError
from federation.flower import parcels, wire
from federation.flower.grid import LocalGrid
from federation.messages import TrainRequest


@pytest.fixture
def message():
    grid = LocalGrid({"ward-a": lambda *_: None})

    def make(content, group="1"):
        return grid.create_message(content, "train", grid.get_node_ids()[0], group)

    return make


@pytest.fixture
def request_content(experiment_digest, run_id, weights):
    return wire.encode_train_request(TrainRequest(experiment_digest, run_id, 1, 1, weights))


def sized(num_bytes):
    array = Array(dtype="uint8", shape=(num_bytes,), stype="x", data=bytes(num_bytes))
    return RecordDict({"a": ArrayRecord({"a": array})})


def test_a_whole_message_arrives_as_it_was(message, request_content, weights):
    packed = parcels.whole(message(request_content))
    arrived = parcels.unpacked(ProtoMessage.FromString(packed.shell.SerializeToString()))
    request = wire.decode_train_request(arrived.content)
    assert all(np.array_equal(request.weights[name], weights[name]) for name in weights)
    assert arrived.metadata.message_id == packed.message.metadata.message_id
    assert parcels.is_whole(packed.shell)
    assert packed.tree.object_id == packed.message.metadata.message_id
    assert not packed.tree.children and not packed.parts


def test_what_is_journalled_of_it_is_every_byte(message, request_content):
    packed = parcels.whole(message(request_content))
    data = packed.shell.SerializeToString(deterministic=True)
    assert packed.num_bytes == len(data)
    assert packed.digest == f"sha256:{get_object_id(data)}"


def test_no_two_messages_have_one_id(message, request_content):
    packed = [parcels.whole(message(request_content)) for _ in range(2)]
    assert len({one.tree.object_id for one in packed}) == 2


def test_in_parts_it_is_what_flowers_own_programs_send(message, request_content):
    packed = parcels.in_parts(message(request_content))
    assert not parcels.is_whole(packed.shell)
    assert packed.num_bytes == sum(map(len, packed.parts.values()))
    assert all(get_object_id(content) == i for i, content in packed.parts.items())
    arrived = inflate_object_from_contents(packed.tree.object_id, dict(packed.parts))
    assert wire.decode_train_request(arrived.content).round == 1


def test_only_small_messages_go_whole(message):
    assert parcels.may_be_whole(message(sized(parcels.MAX_WHOLE_BYTES)))
    assert not parcels.may_be_whole(message(sized(parcels.MAX_WHOLE_BYTES + 1)))
    error = make_message(message(sized(1)).metadata, error=Error(0, "x"))
    assert not parcels.may_be_whole(error)


def test_what_is_too_large_to_come_whole_is_refused(message):
    packed = parcels.whole(message(sized(2 * parcels.MAX_WHOLE_BYTES)))
    with pytest.raises(FederationError, match="came in one piece"):
        parcels.unpacked(packed.shell)


def test_what_cannot_be_read_is_no_message_and_no_crash(message):
    """An integer of 64 bits where Flower's parser knows none of that name."""
    shell = parcels.whole(message(RecordDict({"a": ConfigRecord({"x": 1})}))).shell
    shell.content.items[0].config_record.items[0].value.Clear()
    with pytest.raises(FederationError, match="no message"):
        parcels.unpacked(shell)
    emptied = parcels.emptied(shell)
    assert not emptied.content and emptied.metadata.message_id == shell.metadata.message_id


def test_a_mark_says_that_whole_messages_are_read(message):
    content = RecordDict()
    assert parcels.is_marked(message(content, parcels.marked("7")))
    assert not parcels.is_marked(message(content, "7"))
