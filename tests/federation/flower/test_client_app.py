import logging

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, RecordDict

from federation.errors import Refused
from federation.flower import wire
from federation.flower.client_app import client_app
from federation.flower.grid import LocalGrid
from federation.ledger.keys import SiteKey
from federation.messages import CloseRequest, DescribeRequest, EvaluateRequest, TrainRequest
from federation.signed_requests import Gate, sign_request

PATIENT = "/data/incoming/DOE^JANE/1.2.840.113619.dcm"


@pytest.fixture
def ask(experiment_digest, run_id, weights):
    """Send one message of a kind to a site; return the reply and all bytes that left the site."""

    def send(site, kind, content=None):
        left = []
        grid = LocalGrid(
            {site.name: client_app(site)},
            recorder=lambda way, _, data: left.append(data) if way == "from_site" else None,
        )
        if content is None:
            content = {
                "query": wire.encode_describe_request(DescribeRequest(experiment_digest, run_id)),
                "train": wire.encode_train_request(
                    TrainRequest(experiment_digest, run_id, 1, 1, weights)
                ),
                "evaluate": wire.encode_evaluate_request(
                    EvaluateRequest(experiment_digest, run_id, 1, weights)
                ),
            }[kind]
        message = grid.create_message(content, kind, grid.get_node_ids()[0], "1")
        (reply,) = grid.send_and_receive([message])
        return reply, b"".join(left)

    return send


KINDS = [("query", "describe"), ("train", "train"), ("evaluate", "evaluate")]


@pytest.mark.parametrize(("kind", "method"), KINDS)
def test_an_exception_leaves_as_one_code_and_its_text_stays(ask, site, caplog, kind, method):
    failing = site("ward-a", fails={method: OSError(2, "No such file", PATIENT)})
    with caplog.at_level(logging.ERROR, "cohortium.site"):
        reply, left = ask(failing, kind)
    assert reply.content["refusal"]["code"] == "round_failed"
    assert PATIENT.encode() not in left
    assert b"DOE" not in left
    assert b"OSError" not in left
    assert PATIENT in caplog.text


@pytest.mark.parametrize(("kind", "method"), KINDS)
def test_a_refusal_leaves_as_its_code_alone(ask, site, kind, method):
    refusing = site("ward-a", fails={method: Refused("budget", f"3.2 of 3.0 after {PATIENT}")})
    reply, left = ask(refusing, kind)
    assert reply.content["refusal"]["code"] == "budget"
    assert b"3.2" not in left
    assert b"DOE" not in left


def test_a_code_that_is_not_public_leaves_as_round_failed(ask, site):
    reply, left = ask(site("ward-a", fails={"train": Refused(PATIENT)}), "train")
    assert reply.content["refusal"]["code"] == "round_failed"
    assert b"DOE" not in left


def test_all_failures_of_a_round_leave_records_of_equal_size(ask, site):
    sizes = {
        len(ask(site("ward-a", fails={"train": error}), "train")[1])
        for error in (OSError(PATIENT), MemoryError(), ZeroDivisionError("x" * 1000))
    }
    assert len(sizes) == 1


def test_a_malformed_request_never_reaches_the_site(ask, site):
    asked = site("ward-a")
    reply, _ = ask(asked, "train", RecordDict({"request": ConfigRecord({"format": 1})}))
    assert reply.content["refusal"]["code"] == "invalid_request"
    assert asked.seen == []


def test_a_reply_that_cannot_be_encoded_is_a_failed_round(ask, site):
    odd = site("ward-a")
    odd.evaluate = lambda request: None
    reply, _ = ask(odd, "evaluate")
    assert reply.content["refusal"]["code"] == "round_failed"


def test_the_outbox_bytes_arrive_unchanged(ask, site, experiment_digest, run_id, weights):
    honest = site("ward-a")
    expected = honest.train(TrainRequest(experiment_digest, run_id, 1, 1, weights))
    reply, left = ask(honest, "train")
    assert wire.decode_train_reply(reply.content) == expected
    assert expected.payload in left


HUB, OTHER_HUB = (SiteKey(Ed25519PrivateKey.generate()) for _ in range(2))


@pytest.fixture
def requests(experiment_digest, run_id, weights):
    """One request of each kind: Flower's message type, ours, the request, its content."""
    describe = DescribeRequest(experiment_digest, run_id)
    train = TrainRequest(experiment_digest, run_id, 1, 1, weights)
    evaluate = EvaluateRequest(experiment_digest, run_id, 1, weights)
    end = CloseRequest(experiment_digest, run_id, {}, experiment_digest)
    return [
        ("query", "describe", describe, wire.encode_describe_request(describe)),
        ("train", "train", train, wire.encode_train_request(train)),
        ("evaluate", "evaluate", evaluate, wire.encode_evaluate_request(evaluate)),
        ("query.close", "close", end, wire.encode_close_request(end)),
    ]


class TestAHubThatSigns:
    @staticmethod
    def send(site, kind, content):
        gate = Gate(site.name, HUB.public_bytes.hex())
        grid = LocalGrid({site.name: client_app(site, gate)})
        message = grid.create_message(content, kind, grid.get_node_ids()[0], "1")
        (reply,) = grid.send_and_receive([message])
        return reply.content

    def test_every_kind_is_answered_when_it_is_signed(self, site, requests):
        asked = site("ward-a")
        for kind, what, request, content in requests:
            signature = sign_request(
                HUB, kind=what, digest=request.digest(), site="ward-a", valid_s=60
            )
            reply = self.send(asked, kind, wire.signed(content, signature))
            assert "refusal" not in reply, what
        assert [kind for kind, _ in asked.seen] == ["describe", "train", "evaluate", "close"]

    def test_no_kind_reaches_the_site_unsigned(self, site, requests):
        asked = site("ward-a")
        for kind, _, _, content in requests:
            reply = self.send(asked, kind, content)
            assert reply["refusal"]["code"] == "not_from_hub"
        assert asked.seen == []

    def test_no_kind_reaches_the_site_from_another_hub(self, site, requests):
        asked = site("ward-a")
        for kind, what, request, content in requests:
            signature = sign_request(
                OTHER_HUB, kind=what, digest=request.digest(), site="ward-a", valid_s=60
            )
            reply = self.send(asked, kind, wire.signed(content, signature))
            assert reply["refusal"]["code"] == "not_from_hub"
        assert asked.seen == []

    @pytest.mark.parametrize(
        "signature",
        [
            ConfigRecord({"hub_key": "0" * 64}),
            ConfigRecord({"hub_key": "x", "issued": 1, "expires": 2, "signature": "0" * 128}),
            ConfigRecord({"hub_key": "0" * 64, "issued": 1, "expires": 2, "signature": "0"}),
            ConfigRecord(
                {"hub_key": "0" * 64, "issued": "1", "expires": 2, "signature": "0" * 128}
            ),
        ],
        ids=["fields missing", "no key", "too short", "no number"],
    )
    def test_a_signature_that_is_none_is_malformed(self, site, requests, signature):
        kind, _, _, content = requests[0]
        asked = site("ward-a")
        reply = self.send(asked, kind, RecordDict(dict(content) | {"signature": signature}))
        assert reply["refusal"]["code"] == "invalid_request"
        assert asked.seen == []


def test_a_refusal_can_be_found_in_the_sites_log_by_its_correlation(ask, site, caplog):
    with caplog.at_level(logging.WARNING, "cohortium.site"):
        replies = [
            ask(site("ward-a", fails={"train": error}), "train")[0]
            for error in (Refused("budget", "3.2 of 3.0"), OSError(PATIENT))
        ]
    ids = [reply.content["refusal"]["correlation"] for reply in replies]
    assert len(set(ids)) == 2
    assert all(correlation in caplog.text for correlation in ids)
