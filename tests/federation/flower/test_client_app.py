import logging

import pytest
from flwr.app import ConfigRecord, RecordDict

from federation.errors import Refused
from federation.flower import wire
from federation.flower.client_app import client_app
from federation.flower.grid import LocalGrid
from federation.messages import DescribeRequest, EvaluateRequest, TrainRequest

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
    assert dict(reply.content["refusal"]) == {"code": "round_failed"}
    assert PATIENT.encode() not in left
    assert b"DOE" not in left
    assert b"OSError" not in left
    assert PATIENT in caplog.text


@pytest.mark.parametrize(("kind", "method"), KINDS)
def test_a_refusal_leaves_as_its_code_alone(ask, site, kind, method):
    refusing = site("ward-a", fails={method: Refused("budget", f"3.2 of 3.0 after {PATIENT}")})
    reply, left = ask(refusing, kind)
    assert dict(reply.content["refusal"]) == {"code": "budget"}
    assert b"3.2" not in left
    assert b"DOE" not in left


def test_a_code_that_is_not_public_leaves_as_round_failed(ask, site):
    reply, left = ask(site("ward-a", fails={"train": Refused(PATIENT)}), "train")
    assert dict(reply.content["refusal"]) == {"code": "round_failed"}
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
    assert dict(reply.content["refusal"]) == {"code": "invalid_request"}
    assert asked.seen == []


def test_a_reply_that_cannot_be_encoded_is_a_failed_round(ask, site):
    odd = site("ward-a")
    odd.evaluate = lambda request: None
    reply, _ = ask(odd, "evaluate")
    assert dict(reply.content["refusal"]) == {"code": "round_failed"}


def test_the_outbox_bytes_arrive_unchanged(ask, site, experiment_digest, run_id, weights):
    honest = site("ward-a")
    expected = honest.train(TrainRequest(experiment_digest, run_id, 1, 1, weights))
    reply, left = ask(honest, "train")
    assert wire.decode_train_reply(reply.content) == expected
    assert expected.payload in left
