"""Ed25519 keys that stay in a token: PKCS#11 3.0, through ``python-pkcs11`` (extra ``pkcs11``)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from federation.errors import FederationError
from federation.passphrase import PIN, secret_text

# RFC 8410.
_ED25519 = "1.3.101.112"
_EXTRA = "pip install 'cohortium[pkcs11]'"


@dataclass(frozen=True)
class TokenKey:
    """A private key in a token; what it signs leaves, the key does not."""

    _key: Any
    _public: "RawPublic"
    _turn: Any

    def sign(self, data: bytes, /) -> bytes:
        """Return the signature (RFC 8032).

        Raises:
            FederationError: The token is gone, or refuses.
        """
        from pkcs11 import Mechanism

        with _told("sign with"), self._turn:
            return bytes(self._key.sign(data, mechanism=Mechanism.EDDSA))

    def public_key(self) -> "RawPublic":
        """Return the public half."""
        return self._public


@dataclass(frozen=True)
class RawPublic:
    """A public key as its 32 bytes."""

    raw: bytes

    def public_bytes_raw(self) -> bytes:
        """Return them."""
        return self.raw


class Token:
    """An open token. Make one with ``open_token``."""

    def __init__(self, session: Any, name: str) -> None:
        self._session, self._name = session, name
        self._turn = Lock()  # a session has one operation at a time

    def key_named(self, label: str) -> TokenKey:
        """Return the Ed25519 key of a label.

        Raises:
            FederationError: There is none, or there are several.
        """
        found = self._keys(label=label)
        if len(found) != 1:
            raise FederationError(
                f"The token {self._name!r} has {len(found) or 'no'} Ed25519 keys called {label!r}, "
                "and one is needed. 'cohortium site token-key' makes one."
            )
        return found[0]

    def key_of(self, public: bytes) -> TokenKey:
        """Return the key whose public half this is.

        Raises:
            FederationError: It is not in the token.
        """
        for key in self._keys():
            if key.public_key().raw == public:
                return key
        raise FederationError(
            f"The key that the ledger is signed with is neither in the token {self._name!r} nor in "
            "the state folder. Put back the token that has it: without it the ledger cannot grow "
            "(docs/keys.md says what is left to do)."
        )

    def make_key(self, label: str) -> TokenKey:
        """Make an Ed25519 key that cannot be taken out of the token.

        Raises:
            FederationError: One of this label is there, or the token makes none.
        """
        from pkcs11 import Attribute, KeyType, Mechanism
        from pkcs11.util.ec import encode_named_curve_parameters

        if self._keys(label=label):
            raise FederationError(f"The token {self._name!r} has a key called {label!r} already.")
        with _told("make a key in"):
            curve = {Attribute.EC_PARAMS: encode_named_curve_parameters(_ED25519)}
            kind = self._session.create_domain_parameters(KeyType.EC_EDWARDS, curve, local=True)
            kind.generate_keypair(
                mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
                store=True,
                label=label,
                private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
            )
        return self.key_named(label)

    def _keys(self, **wanted: Any) -> list[TokenKey]:
        from pkcs11 import Attribute, KeyType, ObjectClass

        def found(kind: Any) -> list[Any]:
            query = {Attribute.CLASS: kind, Attribute.KEY_TYPE: KeyType.EC_EDWARDS}
            if "label" in wanted:
                query[Attribute.LABEL] = wanted["label"]
            return list(self._session.get_objects(query))

        with _told("read"), self._turn:
            public = {
                (one[Attribute.LABEL], one[Attribute.ID]): _raw(one[Attribute.EC_POINT])
                for one in found(ObjectClass.PUBLIC_KEY)
            }
            private = {
                (one[Attribute.LABEL], one[Attribute.ID]): one
                for one in found(ObjectClass.PRIVATE_KEY)
            }
        both = [name for name in private if name in public]
        return [TokenKey(private[n], RawPublic(public[n]), self._turn) for n in both]


@cache
def open_token(module: Path, label: str) -> Token:
    """Open a token with its PIN, which comes from where a passphrase does; once in a process.

    Raises:
        FederationError: There is no such library or token, or the PIN is wrong or given nowhere.
    """
    try:
        import pkcs11
    except ImportError as error:
        raise FederationError(
            f"Keys in a token need a package that is not installed. Run: {_EXTRA}"
        ) from error
    with _told("open", f"{label!r} through {module}"):
        token = pkcs11.lib(str(module)).get_token(token_label=label)
    pin = secret_text(PIN, f"the token {label}")
    try:
        return Token(token.open(user_pin=pin, rw=True), label)
    except (pkcs11.exceptions.PinIncorrect, pkcs11.exceptions.PinLenRange) as error:
        raise FederationError(
            f"The PIN of the token {label!r} is wrong. Tokens lock themselves after a few tries: "
            "make sure of it before you try again."
        ) from error
    except pkcs11.exceptions.PKCS11Error as error:
        raise FederationError(
            f"The token {label!r} does not open ({type(error).__name__}); if its PIN is locked, "
            "its security officer can set a new one."
        ) from error


def _raw(point: bytes) -> bytes:
    """Return the 32 bytes of a public key: a DER octet string (PKCS#11 2.3.5), or as they are."""
    raw = bytes(point)
    return raw[2:] if len(raw) == 34 and raw[:2] == b"\x04\x20" else raw


@contextmanager
def _told(doing: str, what: str = "the token") -> Iterator[None]:
    """Make sentences of a token's errors, which carry none."""
    import pkcs11

    try:
        yield
    except (pkcs11.exceptions.PKCS11Error, RuntimeError, OSError) as error:
        raise FederationError(
            f"Cannot {doing} {what} ({type(error).__name__}). See that the token is connected, and "
            "that 'keys.pkcs11' in the site file names its library and its label."
        ) from error
