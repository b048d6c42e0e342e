"""Requests that a site answers only if its own hub has signed them, for this site and this time.

A signature covers what is asked (the digest of the whole request, which names experiment, run and
round), of which site, and until when. Another site cannot replay it, nor anybody later. A replay in
time is harmless: the same round of the same run gets the same bytes from the outbox.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import time
from typing import Protocol

from federation.canonical import canonical_json
from federation.errors import Refused
from federation.ledger.keys import SiteKey, verify_signature

_SIGNED_AS = b"cohortium request v1\0"
# Longest time that a request may be open, and what two clocks may differ by, in seconds.
MAX_VALID_S = 7 * 24 * 3600
CLOCK_TOLERANCE_S = 300


class Asked(Protocol):
    """Any request of ``federation.messages``."""

    def digest(self) -> str:
        """Digest of every field."""
        ...


@dataclass(frozen=True)
class RequestSignature:
    """A hub's word that it asks this of one site.

    Attributes:
        hub_key: Ed25519 public key, hex.
        issued, expires: Seconds since 1970-01-01 (UTC).
        signature: Hex.
    """

    hub_key: str
    issued: int
    expires: int
    signature: str


def sign_request(  # noqa: PLR0913 - everything that is signed, by name
    key: SiteKey, *, kind: str, digest: str, site: str, valid_s: float, now: float | None = None
) -> RequestSignature:
    """Sign a request for one site.

    Args:
        key: The hub's.
        kind: What is asked: ``describe``, ``train``, ``evaluate`` or ``close``.
        digest: Of the request.
        valid_s: How long a site may answer it, in seconds.
    """
    issued = int(time() if now is None else now)
    expires = issued + max(1, min(int(valid_s), MAX_VALID_S))
    text = _signed_text(kind, digest, site, issued, expires)
    return RequestSignature(key.public_bytes.hex(), issued, expires, key.sign(text).hex())


@dataclass(frozen=True)
class Gate:
    """Lets through what the pinned hub has signed for this site and what is still open.

    Attributes:
        site: This site's name.
        hub_key: The hub's Ed25519 public key, hex, as the site file pins it.
        clock: Seconds since 1970-01-01 (UTC).
    """

    site: str
    hub_key: str
    clock: Callable[[], float] = time

    def check(self, kind: str, request: Asked, signature: RequestSignature | None) -> None:
        """Return if this may be answered.

        Raises:
            Refused: ``not_from_hub``, or ``expired`` where only the time does not fit.
        """
        if signature is None:
            raise Refused("not_from_hub", f"a {kind} request without a signature")
        if signature.hub_key != self.hub_key:
            raise Refused("not_from_hub", f"a {kind} request signed by {signature.hub_key}")
        text = _signed_text(kind, request.digest(), self.site, signature.issued, signature.expires)
        key, given = bytes.fromhex(self.hub_key), _bytes(signature.signature)
        if not verify_signature(key, text, given):
            raise Refused("not_from_hub", f"a {kind} request that was signed for something else")
        self._check_time(kind, signature)

    def _check_time(self, kind: str, signature: RequestSignature) -> None:
        now = self.clock()
        if now > signature.expires:
            late = now - signature.expires
            raise Refused("expired", f"a {kind} request that ended {late:.0f} s ago by this clock")
        if signature.issued > now + CLOCK_TOLERANCE_S:
            early = signature.issued - now
            raise Refused("expired", f"a {kind} request from {early:.0f} s ahead of this clock")
        if signature.expires - signature.issued > MAX_VALID_S:
            raise Refused("expired", f"a {kind} request open for more than {MAX_VALID_S} s")


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _signed_text(kind: str, digest: str, site: str, issued: int, expires: int) -> bytes:
    what = {"kind": kind, "digest": digest, "site": site, "issued": issued, "expires": expires}
    return _SIGNED_AS + canonical_json(what)
