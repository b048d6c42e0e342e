"""Which key signs for a site: the file in its state folder, or one that stays in a token."""

from federation.errors import FederationError
from federation.files import sync_folder
from federation.ledger.keys import SITE_KEY, SiteKey
from federation.ledger.signed_chain import signing_key
from federation.ledger.token import Token, open_token
from federation.linking import LEDGER
from federation.site_config import SiteConfig, TokenConfig

NEXT_KEY = "site-key.next"


def first_key(config: SiteConfig) -> SiteKey:
    """Return the key of a site without a ledger: the token's, else a file, made where none is.

    Raises:
        FederationError: The token or its key cannot be used.
    """
    if config.keys is not None:
        return _by_label(config.keys.pkcs11)
    state = config.state
    return SiteKey.load(state) if SiteKey.exists(state) else SiteKey.create(state)


def current_key(config: SiteConfig) -> SiteKey:
    """Return the key that a site's ledger is signed with now.

    Raises:
        FederationError: It is gone, or the token cannot be used.
    """
    if config.keys is None:
        return SiteKey.load(config.state)
    public = bytes.fromhex(signing_key(config.state / LEDGER) or "")
    if SiteKey.exists(config.state):
        on_disk = SiteKey.load(config.state)
        if on_disk.public_bytes == public:
            return on_disk
    return SiteKey(_opened(config.keys.pkcs11).key_of(public))


def public_key_now(config: SiteConfig) -> str | None:
    """Return the public key, hex, that a site signs with; None before its first run."""
    if (config.state / LEDGER).exists():
        return signing_key(config.state / LEDGER)
    state = config.state
    return SiteKey.load(state).public_bytes.hex() if SiteKey.exists(state) else None


def next_key(config: SiteConfig) -> SiteKey:
    """Return the key that is to sign next: a new file, or the key that the site file names.

    Raises:
        FederationError: The token's key signs already.
    """
    if config.keys is None:
        state = config.state
        if not SiteKey.exists(state, NEXT_KEY):
            SiteKey.create(state, NEXT_KEY)
        return SiteKey.load(state, NEXT_KEY)
    label = config.keys.pkcs11.label
    key = _by_label(config.keys.pkcs11)
    if key.public_bytes.hex() == signing_key(config.state / LEDGER):
        raise FederationError(
            f"The key {label!r} of the token signs for {config.site} already. Make another one "
            "('cohortium site token-key' with another --label), put its label in the site file "
            "under keys.pkcs11.label, and repeat this; the token keeps the old one until then."
        )
    return key


def finish_rotation(config: SiteConfig) -> None:
    """Put a new file in place of the old one once the ledger says that it signs."""
    state = config.state
    if not SiteKey.exists(state, NEXT_KEY):
        return
    new = SiteKey.load(state, NEXT_KEY)
    if signing_key(state / LEDGER) == new.public_bytes.hex():
        (state / NEXT_KEY).replace(state / SITE_KEY)
        sync_folder(state)


def _by_label(config: TokenConfig) -> SiteKey:
    return SiteKey(_opened(config).key_named(config.label))


def _opened(config: TokenConfig) -> Token:
    return open_token(config.module, config.token)
