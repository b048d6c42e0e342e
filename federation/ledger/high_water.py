"""How far a ledger had come, on separate storage: what a restored backup cannot take back.

A ledger that is restored together with everything beside it looks whole. The mark does not come
back with it, so that the site sees what its ledger has forgotten, and spends it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from federation.canonical import canonical_json
from federation.errors import LedgerError
from federation.files import write_atomically
from federation.ledger.filter import Event, FilterState, event_from_json
from federation.ledger.forms import check_digest, check_seq, listed, require_keys

_KEYS = {
    "ledger": check_digest,
    "seq": check_seq,
    "hash": check_digest,
    "promised": listed(event_from_json, 100_000),
    "farthest_seq": check_seq,
    "farthest_hash": check_digest,
}


@dataclass(frozen=True)
class Mark:
    """Newest record that was written, and what was spent or promised by then.

    Attributes:
        farthest_seq, farthest_hash: How far the ledger had ever come: farther than ``seq`` once
            an older copy was recovered.
    """

    ledger: str
    seq: int
    hash: str
    promised: tuple[Event, ...]
    farthest_seq: int
    farthest_hash: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        events = [event.to_json() for event in self.promised]
        return {**asdict(self), "promised": events}

    @property
    def state(self) -> FilterState:
        """Return what was promised as a state of the filter."""
        return FilterState().after_all(self.promised)


class MarkFile:
    """A mark in a file, best on another disk or host than the ledger."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Mark | None:
        """Return the mark; None where there is none yet.

        Raises:
            LedgerError: The storage is not there, or the file is damaged.
        """
        try:
            value = require_keys(json.loads(self.path.read_bytes()), _KEYS, "a mark")
        except FileNotFoundError as error:
            if not self.path.parent.is_dir():
                raise self._unusable("its folder is not there; is the storage mounted?") from error
            return None
        except OSError as error:
            raise self._unusable(str(error.strerror)) from error
        except (ValueError, RecursionError) as error:
            raise self._unusable("it is damaged") from error
        promised = tuple(event_from_json(event) for event in value["promised"])
        return Mark(**{**value, "promised": promised})

    def write(self, mark: Mark) -> None:
        """Keep a mark, durable before this returns.

        Raises:
            LedgerError: It could not be written. Nothing may leave until it can.
        """
        try:
            write_atomically(self.path, canonical_json(mark.to_json()) + b"\n")
        except OSError as error:
            raise self._unusable(str(error.strerror)) from error

    def _unusable(self, why: str) -> LedgerError:
        return LedgerError(
            f"The high-water mark {self.path} cannot be used: {why}. Nothing is charged or sent "
            "until it can: bring its storage back, or restore the file."
        )


def behind(mark: Mark, ledger: str, hashes: Sequence[str]) -> bool:
    """Tell whether a ledger lacks what a mark has seen of it.

    Args:
        ledger: Hash of the genesis record.
        hashes: Of all records, by position.
    """
    return mark.ledger != ledger or mark.seq >= len(hashes) or hashes[mark.seq] != mark.hash
