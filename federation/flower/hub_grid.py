"""A hub's ``Grid`` over Flower's own: sites have names, requests are signed, replies come soon."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from federation.flower import parcels, wire
from federation.flower.grid import NamedGrid
from federation.flower.link import Link
from federation.ledger.keys import SiteKey
from federation.signed_requests import Asked, sign_request

_DECODERS: Mapping[str, Callable[[RecordDict], Asked]] = {
    "describe": wire.decode_describe_request,
    "train": wire.decode_train_request,
    "evaluate": wire.decode_evaluate_request,
    "close": wire.decode_close_request,
}
# How long replies are waited for between two looks, in seconds: little at first.
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5


@dataclass(frozen=True)
class _Digest:
    """Of one content, which is the same object for every site that is asked."""

    content: RecordDict
    value: str


class HubGrid(NamedGrid):
    """Signs what it sends with the hub's key, for each site apart.

    Args:
        grid: Flower's, over its SuperLink.
        names: Node id to site name, of every site that is registered.
        key: The hub's.
        valid_s: How long a site may answer a request, in seconds.
    """

    def __init__(
        self, grid: Grid, names: Mapping[int, str], key: SiteKey, *, valid_s: float
    ) -> None:
        self._grid = grid
        self._post = Link(grid) if isinstance(grid, HttpGrid) else grid
        self._registered = dict(names)
        self._key = key
        self._valid_s = valid_s
        self._last: _Digest | None = None

    @property
    def names(self) -> dict[int, str]:
        """Node id to site name, of the sites that are connected now, in name order."""
        connected = set(self._grid.get_node_ids())
        known = {i: name for i, name in self._registered.items() if i in connected}
        return dict(sorted(known.items(), key=lambda item: item[1]))

    @property
    def registered(self) -> dict[int, str]:
        """Node id to site name, of every site that may connect."""
        return dict(self._registered)

    def set_run(self, run: Run) -> None:
        """Set the Flower run that messages belong to."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The Flower run that messages belong to."""
        return self._grid.run

    def get_node_ids(self) -> list[int]:
        """Return the node ids of connected sites, in name order."""
        return list(self.names)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Address ``content`` to a site; it is signed when it is sent."""
        ttl = self._valid_s if ttl is None else ttl
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:  # type: ignore[override]
        """Sign and send; return Flower's ids, in order, and None for what was not stored."""
        return list(self._post.push_messages([self._signed(one) for one in messages]))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return one reply to any of these messages, if one is there."""
        return list(self._post.pull_messages(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Sign, send, and return the replies that came within ``timeout`` seconds."""
        waiting = {one for one in self.push_messages(messages) if one is not None}
        end = time.monotonic() + (self._valid_s if timeout is None else timeout)
        replies: list[Message] = []
        pause = _FIRST_PAUSE_S
        while waiting:
            found = self.pull_messages(waiting)
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            if not waiting or time.monotonic() + pause > end:
                break
            time.sleep(pause)
            pause = _FIRST_PAUSE_S if found else min(1.5 * pause, _LONGEST_PAUSE_S)
        return replies

    def _signed(self, message: Message) -> Message:
        metadata = message.metadata
        kind = wire.KINDS[metadata.message_type]
        signature = sign_request(
            self._key,
            kind=kind,
            digest=self._digest(kind, message.content),
            site=self._registered[metadata.dst_node_id],
            valid_s=self._valid_s,
        )
        return self.create_message(
            wire.signed(message.content, signature),
            metadata.message_type,
            metadata.dst_node_id,
            parcels.marked(metadata.group_id),
            metadata.ttl,
        )

    def _digest(self, kind: str, content: RecordDict) -> str:
        if self._last is None or self._last.content is not content:
            self._last = _Digest(content, _DECODERS[kind](content).digest())
        return self._last.value
