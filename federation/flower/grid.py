"""Sites in this process behind Flower's ``Grid``: for the demo, ``cohortium run`` and tests.

Messages take the trip that Flower's own transport gives them (deflated to bytes, inflated from
bytes, both ways), so what works here does not depend on sharing memory.
"""

import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property

from flwr.app import DEFAULT_TTL, Context, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run

HUB_NODE_ID = 1
LOCAL_RUN_ID = 1

Recorder = Callable[[str, str, bytes], None]


class NamedGrid(Grid):
    """A grid whose sites are known by name before they answer."""

    @property
    @abstractmethod
    def names(self) -> dict[int, str]:
        """Node id to site name, of the sites that are there, in name order."""

    @property
    def registered(self) -> dict[int, str]:
        """The same of every site that may be there."""
        return self.names


class LocalGrid(NamedGrid):
    """Runs client apps where the server app runs.

    With ``max_workers=1`` sites run one after another in the order of their names. A site that
    has begun is not interrupted; at the deadline the ones that have not begun are left out, as
    are, with several workers, replies that are not there yet.

    Args:
        recorder: Called with ``"to_site"`` or ``"from_site"``, the site's name and the exact
            bytes of each message. Called from the worker's thread.
    """

    def __init__(
        self,
        sites: Mapping[str, ClientApp],
        *,
        max_workers: int = 1,
        recorder: Recorder | None = None,
    ) -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers is {max_workers}; give at least 1.")
        self._apps = {name: sites[name] for name in sorted(sites)}
        self._names = dict(enumerate(self._apps, start=HUB_NODE_ID + 1))
        self._contexts = {node_id: _context(node_id) for node_id in self._names}
        self._max_workers = max_workers
        self._recorder = recorder
        self._pushed: dict[str, Message] = {}
        self._working: dict[str, Future[Message]] = {}
        self._run = Run.create_empty(LOCAL_RUN_ID)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._max_workers, thread_name_prefix="site")

    @property
    def names(self) -> dict[int, str]:
        """Node id to site name, in name order."""
        return dict(self._names)

    def set_run(self, run: Run) -> None:
        """Set the Flower run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The Flower run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Address ``content`` to a site."""
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id="",
            src_node_id=HUB_NODE_ID,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=DEFAULT_TTL if ttl is None else ttl,
            message_type=message_type,
        )
        return make_message(metadata, content)

    def get_node_ids(self) -> list[int]:
        """Return the sites' node ids, in name order."""
        return list(self._names)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep these; each site works when its reply is asked for."""
        # Flower's own ids hash a whole message; these are as good here.
        new = {secrets.token_hex(32): message for message in messages}
        for message_id, message in new.items():
            message.metadata.__dict__["_message_id"] = message_id
        self._pushed = {i: m for i, m in self._pushed.items() if not _expired(m)} | new
        return list(new)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand over, once, replies to these messages: of one site that works now, or that is done.

        With several workers as many sites are at work, in the order in which they were asked for.
        """
        if self._max_workers == 1:
            asked = next((i for i in message_ids if i in self._pushed), None)
            return [] if asked is None else [self._answer(self._pushed.pop(asked), asked)]
        return self._pull_from_threads(list(message_ids))

    def _pull_from_threads(self, message_ids: list[str]) -> list[Message]:
        for message_id in message_ids:
            if message_id in self._pushed and len(self._working) < self._max_workers:
                message = self._pushed.pop(message_id)
                self._working[message_id] = self._pool.submit(self._answer, message, message_id)
        done = [i for i in message_ids if i in self._working and self._working[i].done()]
        return [self._working.pop(i).result() for i in done[:1]]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send each message and return the replies that came within ``timeout`` seconds."""
        by_site = sorted(messages, key=lambda m: self._names[m.metadata.dst_node_id])
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._max_workers == 1:
            return [self._answer(m) for m in by_site if _before(deadline)]
        return self._answer_in_threads(by_site, timeout)

    def _answer_in_threads(self, messages: list[Message], timeout: float | None) -> list[Message]:
        pool = ThreadPoolExecutor(self._max_workers, thread_name_prefix="site")
        try:
            futures = [pool.submit(self._answer, message) for message in messages]
            done, _late = wait(futures, timeout)
            return [future.result() for future in futures if future in done]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, message: Message, message_id: str | None = None) -> Message:
        node_id = message.metadata.dst_node_id
        name = self._names[node_id]
        arrived = self._over_the_wire("to_site", name, message)
        if message_id is not None:
            arrived.metadata.__dict__["_message_id"] = message_id
        reply = _call(self._apps[name], arrived, self._contexts[node_id])
        return self._over_the_wire("from_site", name, reply)

    def _over_the_wire(self, direction: str, name: str, message: Message) -> Message:
        with no_object_id_recompute():
            contents = {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
            object_id = message.object_id
        if self._recorder is not None:
            self._recorder(direction, name, b"".join(contents.values()))
        arrived = inflate_object_from_contents(object_id, contents)
        if not isinstance(arrived, Message):
            raise TypeError(f"flwr inflated a {type(arrived).__name__} from a Message.")
        # Flower's hub names a message by its object id; a reply refers to it by that name.
        arrived.metadata.__dict__["_message_id"] = object_id
        return arrived


def _context(node_id: int) -> Context:
    return Context(
        run_id=LOCAL_RUN_ID, node_id=node_id, node_config={}, state=RecordDict(), run_config={}
    )


def _expired(message: Message) -> bool:
    return bool(message.metadata.created_at + message.metadata.ttl < time.time())


def _before(deadline: float | None) -> bool:
    return deadline is None or time.monotonic() < deadline


def _call(app: ClientApp, message: Message, context: Context) -> Message:
    """Return the app's reply; like Flower's runtime, turn an exception into an error reply.

    Unlike it, leave the exception's text behind.
    """
    try:
        return app(message, context)
    except Exception:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=message)
