"""Replies one at a time, over any Flower ``Grid``: no more than one of them is in memory.

Flower's ``send_and_receive`` holds every reply until the last is there, and looks every three
seconds. Here each message is asked after by itself, in a round over those that are open.
"""

import time
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from federation.errors import FederationError, Refused
from federation.flower.grid import NamedGrid
from federation.flower.refusals import INVALID_REPLY, NO_REPLY

# Between two looks at messages that nobody has answered yet, in seconds: little at first.
FIRST_POLL_S, POLL_S, _SLOWER = 0.02, 0.25, 1.25
# Between two looks whether a site that had left is there again, in seconds.
LOOK_S = 0.5
# The node went away, or its reply never came to its end.
_CUT_OFF = frozenset({ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE})

Answer = tuple[int, RecordDict | None]
"""A node and what it said; None where the transport says that no answer will come."""


class Collector:
    """What came back for the messages that were asked, until all is answered or time is up.

    More may be asked while it is iterated. One answer of a node ends what else it was asked: the
    same question again is there for a node that did not answer.

    Args:
        timeout_s: Longest wait, in seconds. A site in this process that has begun is not stopped.

    Attributes:
        left: Nodes that were asked and went away, at the latest while they replied; none of them
            answers until it is asked again.
    """

    def __init__(self, grid: Grid, *, timeout_s: float, poll_s: float = POLL_S) -> None:
        self._grid = grid
        self._poll_s = poll_s
        # Ours gives one reply at a time; Flower's would hold all that are there.
        self._asks_for_all = isinstance(grid, NamedGrid)
        self._open: dict[str, int] = {}
        self.left: set[int] = set()
        self.wait_until(timeout_s)

    def wait_until(self, timeout_s: float) -> None:
        """Go on until this long from now."""
        self._deadline = time.monotonic() + timeout_s

    @property
    def seconds_left(self) -> float:
        """Return how long there still is to wait; 0 when time is up."""
        return max(0.0, self._deadline - time.monotonic())

    def ask(self, messages: Iterable[Message]) -> None:
        """Send these; a message that cannot be sent stays without an answer."""
        # In one call: Flower hashes what messages have in common once a call.
        sent = list(messages)
        ids = list(self._grid.push_messages(sent)) if sent else []
        # Flower's grids give None for a message that was not stored, or leave it out.
        known = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
        in_order = [message.metadata.dst_node_id for message in sent]
        for number, message_id in enumerate(ids):
            if message_id is not None:
                self._open[message_id] = known.get(message_id, in_order[number])

    def wait_for_return(self) -> list[int]:
        """Return those who had left and are there again, to be asked anew; empty if time is up."""
        while self.left and self.seconds_left:
            back = [node_id for node_id in self._grid.get_node_ids() if node_id in self.left]
            self.left.difference_update(back)
            if back:
                return back
            time.sleep(min(LOOK_S, self.seconds_left))
        return []

    def __iter__(self) -> Iterator[Answer]:
        pause = first = min(FIRST_POLL_S, self._poll_s)
        while self._open and self.seconds_left:
            found = False
            for answer in self._look_once():
                found = True
                yield answer
            if found:
                pause = first
            elif self._open:
                time.sleep(min(pause, self.seconds_left))
                pause = min(_SLOWER * pause, self._poll_s)

    def _look_once(self) -> Iterator[Answer]:
        asked = dict(self._open)
        for some in [list(asked)] if self._asks_for_all else [[one] for one in asked]:
            if not self.seconds_left:
                return
            still_open = [one for one in some if one in self._open]
            for reply in self._grid.pull_messages(still_open) if still_open else ():
                yield from self._answer(asked, reply)

    def _answer(self, asked: Mapping[str, int], reply: Message) -> Iterator[Answer]:
        message_id = reply.metadata.reply_to_message_id
        node_id = asked.get(message_id)
        if node_id is None:
            return
        if not reply.has_content():
            self._open.pop(message_id, None)
            if reply.has_error() and reply.error.code in _CUT_OFF:
                self.left.add(node_id)
            yield node_id, None
        elif reply.metadata.src_node_id == node_id:
            self._open = {i: node for i, node in self._open.items() if node != node_id}
            yield node_id, reply.content


def contents(replies: Iterable[Message]) -> Iterator[Answer]:
    """Return the same of replies that stock Flower has collected."""
    for reply in replies:
        if reply.has_content():
            yield reply.metadata.src_node_id, reply.content


class Answers:
    """Small answers to one question, sorted into those to read and those refused, by site."""

    def __init__(self, by_node: dict[int, RecordDict], names: Mapping[int, str]) -> None:
        self.by_node = by_node
        self._names = names
        self.refused: dict[str, str] = {}
        self.details: dict[str, str] = {}

    @classmethod
    def of(cls, replies: Iterable[Answer], names: Mapping[int, str]) -> "Answers":
        """Match answers with the nodes that were asked. Others, and None, do not count."""
        found: dict[int, list[RecordDict]] = {node_id: [] for node_id in names}
        for node_id, content in replies:
            if content is not None and node_id in found:
                found[node_id].append(content)
        answers = cls({n: given[0] for n, given in found.items() if len(given) == 1}, names)
        answers._refuse_uncertain(found)
        return answers

    def refuse(self, node_id: int, error: FederationError) -> None:
        """Note that this site's answer does not count, and why."""
        note_refusal(self._names[node_id], error, self.refused, self.details)

    def _refuse_uncertain(self, found: Mapping[int, list[RecordDict]]) -> None:
        for node_id, given in found.items():
            if not given:
                self.refused[self._names[node_id]] = NO_REPLY
            elif len(given) > 1:
                self.refuse(node_id, FederationError(f"{len(given)} replies to one request"))


def ask_all(
    grid: Grid,
    messages: Iterable[Message],
    names: Mapping[int, str],
    *,
    timeout_s: float,
    return_s: float = 0.0,
) -> Answers:
    """Send these and sort what comes back in time. For answers that are small.

    Args:
        return_s: How long sites that went away meanwhile are waited for, in seconds; those that
            are there again are asked again.
    """
    sent = list(messages)
    collector = Collector(grid, timeout_s=timeout_s)
    collector.ask(sent)
    answers = [(node_id, content) for node_id, content in collector if content is not None]
    collector.wait_until(min(timeout_s, return_s))
    while back := collector.wait_for_return():
        collector.wait_until(timeout_s)
        collector.ask(_again(grid, sent, back, timeout_s))
        answers += [(node_id, content) for node_id, content in collector if content is not None]
        collector.wait_until(0.0)
    return Answers.of(answers, names)


def _again(grid: Grid, sent: list[Message], nodes: list[int], ttl: float) -> list[Message]:
    """Return messages of the same content: one that was sent has Flower's id, and is no other."""
    return [
        grid.create_message(
            one.content, one.metadata.message_type, node_id, one.metadata.group_id, ttl
        )
        for one in sent
        if (node_id := one.metadata.dst_node_id) in nodes
    ]


def note_refusal(
    site: str, error: FederationError, refused: dict[str, str], details: dict[str, str]
) -> None:
    """Write down the code of a refusal, or that a reply is invalid and what is wrong with it."""
    if isinstance(error, Refused):
        refused[site] = error.code
        if error.correlation:
            details[site] = f"{error.correlation} in the site's log"
    else:
        refused[site] = INVALID_REPLY
        details[site] = str(error)
