"""Secret files at rest, as they are, or sealed under a passphrase.

``key-slot.json`` holds the folder's key, sealed with AES-256-GCM (NIST SP 800-38D) under a key that
scrypt (RFC 7914) makes of the passphrase; every secret file of the folder is sealed under the
folder's key. So a passphrase is changed by replacing one file, and a folder in which some files are
sealed and others not yet opens as well: whatever is interrupted, nothing is lost.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import Field, ValidationError

from federation.canonical import canonical_json
from federation.documents import Strict
from federation.errors import FederationError
from federation.files import create_atomically, private_folder, sync_folder, write_atomically
from federation.passphrase import PASSPHRASE, secret_text

SLOT = "key-slot.json"
_SEALED = b"cohortium-sealed/1 "
_NONCE_BYTES = 12
_KEY_BYTES = 32

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]+$", max_length=1000)]
# Slots whose passphrase was given in this process, by their bytes: it is asked for once.
_opened: dict[bytes, bytes] = {}


class _Slot(Strict):
    """What stands in ``key-slot.json``.

    Attributes:
        n, r, p: Of scrypt. These take 128 MiB and a third of a second for each guess.
    """

    format: Literal["cohortium-key-slot/1"] = "cohortium-key-slot/1"
    kdf: Literal["scrypt"] = "scrypt"
    cipher: Literal["AES-256-GCM"] = "AES-256-GCM"
    salt: Hex
    n: Annotated[int, Field(ge=2**14, le=2**20)] = 2**17
    r: Annotated[int, Field(ge=8, le=16)] = 8
    p: Annotated[int, Field(ge=1, le=4)] = 1
    nonce: Hex = ""
    sealed_key: Hex = ""

    def header(self) -> bytes:
        """Return what is authenticated beside the key."""
        return canonical_json(self.model_dump(exclude={"nonce", "sealed_key"}))

    def cipher_of(self, passphrase: str) -> AESGCM:
        """Return the cipher under a passphrase."""
        kdf = Scrypt(bytes.fromhex(self.salt), _KEY_BYTES, n=self.n, r=self.r, p=self.p)
        return AESGCM(kdf.derive(passphrase.encode()))


@dataclass(frozen=True)
class Protected:
    """Which secret files of a folder are sealed."""

    sealed: tuple[str, ...]
    plain: tuple[str, ...]


def is_protected(folder: Path) -> bool:
    """Tell whether a folder's secrets are kept under a passphrase."""
    return (folder / SLOT).exists()


def protection(folder: Path, names: Iterable[str]) -> Protected:
    """Return which of these files are there, and which of them are sealed."""
    there = [name for name in names if (folder / name).is_file()]
    sealed = tuple(name for name in there if _is_sealed((folder / name).read_bytes()))
    return Protected(sealed, tuple(name for name in there if name not in sealed))


def read_secret(path: Path) -> bytes:
    """Return what a secret file holds, opened where it is sealed.

    Raises:
        OSError: It cannot be read.
        FederationError: The passphrase is wrong or given nowhere, or a file is damaged.
    """
    content = path.read_bytes()
    if not _is_sealed(content):
        return content
    return _unsealed(path, content, unlock(path.parent))


def create_secret(path: Path, content: bytes) -> None:
    """Write a new secret file, sealed where its folder's secrets are; never replace one.

    Raises:
        FileExistsError: There is one.
        FederationError: The folder's passphrase is wrong or given nowhere.
    """
    if is_protected(path.parent):
        content = _sealed(content, unlock(path.parent))
    create_atomically(path, content)


def unlock(folder: Path, *, terminal: bool = True) -> bytes:
    """Return a folder's key. Its passphrase is asked for once in a process.

    Args:
        terminal: Whether somebody may be asked for it.

    Raises:
        FederationError: The passphrase is wrong or given nowhere, or the slot is gone or damaged.
    """
    text = _slot_text(folder)
    if text not in _opened or not terminal:
        passphrase = secret_text(PASSPHRASE, f"the keys in {folder}", terminal=terminal)
        _opened[text] = _open_slot(folder, text, passphrase)
    return _opened[text]


def protect(folder: Path, names: Iterable[str], passphrase: str) -> Protected:
    """Seal a folder's secrets under a new passphrase, in place of an earlier one if there is one.

    Returns:
        What is sealed now.

    Raises:
        FederationError: The earlier passphrase is wrong or given nowhere. Nothing was changed.
    """
    names = tuple(names)
    known = is_protected(folder) or protection(folder, names).sealed
    key = unlock(folder) if known else AESGCM.generate_key(8 * _KEY_BYTES)
    text = _new_slot(key, passphrase)
    write_atomically(private_folder(folder) / SLOT, text)
    _opened[text] = key
    for name in protection(folder, names).plain:
        write_atomically(folder / name, _sealed((folder / name).read_bytes(), key))
    return protection(folder, names)


def unprotect(folder: Path, names: Iterable[str]) -> Protected:
    """Keep a folder's secrets as they are, without a passphrase. The slot goes last.

    Raises:
        FederationError: The passphrase is wrong or given nowhere. Nothing was changed.
    """
    names = tuple(names)
    key = unlock(folder)
    sealed = protection(folder, names).sealed
    plain = {name: _unsealed(folder / name, (folder / name).read_bytes(), key) for name in sealed}
    for name, content in plain.items():
        write_atomically(folder / name, content)
    (folder / SLOT).unlink()
    sync_folder(folder)
    return protection(folder, names)


def _is_sealed(content: bytes) -> bool:
    return content.startswith(_SEALED)


def _sealed(content: bytes, key: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    box = AESGCM(key).encrypt(nonce, content, _SEALED)
    return b"%s%s %s\n" % (_SEALED, nonce.hex().encode(), box.hex().encode())


def _unsealed(path: Path, content: bytes, key: bytes) -> bytes:
    try:
        nonce, box = content.removeprefix(_SEALED).split()
        parts = bytes.fromhex(nonce.decode("ascii")), bytes.fromhex(box.decode("ascii"))
        return AESGCM(key).decrypt(*parts, _SEALED)
    except (ValueError, InvalidTag) as error:
        raise FederationError(
            f"{path} is damaged, or was sealed under another {SLOT} than the one beside it. "
            f"Restore both from one backup."
        ) from error


def _new_slot(key: bytes, passphrase: str) -> bytes:
    slot = _Slot(salt=os.urandom(16).hex())
    nonce = os.urandom(_NONCE_BYTES)
    box = slot.cipher_of(passphrase).encrypt(nonce, key, slot.header())
    whole = slot.model_copy(update={"nonce": nonce.hex(), "sealed_key": box.hex()})
    return json.dumps(whole.model_dump(), indent=1).encode() + b"\n"


def _slot_text(folder: Path) -> bytes:
    try:
        return (folder / SLOT).read_bytes()
    except OSError as error:
        raise FederationError(
            f"The keys in {folder} are kept under a passphrase, and {folder / SLOT}, which goes "
            f"with it, cannot be read ({type(error).__name__}). Restore it from the backup of the "
            "keys: without it the passphrase opens nothing."
        ) from error


def _open_slot(folder: Path, text: bytes, passphrase: str) -> bytes:
    try:
        slot = _Slot.model_validate_json(text)
        box, nonce = bytes.fromhex(slot.sealed_key), bytes.fromhex(slot.nonce)
        cipher = slot.cipher_of(passphrase)
    except (ValidationError, ValueError) as error:
        raise FederationError(f"{folder / SLOT} is damaged. Restore it from backup.") from error
    try:
        return cipher.decrypt(nonce, box, slot.header())
    except (InvalidTag, ValueError) as error:
        raise FederationError(
            f"The passphrase of the keys in {folder} is wrong. Nothing was changed. If it is lost, "
            "see 'A lost passphrase' in docs/keys.md."
        ) from error
