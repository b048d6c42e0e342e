"""What opens a commitment to a data set, for one auditor: the nonce that nobody else is shown."""

from dataclasses import asdict, dataclass
from typing import Any

from federation.canonical import digest_bytes
from federation.ledger.forms import check_digest, check_text, matches, one_of, require_keys

FORMAT = "cohortium-opening/1"


@dataclass(frozen=True)
class Opening:
    """The data set that an experiment was approved for, and the nonce that hid it.

    Attributes:
        nonce: 256 random bits, hex; whoever has it can tell which other experiments were on the
            same data, so it goes to an auditor alone.
        root: Digest of the data set: the same for every experiment on it.
    """

    site: str
    experiment_digest: str
    nonce: str
    root: str

    @property
    def commitment(self) -> str:
        """Return SHA-256(nonce || root), as the approval has it."""
        return digest_bytes(bytes.fromhex(self.nonce) + self.root.encode())

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: object) -> "Opening":
        """Read one strictly.

        Raises:
            ValueError: A missing or unknown key, or a value of the wrong form.
        """
        fields = dict(require_keys(value, _CHECKS, "an opening"))
        del fields["format"]
        return cls(**fields)


_CHECKS = {
    "format": one_of(FORMAT),
    "site": check_text,
    "experiment_digest": check_digest,
    "nonce": matches("[0-9a-f]{64}", "64 hex digits"),
    "root": check_digest,
}
