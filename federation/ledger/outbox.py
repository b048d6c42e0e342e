"""Updates as they were released, so that the same request gets the same bytes again."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from federation.canonical import canonical_json, digest_bytes
from federation.errors import LedgerError
from federation.files import private_folder, sync_folder, write_atomically
from federation.ledger.closings import Closing
from federation.ledger.entries import Charge
from federation.ledger.receipts import Receipt

_NAME = re.compile("[0-9]{8}-[0-9a-f]{16}")


class Outbox:
    """A folder beside the ledger, with a payload and a receipt for each release."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def payload_path(self, charge: Charge) -> Path:
        """Return where this charge's payload lies; the name tells nothing about the data."""
        return self._folder / f"{charge.seq:08d}-{charge.hash[-16:]}.update"

    def receipt_path(self, charge: Charge) -> Path:
        """Return where this charge's receipt lies."""
        return self.payload_path(charge).with_suffix(".receipt.json")

    def require_known(self, charges: Iterable[Charge]) -> None:
        """Check that every update and receipt in the folder belongs to a charge of the ledger.

        Raises:
            LedgerError: One does not: the ledger is older than what was released under it.
        """
        unknown = self._unknown(charges)
        if unknown:
            raise LedgerError(
                f"The outbox holds {len(unknown)} updates or receipts that the ledger does not "
                f"know (first: {unknown[0]}): the ledger is an older copy and has forgotten what "
                "they cost. Nothing is charged. Restore the newest copy; if there is none, "
                "'cohortium site recover SITE.yaml' spends all that may have been released since."
            )

    def unknown(self, charges: Iterable[Charge]) -> list[int]:
        """Return the positions of charges that something here was for and the ledger lacks."""
        return [int(name[:8]) for name in self._unknown(charges)]

    def accounted(self) -> set[str]:
        """Return the heads of receipts and closings that a recovery has paid for."""
        found = (_read_receipt(path) for path in self._aside.glob("*.receipt.json"))
        closings = (_read_closing(path) for path in self._aside.glob("*.closing.json"))
        heads = {closing.head for closing in closings if closing is not None}
        return heads | {receipt.head_after for receipt in found if receipt is not None}

    def set_aside(self, charges: Iterable[Charge], paid: Iterable[Receipt | Closing]) -> None:
        """Move what belongs to no charge into a folder of its own, once it is paid for.

        Args:
            paid: Others' copies of receipts and closings that were paid for.
        """
        aside = private_folder(self._folder) and private_folder(self._aside)
        for said in paid:
            if isinstance(said, Closing):
                name = f"{said.seq:08d}-{said.head[-16:]}.closing.json"
            else:
                name = f"{said.charge_seq:08d}-{said.head_after[-16:]}.receipt.json"
            write_atomically(aside / name, canonical_json(said.to_json()) + b"\n")
        for name in self._unknown(charges):
            for path in self._folder.glob(f"{name}.*"):
                path.replace(aside / path.name)
            sync_folder(aside)
            sync_folder(self._folder)

    @property
    def _aside(self) -> Path:
        return self._folder / "forgotten"

    def _unknown(self, charges: Iterable[Charge]) -> list[str]:
        """Return names without their endings: an update may be gone and its receipt still there."""
        known = {self.payload_path(charge).stem for charge in charges}
        kept = [*self._folder.glob("*.update"), *self._folder.glob("*.receipt.json")]
        named = {path.name.partition(".")[0] for path in kept}
        return sorted({name for name in named if _NAME.fullmatch(name)} - known)

    def receipt(self, charge: Charge) -> Receipt | None:
        """Return the receipt as it was signed; None where there is none, or not a whole one."""
        return _read_receipt(self.receipt_path(charge))

    def receipts(self) -> list[Receipt]:
        """Return every receipt in the folder, also of charges that the ledger does not know."""
        found = (_read_receipt(path) for path in sorted(self._folder.glob("*.receipt.json")))
        return [receipt for receipt in found if receipt is not None]

    def put_payload(self, charge: Charge, payload: bytes) -> str:
        """Keep the payload, durably, and return its digest."""
        private_folder(self._folder)
        write_atomically(self.payload_path(charge), payload)
        return digest_bytes(payload)

    def put_receipt(self, charge: Charge, receipt: Receipt) -> None:
        """Keep the receipt for people; the ledger can derive it again at any time."""
        write_atomically(self.receipt_path(charge), canonical_json(receipt.to_json()) + b"\n")

    def payload(self, charge: Charge, update_digest: str) -> bytes:
        """Return the stored payload.

        Raises:
            LedgerError: It is gone, or not what was released.
        """
        path = self.payload_path(charge)
        try:
            payload = path.read_bytes()
        except OSError as error:
            raise LedgerError(
                f"The released update {path} cannot be read ({error.strerror}). Restore the "
                "outbox from backup, or ask the hub for a new attempt."
            ) from error
        if digest_bytes(payload) != update_digest:
            raise LedgerError(
                f"{path} is not the update that was released. It is not sent. Restore the outbox "
                "from backup, or ask the hub for a new attempt."
            )
        return payload


def _read_receipt(path: Path) -> Receipt | None:
    try:
        receipt = Receipt.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None
    return receipt if receipt.verify() else None


def _read_closing(path: Path) -> Closing | None:
    try:
        closing = Closing.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None
    return closing if closing.verify() else None
