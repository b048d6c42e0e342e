"""A site's agent: takes requests from its hub, answers with the installed app, one at a time.

It runs nothing that it was sent, answers four kinds of messages and refuses all others, writes down
what it sends before it sends it, and lets replies leave at ticks of a clock rather than when the
work is done.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from time import monotonic
from typing import Protocol

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from federation.canonical import digest_bytes
from federation.egress import EgressJournal
from federation.errors import FederationError, Refused
from federation.flower import wire
from federation.flower.client_app import refused
from federation.flower.fleet import LeaseError, NotAdmittedError, UnreachableError
from federation.flower.parcels import Parcel

_site_log = logging.getLogger("cohortium.site")

# How often a site looks for work, in seconds: often right after a reply, when the next request of a
# run is near, and ever more seldom. A look comes at most a quarter of the wait so far too late.
POLL_S, IDLE_POLL_S, _SLOWER = 0.03, 2.0, 1.25
# Between two tries to write down what is to be sent, in seconds.
JOURNAL_S = 2.0
Told = Callable[[str], None]


class Connection(Protocol):
    """What an agent needs of ``fleet.FleetConnection``."""

    address: str

    @property
    def node_id(self) -> int:
        """What the hub knows this site by."""
        ...

    def take(self) -> Message | None:
        """Return the next message for this site."""
        ...

    def pack(self, reply: Message) -> Parcel:
        """Make a reply ready to be sent."""
        ...

    def give(self, reply: Parcel) -> None:
        """Send a reply."""
        ...


class Agent:
    """Answers a hub until it is told to stop.

    Args:
        app: The site's own, see ``client_app``.
        tick_s: Replies leave at multiples of so many seconds after their request was read.
        stop: Set to end; a round that is under way stops at its next step.
        paused: Whether new requests are to wait, looked at before each.
        told: Called with a few words whenever what the agent does changes.
    """

    def __init__(  # noqa: PLR0913 - all of a site's way out, by keyword
        self,
        app: ClientApp,
        journal: EgressJournal,
        *,
        tick_s: float,
        stop: threading.Event,
        paused: Callable[[], bool] = lambda: False,
        told: Told = lambda _: None,
    ) -> None:
        self._app = app
        self._journal = journal
        self._tick_s = tick_s
        self._stop = stop
        self._paused = paused
        self._tell = told
        self._doing = ""
        self._unsent: Parcel | None = None
        self._heard = 0.0

    def serve(
        self,
        connect: Callable[[], AbstractContextManager[Connection]],
        *,
        outage_s: float = 24 * 3600.0,
        readmit_s: float = 45.0,
    ) -> None:
        """Stay connected and answer, through outages of up to ``outage_s`` seconds each.

        Args:
            readmit_s: A hub that was started anew admits its sites a moment later, and one that a
                site has left without a word lets go of it a moment later: so long, in seconds, such
                a site does not believe that it is refused.

        Raises:
            UnreachableError: The hub was away for longer.
            NotAdmittedError: The hub or its proxy refuses this site.
        """
        last, pause, admitted = monotonic(), 1.0, False
        while not self._stop.is_set():
            try:
                with connect() as connection:
                    self._told(f"connected to {connection.address}")
                    admitted, pause = True, 1.0
                    self._answer_all(connection)
                    last = monotonic()
            except (UnreachableError, NotAdmittedError) as error:
                refused = isinstance(error, NotAdmittedError)
                last = max(last, self._heard)
                in_a_moment = admitted or isinstance(error, LeaseError)
                patience = (readmit_s if in_a_moment else -1.0) if refused else outage_s
                if monotonic() - last > patience:
                    raise
                self._told(f"waiting for the hub: {error}")
                self._stop.wait(pause)
                pause = min(2 * pause, 10.0 if refused else 30.0)

    def _answer_all(self, connection: Connection) -> None:
        pause = POLL_S
        while not self._stop.is_set():
            if self._paused():
                self._told("paused by the operator")
                self._stop.wait(1.0)
                continue
            try:
                self._give_unsent(connection)
                message = connection.take()
                self._heard = monotonic()
                if message is None:
                    self._told("waiting for requests")
                    self._stop.wait(pause)
                    pause = min(_SLOWER * pause, IDLE_POLL_S)
                else:
                    self._answer(connection, message)
                    pause = POLL_S
            except (UnreachableError, NotAdmittedError):
                raise
            except FederationError as error:
                self._unsent = None
                _site_log.warning("Left unanswered: %s", error)
                self._stop.wait(POLL_S)

    def _answer(self, connection: Connection, message: Message) -> None:
        began, kind = monotonic(), wire.KINDS.get(message.metadata.message_type, "unknown")
        self._told(f"answering a {kind} request")
        reply = connection.pack(self._reply(message, kind))
        self._wait_for_tick(began)
        if self._noted(connection.address, kind, reply):
            self._unsent = reply
            self._give_unsent(connection)

    def _noted(self, address: str, kind: str, reply: Parcel) -> bool:
        """Write down what is to be sent, as soon as the disk takes it; False if stopped first."""
        while not self._stop.is_set():
            try:
                self._note(address, kind, reply)
            except FederationError as error:
                if self._doing != str(error):
                    _site_log.warning("Not sent yet: %s", error)
                self._told(str(error))
                self._stop.wait(JOURNAL_S)
            else:
                return True
        return False

    def _told(self, doing: str) -> None:
        if doing != self._doing:
            self._doing = doing
            self._tell(doing)

    def _give_unsent(self, connection: Connection) -> None:
        """Send what was journalled; after an outage, once more, but not to a hub started anew.

        That one knows nothing of the request. It asks again, and gets the same bytes.
        """
        unsent = self._unsent
        if unsent is not None and unsent.message.metadata.src_node_id == connection.node_id:
            connection.give(unsent)
        self._unsent = None

    def _reply(self, message: Message, kind: str) -> Message:
        if kind == "unknown" or not message.has_content():
            return refused(
                message, kind, Refused("invalid_request", "no request that a site knows")
            )
        metadata = message.metadata
        context = Context(
            run_id=metadata.run_id,
            node_id=metadata.dst_node_id,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        return self._app(message, context)

    def _wait_for_tick(self, began: float) -> None:
        if self._tick_s > 0:
            ticks = math.ceil((monotonic() - began) / self._tick_s)
            self._stop.wait(max(0.0, began + max(1, ticks) * self._tick_s - monotonic()))

    def _note(self, address: str, kind: str, reply: Parcel) -> None:
        content = reply.message.content
        self._journal.note(
            to=address,
            kind=kind,
            answer=_answer_of(content),
            num_bytes=reply.num_bytes,
            digest=reply.digest,
            update_digest=_update_of(content),
        )


def _answer_of(content: RecordDict) -> str:
    refusal = content.get("refusal")
    return str(refusal["code"]) if isinstance(refusal, Mapping) else "reply"


def _update_of(content: RecordDict) -> str | None:
    if "update" not in content:
        return None
    return digest_bytes(wire.decode_train_reply(content).payload)
