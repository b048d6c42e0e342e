"""A message as it leaves: whole in one call where it is small, else in parts as Flower sends it.

Flower stores a message as a tree of objects, and every object costs one call to bring and one to
fetch: seven for a small update, eleven for a request, each of some milliseconds of the SuperLink's
time. Its protocol has a place for the content in the message itself, which it passes on. Both ends
must know: a hub marks what it asks, who understands that answers whole, and is asked whole from
then on. Flower's own SuperNode knows nothing of the mark and is served in parts.
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from flwr.app import ArrayRecord, Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.constant import PULL_MAX_TIME
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects

from federation.errors import FederationError

# Larger ones go in parts: the SuperLink keeps a copy for each site of what is sent whole, and one
# for all of what is the same in parts.
MAX_WHOLE_BYTES = 1024**2
# Between two tries to fetch a part that is still on its way, in seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
# Ends the group of a message whose sender reads whole messages. Flower repeats it in the reply.
_MARK = " whole"


@dataclass(frozen=True)
class Parcel:
    """A message, ready to be sent.

    Attributes:
        message: What was packed, with its id.
        shell: It without its content, or whole.
        tree: The ids of its parts; of one that is whole, its own alone.
        parts: By id, in the order of the tree; none of one that is whole.
    """

    message: Message
    shell: ProtoMessage
    tree: ObjectTree
    parts: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def _whole(self) -> bytes:
        return self.shell.SerializeToString(deterministic=True)

    @property
    def num_bytes(self) -> int:
        """Of everything that leaves but the names of the parts."""
        return sum(map(len, self.parts.values())) if self.parts else len(self._whole)

    @property
    def digest(self) -> str:
        """Of these bytes."""
        digest = hashlib.sha256()
        for content in self.parts.values() if self.parts else (self._whole,):
            digest.update(content)
        return f"sha256:{digest.hexdigest()}"


def may_be_whole(message: Message) -> bool:
    """Tell whether a message is small enough to go in one call."""
    if not message.has_content():
        return False
    arrays = [record for record in message.content.values() if isinstance(record, ArrayRecord)]
    num_bytes = sum(len(array.data) for record in arrays for array in record.values())
    return num_bytes <= MAX_WHOLE_BYTES


def whole(message: Message) -> Parcel:
    """Pack a message that ``may_be_whole``."""
    message_id = secrets.token_hex(32)  # in the form of Flower's, which are digests
    message.metadata.__dict__["_message_id"] = message_id
    return Parcel(message, message_to_proto(message), ObjectTree(object_id=message_id))


def in_parts(message: Message) -> Parcel:
    """Pack a message as Flower's own programs do. Each part is made once."""
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        parts = {i: one.deflate() for i, one in get_all_nested_objects(message).items()}
        shell = message_to_proto(remove_content_from_message(message))
        return Parcel(message, shell, get_object_tree(message), parts)


def is_whole(shell: ProtoMessage) -> bool:
    """Tell whether a message that arrived has its content with it."""
    return shell.HasField("content") and bool(shell.content.items)


def unpacked(shell: ProtoMessage) -> Message:
    """Return a message that arrived whole.

    Raises:
        FederationError: It is too large to be sent so, or no message.
    """
    if shell.ByteSize() > 2 * MAX_WHOLE_BYTES:
        raise FederationError(f"A message of {shell.ByteSize()} bytes came in one piece.")
    try:
        return message_from_proto(shell)
    except Exception as error:  # Flower's parsers raise what Python does on odd bytes.
        raise FederationError("What came is no message.") from error


def part_ids(tree: ObjectTree) -> list[str]:
    """Return the ids of a message's parts, each once."""
    return list(dict.fromkeys(one.object_id for one in iterate_object_tree(tree)))


def pulled(
    ids: Sequence[str], fetch: Callable[[str], bytes], *, max_time: float = PULL_MAX_TIME
) -> dict[str, bytes]:
    """Fetch the parts of a message, those that are still on their way as soon as they are there.

    Raises:
        ObjectPullError: One of them is gone, or not there after ``max_time`` seconds.
    """
    return pull_objects(
        list(ids),
        fetch,
        max_time=max_time,
        max_tries_per_object=None,
        initial_backoff=FIRST_PAUSE_S,
        backoff_cap=LONGEST_PAUSE_S,
    )


def assembled(message_id: str, contents: dict[str, bytes]) -> Message:
    """Return the message that these parts make, by the id that it was sent under.

    Raises:
        FederationError: They make none.
    """
    try:
        message = inflate_object_from_contents(message_id, contents)
    except Exception as error:  # Flower's parsers raise what Python does on odd bytes.
        raise FederationError("What came is no message.") from error
    if not isinstance(message, Message):
        raise FederationError("What came is no message.")
    message.metadata.__dict__["_message_id"] = message_id
    return message


def emptied(shell: ProtoMessage) -> Message:
    """Return a message that arrived and cannot be read, without what is in it."""
    outside = ProtoMessage(metadata=shell.metadata, content=ProtoRecordDict())
    return message_from_proto(outside)


def marked(group_id: str) -> str:
    """Say in a message's group that whole messages are read here."""
    return group_id + _MARK


def is_marked(message: Message) -> bool:
    """Tell whether a message's sender said so."""
    return message.metadata.group_id.endswith(_MARK)
