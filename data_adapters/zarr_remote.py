"""Stores behind a URL: http(s) and S3-compatible, through tensorstore's own drivers. Read only.

Nothing here is reached unless a site file names a URL. Credentials of S3 come from the environment
or from the AWS profile file, never from the URL; SSL_CERT_FILE names certificates to trust. Plain
http is for this machine alone, as with DICOMweb: images would be readable on the way, and could be
exchanged.
"""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from data_adapters.addresses import is_private
from data_adapters.reasons import Unusable

URL = re.compile(r"(?:https?|s3)://", re.IGNORECASE)
# MONAI's LoadImage passes every name through pathlib, which drops one of two slashes.
FLATTENED_URL = re.compile(r"(https?|s3):/(?=[^/])", re.IGNORECASE)
METADATA_TIMEOUT_S = 30.0
# For one block of pixels; a connection that stands still is given up earlier.
PIXELS_TIMEOUT_S = 600.0
STANDSTILL_S = 30
RETRIES = {"max_retries": 3, "initial_delay": "200ms", "max_delay": "2s"}
DEFAULT_REGION = "us-east-1"
# absl status codes with which tensorstore says that it got bytes, but not those of an image.
_DAMAGED = {"DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "OUT_OF_RANGE", "UNIMPLEMENTED"}
_STATUS = re.compile(r"[A-Z_]+(?=:)")


def is_url(text: str) -> bool:
    """Tell a URL that can be read from a path.

    >>> is_url("s3://lab/a.ome.zarr"), is_url("a.ome.zarr"), is_url("ftp://lab/a.zarr")
    (True, False, False)
    """
    return URL.match(text) is not None


def mended_url(text: str) -> str:
    """Give a URL its second slash back.

    >>> mended_url("https:/lab.example/a.zarr"), mended_url("folder/a.zarr")
    ('https://lab.example/a.zarr', 'folder/a.zarr')
    """
    return FLATTENED_URL.sub(r"\1://", text, count=1) if FLATTENED_URL.match(text) else text


def shown_url(url: str) -> str:
    """Return a URL without what may be secret in it.

    >>> shown_url("https://me:secret@lab.example/a.zarr/?signature=1")
    'https://lab.example/a.zarr'
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # half an IPv6 address; where in it a secret may be is not known
        return url.partition("://")[0] + "://"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def kvstore_spec(url: str, below: str) -> dict[str, Any]:
    """Return tensorstore's description of the folder ``below`` a URL.

    Raises:
        Unusable: UNREACHABLE: the URL has a password, a query or no place in it, or what is read
            would travel unencrypted.
    """
    if not _is_address(url):
        raise Unusable("UNREACHABLE", "the address is none")
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise Unusable("UNREACHABLE", "an address has no password, query or fragment")
    scheme = parts.scheme.lower()
    if scheme != "s3":
        _require_private(url, "the address")
    _give_up_at_standstill()
    inside = "/".join(part for part in (parts.path.strip("/"), below) if part) + "/"
    if scheme == "s3":
        return _s3_spec(parts.netloc, inside)
    return {
        "driver": "http",
        "base_url": f"{scheme}://{parts.netloc}",
        "path": "/" + inside,
        "http_request_retries": RETRIES,
    }


def _is_address(url: str) -> bool:
    try:
        return bool(urlsplit(url).netloc)
    except ValueError:
        return False


def _require_private(url: str, what: str) -> None:
    if not is_private(url):
        raise Unusable("UNREACHABLE", f"{what} is not https, which only this machine's may be")


def unreachable(error: Exception) -> Unusable:
    """Translate what tensorstore raises for a remote store; its own text quotes addresses."""
    if isinstance(error, TimeoutError):
        return Unusable("UNREACHABLE", "no answer in time")
    if "SSL" in str(error):
        return Unusable("UNREACHABLE", "its certificate is not trusted")
    found = _STATUS.match(str(error))
    status = found[0] if found else type(error).__name__
    if status in _DAMAGED:
        return Unusable("UNDECODABLE_PIXELS", status.lower().replace("_", " "))
    return Unusable("UNREACHABLE", status.lower().replace("_", " "))


def _s3_spec(bucket: str, inside: str) -> dict[str, Any]:
    """Amazon finds a bucket's region by itself; a server named by its endpoint has to be told."""
    spec = {
        "driver": "s3",
        "bucket": bucket,
        "path": inside,
        "aws_credentials": {"type": _credentials()},
        "s3_request_retries": RETRIES,
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        _require_private(endpoint, "AWS_ENDPOINT_URL")
        spec["endpoint"] = endpoint
        region = region or DEFAULT_REGION
    if region:
        spec["aws_region"] = region
    return spec


def _credentials() -> str:
    """Not tensorstore's default, which also asks a metadata service on the network."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return "environment"
    named = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    if (Path(named) if named else Path.home() / ".aws" / "credentials").is_file():
        return "profile"
    return "anonymous"


def _give_up_at_standstill() -> None:
    """Without these a server that stops sending is waited for as long as TCP lives (issue 291)."""
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(STANDSTILL_S))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
