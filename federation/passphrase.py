"""Where a passphrase or a PIN comes from: a file that the environment names, systemd, a terminal.

Never a site file and never an argument: those are copied, logged and shown by ``ps``.
"""

import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from federation.errors import FederationError

CREDENTIALS = "CREDENTIALS_DIRECTORY"
MIN_CHARACTERS = 12


@dataclass(frozen=True)
class Asked:
    """Something that only a person or a service's credentials know.

    Attributes:
        what: In words.
        variable: Of the environment; names a file that holds it.
        credential: Its name among a systemd unit's credentials (``LoadCredential=``).
    """

    what: str
    variable: str
    credential: str


PASSPHRASE = Asked("passphrase", "COHORTIUM_PASSPHRASE_FILE", "cohortium-passphrase")
NEW_PASSPHRASE = Asked("new passphrase", "COHORTIUM_NEW_PASSPHRASE_FILE", "")
PIN = Asked("PIN", "COHORTIUM_PIN_FILE", "cohortium-pin")


def secret_text(asked: Asked, of: str, *, terminal: bool = True) -> str:
    """Return what was asked for, from wherever it is given.

    Args:
        of: What it opens, in words.
        terminal: Whether somebody may be asked; not where other processes need it as well.

    Raises:
        FederationError: It is given nowhere, or others can read the file that holds it.
    """
    from_file = os.environ.get(asked.variable)
    if from_file:
        return _read(Path(from_file), asked, private=True)
    folder = os.environ.get(CREDENTIALS)
    if folder and asked.credential and (Path(folder) / asked.credential).is_file():
        return _read(Path(folder) / asked.credential, asked, private=False)
    if terminal and sys.stdin is not None and sys.stdin.isatty():
        return getpass.getpass(f"{asked.what.capitalize()} of {of}: ")
    raise FederationError(
        f"The {asked.what} of {of} is needed, and "
        + ("there is no terminal to ask at. " if terminal else "it cannot be asked for here. ")
        + f"Name a file that holds it (mode 600) in {asked.variable}"
        + (
            f", or give a service the systemd credential {asked.credential}"
            * bool(asked.credential)
        )
        + "."
    )


def new_passphrase(of: str) -> str:
    """Return a new passphrase, typed twice at a terminal, or from a file.

    Raises:
        FederationError: It is too short, was mistyped, or is given nowhere.
    """
    text = secret_text(NEW_PASSPHRASE, of)
    if len(text) < MIN_CHARACTERS:
        raise FederationError(
            f"The new passphrase has {len(text)} characters; at least {MIN_CHARACTERS} are needed, "
            "since whoever copies the files can try as many as they like. Nothing was changed."
        )
    if NEW_PASSPHRASE.variable not in os.environ and getpass.getpass("Once more: ") != text:
        raise FederationError("The two differ. Nothing was changed.")
    return text


def _read(path: Path, asked: Asked, *, private: bool) -> str:
    """Return the first line of a file. systemd itself guards its credentials."""
    try:
        mode, text = path.stat().st_mode, path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise FederationError(
            f"{path}, which is to hold the {asked.what}, cannot be read ({type(error).__name__})."
        ) from error
    if private and mode & 0o077:
        raise FederationError(
            f"{path} holds the {asked.what} and can be read by other users. Run: chmod 600 {path}"
        )
    line = text.removesuffix("\n").removesuffix("\r")
    if not line or "\n" in line:
        raise FederationError(f"{path} must hold the {asked.what} on one line, and nothing else.")
    return line
