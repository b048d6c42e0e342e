"""The ledger's records: one canonical JSON line each, chained by hash and signed by the site.

``docs/ledger/format.md`` says what each kind means and what makes a ledger believable.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from federation.canonical import canonical_json, digest
from federation.ledger.filter import BudgetPolicy, event_from_json
from federation.ledger.forms import (
    MAX_NOTED_EXPERIMENTS,
    Check,
    check_digest,
    check_epsilon,
    check_fingerprint,
    check_heads,
    check_public_key,
    check_round,
    check_run,
    check_seq,
    check_signature,
    check_spends,
    check_text,
    check_time,
    check_totals,
    check_versions,
    count_to,
    listed,
    matches,
    one_of,
    optional,
    require_keys,
)
from federation.ledger.keys import SiteKey, verify_signature

FORMAT = "cohortium-ledger/2"
NO_RECORD = "sha256:" + "0" * 64
MAX_LINE_BYTES = 65_536
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
    def signed(  # noqa: PLR0913 - all but one are named
        cls,
        key: SiteKey,
        *,
        seq: int,
        kind: str,
        previous: str,
        body: Body,
        at: str | None = None,
    ) -> "Record":
        """Make, hash and sign a record, with fresh salt.

        Args:
            at: The present time, if not given.

        Raises:
            ValueError: The body is not one of ``kind``.
        """
        content: dict[str, Any] = {
            "seq": seq,
            "kind": kind,
            "at": at or now(),
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
    record = require_keys(value, fields, "a record")
    if record["kind"] not in BODIES:
        raise ValueError("the kind of record is unknown")
    require_keys(record["body"], BODIES[record["kind"]], f"the body of {record['kind']}")


def now() -> str:
    """Return the present time as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# Name and value, among a release's versions, of noise that protects nobody: see privacy/random.
INSECURE_RANDOMNESS = ("randomness", "insecure-test")

# A declaration is that of data which are of no human subject; it stands right after the genesis.
NOTES = ("declaration", "exclusion", "purge")
REFUSALS = (
    "not_approved",
    "approval_used_up",
    "budget",
    "equivocation",
    "lost",
    "behind",
    "operator",
)

_CONTENT: dict[str, Check] = {
    "seq": check_seq,
    "kind": check_text,
    "at": check_time,
    "salt": matches("[0-9a-f]{32}", "32 hex digits"),
    "previous": check_digest,
    "body": lambda _: None,
}
_SEAL: dict[str, Check] = {"hash": check_digest, "signature": check_signature}

_EXPERIMENT: dict[str, Check] = {"experiment_digest": check_digest}
_WHAT: dict[str, Check] = {**_EXPERIMENT, "plan_digest": check_digest, "event": event_from_json}
_KEY: dict[str, Check] = {"run": check_run, "round": check_round, "attempt": check_round}
_WHO: dict[str, Check] = {"by": check_text, "reason": check_text}
_SPENT: dict[str, Check] = {"spends": check_spends, "totals": check_totals}


def _check_request(value: Any) -> None:
    """A refused approval has no request."""
    if value is not None:
        require_keys(value, {**_KEY, "request_digest": check_digest}, "a request")


def _check_charges(value: Any) -> None:
    count_to(10**6)(value)
    if value < 1:
        raise ValueError("expected at least 1")


BODIES: dict[str, dict[str, Check]] = {
    "genesis": {
        "format": one_of(FORMAT),
        "site": check_text,
        "population": check_text,
        "public_key": check_public_key,
        "policy": BudgetPolicy.from_json,
    },
    "approval": {
        **_WHAT,
        "charges": _check_charges,
        "commitment": check_digest,
        "approver": check_text,
        "second_approver": optional(check_text),
        "author": optional(check_fingerprint),
        "hub_key": optional(check_public_key),
        "ethics_reference": optional(check_text),
        "legal_basis": optional(check_text),
        "expires": optional(check_time),
        "algorithm": check_text,
        "epsilon": optional(check_epsilon),
        "leaves": listed(check_text, 32),
        "software": check_digest,
    },
    "reservation": {**_EXPERIMENT, "run": check_run, "charges": _check_charges},
    "charge": {
        **_WHAT,
        **_KEY,
        "request_digest": check_digest,
        "heads": check_heads,
        "totals": check_totals,
    },
    "release": {
        "charge_seq": check_seq,
        "update_digest": check_digest,
        "versions": check_versions,
    },
    "loss": {"charge_seq": check_seq},
    "refusal": {
        **_EXPERIMENT,
        "plan_digest": optional(check_digest),
        "event": optional(event_from_json),
        "code": one_of(*REFUSALS),
        "request": _check_request,
        "by": optional(check_text),
        "reason": optional(check_text),
    },
    "withdrawal": {**_EXPERIMENT, **_WHO},
    "closing": {
        **_EXPERIMENT,
        "run": check_run,
        "heads": check_heads,
        "model_digest": optional(check_digest),
    },
    "key_rotation": {"public_key": check_public_key, "proof": check_signature},
    "recovery": {**_WHO, "seen_seq": check_seq, "seen_hash": check_digest, **_SPENT},
    "merge": {
        **_WHO,
        "ledger": check_digest,
        "head_seq": check_seq,
        "head": check_digest,
        **_SPENT,
    },
    "merged": {"into": check_digest},
    # What the site did or declared beside training. It costs nothing and permits nothing.
    "note": {
        "what": one_of(*NOTES),
        **_WHO,
        "experiments": listed(check_digest, MAX_NOTED_EXPERIMENTS),
    },
}
