"""A site as a Flower ``ClientApp``: decode, call the site, encode. Nothing else happens here."""

import logging
from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from federation.errors import Refused
from federation.flower import wire
from federation.messages import SiteRounds

# The site's own log. Its text can hold file names and values, so no handler may send it away.
_site_log = logging.getLogger("cohortium.site")


def client_app(rounds: SiteRounds) -> ClientApp:
    """Return the app that answers a hub's messages with ``rounds``.

    A refusal leaves as its code alone. Every other failure leaves as ``round_failed``, whatever
    it was: an error's text, or the kind of error, can depend on protected data.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, _context: Context) -> Message:
        return _answered(message, lambda content: _describe(rounds, content))

    @app.query(wire.CLOSE)
    def close(message: Message, _context: Context) -> Message:
        return _answered(message, lambda content: _close(rounds, content))

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        return _answered(message, lambda content: _train(rounds, content))

    @app.evaluate()
    def evaluate(message: Message, _context: Context) -> Message:
        return _answered(message, lambda content: _evaluate(rounds, content))

    return app


def _describe(rounds: SiteRounds, content: RecordDict) -> RecordDict:
    request = wire.decode_describe_request(content)
    return wire.encode_description(rounds.describe(request))


def _close(rounds: SiteRounds, content: RecordDict) -> RecordDict:
    request = wire.decode_close_request(content)
    return wire.encode_close_reply(rounds.close(request))


def _train(rounds: SiteRounds, content: RecordDict) -> RecordDict:
    request = wire.decode_train_request(content)
    return wire.encode_train_reply(rounds.train(request))


def _evaluate(rounds: SiteRounds, content: RecordDict) -> RecordDict:
    request = wire.decode_evaluate_request(content)
    return wire.encode_evaluate_reply(rounds.evaluate(request))


def _answered(message: Message, answer: Callable[[RecordDict], RecordDict]) -> Message:
    try:
        content = answer(message.content)
    except Refused as refusal:
        _site_log.warning("Refused a %s request: %s", message.metadata.message_type, refusal)
        content = wire.encode_refusal(refusal.code)
    except Exception:
        _site_log.exception("A %s request failed.", message.metadata.message_type)
        content = wire.encode_refusal("round_failed")
    return Message(content, reply_to=message)
