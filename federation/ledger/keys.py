"""A site's keys: one signs what it says, another hides who its subjects are. Neither leaves."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.errors import LedgerError
from federation.files import private_folder
from federation.key_slot import create_secret, read_secret

SITE_KEY = "site-key"
PSEUDONYM_KEY = "pseudonym-key"
_KEY_BYTES = 32


class Public(Protocol):
    """The public half of a signing key."""

    def public_bytes_raw(self) -> bytes:
        """Return its 32 bytes."""


class Signer(Protocol):
    """What signs with Ed25519: a key of the ``cryptography`` library, or one in a token."""

    def sign(self, data: bytes, /) -> bytes:
        """Return the 64-byte signature (RFC 8032)."""

    def public_key(self) -> Public:
        """Return the public half."""


@dataclass(frozen=True)
class SiteKey:
    """The Ed25519 key that a site signs its ledger and receipts with. Make one with ``create``."""

    _private: Signer

    @classmethod
    def exists(cls, folder: Path, name: str = SITE_KEY) -> bool:
        """Tell whether ``folder`` holds a key."""
        return (folder / name).exists()

    @classmethod
    def create(cls, folder: Path, name: str = SITE_KEY) -> "SiteKey":
        """Make a key, keep it in ``folder`` for its owner only, and return it.

        Raises:
            LedgerError: There is a key already; it is never overwritten.
        """
        path = private_folder(folder) / name
        try:
            _write_new_secret(path, secrets.token_bytes(_KEY_BYTES))
        except FileExistsError as error:
            raise LedgerError(
                f"{path} exists already, and what it has signed needs it. Use it, or give another "
                "folder; a site replaces its key with 'cohortium site rotate-key'."
            ) from error
        return cls.load(folder, name)

    @classmethod
    def load(cls, folder: Path, name: str = SITE_KEY) -> "SiteKey":
        """Return the key in ``folder``.

        Raises:
            LedgerError: It is missing, readable by others, or not a key.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(_read_secret(folder / name)))

    @cached_property
    def public_bytes(self) -> bytes:
        """The 32 raw bytes of the public key, which anybody may know."""
        return self._private.public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> str:
        """What two people compare over the telephone: ``SHA256:<base64>`` of the public key."""
        return fingerprint_of(self.public_bytes)

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature; the same bytes always get the same signature."""
        return self._private.sign(data)


def fingerprint_of(public_bytes: bytes) -> str:
    """Return ``SHA256:<base64 without padding>``, as OpenSSH writes fingerprints.

    >>> fingerprint_of(bytes(32))
    'SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU'
    """
    text = base64.b64encode(hashlib.sha256(public_bytes).digest())
    return "SHA256:" + text.decode().rstrip("=")


def verify_signature(public_bytes: bytes, data: bytes, signature: bytes) -> bool:
    """Tell whether ``signature`` is this key's over ``data``; malformed input is just False."""
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def pseudonymiser(folder: Path) -> Callable[[str], str]:
    """Return the site's function from a raw identifier to a pseudonym (32 hex digits).

    HMAC-SHA256 under a secret in ``folder``, made at first use. Without the secret nobody can
    test whether a known identifier is among the pseudonyms, as they could with a plain hash.
    """
    key = _pseudonym_key(folder)
    return lambda identifier: _keyed(key, b"pseudonym", identifier).hex()[:32]


def split_value(folder: Path) -> Callable[[str], float]:
    """Return the site's function from a pseudonym to a fixed number in [0, 1).

    Splits made with it never depend on who else is in the data set.
    """
    key = _pseudonym_key(folder)
    return lambda pseudonym: _fraction(_keyed(key, b"split", pseudonym))


def _keyed(key: bytes, purpose: bytes, text: str) -> bytes:
    return hmac.digest(key, purpose + b"\0" + text.encode(), "sha256")


def _fraction(mac: bytes) -> float:
    """Use 53 bits, so that the quotient is exact and stays below 1."""
    return (int.from_bytes(mac[:8], "big") >> 11) / 2**53


def _pseudonym_key(folder: Path) -> bytes:
    path = private_folder(folder) / PSEUDONYM_KEY
    if not path.exists():
        with suppress(FileExistsError):  # another process made it first: both read that one
            _write_new_secret(path, secrets.token_bytes(_KEY_BYTES))
    return _read_secret(path)


def _write_new_secret(path: Path, secret: bytes) -> None:
    """Write a complete file or none, and never replace one."""
    create_secret(path, secret.hex().encode() + b"\n")


def _read_secret(path: Path) -> bytes:
    try:
        mode, text = path.stat().st_mode, read_secret(path).decode("ascii")
        secret = bytes.fromhex(text.strip())
    except FileNotFoundError as error:
        raise LedgerError(
            f"There is no key {path}. Restore it from the site's backup: without it the ledger "
            "cannot grow (docs/keys.md says what is left to do)."
        ) from error
    except (OSError, ValueError) as error:
        raise LedgerError(f"{path} cannot be read as a key. Restore it from backup.") from error
    if mode & 0o077:
        raise LedgerError(f"{path} can be read by other users. Run: chmod 600 {path}")
    if len(secret) != _KEY_BYTES:
        raise LedgerError(
            f"{path} holds {len(secret)} bytes, a key has {_KEY_BYTES}. Restore it from backup."
        )
    return secret
