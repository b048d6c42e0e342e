"""One byte string for one value, so that digests and signatures mean the same everywhere."""

import hashlib
import json
from typing import Any

_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: Any) -> bytes:
    """Return ``value`` as UTF-8 JSON with sorted keys, no spaces, and no NaN or infinity.

    Floats are written by ``repr`` (the shortest text that reads back to the same double), as
    RFC 8785 asks for values in the range used here.

    Raises:
        ValueError: A float is not finite. TypeError: a value is not JSON.

    >>> canonical_json({"b": 1, "a": [1.5, "é"]})
    b'{"a":[1.5,"\\xc3\\xa9"],"b":1}'
    """
    return _ENCODER.encode(value).encode("utf-8")


def digest_bytes(data: bytes) -> str:
    """Return ``"sha256:<hex>"`` of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """Return the digest of the canonical JSON of ``value``."""
    return digest_bytes(canonical_json(value))
