"""What a site signs when a run is over: its own last record, and the heads it was shown."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from federation.canonical import canonical_json
from federation.ledger.forms import (
    check_digest,
    check_heads,
    check_public_key,
    check_run,
    check_seq,
    check_signature,
    check_text,
    optional,
    require_keys,
)
from federation.ledger.keys import SiteKey, verify_signature

_SIGNED_AS = b"cohortium closing v1\0"


@dataclass(frozen=True)
class Closing:
    """A signed statement about the end of a run.

    Attributes:
        ledger: Hash of the ledger's genesis record.
        heads: By site, the heads that the hub showed: whoever rewrites their past is found by
            what others have signed.
        model_digest: Of the final weights, as the hub said.
        seq, head: Position and hash of the closing record; it pins everything before it.
        signature: Ed25519 over everything else, hex.
    """

    site: str
    public_key: str
    ledger: str
    experiment_digest: str
    run: str
    heads: Mapping[str, str]
    model_digest: str | None
    seq: int
    head: str
    signature: str = "00" * 64

    def signed(self, key: SiteKey) -> "Closing":
        """Return the statement signed."""
        return replace(self, signature=key.sign(self._statement()).hex())

    def verify(self) -> bool:
        """Tell whether the key named in it signed it. Whose key that is is not said."""
        key, signature = bytes.fromhex(self.public_key), bytes.fromhex(self.signature)
        return verify_signature(key, self._statement(), signature)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "heads": dict(self.heads)}

    @classmethod
    def from_json(cls, value: object) -> "Closing":
        """Read one strictly; the signature is checked by ``verify`` only.

        Raises:
            ValueError: A missing or unknown key, or a value of the wrong form.
        """
        return cls(**require_keys(value, _CHECKS, "a closing"))

    def _statement(self) -> bytes:
        fields = self.to_json()
        del fields["signature"]
        return _SIGNED_AS + canonical_json(fields)


_CHECKS = {
    "site": check_text,
    "public_key": check_public_key,
    "ledger": check_digest,
    "experiment_digest": check_digest,
    "run": check_run,
    "heads": check_heads,
    "model_digest": optional(check_digest),
    "seq": check_seq,
    "head": check_digest,
    "signature": check_signature,
}
