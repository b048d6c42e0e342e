"""Where else a run is to be recorded: named before it begins, kept in its folder until it is done.

A server that is down stops no run and loses none. Whoever records runs looks here for what waits.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from federation.errors import FederationError
from federation.files import write_atomically
from federation.run_record import RECORD

WAITING = "track.json"
FORMAT = "cohortium-track/1"
# An MLflow server or store. No name and password: they would lie in the run's folder.
ADDRESS = r"^(https?|sqlite|postgresql|mysql|mssql)(\+[a-z0-9]+)?://[^\s@]+$"


def require_address(uri: str) -> str:
    """Return the address of an MLflow server or store.

    Raises:
        FederationError: It is none, or holds a name and password.
    """
    if not re.fullmatch(ADDRESS, uri):
        raise FederationError(
            f"{masked(uri)} is no address of an MLflow server that can be kept in a run's folder. "
            "Write http://HOST:PORT, https://HOST or sqlite:////FILE. A name and password belong "
            "in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )
    return uri


def masked(text: str) -> str:
    """Return text without the names and passwords that addresses in it hold."""
    return re.sub(r"//[^/@]*@", "//", text)


def want(folder: Path, uri: str) -> None:
    """Note that the run in ``folder`` is to be recorded in ``uri`` once it has finished."""
    text = json.dumps({"format": FORMAT, "to": require_address(uri)})
    write_atomically(folder / WAITING, text.encode() + b"\n", mode=0o644)


def address_of(folder: Path) -> str:
    """Return where the run in ``folder`` is still to be recorded.

    Raises:
        FederationError: Nobody said so, or the note is damaged.
    """
    path = folder / WAITING
    try:
        value = json.loads(path.read_bytes())
        known = value["format"] == FORMAT
        uri = str(value["to"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FederationError(f"{path} cannot be read ({error}). Delete it.") from error
    if not known:
        raise FederationError(f"{path} is no {FORMAT}. Was it written by another version?")
    return require_address(uri)


def done(folder: Path) -> None:
    """Forget it: the run is recorded there."""
    (folder / WAITING).unlink(missing_ok=True)


def waiting(folders: Iterable[Path]) -> list[Path]:
    """Return the finished runs that wait: these folders, or those directly in them."""
    found = {
        note.parent
        for folder in folders
        for note in (folder / WAITING, *folder.glob(f"*/{WAITING}"))
        if note.is_file() and note.with_name(RECORD).is_file()
    }
    return sorted(found)
