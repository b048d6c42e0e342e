"""A hub's messages over Flower's SuperLink, in as few calls as it takes.

What Flower's own ``HttpGrid`` does, with three differences: small messages go whole (``parcels``),
one question brings the news of every reply that is there, and one of them at most is in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from time import time

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.superlink.grid.http_grid import HttpGrid

from federation.errors import FederationError
from federation.flower import parcels

# So many whole messages go in one call.
_AT_ONCE = 8


class Link:
    """Sends and fetches for one run.

    Args:
        grid: Flower's own; what it cannot do better is left to it.
    """

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        # Nodes that have answered whole.
        self._whole: set[int] = set()
        # What has been told of and not been fetched, by the id of the request.
        self._here: dict[str, tuple[ProtoMessage, ObjectTree]] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        """Send; return Flower's ids, in order, and None for what it did not store."""
        asked = list(messages)
        small = [one for one in asked if self._goes_whole(one)]
        large = [one for one in asked if not self._goes_whole(one)]
        ids: dict[int, str | None] = {}
        for some in _batches(small):
            ids |= zip(map(id, some), self._push_whole(some), strict=True)
        if large:
            # Flower gives no ids at all where it was too much.
            ids |= zip_longest(map(id, large), self._grid.push_messages(large))
        return [ids[id(one)] for one in asked]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return one reply to any of these messages, if one is there."""
        ids = list(message_ids)
        if not any(message_id in self._here for message_id in ids):
            self._look(ids)
        for message_id in ids:
            if message_id in self._here:
                return [self._fetched(*self._here.pop(message_id))]
        return []

    def _goes_whole(self, message: Message) -> bool:
        return message.metadata.dst_node_id in self._whole and parcels.may_be_whole(message)

    def _push_whole(self, messages: Sequence[Message]) -> list[str | None]:
        packed = [parcels.whole(one) for one in messages]
        request = PushAppMessagesRequest(
            messages_list=[one.shell for one in packed],
            message_object_trees=[one.tree for one in packed],
        )
        answer = self._grid._runtime_client.PushMessages(request)
        return [message_id or None for message_id in answer.message_ids]

    def _look(self, message_ids: list[str]) -> None:
        request = PullAppMessagesRequest(message_ids=message_ids)
        answer = self._grid._runtime_client.PullMessages(request)
        found = zip(answer.messages_list, answer.message_object_trees, strict=True)
        self._here |= {shell.metadata.reply_to_message_id: (shell, tree) for shell, tree in found}

    def _fetched(self, shell: ProtoMessage, tree: ObjectTree) -> Message:
        """Return a reply. One that nobody can read has no content, and is refused for that."""
        if parcels.is_whole(shell):
            self._whole.add(shell.metadata.src_node_id)
            self._confirm(shell)
            try:
                return parcels.unpacked(shell)
            except FederationError:
                return parcels.emptied(shell)
        if shell.HasField("error"):
            self._confirm(shell)
            return message_from_proto(shell)
        return self._from_parts(shell, tree)

    def _from_parts(self, shell: ProtoMessage, tree: ObjectTree) -> Message:
        fetch = make_pull_object_fn_protobuf(
            self._grid._runtime_client.PullObject, self._grid.node, self._run_id
        )
        try:
            contents = parcels.pulled(parcels.part_ids(tree), fetch)
        except ObjectPullError as error:
            return self._cut_off(shell, str(error))
        self._confirm(shell)
        try:
            return parcels.assembled(shell.metadata.message_id, contents)
        except FederationError:
            return parcels.emptied(shell)

    def _cut_off(self, shell: ProtoMessage, why: str) -> Message:
        """Return what stands for a reply that never came to its end."""
        node_id = self._grid.node.node_id
        metadata = Metadata(
            run_id=self._run_id,
            message_id="",
            src_node_id=node_id,
            dst_node_id=node_id,
            reply_to_message_id=shell.metadata.reply_to_message_id,
            group_id="",
            created_at=time(),
            ttl=0,
            message_type=SYSTEM_MESSAGE_TYPE,
        )
        return make_message(metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, why))

    def _confirm(self, shell: ProtoMessage) -> None:
        """Let the SuperLink forget it."""
        request = ConfirmMessageReceivedRequest(
            node=self._grid.node,
            run_id=self._run_id,
            message_object_id=shell.metadata.message_id,
        )
        self._grid._runtime_client.ConfirmMessageReceived(request)

    @property
    def _run_id(self) -> int:
        return int(self._grid.run.run_id)


def _batches(messages: Iterable[Message]) -> Iterator[list[Message]]:
    left = iter(messages)
    while some := list(islice(left, _AT_ONCE)):
        yield some
