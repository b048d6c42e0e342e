"""An agent's behaviour over a connection that a test holds the other end of."""

import logging
import threading
import time
from contextlib import contextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message

from federation.canonical import digest_bytes
from federation.egress import EgressJournal
from federation.errors import FederationError, Refused
from federation.flower import wire
from federation.flower.agent import Agent
from federation.flower.client_app import client_app
from federation.flower.fleet import LeaseError, NotAdmittedError, RunOverError, UnreachableError
from federation.flower.grid import LocalGrid
from federation.flower.parcels import in_parts
from federation.ledger.keys import SiteKey
from federation.messages import DescribeRequest, TrainRequest
from federation.signed_requests import Gate, sign_request

HUB = SiteKey(Ed25519PrivateKey.generate())


class Wire:
    """A connection whose messages are given beforehand; it ends the agent when they are used up."""

    address = "hub.example.org:443"
    node_id = 2  # as LocalGrid numbers its first site

    def __init__(self, messages, stop):
        self.messages, self.stop = list(messages), stop
        self.given, self.times = [], []
        self.before_giving = lambda: None
        self.failures = []

    def take(self):
        if self.failures:
            raise self.failures.pop(0)
        if self.messages:
            return self.messages.pop(0)
        self.stop.set()
        return None

    def pack(self, reply):
        return in_parts(reply)

    def give(self, reply):
        self.before_giving()
        self.given.append(reply.message)
        self.times.append(time.monotonic())

    @contextmanager
    def __call__(self):
        yield self


@pytest.fixture
def asked(experiment_digest, run_id, weights):
    """Make a message to ward-a, as its hub signs it."""
    grid = LocalGrid({"ward-a": lambda *_: None})

    def message(kind="train", content=None, attempt=1):
        if content is None:
            if kind == "train":
                request = TrainRequest(experiment_digest, run_id, 1, attempt, weights)
                content = wire.encode_train_request(request)
            else:
                request = DescribeRequest(experiment_digest, run_id)
                content = wire.encode_describe_request(request)
            what = {"query": "describe"}.get(kind, kind)
            signature = sign_request(
                HUB, kind=what, digest=request.digest(), site="ward-a", valid_s=60
            )
            content = wire.signed(content, signature)
        made = grid.create_message(content, kind, grid.get_node_ids()[0], "1")
        made.metadata.__dict__["_message_id"] = made.object_id
        return made

    return message


@pytest.fixture
def served(tmp_path, site):
    """Let an agent answer messages; return the connection and the journal."""

    def serve(messages, *, fake=None, tick_s=0.0, prepare=lambda _: None, **options):
        stop = threading.Event()
        connection = Wire(messages, stop)
        prepare(connection)
        journal = EgressJournal(tmp_path)
        app = client_app(fake or site("ward-a"), Gate("ward-a", HUB.public_bytes.hex()))
        Agent(app, journal, tick_s=tick_s, stop=stop, **options).serve(connection)
        return connection, list(journal.entries())

    return serve


def test_a_round_is_answered_and_journalled(
    served, asked, site, experiment_digest, run_id, weights
):
    honest = site("ward-a")
    connection, entries = served([asked("query"), asked()], fake=honest)
    reply = wire.decode_train_reply(connection.given[1].content)
    expected = honest.train(TrainRequest(experiment_digest, run_id, 1, 1, weights))
    assert reply.payload == expected.payload
    assert [(e.kind, e.answer, e.to) for e in entries] == [
        ("describe", "reply", Wire.address),
        ("train", "reply", Wire.address),
    ]
    assert entries[1].update_digest == digest_bytes(reply.payload)
    assert entries[0].update_digest is None
    assert entries[1].num_bytes > len(reply.payload)


def test_what_is_sent_is_journalled_before_it_is_sent(served, asked, tmp_path):
    seen = []

    def prepare(connection):
        connection.before_giving = lambda: seen.append(len(list(EgressJournal(tmp_path).entries())))

    served([asked(), asked(attempt=2)], prepare=prepare)
    assert seen == [1, 2]


class TestAJournalThatCannotBeWritten:
    @pytest.fixture
    def agent(self, tmp_path, asked, site, monkeypatch):
        """An agent with one message; ``told`` is called with what it says while it waits."""
        monkeypatch.setattr("federation.flower.agent.JOURNAL_S", 0.01)
        (tmp_path / "egress.jsonl").mkdir()
        stop = threading.Event()
        connection = Wire([asked()], stop)
        app = client_app(site("ward-a"), Gate("ward-a", HUB.public_bytes.hex()))

        def serve(told):
            agent = Agent(app, EgressJournal(tmp_path), tick_s=0, stop=stop, told=told)
            agent.serve(connection)
            return connection.given

        serve.stop = stop
        return serve

    def test_keeps_the_reply_until_it_can_be(self, agent, tmp_path, caplog):
        def told(text):
            if "nothing was sent" in text:
                (tmp_path / "egress.jsonl").rmdir()

        with caplog.at_level(logging.WARNING, "cohortium.site"):
            assert len(agent(told)) == 1
        assert caplog.text.count("nothing was sent") == 1
        assert len(list(EgressJournal(tmp_path).entries())) == 1

    def test_lets_nothing_out_when_the_site_is_stopped_meanwhile(self, agent):
        def told(text):
            if "nothing was sent" in text:
                agent.stop.set()

        assert agent(told) == []


@pytest.mark.parametrize("kind", ["train.other", "query.open_everything", "system", "evaluate.x"])
def test_other_kinds_are_refused_and_never_reach_the_site(served, asked, site, caplog, kind):
    fake = site("ward-a")
    with caplog.at_level(logging.WARNING, "cohortium.site"):
        connection, entries = served([asked(kind, RecordDict())], fake=fake)
    refusal = connection.given[0].content["refusal"]
    assert refusal["code"] == "invalid_request"
    assert refusal["correlation"] in caplog.text
    assert (entries[0].kind, entries[0].answer) == ("unknown", "invalid_request")
    assert fake.seen == []


def test_an_error_in_place_of_content_is_refused(served, asked, site):
    broken = make_message(asked().metadata, error=Error(0, "look at me"))
    connection, _ = served([broken], fake=site("ward-a"))
    assert connection.given[0].content["refusal"]["code"] == "invalid_request"


def test_a_refusal_is_journalled_by_its_code(served, asked, site):
    _, entries = served([asked()], fake=site("ward-a", fails={"train": Refused("budget")}))
    assert [entry.answer for entry in entries] == ["budget"]


class TestTicks:
    TICK_S = 0.4

    def leaves_after(self, served, asked, site, fake_train):
        fake = site("ward-a")
        if fake_train is not None:
            fake.train = fake_train
        began = time.monotonic()
        connection, entries = served([asked()], fake=fake, tick_s=self.TICK_S)
        return connection.times[0] - began, connection.given[0].content, entries

    def test_a_reply_waits_for_the_tick(self, served, asked, site):
        took, _, _ = self.leaves_after(served, asked, site, None)
        assert took >= self.TICK_S

    def test_slow_and_broken_leave_at_the_same_tick_with_records_of_one_shape(
        self, served, asked, site
    ):
        def slow(_):
            time.sleep(0.2)
            raise OSError("one subject is far larger than the others")

        def broken(_):
            raise MemoryError

        first, content_a, entries_a = self.leaves_after(served, asked, site, slow)
        second, content_b, entries_b = self.leaves_after(served, asked, site, broken)
        assert round(first / self.TICK_S) == round(second / self.TICK_S) == 1
        assert content_a["refusal"]["code"] == content_b["refusal"]["code"] == "round_failed"
        assert set(content_a) == set(content_b)
        assert abs(entries_a[-1].num_bytes - entries_b[-1].num_bytes) <= 4  # of Flower's times

    def test_work_that_takes_longer_leaves_at_a_later_one(self, served, asked, site):
        def slow(_):
            time.sleep(1.2 * self.TICK_S)
            raise OSError

        took, _, _ = self.leaves_after(served, asked, site, slow)
        assert took >= 2 * self.TICK_S


class TestStopping:
    def test_nothing_is_sent_once_it_was_told_to_stop(self, served, asked, site):
        fake = site("ward-a")
        holder = []
        train = fake.train

        def stops(request):
            holder[0].stop.set()
            return train(request)

        fake.train = stops
        connection, entries = served([asked()], fake=fake, prepare=holder.append)
        assert connection.given == [] and entries == []

    def test_a_pause_leaves_requests_where_they_are(self, tmp_path, asked, site):
        stop = threading.Event()
        connection = Wire([asked()], stop)
        app = client_app(site("ward-a"), Gate("ward-a", HUB.public_bytes.hex()))
        told = []

        def tell(text):
            told.append(text)
            if text.startswith("paused"):
                stop.set()

        Agent(
            app, EgressJournal(tmp_path), tick_s=0, stop=stop, paused=lambda: True, told=tell
        ).serve(connection)
        assert len(connection.messages) == 1 and connection.given == []
        assert told[-1] == "paused by the operator"


class TestFailures:
    def test_a_reply_that_was_cut_off_is_sent_once_more_after_the_outage(self, served, asked):
        def prepare(connection):
            def cut():
                connection.before_giving = lambda: None
                raise UnreachableError("the link is down")

            connection.before_giving = cut

        connection, entries = served([asked()], prepare=prepare)
        assert len(connection.given) == 1
        assert len(entries) == 1

    def test_a_reply_that_was_cut_off_is_not_sent_to_a_hub_that_was_started_anew(
        self, served, asked
    ):
        def prepare(connection):
            def cut():
                connection.before_giving = lambda: None
                connection.node_id = 99
                raise UnreachableError("the hub is gone")

            connection.before_giving = cut

        connection, _ = served([asked()], prepare=prepare)
        assert connection.given == []

    def test_an_outage_that_is_too_long_ends_the_agent(self, served):
        def prepare(connection):
            connection.failures = [UnreachableError("gone")] * 9

        with pytest.raises(UnreachableError, match="gone"):
            _serve_with_no_patience(served, prepare, outage_s=-1.0)

    def test_a_hub_that_goes_on_refusing_the_site_ends_the_agent(self, served):
        def prepare(connection):
            connection.failures = [NotAdmittedError("revoked")] * 99

        with pytest.raises(NotAdmittedError, match="revoked"):
            _serve_with_no_patience(served, prepare, readmit_s=0.5)

    def test_a_hub_that_was_started_anew_is_given_a_moment(self, served, asked):
        def prepare(connection):
            connection.failures = [NotAdmittedError("not yet")]

        connection, _ = served([asked()], prepare=prepare)
        assert len(connection.given) == 1

    def test_a_site_that_was_never_admitted_is_told_at_once(self, tmp_path, site):
        def refused():
            raise NotAdmittedError("unknown key")

        agent = Agent(
            client_app(site("ward-a")), EgressJournal(tmp_path), tick_s=0, stop=threading.Event()
        )
        with pytest.raises(NotAdmittedError, match="unknown key"):
            agent.serve(refused)

    def test_a_run_that_is_over_or_a_message_that_is_none_is_passed_by(self, served, asked):
        def prepare(connection):
            connection.failures = [RunOverError("over"), FederationError("no message")]

        connection, _ = served([asked()], prepare=prepare)
        assert len(connection.given) == 1

    def test_a_reply_to_a_run_that_is_over_is_dropped(self, served, asked):
        def prepare(connection):
            def over():
                connection.before_giving = lambda: None
                raise RunOverError("over")

            connection.before_giving = over

        connection, _ = served([asked(), asked(attempt=2)], prepare=prepare)
        assert len(connection.given) == 1


class TestALease:
    @staticmethod
    def agent(tmp_path, site, stop):
        return Agent(client_app(site("ward-a")), EgressJournal(tmp_path), tick_s=0, stop=stop)

    def test_of_a_site_that_was_killed_is_waited_for(self, tmp_path, site):
        stop = threading.Event()
        connection, refusals = Wire([], stop), [LeaseError("on lease")]

        def connect():
            if refusals:
                raise refusals.pop()
            return connection()

        self.agent(tmp_path, site, stop).serve(connect)
        assert not refusals and stop.is_set()

    def test_that_never_ends_is_a_refusal(self, tmp_path, site):
        def refused():
            raise LeaseError("on lease, or unknown")

        with pytest.raises(LeaseError, match="unknown"):
            self.agent(tmp_path, site, threading.Event()).serve(refused, readmit_s=0.5)


def _serve_with_no_patience(served, prepare, **patience):
    serve = Agent.serve
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agent, "serve", lambda self, connect: serve(self, connect, **patience))
        served([], prepare=prepare)


def test_a_message_to_another_site_is_refused(served, experiment_digest, run_id, site):
    request = DescribeRequest(experiment_digest, run_id)
    signature = sign_request(
        HUB, kind="describe", digest=request.digest(), site="ward-b", valid_s=60
    )
    grid = LocalGrid({"ward-a": lambda *_: None})
    content = wire.signed(wire.encode_describe_request(request), signature)
    message: Message = grid.create_message(content, "query", grid.get_node_ids()[0], "1")
    message.metadata.__dict__["_message_id"] = message.object_id
    fake = site("ward-a")
    connection, _ = served([message], fake=fake)
    assert connection.given[0].content["refusal"]["code"] == "not_from_hub"
    assert fake.seen == []
