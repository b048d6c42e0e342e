"""Find ledgers, and what others keep of them, in whatever folder a board was handed.

A site's state folder, what ``cohortium run`` leaves, a hub's folder, an export of an MLflow run:
each holds files of the same names, however deep.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from federation.audit.state import counted
from federation.errors import FederationError
from federation.ledger.closings import Closing
from federation.ledger.openings import Opening
from federation.ledger.receipts import Receipt

LEDGER, RECEIPTS, CLOSINGS = "ledger.jsonl", "receipts.json", "closings.json"
MAX_DEPTH = 10
MAX_ENTRIES = 50_000
MAX_FOUND = 1_000
_MAX_BYTES = 2**30

_T = TypeVar("_T")


@dataclass
class Sources:
    """Files to verify, oldest path first.

    Attributes:
        searched: Folders in which they were looked for.
    """

    ledgers: list[Path] = field(default_factory=list)
    receipts: list[Path] = field(default_factory=list)
    closings: list[Path] = field(default_factory=list)
    searched: list[Path] = field(default_factory=list)

    @property
    def told(self) -> str:
        """Say what was found, in one line; empty where nothing was looked for."""
        if not self.searched:
            return ""
        kinds = ("ledger", "receipts file", "closings file")
        counts = zip((self.ledgers, self.receipts, self.closings), kinds, strict=True)
        found = ", ".join(counted(len(files), what) for files, what in counts)
        return f"Found in {', '.join(map(str, self.searched))}: {found}."

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "ledgers": [str(path) for path in self.ledgers],
            "receipts": [str(path) for path in self.receipts],
            "closings": [str(path) for path in self.closings],
        }


def find_sources(
    paths: Sequence[Path], *, receipts: Sequence[Path] = (), closings: Sequence[Path] = ()
) -> Sources:
    """Look for what can be verified; a file that is named is a ledger unless its name says more.

    Args:
        receipts, closings: Files that were named as such.

    Raises:
        FederationError: A folder cannot be read or is too large, or there is nothing to verify.
    """
    found = Sources(receipts=list(receipts), closings=list(closings))
    for path in paths:
        if path.is_dir():
            found.searched.append(path)
            for file in files_below(path, (LEDGER, RECEIPTS, CLOSINGS)):
                _sort(found, file)
        elif not _sort(found, path):
            found.ledgers.append(path)
    for files in (found.ledgers, found.receipts, found.closings):
        _keep_different(files)
    if not (found.ledgers or found.receipts or found.closings):
        raise FederationError(
            f"There is no ledger ({LEDGER} or NAME.{LEDGER}) in "
            f"{', '.join(map(str, paths))}, nor {RECEIPTS} or {CLOSINGS}. Ask the sites for their "
            "ledgers."
        )
    return found


def _sort(found: Sources, file: Path) -> bool:
    kinds = ((RECEIPTS, found.receipts), (CLOSINGS, found.closings))
    for name, files in (*kinds, (LEDGER, found.ledgers)):
        if file.name == name or (files is found.ledgers and file.name.endswith(f".{LEDGER}")):
            files.append(file)
            return True
    return False


def files_below(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """Yield files whose names say what they are. No link is followed, no depth is endless.

    Raises:
        FederationError: The folder cannot be read, or is too large.
    """
    entries = num_found = 0
    for place, folders, names in os.walk(folder, onerror=_cannot_read):
        entries += len(folders) + len(names)
        if entries > MAX_ENTRIES:
            raise _too_large(folder, f"more than {MAX_ENTRIES:,} files")
        folders.sort()
        if folders and len(Path(place).relative_to(folder).parts) >= MAX_DEPTH:
            raise _too_large(folder, f"folders deeper than {MAX_DEPTH}")
        for name in sorted(names):
            path = Path(place) / name
            if not name.endswith(endings) or path.is_symlink():
                continue
            if path.is_file():
                num_found += 1
                if num_found > MAX_FOUND:
                    raise _too_large(folder, f"more than {MAX_FOUND:,} files to verify")
                yield path


def _cannot_read(error: OSError) -> None:
    raise FederationError(
        f"The folder {error.filename} cannot be read ({error.strerror}), so something in it may "
        "be left out. Make it readable, or name the files."
    ) from error


def _too_large(folder: Path, why: str) -> FederationError:
    return FederationError(
        f"{folder} holds {why}, so it was not searched to the end. Name the files in it "
        "that you mean ('audit verify' takes --receipts and --closings)."
    )


def _keep_different(files: list[Path]) -> None:
    """Drop files that are named twice, as a folder and a file in it may."""
    different: dict[Path, Path] = {}
    for path in files:
        different.setdefault(path.resolve(), path)
    files[:] = different.values()


def read_receipts(path: Path) -> list[Receipt]:
    """Return the receipts in a JSON list.

    Raises:
        FederationError: The file is missing, not JSON, or an entry is not a receipt.
    """
    return _read_list(path, "receipts", RECEIPTS, Receipt.from_json)


def read_closings(path: Path) -> list[Closing]:
    """Return the closings in a JSON list.

    Raises:
        FederationError: The file is missing, not JSON, or an entry is not a closing.
    """
    return _read_list(path, "closings", CLOSINGS, Closing.from_json)


def read_opening(path: Path) -> Opening:
    """Return what opens one commitment.

    Raises:
        FederationError: The file is missing, not JSON, or no opening.
    """
    try:
        return Opening.from_json(json.loads(read_text(path, "opening")))
    except (ValueError, RecursionError) as error:
        raise FederationError(
            f"{path} opens no commitment: {error}. Pass the file that 'cohortium site "
            "open-commitment' wrote, unchanged."
        ) from error


def _read_list(path: Path, what: str, name: str, read: Callable[[object], _T]) -> list[_T]:
    remedy = f"Pass the {name} that a run left, unchanged."
    try:
        values = json.loads(read_text(path, what))
    except (ValueError, RecursionError) as error:
        raise FederationError(f"{path} is not JSON. {remedy}") from error
    if not isinstance(values, list):
        raise FederationError(f"{path} is not a JSON list of {what}, as a run leaves it.")
    statements = []
    for position, value in enumerate(values, start=1):
        try:
            statements.append(read(value))
        except ValueError as error:
            raise FederationError(f"{path}, entry {position}: {error}. {remedy}") from error
    return statements


def read_text(path: Path, what: str) -> str:
    """Return the text of a file that a person named.

    Raises:
        FederationError: It is missing, not text, or far too large.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise FederationError(f"The {what} file {path} is larger than {_MAX_BYTES:,} bytes.")
        return path.read_text("utf-8")
    except OSError as error:
        raise FederationError(
            f"There is no readable {what} file {path} ({error.strerror}). Correct the path."
        ) from error
    except UnicodeDecodeError as error:
        raise FederationError(f"The {what} file {path} is not text. Correct the path.") from error
