"""A site's connection against a server that answers what a test wants, over real TLS."""

import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree

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
from federation.hub_folder import init_hub

ADMITTED = ActivateNodeResponse(node_id=7).SerializeToString()


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
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serving(hub):
    """Serve a script; give the address and the calls that came."""

    @contextmanager
    def serve(**script):
        script = {name.replace("_", "-"): list(answers) for name, answers in script.items()}
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
