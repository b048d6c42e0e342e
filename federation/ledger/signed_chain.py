"""A ledger's records under one key: read, checked and folded; appended, durable, one at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from federation.errors import LedgerError
from federation.ledger.book import Book
from federation.ledger.chain import ChainFile
from federation.ledger.high_water import Mark, MarkFile, behind
from federation.ledger.keys import SiteKey
from federation.ledger.records import NO_RECORD, Record, parse_record


def signing_key(path: Path) -> str | None:
    """Return the key, hex, that a ledger file says it signs with now; nothing else is checked."""
    key = None
    for line in path.read_bytes().splitlines():
        if b'"kind":"genesis"' in line or b'"kind":"key_rotation"' in line:
            try:
                key = parse_record(line).body["public_key"]
            except ValueError:
                continue
    return key


class SignedChain:
    """An open file of records. Threads and processes may share it; they take turns.

    Args:
        mark: Where it is kept how far the file had come, apart from the file.
    """

    def __init__(self, path: Path, key: SiteKey, mark: MarkFile | None = None) -> None:
        self._file = ChainFile(path)
        self.key = key
        self._mark = mark
        self._book: Book | None = None
        self._records: list[Record] = []
        self._hashes: list[str] = []

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._file.path

    @property
    def records(self) -> list[Record]:
        """All records that were read, oldest first."""
        return self._records

    @property
    def merged(self) -> bool:
        """Tell whether the budget went on in another ledger, by what was read."""
        return self._book is not None and self._book.merged_into is not None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextmanager
    def locked(self) -> Iterator[Book]:
        """Keep everybody else out, and give the book as it stands.

        Raises:
            LedgerError: The file is damaged, replaced, or signed with another key by now.
        """
        with self._file.locked():
            yield self._refreshed()

    def append(self, kind: str, body: Mapping[str, Any], *, at: str | None = None) -> Record:
        """Sign and write one record, durable before this returns. Call under ``locked``.

        Args:
            at: The moment for which it was decided; the present one if not given.

        Raises:
            LedgerError: The disk or the mark cannot be written; see ``require_not_behind``.
        """
        self.require_open()
        return self._append(kind, body, at)

    def require_open(self) -> None:
        """Refuse to go on from an older copy, or where the budget went on in another ledger.

        Raises:
            LedgerError: Says what to do.
        """
        if self.merged:
            raise LedgerError(
                f"{self.path} was merged into another ledger, which has its budget now: name its "
                "images as a further source of that ledger's site file."
            )
        self.require_not_behind()

    def append_recovery(self, body: Mapping[str, Any]) -> Record:
        """Write what makes good for forgotten records: the one kind that a stale ledger takes."""
        return self._append("recovery", body, None)

    def require_not_behind(self) -> None:
        """Refuse to go on from an older copy.

        Raises:
            LedgerError: Says what to do.
        """
        if self._mark is None or not self._records:
            return
        mark = self._mark.read()
        if mark is None:
            if len(self._records) > 2:
                raise LedgerError(
                    f"{self.path} has {len(self._records)} records, and its high-water mark "
                    f"{self._mark.path} is gone. Restore the mark; if there has never been one, "
                    "start it with 'cohortium site recover SITE.yaml --start-mark'."
                )
            return
        if behind(mark, self._hashes[0], self._hashes):
            raise LedgerError(
                f"{self.path} ends at record {len(self._records) - 1}, and its high-water mark "
                f"has seen record {mark.seq} after it: it is an older copy and has forgotten what "
                "that cost. Nothing is charged. Restore the newest copy; if there is none, "
                "'cohortium site recover SITE.yaml' spends all that may have been released since."
            )
        if mark.seq < len(self._records) - 1:  # killed, or a full disk, between record and mark
            self.keep_mark()

    def mark(self) -> Mark | None:
        """Return the mark that is kept apart, if there is one."""
        return self._mark.read() if self._mark else None

    def keep_mark(self) -> None:
        """Write down, apart from the file, how far it has come. Call under ``locked``."""
        if self._mark is not None and self._book is not None:
            newest, before = self._records[-1], self._mark.read()
            farthest = (newest.seq, newest.hash)
            if before is not None and before.farthest_seq > newest.seq:
                farthest = (before.farthest_seq, before.farthest_hash)
            promised = self._book.promised().events()
            self._mark.write(Mark(self._hashes[0], newest.seq, newest.hash, promised, *farthest))

    def _append(self, kind: str, body: Mapping[str, Any], at: str | None) -> Record:
        previous = self._records[-1]
        record = Record.signed(
            self.key, seq=previous.seq + 1, kind=kind, previous=previous.hash, body=body, at=at
        )
        try:
            self._fold(record)  # what contradicts the records before it is never written
            self._file.append(record.line)
        except BaseException:
            self._read_again()
            raise
        self.keep_mark()
        return record

    def _read_again(self) -> None:
        """Forget what was folded, and fold what is in the file."""
        self._book, self._records, self._hashes = None, [], []
        self._file.rewind()
        self._read_new()

    def _refreshed(self) -> Book:
        """Fold in what other processes appended."""
        self._read_new()
        if self._book is None:
            raise LedgerError(
                f"{self.path} holds no complete record, so it is not a ledger. Restore it "
                "from backup; a new one would forget what was spent."
            )
        if self._book.public_key != self.key.public_bytes.hex():
            raise LedgerError(
                f"{self.path} is signed with another key than this site's. If the key was "
                "rotated, open the site again; if not, restore the key from backup."
            )
        return self._book

    def _read_new(self) -> None:
        for line in self._file.new_lines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        seq = len(self._records)
        try:
            record = parse_record(line)
            self._require_chained(record)
            self._fold(record)
        except (ValueError, LedgerError) as error:
            raise LedgerError(
                f"{self.path}, line {seq + 1}: {str(error).rstrip('.')}. The file was "
                "damaged or changed; restore it from backup. Nothing is charged until then."
            ) from error

    def _require_chained(self, record: Record) -> None:
        previous = self._hashes[-1] if self._hashes else NO_RECORD
        if (record.seq, record.previous) != (len(self._records), previous):
            raise LedgerError("The record does not follow the one before it.")
        if not record.hash_matches():
            raise LedgerError("The record's hash is not that of its content.")
        if self._book is None and record.kind != "genesis":
            raise LedgerError("The first record is not a genesis.")
        signer = self._book.public_key if self._book else record.body["public_key"]
        if not record.signed_by(bytes.fromhex(signer)):
            raise LedgerError("The record was not signed with this site's key.")

    def _fold(self, record: Record) -> None:
        if self._book is not None:
            self._book.apply(record)
        else:
            self._book = Book.opened(record)
        self._records.append(record)
        self._hashes.append(record.hash)
