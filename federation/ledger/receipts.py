"""What a site signs for each update that leaves it. No counts and no times are in it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from federation.canonical import canonical_json
from federation.ledger.filter import Event, event_from_json
from federation.ledger.forms import (
    check_digest,
    check_public_key,
    check_round,
    check_run,
    check_seq,
    check_signature,
    check_text,
    check_versions,
)
from federation.ledger.keys import SiteKey, fingerprint_of, verify_signature

_SIGNED_AS = b"cohortium receipt v1\0"


@dataclass(frozen=True)
class Receipt:
    """A signed statement about one released update.

    Attributes:
        site: The site's name as its ledger has it.
        public_key: Ed25519, hex.
        ledger: Hash of the ledger's genesis record: which ledger was charged.
        commitment: To the data set, as the approval has it.
        charge_seq: Where the ledger records the charge.
        head_before: Hash of the record before the charge.
        head_after: Hash of the release record; it pins everything before it.
        update_digest: Of the payload's bytes.
        signature: Ed25519 over everything else, hex.
    """

    site: str
    public_key: str
    ledger: str
    experiment_digest: str
    plan_digest: str
    run: str
    round: int
    attempt: int
    request_digest: str
    event: Event
    commitment: str
    charge_seq: int
    head_before: str
    head_after: str
    update_digest: str
    versions: Mapping[str, str]
    signature: str = "00" * 64

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the key that claims to have signed."""
        return fingerprint_of(bytes.fromhex(self.public_key))

    def signed(self, key: SiteKey) -> "Receipt":
        """Return the receipt signed; the same receipt always gets the same signature."""
        return replace(self, signature=key.sign(self._statement()).hex())

    def verify(self) -> bool:
        """Tell whether the key named in the receipt signed it. Whose key that is is not said."""
        key, signature = bytes.fromhex(self.public_key), bytes.fromhex(self.signature)
        return verify_signature(key, self._statement(), signature)

    def states_the_same(self, other: "Receipt") -> bool:
        """Tell whether both say the same, whichever of a site's keys signed them."""
        nobody = {"public_key": "", "signature": ""}
        return {**self.to_json(), **nobody} == {**other.to_json(), **nobody}

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "event": self.event.to_json(), "versions": dict(self.versions)}

    @classmethod
    def from_json(cls, value: object) -> "Receipt":
        """Read a receipt strictly; the signature is checked by ``verify`` only.

        Raises:
            ValueError: A missing or unknown key, or a value of the wrong form.
        """
        if not isinstance(value, dict) or set(value) != set(cls.__dataclass_fields__):
            names = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"a receipt has exactly the keys {names}")
        for name, check in _CHECKS.items():
            try:
                check(value[name])
            except ValueError as error:
                raise ValueError(f"a receipt: {name}: {error}") from error
        return cls(**{**value, "event": event_from_json(value["event"])})

    def _statement(self) -> bytes:
        fields = self.to_json()
        del fields["signature"]
        return _SIGNED_AS + canonical_json(fields)


_CHECKS = {
    "site": check_text,
    "public_key": check_public_key,
    "ledger": check_digest,
    "experiment_digest": check_digest,
    "plan_digest": check_digest,
    "run": check_run,
    "round": check_round,
    "attempt": check_round,
    "request_digest": check_digest,
    "event": event_from_json,
    "commitment": check_text,
    "charge_seq": check_seq,
    "head_before": check_digest,
    "head_after": check_digest,
    "update_digest": check_digest,
    "versions": check_versions,
    "signature": check_signature,
}
