"""What a hub checks before it lets an update into the average. A failure refuses that update."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from federation.canonical import digest_bytes
from federation.errors import FederationError
from federation.ledger.closings import Closing
from federation.ledger.receipts import Receipt
from federation.messages import (
    CloseReply,
    CloseRequest,
    Description,
    TrainReply,
    TrainRequest,
    Weights,
)
from models.weight_files import WeightFile
from models.weights import in_blocks

# What safetensors adds: a length, and about 100 bytes of JSON a tensor besides its name.
_OVERHEAD_BYTES = 65_536
_OVERHEAD_BYTES_PER_TENSOR = 512


def check_reply(
    request: TrainRequest, site: Description, reply: TrainReply, *, request_digest: str
) -> None:
    """Check that a reply is for exactly this work, and not larger than an update can be.

    Args:
        request_digest: Of ``request``. Its weights are hashed once a round, not once a reply.

    Raises:
        FederationError: The reply must not be averaged; the message says what is wrong with it
            in public terms.
    """
    _check_receipt(request, site, reply, request_digest)
    _check_size(request, reply)


def check_update(weights: Weights, update: WeightFile, *, max_norm: float | None = None) -> None:
    """Check that an update fits these weights and leaves them finite; one array is in memory.

    Args:
        max_norm: Largest L2 norm that the experiment permits.

    Raises:
        FederationError: As in ``check_reply``.
    """
    if update.keys() != weights.keys():
        num_wrong = len(update.keys() ^ weights.keys())
        raise FederationError(f"{num_wrong} weight names differ from the model's")
    square = 0.0
    for name, start in weights.items():
        if update.shape(name) != start.shape:
            raise FederationError(
                f"weight {name!r} has shape {update.shape(name)}, expected {start.shape}"
            )
        for before, change in in_blocks(start, update[name]):
            _check_finite(name, before, change)
            # In float64 the square of no float32 overflows.
            square += float(np.square(change, dtype=np.float64).sum())
    norm = math.sqrt(square)
    if max_norm is not None and norm > max_norm:
        raise FederationError(
            f"the update's L2 norm is {norm:.4g}, past the {max_norm:.4g} that the experiment "
            "permits (cohort.max_update_norm)"
        )


def checked_closing(request: CloseRequest, site: Description, reply: CloseReply) -> dict[str, Any]:
    """Return a closing statement that answers this request, as JSON values.

    Raises:
        FederationError: It does not, or its signature is not valid.
    """
    try:
        closing = Closing.from_json(dict(reply.closing))
    except ValueError as error:
        raise FederationError("the closing statement is malformed") from error
    _require_answers(
        closing,
        {
            "site": site.site,
            "public_key": site.public_key,
            "experiment_digest": request.experiment_digest,
            "run": request.run,
            "heads": dict(request.heads),
            "model_digest": request.model_digest,
        },
        "closing statement",
    )
    return closing.to_json()


def _require_answers(
    statement: Receipt | Closing, expected: Mapping[str, object], what: str
) -> None:
    wrong = [name for name, value in expected.items() if getattr(statement, name) != value]
    if wrong:
        raise FederationError(f"the {what}'s {', '.join(wrong)} do not match this run")
    if not statement.verify():
        raise FederationError(f"the {what}'s signature is not valid")


def _check_receipt(
    request: TrainRequest, site: Description, reply: TrainReply, request_digest: str
) -> None:
    """A receipt must be for exactly this work, and signed, else it proves nothing about it."""
    try:
        receipt = Receipt.from_json(dict(reply.receipt))
    except ValueError as error:
        raise FederationError("the receipt is malformed") from error
    expected = {
        "site": site.site,
        "public_key": site.public_key,
        "commitment": site.commitment,
        "experiment_digest": request.experiment_digest,
        "run": request.run,
        "round": request.round,
        "attempt": request.attempt,
        "request_digest": request_digest,
        "update_digest": digest_bytes(reply.payload),
    }
    _require_answers(receipt, expected, "receipt")


def _check_size(request: TrainRequest, reply: TrainReply) -> None:
    num_names = sum(len(name) for name in request.weights)
    limit_bytes = (
        sum(array.nbytes for array in request.weights.values())
        + num_names
        + _OVERHEAD_BYTES
        + _OVERHEAD_BYTES_PER_TENSOR * len(request.weights)
    )
    if len(reply.payload) > limit_bytes:
        raise FederationError(
            f"the update has {len(reply.payload)} bytes, this model allows {limit_bytes}"
        )


def _check_finite(name: str, start: np.ndarray, change: np.ndarray) -> None:
    """Check the update, and the model it alone would make.

    If each update alone keeps the weights finite, so does their mean: it lies between them.
    """
    if not np.isfinite(change).all():
        raise FederationError(f"weight {name!r} holds NaN or infinity")
    with np.errstate(over="ignore"):
        alone = start + change
    if not np.isfinite(alone).all():
        raise FederationError(f"weight {name!r} is too large: the model would overflow float32")
