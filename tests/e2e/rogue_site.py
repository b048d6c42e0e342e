"""A site whose operator has tampered with it: real keys and ledger, in each round another lie.

``python -m tests.e2e.rogue_site SITE.yaml`` is ``cohortium site start SITE.yaml`` with that.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from federation.cli.app import main
from federation.flower import wire
from federation.rounds import LocalRounds
from models.weights import weights_from_bytes, weights_to_bytes


def not_a_number(update):
    first = next(iter(update))
    return update | {first: np.full_like(update[first], np.nan)}


def other_shape(update):
    first = next(iter(update))
    return update | {first: np.zeros((1, *update[first].shape), np.float32)}


def huge(update):
    return {name: array + np.float32(1e20) for name, array in update.items()}


# By round. These are signed and receipted as any update is: only the hub's look can find them.
UPDATES: dict[int, Callable] = {1: not_a_number, 2: other_shape, 3: huge}
TRUNCATED, GARBAGE, OF_ANOTHER_ROUND = 4, 5, 6

_honest, _encode = LocalRounds._train_charged, wire.encode_train_reply
_sent = []


def _tampered(self, work, protected):
    payload = _honest(self, work, protected)
    change = UPDATES.get(work.request.round, lambda update: update)
    return weights_to_bytes(change(weights_from_bytes(payload)))


def _encoded(reply):
    number = reply.receipt["round"]
    _sent.append(reply)
    if number == TRUNCATED:
        reply = replace(reply, payload=reply.payload[: len(reply.payload) // 2])
    if number == OF_ANOTHER_ROUND:
        reply = _sent[0]
    if number == GARBAGE:
        return RecordDict({"reply": ConfigRecord({"receipt": "{" * 100_000}), "x": ConfigRecord()})
    return _encode(reply)


if __name__ == "__main__":
    LocalRounds._train_charged = _tampered
    wire.encode_train_reply = _encoded
    sys.argv = ["cohortium", "site", "start", sys.argv[1]]
    main()
