"""A site's connection against a server that answers what a test wants, over real TLS."""

import socket
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import (
    Metadata,
    ObjectTree,
    PushObjectRequest,
    PushObjectResponse,
)

from federation.certificates import new_key, public_text
from federation.errors import FederationError
from federation.flower.fleet import (
    FleetConnection,
    HubFaultError,
    LeaseError,
    NotAdmittedError,
    RunOverError,
    UnreachableError,
    load_node_key,
    tls_context,
)
from federation.flower.reaching import compare_clocks
from federation.hub_folder import init_hub

ADMITTED = ActivateNodeResponse(node_id=7).SerializeToString()
# In place of a status: the connection ends before an answer, or in the middle of one.
CUT, TRUNCATED = -1, -2


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub's certificates and one site's; the site's private key is beside them."""
    folder = tmp_path_factory.mktemp("fleet") / "hub"
    made = init_hub(folder, address="127.0.0.1:1", listen="127.0.0.1:1", link_port=1)
    key = new_key(folder / "site.pem", ec.SECP384R1())
    (folder / "site.pub").write_text(public_text(key.public_key()))
    made.add_site("ward-a", folder / "site.pub")
    return made


class Answers(BaseHTTPRequestHandler):
    """Takes the next answer of a call from a list, the last one for ever."""

    script: dict
    calls: list

    def do_POST(self):
        name = self.path.rpartition("/")[2]
        self.rfile.read(int(self.headers["content-length"]))
        self.calls.append(name)
        left = self.script.get(name, [(200, b"")])
        status, body = left.pop(0) if len(left) > 1 else left[0]
        if status == CUT:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(200 if status == TRUNCATED else status)
        missing = 100 if status == TRUNCATED else 0
        self.send_header("content-length", str(len(body) + missing))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = bool(missing)

    def do_GET(self):
        self.send_response(404)
        self.send_header("content-length", "0")
        self.end_headers()

    def date_time_string(self, timestamp=None):
        return super().date_time_string((timestamp or time.time()) + self.script.get("clock", 0))

    def log_message(self, *_):
        pass


@pytest.fixture
def serving(hub):
    """Serve a script; give the address and the calls that came."""

    @contextmanager
    def serve(**script):
        clock = {"clock": script.pop("clock", 0)}
        script = {n.replace("_", "-"): list(answers) for n, answers in script.items()} | clock
        handler = type("Scripted", (Answers,), {"script": script, "calls": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(hub.path / "proxy.crt", hub.path / "proxy.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", handler.calls
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return serve


@pytest.fixture
def connect(hub):
    def make(address, *, ca=None, patience_s=0.0):
        context = tls_context(
            ca or hub.path / "ca.crt", hub.path / "sites" / "ward-a.crt", hub.path / "site.pem"
        )
        key = load_node_key(hub.path / "site.pem")
        return FleetConnection(address, context, key, patience_s=patience_s)

    return make


def admitted(**more):
    return {"activate_node": [(200, ADMITTED)], **more}


def test_a_site_is_admitted_and_leaves_in_order(serving, connect):
    with serving(**admitted()) as (address, calls):
        with connect(address) as connection:
            assert connection.node_id == 7
            assert connection.take() is None
        assert calls == ["activate-node", "pull-messages", "deactivate-node"]


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, NotAdmittedError, "does not know this site's key"),
        (400, NotAdmittedError, "its certificate is missing"),
        (412, LeaseError, "is not registered, or was removed"),
        (500, UnreachableError, "failed over a request"),
        (502, UnreachableError, "not ready"),
        (503, UnreachableError, "not ready"),
    ],
)
def test_what_a_status_means_at_the_door(serving, connect, status, kind, words):
    with serving(activate_node=[(status, b"/data/doe_jane.dcm")]) as (address, _):
        with pytest.raises(kind, match=words) as refused, connect(address):
            pass
        assert "doe_jane" not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, RunOverError), (500, HubFaultError), (401, NotAdmittedError), (504, UnreachableError)],
)
def test_what_a_status_means_later(serving, connect, status, kind):
    with (
        serving(**admitted(pull_messages=[(status, b"")])) as (address, _),
        connect(address) as connection,
        pytest.raises(kind),
    ):
        connection.take()


def test_a_call_is_repeated_while_the_hub_is_away_and_no_longer(serving, connect):
    away = [(503, b""), (502, b""), (200, b"")]
    with (
        serving(**admitted(pull_messages=away)) as (address, calls),
        connect(address, patience_s=5.0) as connection,
    ):
        assert connection.take() is None
        assert calls.count("pull-messages") == 3
    with serving(**admitted(pull_messages=[(503, b"")])) as (address, calls):
        began = time.monotonic()
        with connect(address, patience_s=1.0) as connection, pytest.raises(UnreachableError):
            connection.take()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("how", [(CUT, b""), (TRUNCATED, b"\n\x05")], ids=["cut", "truncated"])
class TestALinkThatIsCut:
    def test_in_a_call_that_can_be_made_again_costs_nothing(self, serving, connect, how):
        answers = [how, how, (200, ADMITTED)]
        with serving(activate_node=answers) as (address, calls):
            with connect(address, patience_s=5.0) as connection:
                assert connection.node_id == 7
            assert calls.count("activate-node") == 3

    def test_while_a_message_is_handed_over_is_told_at_once(self, serving, connect, how):
        """Flower gives a message once: asked again it would say that there is none."""
        with (
            serving(**admitted(pull_messages=[how, (200, b"")])) as (address, calls),
            connect(address, patience_s=60.0) as connection,
        ):
            with pytest.raises(UnreachableError, match="cannot be reached"):
                connection.take()
            assert calls.count("pull-messages") == 1


def test_a_part_that_arrived_and_whose_answer_was_lost_is_no_reply_that_was_let_go(
    serving, connect
):
    """Flower answers a part that it has already as it answers one that it does not want."""
    answers = [(CUT, b""), (200, PushObjectResponse(stored=False).SerializeToString())]
    with (
        serving(**admitted(push_object=answers)) as (address, _),
        connect(address, patience_s=5.0) as connection,
    ):
        assert connection._push_object(PushObjectRequest(object_id="x")).stored
        assert not connection._push_object(PushObjectRequest(object_id="y")).stored


class TestClocks:
    @pytest.fixture
    def ahead(self, serving, hub):
        """Return a site's clock beside that of a hub whose clock is so many seconds ahead."""
        files = (hub.path / "ca.crt", hub.path / "sites" / "ward-a.crt", hub.path / "site.pem")

        def compared(seconds):
            with serving(clock=seconds) as (address, _):
                return compare_clocks(address, tls_context(*files))

        return compared

    @pytest.mark.parametrize(
        ("hub_s", "fits", "words"),
        [
            (0, True, "as the hub's"),
            (-600, False, "600 s ahead of the hub's"),
            (-8, False, "8 s ahead of the hub's"),
            (200, True, "200 s behind the hub's"),
            (600, False, "600 s behind the hub's"),
        ],
    )
    def test_are_compared_and_told(self, ahead, hub_s, fits, words):
        found = ahead(hub_s)
        assert found.ahead_s == pytest.approx(-hub_s, abs=1.6)
        assert found.fits == fits
        near = [words.replace(str(abs(hub_s)), str(abs(hub_s) + off)) for off in (-1, 0, 1)]
        assert str(found) in near

    def test_of_a_hub_that_is_not_there_are_not_compared(self, hub):
        context = tls_context(
            hub.path / "ca.crt", hub.path / "sites" / "ward-a.crt", hub.path / "site.pem"
        )
        assert compare_clocks("127.0.0.1:9", context) is None


def test_nobody_listens(connect):
    with pytest.raises(UnreachableError, match="cannot be reached"), connect("127.0.0.1:9"):
        pass


def test_another_authority_is_told_at_once(serving, connect, tmp_path):
    other = init_hub(tmp_path / "o", address="127.0.0.1:1", listen="127.0.0.1:1", link_port=1)
    with (
        serving(**admitted()) as (address, calls),
        pytest.raises(NotAdmittedError, match="not signed by the authority in the site file"),
        connect(address, ca=other.path / "ca.crt", patience_s=60.0),
    ):
        pass
    assert calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff\xff\xff",
        PullMessagesResponse(messages_list=[ProtoMessage()]).SerializeToString(),
        PullMessagesResponse(
            messages_list=[ProtoMessage(metadata=Metadata(run_id=1, message_id="x" * 64))],
            message_object_trees=[ObjectTree(object_id="x" * 64)],
        ).SerializeToString(),
    ],
    ids=["no protobuf", "no tree", "parts that are not there"],
)
def test_what_is_no_message_is_no_crash(serving, connect, body):
    with (
        serving(**admitted(pull_messages=[(200, body)])) as (address, _),
        connect(address) as connection,
        pytest.raises(FederationError),
    ):
        connection.take()


@pytest.mark.parametrize("name", ["ca.crt", "site.crt", "site.pem"])
def test_a_missing_file_is_named(hub, tmp_path, name):
    files = {
        "ca.crt": hub.path / "ca.crt",
        "site.crt": hub.path / "sites" / "ward-a.crt",
        "site.pem": hub.path / "site.pem",
    } | {name: tmp_path / "gone"}
    with pytest.raises(FederationError, match="gone"):
        tls_context(files["ca.crt"], files["site.crt"], files["site.pem"])


def test_a_key_of_another_kind_is_refused(tmp_path):
    (tmp_path / "odd.pem").write_text("no key")
    with pytest.raises(FederationError, match="site keygen"):
        load_node_key(tmp_path / "odd.pem")
