"""What a site finds out about its hub before it serves: whose clock is wrong, who is admitted."""

import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from federation.errors import FederationError
from federation.flower.fleet import FleetConnection, LeaseError, UnreachableError

_TIMEOUT_S = 10.0
# By how much Flower lets a site's clock be ahead of the hub's, and behind it, in seconds.
AHEAD_S, BEHIND_S = 5.0, 300.0


@dataclass(frozen=True)
class Clock:
    """A site's clock beside its hub's.

    Attributes:
        ahead_s: By how much the site's is ahead, in seconds, to within a second.
    """

    ahead_s: float

    @property
    def fits(self) -> bool:
        """Tell whether the hub answers a site whose clock is like this."""
        return -BEHIND_S < self.ahead_s < AHEAD_S

    def __str__(self) -> str:
        """Say it in words.

        >>> str(Clock(600.2)), str(Clock(-3.0)), str(Clock(0.4))
        ("600 s ahead of the hub's", "3 s behind the hub's", "as the hub's")
        """
        if abs(self.ahead_s) < 2:  # a hub tells whole seconds
            return "as the hub's"
        return f"{abs(self.ahead_s):.0f} s {'ahead of' if self.ahead_s > 0 else 'behind'} the hub's"


def compare_clocks(address: str, context: ssl.SSLContext) -> Clock | None:
    """Return how a hub's clock differs; None if it cannot be reached or does not tell.

    Nothing is asked of the hub but a page that it does not have.
    """
    try:
        with httpx.Client(verify=context, timeout=_TIMEOUT_S) as client:
            began = datetime.now(UTC)
            answer = client.get(f"https://{address}/")
            ended = datetime.now(UTC)
    except httpx.HTTPError:
        return None
    with suppress(KeyError, ValueError, TypeError):
        # A second is cut off, not rounded.
        told = parsedate_to_datetime(answer.headers["date"]).timestamp() + 0.5
        return Clock((began.timestamp() + ended.timestamp()) / 2 - told)
    return None


def why_not_admitted(
    address: str, context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey
) -> FederationError | None:
    """Go to a hub and leave again; return what it has against this site, or None.

    A ``LeaseError`` or ``UnreachableError`` may be gone in a moment; no other is.
    """
    try:
        with FleetConnection(address, context, key, patience_s=0.0):
            return None
    except FederationError as error:
        return error


def may_pass(error: FederationError) -> bool:
    """Tell whether waiting alone may put this right."""
    return isinstance(error, LeaseError | UnreachableError)
