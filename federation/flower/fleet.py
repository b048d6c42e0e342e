"""A site's only way out: Flower's fleet API, through the hub's proxy, over mutual TLS.

Flower's own SuperNode would do more than a site wants: it fetches and runs the app that a hub
sends. This takes messages and gives replies. Nothing of an app is ever asked for.
"""

import secrets
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from flwr.app import Message
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    UnexpectedObjectContentError,
    get_object_id,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    push_object_contents_from_iterable,
    validate_object_content,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from federation.errors import FederationError
from federation.flower import parcels
from federation.flower.records import MAX_TENSORS, MAX_WEIGHTS_BYTES
from federation.key_slot import protection, read_secret

# How often a site says that it is there, in seconds, and how long one call may take.
HEARTBEAT_S = 10.0
CALL_TIMEOUT_S = 60.0
_MAX_OBJECTS = 4 * MAX_TENSORS
# Names, shapes and other records beside the weights.
_MAX_MESSAGE_BYTES = MAX_WEIGHTS_BYTES + 64 * 1024**2
_BUSY = frozenset({408, 425, 429, 502, 503, 504})
# Flower's answer to a site that is there already, or was until a moment ago and is still on lease.
_ON_LEASE = 412

# The hub heard nothing of a call that ended like this.
_UNHEARD = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

_Answer = TypeVar("_Answer")


class UnreachableError(FederationError):
    """The hub cannot be reached just now; trying again later may do."""


class NotAdmittedError(FederationError):
    """The hub does not know this site's key, or its proxy not this site's certificate."""


class LeaseError(NotAdmittedError):
    """The hub does not admit this site just now; it does not say whether it ever will."""


class RunOverError(FederationError):
    """The run that a message belongs to has ended at the hub."""


class HubFaultError(FederationError):
    """The hub failed over this one request; the next may do better."""


def tls_context(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """Return TLS 1.2 or later that trusts this authority alone and shows this certificate.

    Raises:
        FederationError: A file is missing or does not fit the others.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=ca)
        with _for_tls(key) as (path, password):
            context.load_cert_chain(certificate, path, password)
    except (OSError, ssl.SSLError) as error:
        raise FederationError(
            f"The certificates for the hub cannot be used ({error}): {ca}, {certificate} and the "
            f"key {key} must be there and belong together. 'cohortium site keygen' makes the key, "
            "and the hub's operator the certificate for it: cohortium hub add-site."
        ) from error
    return context


@contextmanager
def _for_tls(key_path: Path) -> Iterator[tuple[Path, str | None]]:
    """Give a file that OpenSSL reads a key from, for as long as that takes, and its password.

    A key that is sealed lies on no disk as it is: the file beside it is sealed under a password of
    256 random bits that nobody has afterwards.
    """
    if not protection(key_path.parent, [key_path.name]).sealed:
        yield key_path, None
        return
    password = secrets.token_hex(32)
    sealing = BestAvailableEncryption(password.encode())
    key = load_pem_private_key(read_secret(key_path), password=None)
    with NamedTemporaryFile(dir=key_path.parent, prefix=f".{key_path.name}.") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealing))
        file.flush()
        yield Path(file.name), password


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key that a site's connection is known by.

    Raises:
        FederationError: It is missing or none.
    """
    try:
        key = load_pem_private_key(read_secret(path), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise FederationError(
            f"{path} is not the key of a connection ({error}). Make one with 'cohortium site "
            "keygen' and let the hub's operator register it."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FederationError(f"{path} is not an elliptic-curve key. Make one with 'site keygen'.")
    return key


class FleetConnection:
    """One site's connection. Use it as a context manager: it leaves the hub in order.

    Args:
        address: Host and port of the hub's proxy.
        patience_s: How long one call is repeated while the hub cannot be reached, in seconds.
    """

    def __init__(
        self,
        address: str,
        context: ssl.SSLContext,
        key: ec.EllipticCurvePrivateKey,
        *,
        patience_s: float = 120.0,
    ) -> None:
        self.address = address
        self._public_key = public_key_to_bytes(key.public_key())
        self._patience_s = patience_s
        self._node: Node | None = None
        self._over = threading.Event()
        self._heart: threading.Thread | None = None
        self._client = FleetHttpClient(
            f"https://{address}",
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
            verify=context,
            timeout=CALL_TIMEOUT_S,
        )

    def __enter__(self) -> Self:
        """Tell the hub that this site is there.

        Raises:
            UnreachableError: The hub does not answer.
            LeaseError: It still holds the lease of a site that was killed a moment ago, or does not
                know this site: Flower answers both alike.
            NotAdmittedError: It does not know this site.
        """
        try:
            request = ActivateNodeRequest(
                public_key=self._public_key, heartbeat_interval=HEARTBEAT_S
            )
            answer = self._call(self._client.ActivateNode, request)
        except BaseException as error:
            self._client.close()
            if isinstance(error, HubFaultError):
                raise UnreachableError(str(error)) from error
            raise
        self._node = Node(node_id=answer.node_id)
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave; if the hub does not hear it, the lease runs out."""
        self._over.set()
        if self._heart is not None:
            self._heart.join(timeout=CALL_TIMEOUT_S)
        try:
            if self._node is not None:
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        except (httpx.HTTPError, RuntimeError, ValueError):
            pass
        finally:
            self._client.close()

    @property
    def node_id(self) -> int:
        """What Flower knows this site by, until the hub is started anew."""
        return int(self._required_node().node_id)

    def take(self) -> Message | None:
        """Return the next whole message for this site, or None if there is none.

        The hub hands a message over once. Where its answer may have been lost on the way, this is
        not repeated: the agent leaves and comes back, and the hub asks anew.

        Raises:
            UnreachableError, NotAdmittedError, RunOverError: See there.
            FederationError: What arrived is no message.
        """
        request = PullMessagesRequest(node=self._node)
        answer = self._call(self._client.PullMessages, request, once=True)
        if not answer.messages_list:
            return None
        if parcels.is_whole(answer.messages_list[0]):
            message = parcels.unpacked(answer.messages_list[0])
        else:
            message = self._from_parts(answer)
        received = ConfirmMessageReceivedRequest(
            node=self._node,
            run_id=message.metadata.run_id,
            message_object_id=message.metadata.message_id,
        )
        self._call(self._client.ConfirmMessageReceived, received)
        return message

    def _from_parts(self, answer: PullMessagesResponse) -> Message:
        try:
            shell = message_from_proto(answer.messages_list[0])
            run_id = shell.metadata.run_id
            contents = self._contents(run_id, answer.message_object_trees[0])
        except (ObjectPullError, UnexpectedObjectContentError, ValueError, IndexError) as error:
            raise FederationError(f"A message of the hub is not whole ({error}).") from error
        message = parcels.assembled(shell.metadata.message_id, contents)
        if message.metadata.run_id != run_id:
            raise FederationError("The hub sent a message of one run as another's.")
        return message

    def pack(self, reply: Message) -> parcels.Parcel:
        """Make a reply ready to be sent: whole if it is small and whoever asked reads that."""
        if parcels.is_marked(reply) and parcels.may_be_whole(reply):
            return parcels.whole(reply)
        return parcels.in_parts(reply)

    def give(self, reply: parcels.Parcel) -> None:
        """Send a reply. The time that it took to make is told as zero.

        Raises:
            UnreachableError, NotAdmittedError, RunOverError: See there.
        """
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[reply.shell],
            message_object_trees=[reply.tree],
            clientapp_runtime_list=[0.0],
        )
        answer = self._call(self._client.PushMessages, request)
        if not reply.parts:
            return
        run_id = reply.message.metadata.run_id
        push = make_push_object_fn_protobuf(
            self._push_object, self._required_node(), run_id, answer.session_id
        )
        wanted = set(answer.objects_to_push)
        contents = ((i, content) for i, content in reply.parts.items() if i in wanted)
        try:
            push_object_contents_from_iterable(contents, push)
        except ObjectPushError as error:
            raise UnreachableError("The hub let go of a reply before it was whole.") from error

    def _push_object(self, request: PushObjectRequest) -> PushObjectResponse:
        """Send a part of a reply. Where the answer was lost, the hub may have it already.

        Flower then answers that it stores nothing: the part is not missing any more.
        """
        tries = 0

        def push(one: PushObjectRequest) -> PushObjectResponse:
            nonlocal tries
            tries += 1
            return self._client.PushObject(one)

        answer = self._call(push, request)
        return PushObjectResponse(stored=True) if tries > 1 else answer

    def _contents(self, run_id: int, tree: ObjectTree) -> dict[str, bytes]:
        """Fetch every part of a message, none of them other than its digest says."""
        ids = parcels.part_ids(tree)
        if len(ids) > _MAX_OBJECTS:
            raise FederationError(f"A message has {len(ids)} parts, more than {_MAX_OBJECTS}.")
        fetch = make_pull_object_fn_protobuf(
            lambda one: self._call(self._client.PullObject, one), self._required_node(), run_id
        )
        so_far = 0

        def checked(object_id: str) -> bytes:
            nonlocal so_far
            content = fetch(object_id)
            so_far += len(content)
            if so_far > _MAX_MESSAGE_BYTES:
                raise FederationError(f"A message exceeds {_MAX_MESSAGE_BYTES} bytes.")
            if get_object_id(content) != object_id:
                raise FederationError("A part of a message is not what its digest says.")
            validate_object_content(content)
            return content

        return parcels.pulled(ids, checked, max_time=self._patience_s)

    def _required_node(self) -> Node:
        if self._node is None:
            raise RuntimeError("Enter the connection before using it.")
        return self._node

    def _beat(self) -> None:
        """Keep the lease. A beat that fails is no event: the next call to the hub will tell."""
        while not self._over.wait(HEARTBEAT_S / 2):
            request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
            try:
                self._client.SendNodeHeartbeat(request)
            except (httpx.HTTPError, RuntimeError, ValueError):
                continue

    def _call(
        self, method: Callable[[Any], _Answer], request: Any, *, once: bool = False
    ) -> _Answer:
        """Call, and again while the hub is away, with growing pauses, for ``patience_s``.

        Args:
            once: Do not call again where the hub may have heard the first call.
        """
        end, pause = monotonic() + self._patience_s, 0.2
        while True:
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                failure = _meaning(error.response, self.address)
            except httpx.TransportError as error:
                failure = _not_reached(error, self.address)
                if once and not isinstance(error, _UNHEARD):
                    raise failure from error
            except ValueError:
                failure = HubFaultError(f"The hub at {self.address} answered with what is none.")
            if not isinstance(failure, UnreachableError) or monotonic() + pause > end:
                raise failure
            if self._over.wait(pause):
                raise failure
            pause = min(2 * pause, 10.0)


def _meaning(response: httpx.Response, address: str) -> FederationError:
    """Say what a status means; the hub's own text is not repeated."""
    status = response.status_code
    if status in _BUSY:
        return UnreachableError(f"The hub at {address} is not ready (HTTP {status}).")
    if status == 500:
        return HubFaultError(f"The hub at {address} failed over a request (HTTP 500).")
    if status == _ON_LEASE:
        return LeaseError(
            f"The hub at {address} does not admit this site (HTTP 412). If the site was killed a "
            "moment ago, the hub lets go of it within half a minute. Otherwise it is not "
            "registered, or was removed (ask the hub's operator: cohortium hub add-site), or a "
            "second copy of it runs somewhere."
        )
    if status == 401:
        return NotAdmittedError(
            f"The hub at {address} does not know this site's key (HTTP 401). Ask its operator to "
            "register it: cohortium hub add-site. If it is registered, compare the clocks: they "
            "may differ by seconds only."
        )
    if status == 403:
        return RunOverError(f"The run has ended at the hub at {address} (HTTP 403).")
    return NotAdmittedError(
        f"The hub at {address} refuses this site (HTTP {status}): its certificate is missing, "
        "expired or revoked, or the versions of the software do not fit."
    )


def _not_reached(error: httpx.TransportError, address: str) -> FederationError:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return NotAdmittedError(
            f"The certificate of {address} is not signed by the authority in the site file "
            f"({text}). Nothing was sent. Compare 'hub.ca' with what the hub's operator gave you."
        )
    return UnreachableError(f"The hub at {address} cannot be reached ({type(error).__name__}).")
