import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from federation.canonical import canonical_json
from federation.errors import FederationError, Refused
from federation.flower import records, wire
from federation.messages import (
    REFUSAL_CODES,
    CloseRequest,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)

DIGEST = "sha256:" + "e" * 64
RUN = "0123456789abcdef"


def same_weights(first, second):
    return list(first) == list(second) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(first.values(), second.values(), strict=True)
    )


@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1).filter(
            str.isprintable
        ),
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5),
        min_size=1,
        max_size=5,
    )
)
def test_weights_keep_names_order_and_bits(values):
    weights = {name: np.array(array, dtype=np.float32) for name, array in values.items()}
    assert same_weights(records.to_weights(records.from_weights(weights)), weights)
    assert same_weights(records.unpack_weights(*records.pack_weights(weights)), weights)


def test_a_number_without_dimensions_keeps_its_shape():
    weights = {"scale": np.float32(2.5).reshape(())}
    assert same_weights(records.to_weights(records.from_weights(weights)), weights)
    assert same_weights(records.unpack_weights(*records.pack_weights(weights)), weights)


class TestRequests:
    def test_come_back_as_they_were_sent(self, weights):
        sent = TrainRequest(DIGEST, RUN, 7, 2, weights)
        arrived = wire.decode_train_request(wire.encode_train_request(sent))
        assert arrived.digest() == sent.digest()
        assert same_weights(arrived.weights, sent.weights)
        asked = EvaluateRequest(DIGEST, RUN, 0, weights)
        arrived = wire.decode_evaluate_request(wire.encode_evaluate_request(asked))
        assert (arrived.round, arrived.run) == (0, RUN)
        describe = DescribeRequest(DIGEST, RUN)
        assert wire.decode_describe_request(wire.encode_describe_request(describe)) == describe
        heads = {"ward-a": DIGEST}
        sent = TrainRequest(DIGEST, RUN, 7, 2, weights, heads)
        arrived = wire.decode_train_request(wire.encode_train_request(sent))
        assert (arrived.heads, arrived.digest()) == (heads, sent.digest())
        assert sent.digest() != TrainRequest(DIGEST, RUN, 7, 2, weights).digest()
        close = CloseRequest(DIGEST, RUN, heads, DIGEST)
        assert wire.decode_close_request(wire.encode_close_request(close)) == close

    @pytest.mark.parametrize(
        "heads",
        [
            {"ward-a": "no digest"},
            {"ward-a": 1},
            {"a\x1bb": DIGEST},
            {f"ward-{n}": DIGEST for n in range(257)},
        ],
        ids=["text", "number", "control", "many"],
    )
    def test_with_heads_that_are_none_are_refused(self, weights, heads):
        content = wire.encode_train_request(TrainRequest(DIGEST, RUN, 1, 1, weights))
        content["heads"] = ConfigRecord(heads)
        with pytest.raises(Refused, match=r"^invalid_request"):
            wire.decode_train_request(content)

    def test_to_close_without_a_models_digest_are_refused(self):
        content = wire.encode_close_request(CloseRequest(DIGEST, RUN, {}, "none"))
        with pytest.raises(Refused, match="no digest of a model"):
            wire.decode_close_request(content)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("format", 1),
            ("experiment_digest", "e" * 64),
            ("experiment_digest", DIGEST + "\n"),
            ("run", "../../etc/passwd"),
            ("run", "ABCDEF0123456789"),
            ("round", 0),
            ("round", -1),
            ("round", 10**9),
            ("round", True),
            ("round", 1.0),
            ("round", "1"),
            ("attempt", 0),
            ("attempt", [1]),
            ("unknown", "x"),
        ],
    )
    def test_with_a_wrong_field_are_refused(self, weights, field, value):
        content = wire.encode_train_request(TrainRequest(DIGEST, RUN, 1, 1, weights))
        content["request"][field] = value
        with pytest.raises(Refused, match=r"^invalid_request"):
            wire.decode_train_request(content)

    @pytest.mark.parametrize("field", ["format", "experiment_digest", "run", "round", "attempt"])
    def test_that_lack_a_field_are_refused(self, weights, field):
        content = wire.encode_train_request(TrainRequest(DIGEST, RUN, 1, 1, weights))
        del content["request"][field]
        with pytest.raises(Refused, match=f"lacks {field}"):
            wire.decode_train_request(content)

    @pytest.mark.parametrize("name", ["request", "heads", "weights", "tensors"])
    def test_that_lack_a_record_are_refused(self, weights, name):
        content = wire.encode_train_request(TrainRequest(DIGEST, RUN, 1, 1, weights))
        del content[name]
        with pytest.raises(Refused, match=f"lacks {name}"):
            wire.decode_train_request(content)

    def test_with_an_unknown_record_are_refused(self, weights):
        content = wire.encode_train_request(TrainRequest(DIGEST, RUN, 1, 1, weights))
        content["code"] = ConfigRecord({"run": "import os"})
        with pytest.raises(Refused, match="1 unknown fields"):
            wire.decode_train_request(content)

    def test_with_a_record_of_another_kind_are_refused(self, weights):
        content = wire.encode_train_request(TrainRequest(DIGEST, RUN, 1, 1, weights))
        swapped = RecordDict({**content, "weights": MetricRecord({"w": 1.0})})
        with pytest.raises(Refused, match="not a ArrayRecord"):
            wire.decode_train_request(swapped)


def raw(**changes):
    values = {"dtype": "float32", "shape": (2,), "stype": records.FLOAT32, "data": b"\0" * 8}
    return Array(**(values | changes))


class TestWeights:
    @pytest.mark.parametrize(
        ("array", "complaint"),
        [
            (raw(dtype="float64"), "not float32"),
            (raw(stype="numpy.ndarray"), "not float32"),
            (raw(shape=(3,)), "does not fill its shape"),
            (raw(shape=(2**40, 2**40)), "does not fill its shape"),
            (raw(shape=(-2, -1)), "no valid shape"),
            (raw(shape=(True, 2)), "no valid shape"),
            (raw(shape=(1,) * 9 + (2,)), "10 dimensions"),
            (raw(data=np.array([1, np.nan], "<f4").tobytes()), "NaN or infinity"),
            (raw(data=np.array([1, np.inf], "<f4").tobytes()), "NaN or infinity"),
            (raw(data=b"\x80\x04K\x01."), "does not fill its shape"),
        ],
    )
    def test_that_are_not_finite_float32_of_their_shape_are_malformed(self, array, complaint):
        with pytest.raises(records.MalformedRecordError, match=complaint):
            records.to_weights(ArrayRecord({"w": array}))

    @pytest.mark.parametrize("name", ["", "n" * 201, "bell\a", "line\nbreak"])
    def test_with_odd_names_are_malformed(self, name):
        with pytest.raises(records.MalformedRecordError, match="name"):
            records.to_weights(ArrayRecord({name: raw()}))

    def test_cannot_be_none_at_all_or_too_many(self, monkeypatch):
        with pytest.raises(records.MalformedRecordError, match="must be 1 to"):
            records.to_weights(ArrayRecord())
        monkeypatch.setattr(records, "MAX_TENSORS", 1)
        with pytest.raises(records.MalformedRecordError, match="must be 1 to 1 weights"):
            records.to_weights(ArrayRecord({"a": raw(), "b": raw()}))

    def test_past_the_size_limit_are_malformed(self, monkeypatch):
        monkeypatch.setattr(records, "MAX_WEIGHTS_BYTES", 7)
        with pytest.raises(records.MalformedRecordError, match="exceed 7 bytes"):
            records.to_weights(ArrayRecord({"w": raw()}))


class TestPackedWeights:
    """As they travel: one array of values, and a list of names and shapes."""

    @pytest.mark.parametrize(
        ("tensors", "complaint"),
        [
            ({"names": ["w"], "shapes": ["3"]}, "goes beyond"),
            ({"names": ["w"], "shapes": ["1"]}, "1 values belong to no name"),
            ({"names": ["w", "v"], "shapes": ["2"]}, "has one shape"),
            ({"names": ["w", "w"], "shapes": ["1", "1"]}, "has one shape"),
            ({"names": [], "shapes": []}, "must be 1 to"),
            ({"names": ["bell\a"], "shapes": ["2"]}, "control characters"),
            ({"names": ["w"], "shapes": ["-2"]}, "no valid shape"),
            ({"names": ["w"], "shapes": ["2,"]}, "no valid shape"),
            ({"names": ["w"], "shapes": ["\u0662"]}, "no valid shape"),
            ({"names": ["w"], "shapes": [",".join("1" * 9)]}, "no valid shape"),
            ({"names": ["w"], "shapes": ["9999999999,9999999999"]}, "goes beyond"),
            ({"names": ["w"], "shapes": [2]}, "are texts"),
            ({"names": "w", "shapes": ["2"]}, "names is not list"),
            ({"names": ["w"]}, "lacks shapes"),
        ],
    )
    def test_that_do_not_add_up_are_malformed(self, tensors, complaint):
        arrays = ArrayRecord({"values": raw()})
        with pytest.raises(records.MalformedRecordError, match=complaint):
            records.unpack_weights(arrays, ConfigRecord(tensors))

    @pytest.mark.parametrize(
        ("array", "complaint"),
        [
            (raw(shape=(1, 2)), "one after the other"),
            (raw(stype="numpy.ndarray"), "not float32"),
            (raw(data=np.array([1, np.nan], "<f4").tobytes()), "NaN or infinity"),
        ],
    )
    def test_of_odd_values_are_malformed(self, array, complaint):
        tensors = ConfigRecord({"names": ["w"], "shapes": ["2"]})
        with pytest.raises(records.MalformedRecordError, match=complaint):
            records.unpack_weights(ArrayRecord({"values": array}), tensors)

    def test_past_the_size_limit_are_malformed(self, monkeypatch):
        monkeypatch.setattr(records, "MAX_WEIGHTS_BYTES", 7)
        tensors = ConfigRecord({"names": ["w"], "shapes": ["2"]})
        with pytest.raises(records.MalformedRecordError, match="exceed 7 bytes"):
            records.unpack_weights(ArrayRecord({"values": raw()}), tensors)


class TestReplies:
    @given(st.binary(max_size=200))
    def test_carry_the_payload_byte_for_byte(self, payload):
        sent = TrainReply(payload, {"b": 1.5, "a": ["é", 2]})
        arrived = wire.decode_train_reply(wire.encode_train_reply(sent))
        assert arrived == sent

    def test_with_a_statement_come_back_as_sent(self, site):
        sent = site("ward-a").describe(DescribeRequest(DIGEST, RUN))
        assert wire.decode_description(wire.encode_description(sent)) == sent

    def test_with_scores_come_back_as_sent(self):
        sent = EvaluateReply({"dice": 0.1 + 0.2, "dice/grey matter": 0.0})
        assert wire.decode_evaluate_reply(wire.encode_evaluate_reply(sent)) == sent
        assert (
            wire.decode_evaluate_reply(wire.encode_evaluate_reply(EvaluateReply({}))).scores == {}
        )

    @pytest.mark.parametrize("code", REFUSAL_CODES)
    def test_that_refuse_say_the_code(self, code):
        for decode in (
            wire.decode_train_reply,
            wire.decode_evaluate_reply,
            wire.decode_description,
        ):
            with pytest.raises(Refused) as caught:
                decode(wire.encode_refusal(code, "0123456789abcdef"))
            assert caught.value.code == code

    def test_a_refusal_cannot_carry_other_text(self):
        content = wire.encode_refusal("/data/doe_jane.dcm", "0123456789abcdef")
        assert content["refusal"]["code"] == "round_failed"

    def test_a_refusal_with_an_unknown_code_is_malformed(self):
        content = RecordDict(
            {"refusal": ConfigRecord({"code": "because", "correlation": "0123456789abcdef"})}
        )
        with pytest.raises(FederationError, match="unknown code") as caught:
            wire.decode_train_reply(content)
        assert not isinstance(caught.value, Refused)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "{",
            '{"a": 1}',
            '{"a":NaN}',
            '{"a":1,"a":1}',
            '{"b":1,"a":1}',
            "[" * 100_000,
            "x" * 70_000,
        ],
    )
    def test_with_a_receipt_that_is_not_one_canonical_object_are_malformed(self, text):
        content = wire.encode_train_reply(TrainReply(b"", {}))
        content["reply"]["receipt"] = text
        with pytest.raises(FederationError, match=r"update reply is malformed: (receipt|reply)"):
            wire.decode_train_reply(content)

    def test_a_receipt_travels_as_canonical_json(self):
        receipt = {"z": 1, "a": {"y": 2.5}}
        text = wire.encode_train_reply(TrainReply(b"", receipt))["reply"]["receipt"]
        assert text.encode() == canonical_json(receipt)
        assert json.loads(text) == receipt

    @pytest.mark.parametrize(
        "scores", [{"dice": float("nan")}, {"dice": 1}, {"dice": [0.5]}, {"a\nb": 0.5}]
    )
    def test_with_odd_scores_are_malformed(self, scores):
        with pytest.raises(FederationError, match="scores reply is malformed"):
            wire.decode_evaluate_reply(RecordDict({"scores": MetricRecord(scores)}))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("site", ""),
            ("site", "a\nb"),
            ("licence", "\x1b[2J"),
            ("public_key", "xy"),
            ("commitment", "../x"),
            ("data_use", "Mr A. Example's"),
            ("data_use", "DUO:0000007 a word"),
            ("new", ""),
        ],
    )
    def test_with_an_odd_statement_are_malformed(self, site, field, value):
        content = wire.encode_description(site("a").describe(DescribeRequest(DIGEST, RUN)))
        content["description"][field] = value
        with pytest.raises(FederationError, match="description reply is malformed"):
            wire.decode_description(content)
