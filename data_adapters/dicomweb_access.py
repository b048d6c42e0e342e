"""Who may be asked, and with which credentials: what keeps a DICOMweb connection private."""

import base64
import logging
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from data_adapters.addresses import is_private
from data_adapters.errors import DataError

# Never in a file that travels; PS3.18 leaves authentication to HTTP.
TOKEN = "COHORTIUM_DICOMWEB_TOKEN"  # noqa: S105  (the variable's name)
USER = "COHORTIUM_DICOMWEB_USER"
PASSWORD = "COHORTIUM_DICOMWEB_PASSWORD"  # noqa: S105


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """Return what checks certificates: the system's, and those in ``ca_file`` (PEM).

    Raises:
        DataError: ``ca_file`` cannot be read.
    """
    context = ssl.create_default_context()
    if ca_file is None:
        return context
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError):
        raise DataError(
            f"The certificates in {ca_file} cannot be read. `ca_file` names a file of PEM "
            "certificates."
        ) from None
    return context


def authorization(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the header that carries the credentials; none where none are set.

    Raises:
        DataError: They are incomplete, ambiguous, or cannot stand in a header.
    """
    token, user, password = (environment.get(name, "") for name in (TOKEN, USER, PASSWORD))
    if token and (user or password):
        raise DataError(f"Both {TOKEN} and {USER} are set; unset the one that is not meant.")
    if token:
        # A line break would end the header, and the error of the HTTP library would quote it.
        if not re.fullmatch(r"[!-~]+", token):
            raise DataError(f"{TOKEN} holds blanks or other characters that no token has.")
        return {"Authorization": f"Bearer {token}"}
    if bool(user) != bool(password) or ":" in user:
        raise DataError(f"Set both {USER} (without a colon) and {PASSWORD}, or neither.")
    if not user:
        return {}
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def require_private(url: str) -> None:
    """Check that what travels is encrypted, or stays on this machine.

    Raises:
        DataError: Plain http to another machine.
    """
    if is_private(url):
        return
    raise DataError(
        f"{url} is plain http: images and credentials would be readable on the way. Use https; "
        "http is for a service on this machine only."
    )


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port: what credentials belong to (RFC 6454)."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    try:
        return parts.scheme, parts.hostname, parts.port or default
    except ValueError:
        return parts.scheme, None, None


@contextmanager
def no_addresses_logged() -> Iterator[None]:
    """Drop urllib3's DEBUG records: each holds an address, with its UIDs."""
    logger = logging.getLogger("urllib3.connectionpool")

    def quiet(record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG

    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)
