"""A hub's messages over Flower's own SuperLink code, in this process and without HTTP."""

from collections import Counter

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectResponse,
    PushObjectResponse,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from federation.flower import parcels
from federation.flower.grid import LocalGrid
from federation.flower.link import Link

A, B = 2, 3


class Store:
    """The runtime calls of a SuperLink over Flower's own object store, counted."""

    def __init__(self):
        self.objects, self.calls = InMemoryObjectStore(), Counter()
        self.asked, self.replies = {}, {}

    def PushMessages(self, request):
        self.calls["push-messages"] += 1
        missing = []
        for shell, tree in zip(request.messages_list, request.message_object_trees, strict=True):
            self.asked[shell.metadata.message_id] = shell
            missing += self.objects.preregister(1, tree)
        ids = [shell.metadata.message_id for shell in request.messages_list]
        return PushAppMessagesResponse(message_ids=ids, objects_to_push=missing, session_id="s")

    def PushObject(self, request):
        self.calls["push-object"] += 1
        self.objects.put(request.object_id, request.object_content)
        return PushObjectResponse(stored=True)

    def PullMessages(self, request):
        self.calls["pull-messages"] += 1
        found = [self.replies.pop(i) for i in request.message_ids if i in self.replies]
        return PullAppMessagesResponse(
            messages_list=[shell for shell, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def PullObject(self, request):
        self.calls["pull-object"] += 1
        content = self.objects.get(request.object_id)
        return PullObjectResponse(
            object_found=content is not None,
            object_available=bool(content),
            object_content=content or b"",
        )

    def ConfirmMessageReceived(self, request):
        self.calls["confirm"] += 1
        self.objects.delete(request.message_object_id)
        return ConfirmMessageReceivedResponse()

    def answered(self, message_id, reply):
        """Keep a site's reply, a parcel, as the fleet calls do."""
        self.objects.preregister(1, reply.tree)
        for i, content in reply.parts.items():
            self.objects.put(i, content)
        self.replies[message_id] = (reply.shell, reply.tree)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def link(store):
    grid = HttpGrid(token="t")
    grid._client = store
    grid.set_run(Run.create_empty(1))
    return Link(grid)


def content(num_bytes=4):
    array = Array(dtype="uint8", shape=(num_bytes,), stype="x", data=bytes(num_bytes))
    return RecordDict({"a": ArrayRecord({"a": array}), "c": ConfigRecord({"x": num_bytes})})


LOCAL = LocalGrid({"ward-a": lambda *_: None, "ward-b": lambda *_: None})


def asked(node, num_bytes=4):
    return LOCAL.create_message(content(num_bytes), "train", node, "1", 60.0)


def reply(request, pack=parcels.whole, num_bytes=4):
    return pack(Message(content(num_bytes), reply_to=request))


def exchange(link, store, node, *, pack=parcels.whole):
    """Ask one node once; return what it says."""
    request = asked(node)
    (message_id,) = link.push_messages([request])
    store.answered(message_id, reply(request, pack))
    (answer,) = link.pull_messages([message_id])
    return answer


def test_a_node_is_asked_in_parts_until_it_has_answered_whole(link, store):
    assert exchange(link, store, A).content["c"]["x"] == 4
    assert store.calls["push-object"] == 6
    before = Counter(store.calls)
    exchange(link, store, A)
    assert store.calls - before == {"push-messages": 1, "pull-messages": 1, "confirm": 1}
    exchange(link, store, B)
    assert store.calls["push-object"] > 6


def test_flowers_own_supernode_is_never_asked_whole(link, store):
    for _ in range(2):
        answer = exchange(link, store, A, pack=parcels.in_parts)
        assert answer.content["c"]["x"] == 4
        assert answer.metadata.src_node_id == A
    assert not any(parcels.is_whole(shell) for shell in store.asked.values())


def test_what_is_large_goes_in_parts_and_the_ids_keep_their_order(link, store):
    for node in (A, B):
        exchange(link, store, node)
    large = asked(A, parcels.MAX_WHOLE_BYTES + 1)
    messages = [asked(A), large, asked(B)]
    ids = link.push_messages(messages)
    assert ids == [one.metadata.message_id for one in messages]
    assert [parcels.is_whole(store.asked[i]) for i in ids] == [True, False, True]


def test_one_question_brings_the_news_of_all_and_each_call_one_reply(link, store):
    requests = [asked(A), asked(B)]
    ids = link.push_messages(requests)
    assert link.pull_messages(ids) == []
    for message_id, request in zip(ids, requests, strict=True):
        store.answered(message_id, reply(request))
    before = store.calls["pull-messages"]
    found = [link.pull_messages(ids), link.pull_messages(ids)]
    assert [[r.metadata.src_node_id for r in some] for some in found] == [[A], [B]]
    assert store.calls["pull-messages"] == before + 1


def test_nothing_of_what_was_read_stays_at_the_superlink(link, store):
    for _ in range(2):
        answer = exchange(link, store, A)
        store.objects.delete(answer.metadata.reply_to_message_id)  # as the site confirms it
    assert len(store.objects) == 0


def test_a_part_that_is_gone_makes_a_reply_that_was_cut_off(link, store):
    request = asked(A)
    (message_id,) = link.push_messages([request])
    broken = reply(request, parcels.in_parts)
    store.replies[message_id] = (broken.shell, broken.tree)
    (answer,) = link.pull_messages([message_id])
    assert answer.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert answer.metadata.reply_to_message_id == message_id


def test_an_error_of_the_transport_comes_through(link, store):
    request = asked(A)
    (message_id,) = link.push_messages([request])
    shell = ProtoMessage(metadata=reply(request).shell.metadata)
    shell.error.code = ErrorCode.NODE_UNAVAILABLE
    store.replies[message_id] = (shell, ObjectTree(object_id=shell.metadata.message_id))
    (answer,) = link.pull_messages([message_id])
    assert answer.error.code == message_from_proto(shell).error.code


def test_a_reply_that_nobody_can_read_ends_no_run(link, store):
    request = asked(A)
    (message_id,) = link.push_messages([request])
    odd = reply(request)
    odd.shell.content.items[1].config_record.items[0].value.Clear()
    store.answered(message_id, odd)
    (answer,) = link.pull_messages([message_id])
    assert answer.metadata.src_node_id == A and not answer.content


@pytest.mark.parametrize("root", [b"Array  3\0odd", b"Message  3\0odd"])
def test_parts_that_make_no_message_end_no_run(link, store, root):
    request = asked(A)
    (message_id,) = link.push_messages([request])
    odd = reply(request, parcels.in_parts)
    root_id = get_object_id(root)
    odd.shell.metadata.message_id = root_id
    store.objects.preregister(1, ObjectTree(object_id=root_id))
    store.objects.put(root_id, root)
    store.replies[message_id] = (odd.shell, ObjectTree(object_id=root_id))
    (answer,) = link.pull_messages([message_id])
    assert answer.metadata.src_node_id == A and not answer.content
