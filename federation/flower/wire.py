"""Messages between hub and site as Flower records, and back. Nothing here is ever unpickled.

A request that is not exactly what the format asks for raises ``Refused("invalid_request")``; a
reply that is not raises ``FederationError``. Format 5:

==================  =======================================================================
describe request    ``request``: format, experiment_digest, run
train request       ``request``: the same, round, attempt; ``heads``: digests by site;
                    ``weights``: raw float32 values; ``tensors``: their names and shapes
evaluate request    ``request``: format, experiment_digest, run, round; ``weights``; ``tensors``
close request       ``request``: the describe request's, model_digest; ``heads``
description         ``description``: texts; ``versions``: texts
train reply         ``reply``: receipt (canonical JSON); ``update``: safetensors bytes
evaluate reply      ``scores``: floats
close reply         ``reply``: closing (canonical JSON)
refusal             ``refusal``: code, correlation (random, hex)
every request       ``signature``, where a hub asks: hub_key, issued, expires, signature
==================  =======================================================================
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from federation.canonical import canonical_json
from federation.data_use import PUBLIC_TERMS
from federation.errors import FederationError, Refused
from federation.flower import records
from federation.flower.records import MalformedRecordError, check
from federation.ledger.forms import MAX_HEADS
from federation.messages import (
    REFUSAL_CODES,
    CloseReply,
    CloseRequest,
    DescribeRequest,
    Description,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)
from federation.signed_requests import RequestSignature

FORMAT = 5
MAX_ROUNDS = 1_000_000
# Flower's name for the second kind of query that a site answers.
CLOSE = "close"
# What a hub may ask, as Flower calls it and as we do.
KINDS = {
    "query": "describe",
    f"query.{CLOSE}": "close",
    "train": "train",
    "evaluate": "evaluate",
}

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_RUN = re.compile(r"[0-9a-f]{8,64}")
_PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_CORRELATION = re.compile(r"[0-9a-f]{16}")
_SIGNATURE_FIELDS: dict[str, type] = {
    "hub_key": str,
    "issued": int,
    "expires": int,
    "signature": str,
}
_RUN_FIELDS: dict[str, type] = {"format": int, "experiment_digest": str, "run": str}
_DESCRIPTION_FIELDS = (
    "site",
    "public_key",
    "commitment",
    "dataset",
    "source_kind",
    "modality",
    "num_subjects",
    "licence",
    "data_use",
)
_Reply = TypeVar("_Reply")


# Requests: written by the hub, read by a site.


def encode_describe_request(request: DescribeRequest) -> RecordDict:
    """Ask for a description."""
    return RecordDict({"request": _run_config(request)})


def decode_describe_request(content: RecordDict) -> DescribeRequest:
    """Read a description request, or raise ``Refused``."""
    with _refusing():
        records.check_keys(content, {"request"}, "message")
        return DescribeRequest(**_run_fields(content, {}))


def encode_train_request(request: TrainRequest) -> RecordDict:
    """Ask for one round of training."""
    config = _run_config(request, round=request.round, attempt=request.attempt)
    heads = ConfigRecord(dict(request.heads))
    return RecordDict({"request": config, "heads": heads, **_packed(request.weights)})


def decode_train_request(content: RecordDict) -> TrainRequest:
    """Read a training request, or raise ``Refused``."""
    with _refusing():
        records.check_keys(content, {"request", "heads", "weights", "tensors"}, "message")
        values = _run_fields(content, {"round": 1, "attempt": 1})
        return TrainRequest(**values, weights=_weights(content), heads=_heads(content))


def encode_evaluate_request(request: EvaluateRequest) -> RecordDict:
    """Ask for scores on public subjects."""
    config = _run_config(request, round=request.round)
    return RecordDict({"request": config, **_packed(request.weights)})


def decode_evaluate_request(content: RecordDict) -> EvaluateRequest:
    """Read an evaluation request, or raise ``Refused``."""
    with _refusing():
        records.check_keys(content, {"request", "weights", "tensors"}, "message")
        values = _run_fields(content, {"round": 0})
        return EvaluateRequest(**values, weights=_weights(content))


def encode_close_request(request: CloseRequest) -> RecordDict:
    """Say that a run is over."""
    config = _run_config(request, model_digest=request.model_digest)
    return RecordDict({"request": config, "heads": ConfigRecord(dict(request.heads))})


def decode_close_request(content: RecordDict) -> CloseRequest:
    """Read the end of a run, or raise ``Refused``."""
    with _refusing():
        records.check_keys(content, {"request", "heads"}, "message")
        values = _run_fields(content, {}, {"model_digest": str})
        check(bool(_DIGEST.fullmatch(values["model_digest"])), "request: no digest of a model")
        return CloseRequest(**values, heads=_heads(content))


def signed(content: RecordDict, signature: RequestSignature) -> RecordDict:
    """Return a request with its hub's signature. The records themselves are shared."""
    records_by_name = dict(content) | {"signature": ConfigRecord(asdict(signature))}
    return RecordDict(records_by_name)


def take_signature(content: RecordDict) -> tuple[RecordDict, RequestSignature | None]:
    """Return a request without its signature, and the signature; raises ``Refused``."""
    if "signature" not in content:
        return content, None
    with _refusing():
        config = records.record(content, "signature", ConfigRecord)
        values = records.fields(config, _SIGNATURE_FIELDS, "signature")
        check(bool(_PUBLIC_KEY.fullmatch(values["hub_key"])), "signature: no public key")
        check(bool(_SIGNATURE.fullmatch(values["signature"])), "signature: not 64 bytes in hex")
        rest = {name: record for name, record in content.items() if name != "signature"}
        return RecordDict(rest), RequestSignature(**values)


# Replies: written by a site, read by the hub.


def encode_refusal(code: str, correlation: str) -> RecordDict:
    """Decline with one of ``REFUSAL_CODES``; any other text becomes ``round_failed``.

    Args:
        correlation: 16 random hex digits, which the site's log has, too.
    """
    known = code if code in REFUSAL_CODES else "round_failed"
    return RecordDict({"refusal": ConfigRecord({"code": known, "correlation": correlation})})


def encode_description(description: Description) -> RecordDict:
    """Send a site's public statement."""
    texts = {name: getattr(description, name) for name in _DESCRIPTION_FIELDS}
    return RecordDict(
        {
            "description": ConfigRecord(texts),
            "versions": ConfigRecord(dict(description.versions)),
        }
    )


def decode_description(content: RecordDict) -> Description:
    """Read a statement; raises ``Refused`` if the site declined, ``FederationError`` if garbled."""
    return _reply(content, "description", _description)


def encode_train_reply(reply: TrainReply) -> RecordDict:
    """Send the outbox bytes, unchanged, and their receipt."""
    receipt = canonical_json(dict(reply.receipt)).decode()
    return RecordDict(
        {
            "reply": ConfigRecord({"receipt": receipt}),
            "update": records.from_payload(reply.payload),
        }
    )


def decode_train_reply(content: RecordDict) -> TrainReply:
    """Read an update; raises ``Refused`` if the site declined, ``FederationError`` if garbled."""
    return _reply(content, "update", _train_reply)


def encode_close_reply(reply: CloseReply) -> RecordDict:
    """Send the countersigned heads."""
    closing = canonical_json(dict(reply.closing)).decode()
    return RecordDict({"reply": ConfigRecord({"closing": closing})})


def decode_close_reply(content: RecordDict) -> CloseReply:
    """Read them; raises ``Refused`` if the site declined, ``FederationError`` if garbled."""
    return _reply(content, "closing", _close_reply)


def encode_evaluate_reply(reply: EvaluateReply) -> RecordDict:
    """Send scores."""
    metrics = MetricRecord()
    metrics.update({name: float(value) for name, value in reply.scores.items()})
    return RecordDict({"scores": metrics})


def decode_evaluate_reply(content: RecordDict) -> EvaluateReply:
    """Read scores; raises ``Refused`` if the site declined, ``FederationError`` if garbled."""
    return _reply(content, "scores", _evaluate_reply)


# How requests are read.


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except MalformedRecordError as error:
        raise Refused("invalid_request", str(error)) from error


def _run_config(
    request: DescribeRequest | TrainRequest | EvaluateRequest | CloseRequest, **more: int | str
) -> ConfigRecord:
    return ConfigRecord(
        {
            "format": FORMAT,
            "experiment_digest": request.experiment_digest,
            "run": request.run,
            **more,
        }
    )


def _run_fields(
    content: RecordDict, minimum_of: dict[str, int], more: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """Read ``request``: the fields all requests share and the integers named with a minimum."""
    config = records.record(content, "request", ConfigRecord)
    kinds: dict[str, type] = _RUN_FIELDS | dict.fromkeys(minimum_of, int) | dict(more or {})
    values = records.fields(config, kinds, "request")
    check(values.pop("format") == FORMAT, f"request: format is not {FORMAT}")
    check(bool(_DIGEST.fullmatch(values["experiment_digest"])), "request: no sha256 digest")
    check(bool(_RUN.fullmatch(values["run"])), "request: run is not 8 to 64 hex digits")
    for name, minimum in minimum_of.items():
        check(minimum <= values[name] <= MAX_ROUNDS, f"request: {name} is out of range")
    return values


def _heads(content: RecordDict) -> dict[str, str]:
    config = records.record(content, "heads", ConfigRecord)
    check(len(config) <= MAX_HEADS, "heads: too many")
    heads = records.fields(config, dict.fromkeys(config, str), "heads")
    for site, head in heads.items():
        records.check_name(site, "heads")
        check(bool(_DIGEST.fullmatch(head)), "heads: no digest")
    return heads


def _weights(content: RecordDict) -> dict[str, Any]:
    arrays = records.record(content, "weights", ArrayRecord)
    return records.unpack_weights(arrays, records.record(content, "tensors", ConfigRecord))


def _packed(weights: Mapping[str, Any]) -> dict[str, Any]:
    arrays, tensors = records.pack_weights(weights)
    return {"weights": arrays, "tensors": tensors}


# How replies are read.


def _reply(content: RecordDict, what: str, read: Callable[[RecordDict], _Reply]) -> _Reply:
    try:
        if "refusal" in content:
            raise _refusal(content)
        return read(content)
    except MalformedRecordError as error:
        raise FederationError(f"The site's {what} reply is malformed: {error}.") from error


def _refusal(content: RecordDict) -> Refused:
    records.check_keys(content, {"refusal"}, "refusal message")
    config = records.record(content, "refusal", ConfigRecord)
    values = records.fields(config, {"code": str, "correlation": str}, "refusal")
    check(values["code"] in REFUSAL_CODES, "refusal: unknown code")
    check(bool(_CORRELATION.fullmatch(values["correlation"])), "refusal: no correlation")
    return Refused(values["code"], correlation=values["correlation"])


def _description(content: RecordDict) -> Description:
    records.check_keys(content, {"description", "versions"}, "message")
    config = records.record(content, "description", ConfigRecord)
    texts = records.fields(config, dict.fromkeys(_DESCRIPTION_FIELDS, str), "description")
    for name, text in texts.items():
        check(text.isprintable(), f"description: {name} holds control characters")
    records.check_name(texts["site"], "description")
    check(bool(_PUBLIC_KEY.fullmatch(texts["public_key"])), "description: no Ed25519 public key")
    check(bool(_DIGEST.fullmatch(texts["commitment"])), "description: no commitment")
    check(bool(PUBLIC_TERMS.fullmatch(texts["data_use"])), "description: no codes of data use")
    return Description(**texts, versions=_versions(content))


def _versions(content: RecordDict) -> dict[str, str]:
    config = records.record(content, "versions", ConfigRecord)
    check(len(config) <= records.MAX_SCORES, "versions: too many")
    versions = records.fields(config, dict.fromkeys(config, str), "versions")
    for text in (*versions, *versions.values()):
        records.check_name(text, "versions")
    return versions


def _train_reply(content: RecordDict) -> TrainReply:
    records.check_keys(content, {"reply", "update"}, "message")
    config = records.record(content, "reply", ConfigRecord)
    text = records.fields(config, {"receipt": str}, "reply")["receipt"]
    payload = records.to_payload(records.record(content, "update", ArrayRecord))
    return TrainReply(payload, _statement(text, "receipt"))


def _close_reply(content: RecordDict) -> CloseReply:
    records.check_keys(content, {"reply"}, "message")
    config = records.record(content, "reply", ConfigRecord)
    text = records.fields(config, {"closing": str}, "reply")["closing"]
    return CloseReply(_statement(text, "closing"))


def _statement(text: str, what: str) -> dict[str, Any]:
    """Parse canonical JSON only: one statement has one text, so duplicate keys cannot hide."""
    try:
        value = json.loads(text)
        canonical = canonical_json(value).decode()
    except (ValueError, RecursionError) as error:
        raise MalformedRecordError(f"{what} is not JSON") from error
    check(isinstance(value, dict), f"{what} is not a JSON object")
    check(canonical == text, f"{what} is not canonical JSON")
    return dict(value)


def _evaluate_reply(content: RecordDict) -> EvaluateReply:
    records.check_keys(content, {"scores"}, "message")
    return EvaluateReply(records.to_scores(records.record(content, "scores", MetricRecord)))
