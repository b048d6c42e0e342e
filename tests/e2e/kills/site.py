"""A site as a process of its own that is killed: everything is real but the training itself.

What stands in for it draws noise of the update's shape from the real source, so that a round takes
milliseconds. What it sends, and a line when protected data would be opened, goes over a socket to a
recorder in another process, see ``recorder.py``.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from federation import rounds
from federation.errors import Refused
from federation.messages import TrainReply, TrainRequest, Weights
from federation.site import open_site
from tests.e2e.kills.boundaries import Boundaries
from tests.e2e.kills.recorder import connected

RUN = "ab" * 16
PIECES = 8


class Witness:
    """Sends what leaves to the recorder, in pieces as a network takes it.

    Args:
        pause_s: Between two pieces.
    """

    def __init__(self, recorder: Path, boundaries: Boundaries, pause_s: float) -> None:
        self._wire = connected(recorder)
        self._boundaries, self._pause_s = boundaries, pause_s

    def __enter__(self) -> "Witness":
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.close()

    def note(self, what: str, **more: object) -> None:
        line = json.dumps({"what": what, **more}).encode() + b"\n"
        self._boundaries.around(f"note {what}", lambda: self._wire.sendall(line))

    def send(self, attempt: int, reply: TrainReply) -> None:
        receipt = json.dumps(dict(reply.receipt))
        header = {"what": "reply", "attempt": attempt, "bytes": len(reply.payload)}
        head = json.dumps(header).encode() + b"\n"
        message = head + reply.payload + receipt.encode() + b"\n"
        middle = len(head) + len(reply.payload) // 2
        self._boundaries.around(
            "send", lambda: self._put(message), lambda: self._put(message[:middle])
        )

    def _put(self, message: bytes) -> None:
        size = -(-len(message) // PIECES)
        for start in range(0, len(message), size):
            self._wire.sendall(message[start : start + size])
            time.sleep(self._pause_s)


def answer(
    site_file: Path,
    witness: Witness,
    asked: Callable[[int], TrainRequest],
    *,
    attempt: int,
    updates: int = 1,
    work_s: float = 0.0,
) -> None:
    """Open the site and answer a hub that wants this many updates, each of an attempt of its own.

    Where an attempt was lost, the hub asks for the next one.
    """
    current = [attempt]

    def noise(_experiment, _plan, weights, _dataset, *, randomness, before_step, **_) -> Weights:
        witness.note("reading", attempt=current[0])
        before_step()
        time.sleep(work_s)
        return {
            name: randomness.gaussians(w.size).reshape(w.shape).astype(np.float32)
            for name, w in weights.items()
        }

    rounds.train_locally = noise
    local = rounds.LocalRounds(open_site(site_file))
    while updates:
        try:
            witness.send(current[0], local.train(asked(current[0])))
            updates -= 1
        except Refused as refusal:
            witness.note("refused", attempt=current[0], code=refusal.code)
            if refusal.code != "lost":
                return
        current[0] += 1
