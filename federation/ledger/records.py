"""The ledger's records: one canonical JSON line each, chained by hash and signed by the site."""

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from federation.canonical import canonical_json, digest
from federation.ledger.filter import BudgetPolicy, event_from_json
from federation.ledger.keys import SiteKey, verify_signature

FORMAT = "cohortium-ledger/1"
NO_RECORD = "sha256:" + "0" * 64
MAX_LINE_BYTES = 65_536
# Of one note; so many digests leave room for everything else on a line.
MAX_NOTED_EXPERIMENTS = 800
_SIGNED_AS = b"cohortium ledger record v1\0"

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One line of a ledger.

    Attributes:
        seq: Position, from 0.
        kind: A key of ``BODIES``.
        at: UTC time by the site's clock, ISO 8601 to the second.
        salt: 128 random bits, hex, so that nobody who knows the body can guess the hash.
        previous: Hash of the record before; ``NO_RECORD`` at genesis.
        hash: ``"sha256:<hex>"`` over the canonical JSON of the fields above and the body.
        signature: Ed25519 over the hash, hex.
    """

    seq: int
    kind: str
    at: str
    salt: str
    previous: str
    body: Body
    hash: str
    signature: str

    @classmethod
    def signed(cls, key: SiteKey, *, seq: int, kind: str, previous: str, body: Body) -> "Record":
        """Make, hash and sign a record, with fresh salt and the present time.

        Raises:
            ValueError: The body is not one of ``kind``.
        """
        content: dict[str, Any] = {
            "seq": seq,
            "kind": kind,
            "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "salt": secrets.token_hex(16),
            "previous": previous,
            "body": dict(body),
        }
        _check_fields(content)
        hash_ = digest(content)
        return cls(**content, hash=hash_, signature=key.sign(_SIGNED_AS + hash_.encode()).hex())

    @property
    def line(self) -> bytes:
        """The record as it stands in the file, with its newline."""
        return canonical_json({**self._content(), **self._seal()}) + b"\n"

    def hash_matches(self) -> bool:
        """Tell whether ``hash`` is that of the content."""
        return self.hash == digest(self._content())

    def signed_by(self, public_bytes: bytes) -> bool:
        """Tell whether this key signed the hash."""
        signature = bytes.fromhex(self.signature)
        return verify_signature(public_bytes, _SIGNED_AS + self.hash.encode(), signature)

    def _content(self) -> dict[str, Any]:
        names = ("seq", "kind", "at", "salt", "previous")
        return {**{name: getattr(self, name) for name in names}, "body": dict(self.body)}

    def _seal(self) -> dict[str, str]:
        return {"hash": self.hash, "signature": self.signature}


def parse_record(line: bytes) -> Record:
    """Read one line strictly, without its newline.

    Raises:
        ValueError: It is not canonical JSON (so there is one text for one record), a key is
            missing or unknown, or a value has the wrong form. Hostile lines raise nothing else.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"the line is longer than {MAX_LINE_BYTES} bytes")
    try:
        value = json.loads(line.decode("utf-8"))
        canonical = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise ValueError("the line is not JSON with finite numbers") from error
    if canonical != line:
        raise ValueError("the line is not in canonical form")
    _check_fields(value, sealed=True)
    return Record(**value)


def _check_fields(value: object, *, sealed: bool = False) -> None:
    fields = {**_CONTENT, **(_SEAL if sealed else {})}
    record = _require_keys(value, fields, "a record")
    if record["kind"] not in BODIES:
        raise ValueError("the kind of record is unknown")
    _require_keys(record["body"], BODIES[record["kind"]], f"the body of {record['kind']}")


Check = Callable[[Any], object]


def _require_keys(value: object, checks: Mapping[str, Check], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(checks):
        raise ValueError(f"{what} has exactly the keys {', '.join(sorted(checks))}")
    for name, check in checks.items():
        try:
            check(value[name])
        except ValueError as error:
            raise ValueError(f"{what}: {name}: {error}") from error
    return value


def _matches(pattern: str, meaning: str) -> Check:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ValueError(f"expected {meaning}")

    return check


def check_text(value: Any) -> None:
    """Accept 1 to 200 printable characters: nothing that could steer a terminal or a page.

    Raises:
        ValueError: Anything else.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise ValueError("expected 1 to 200 printable characters")


def check_versions(value: Any) -> None:
    """Accept up to 32 pairs of text.

    Raises:
        ValueError: Anything else.
    """
    if not isinstance(value, dict) or len(value) > 32:
        raise ValueError("expected at most 32 names with versions")
    for part in (*value, *value.values()):
        check_text(part)


def count_to(high: int) -> Check:
    """Return a check for whole numbers from 0 to ``high``."""

    def check(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
            raise ValueError(f"expected a whole number from 0 to {high}")

    return check


def _check_totals(value: Any) -> None:
    if not isinstance(value, list) or len(value) > 16:
        raise ValueError("expected a list of at most 16 numbers")
    for total in value:
        if not isinstance(total, float) or total < 0:
            raise ValueError("expected numbers from 0")


def _one_of(*values: str) -> Check:
    return _matches("|".join(values), f"one of {', '.join(values)}")


check_digest = _matches("sha256:[0-9a-f]{64}", "sha256: and 64 hex digits")
check_public_key = _matches("[0-9a-f]{64}", "64 hex digits")
check_signature = _matches("[0-9a-f]{128}", "128 hex digits")
check_run = _matches("[A-Za-z0-9._-]{1,64}", "1 to 64 letters, digits, '.', '_' or '-'")
check_seq = count_to(10**9)
check_round = count_to(10**6)

# Name and value, among a release's versions, of noise that protects nobody: see privacy/random.
INSECURE_RANDOMNESS = ("randomness", "insecure-test")

# A declaration is that of data which are of no human subject; it stands right after the genesis.
NOTES = ("declaration", "exclusion", "purge")
REFUSALS = ("not_approved", "approval_used_up", "budget", "equivocation", "lost")

_CONTENT: dict[str, Check] = {
    "seq": check_seq,
    "kind": check_text,
    "at": _matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "a UTC time"),
    "salt": _matches("[0-9a-f]{32}", "32 hex digits"),
    "previous": check_digest,
    "body": lambda _: None,
}
_SEAL: dict[str, Check] = {"hash": check_digest, "signature": check_signature}

_WHAT: dict[str, Check] = {
    "experiment_digest": check_digest,
    "plan_digest": check_digest,
    "event": event_from_json,
}
_KEY: dict[str, Check] = {"run": check_run, "round": check_round, "attempt": check_round}


def _check_request(value: Any) -> None:
    """A refused approval has no request."""
    if value is not None:
        _require_keys(value, {**_KEY, "request_digest": check_digest}, "a request")


def _check_experiments(value: Any) -> None:
    if not isinstance(value, list) or len(value) > MAX_NOTED_EXPERIMENTS:
        raise ValueError(f"expected a list of at most {MAX_NOTED_EXPERIMENTS} digests")
    for experiment in value:
        check_digest(experiment)


BODIES: dict[str, dict[str, Check]] = {
    "genesis": {
        "format": _one_of(FORMAT),
        "site": check_text,
        "population": check_text,
        "public_key": check_public_key,
        "policy": BudgetPolicy.from_json,
    },
    "approval": {
        **_WHAT,
        "rounds": count_to(10**6),
        "attempts": count_to(10**6),
        "approver": check_text,
        "commitment": check_text,
    },
    "charge": {**_WHAT, **_KEY, "request_digest": check_digest, "totals": _check_totals},
    "release": {
        "charge_seq": check_seq,
        "update_digest": check_digest,
        "versions": check_versions,
    },
    "refusal": {
        **_WHAT,
        "code": _one_of(*REFUSALS),
        "request": _check_request,
    },
    # What the site did or declared beside training. It costs nothing and permits nothing.
    "note": {
        "what": _one_of(*NOTES),
        "by": check_text,
        "reason": check_text,
        "experiments": _check_experiments,
    },
}
