"""A site as a Flower ``ClientApp``: decode, check who asks, call the site, encode. Nothing else."""

import logging
import secrets
from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from federation.errors import Refused
from federation.flower import wire
from federation.messages import SiteRounds
from federation.signed_requests import Asked, Gate

# The site's own log. Its text can hold file names and values, so no handler may send it away.
_site_log = logging.getLogger("cohortium.site")

_Request = TypeVar("_Request", bound=Asked)


def client_app(rounds: SiteRounds, gate: Gate | None = None) -> ClientApp:
    """Return the app that answers a hub's messages with ``rounds``.

    A refusal leaves as its code alone. Every other failure leaves as ``round_failed``, whatever
    it was: an error's text, or the kind of error, can depend on protected data.

    Args:
        gate: Lets through what the site's own hub has signed. None on one machine, where no
            approval names a hub.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, _context: Context) -> Message:
        def answer(content: RecordDict) -> RecordDict:
            request = _asked("describe", wire.decode_describe_request, content, gate)
            return wire.encode_description(rounds.describe(request))

        return _answered(message, answer)

    @app.query(wire.CLOSE)
    def close(message: Message, _context: Context) -> Message:
        def answer(content: RecordDict) -> RecordDict:
            request = _asked("close", wire.decode_close_request, content, gate)
            return wire.encode_close_reply(rounds.close(request))

        return _answered(message, answer)

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        def answer(content: RecordDict) -> RecordDict:
            request = _asked("train", wire.decode_train_request, content, gate)
            return wire.encode_train_reply(rounds.train(request))

        return _answered(message, answer)

    @app.evaluate()
    def evaluate(message: Message, _context: Context) -> Message:
        def answer(content: RecordDict) -> RecordDict:
            request = _asked("evaluate", wire.decode_evaluate_request, content, gate)
            return wire.encode_evaluate_reply(rounds.evaluate(request))

        return _answered(message, answer)

    return app


def _asked(
    kind: str, decode: Callable[[RecordDict], _Request], content: RecordDict, gate: Gate | None
) -> _Request:
    """Return what is asked, once it is sure that this site's hub asks it now."""
    rest, signature = wire.take_signature(content)
    request = decode(rest)
    if gate is not None:
        gate.check(kind, request, signature)
    return request


def refused(message: Message, kind: str, refusal: Refused) -> Message:
    """Return the reply that declines a message; the site's log has why, under the same digits."""
    correlation = secrets.token_hex(8)
    _site_log.warning("Refused a %s request (%s): %s", kind, correlation, refusal)
    return Message(wire.encode_refusal(refusal.code, correlation), reply_to=message)


def _answered(message: Message, answer: Callable[[RecordDict], RecordDict]) -> Message:
    kind = message.metadata.message_type
    try:
        return Message(answer(message.content), reply_to=message)
    except Refused as refusal:
        return refused(message, kind, refusal)
    except Exception:
        correlation = secrets.token_hex(8)
        _site_log.exception("A %s request failed (%s).", kind, correlation)
        return Message(wire.encode_refusal("round_failed", correlation), reply_to=message)
