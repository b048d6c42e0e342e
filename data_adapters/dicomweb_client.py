"""Questions to a DICOMweb service (PS3.18): search (QIDO-RS) and retrieve one instance (WADO-RS).

Through urllib3: its pools may be shared by threads, it follows no redirect and reads no proxy from
the environment unless asked, it notices a body that is shorter than announced, and it logs no
address above DEBUG (httpx logs each one, with its UIDs, at INFO). dicomweb-client follows redirects
and hands out the last part of an answer that was cut short as if it were whole.

No text made here holds a UID, a header's value or a credential.
"""

import json
import os
import re
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote, urlencode, urljoin

from data_adapters.dicomweb_access import (
    PASSWORD,
    TOKEN,
    USER,
    authorization,
    origin,
    require_private,
    trust,
)
from data_adapters.dicomweb_multipart import (
    MAX_HEAD_BYTES,
    MULTIPART,
    MultipartError,
    media_type,
    only_part,
)
from data_adapters.errors import DataError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

# Results asked for at a time. Not a round number: a list of just one page is then rare, and it
# cannot be told from one that a server without `offset` cut there.
PAGE = 997
MAX_ROWS = 200_000
# Of one search: what a server that gives a hundred results a page needs for that many.
MAX_PAGES = 2_000
MAX_PAGE_BYTES = 1 << 24
# The attributes that are looked at have at most 64 characters (PS3.5, 6.2).
MAX_TEXT = 256
MAX_INSTANCE_BYTES = 1 << 34
CHUNK_BYTES = 1 << 20
CONNECT_S, READ_S = 10.0, 60.0
# Waits before the second, third and fourth try of a request.
BACK_OFF_S = (0.5, 2.0, 8.0)
LONGEST_WAIT_S = 60.0
# Of all requests together: a failing server is given up on, not asked for hours.
MAX_RETRIES = 200
MAX_REDIRECTS = 3
TRY_AGAIN = frozenset({429, 500, 502, 503, 504})
# The service is there and does not give this: not allowed, not there, not there any more.
WITHHELD = frozenset({403, 404, 410})
REDIRECTS = frozenset({301, 302, 303, 307, 308})

DICOM, DICOM_JSON = "application/dicom", "application/dicom+json"
# Without the transfer syntax a server would decompress every image (PS3.18, 8.7.3.5.2).
ACCEPT_INSTANCE = f'{MULTIPART}; type="{DICOM}"; transfer-syntax=*'

# Tag to an attribute's first value as text.
Row = Mapping[str, str]
Query = Sequence[tuple[str, str]]
_T = TypeVar("_T")
# Only these characters come into an address (PS3.5, 9.1).
_UID = re.compile(r"[0-9][0-9.]{0,63}")


class NotGiven(Exception):  # noqa: N818  (a state of the server, not a fault of the program)
    """One resource was not given; the text says why and names nothing.

    Args:
        withheld: The service understood, and does not have it or does not let this account see it.
    """

    def __init__(self, why: str, *, withheld: bool = False) -> None:
        super().__init__(why)
        self.withheld = withheld


class _Transient(Exception):  # noqa: N818
    """It may work at the next try."""

    def __init__(self, why: str, *, unreachable: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.unreachable = unreachable
        self.wait_s = wait_s


class DicomWebClient:
    """A connection to one service, to be shared by threads.

    Args:
        url: The service's root. Plain http only to this machine.
        connections: Requests at a time.
        ca_file: Certificates to trust beside the system's.
        environment: Where the credentials are looked up.

    Raises:
        DataError: The address is not safe to use, or credentials or ``ca_file`` cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int,
        ca_file: Path | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        import urllib3

        self._root = url.rstrip("/")
        require_private(self._root)
        self._authorization = authorization(environment)
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=connections, ssl_context=trust(ca_file), retries=False
        )
        self._retries_left = MAX_RETRIES
        self._lock = threading.Lock()
        # Set to end all threads at their next request or wait.
        self.stopped = threading.Event()

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def search(
        self, path: str, key: str, query: Query, kept: Sequence[str] = ()
    ) -> tuple[dict[str, Row], bool]:
        """Return every result of a search, by its UID, and whether that is surely all of them.

        Pages are asked for until one brings nothing new: servers cap pages below what was asked,
        and some ignore ``offset``.

        Args:
            path: Below the root, such as ``/studies``.
            key: Tag of the attribute that tells results apart, such as ``0020000D``.
            query: Attributes that must match, and those to be told (``includefield``).
            kept: Tags that are wanted of each result; a server may send any others besides.

        Raises:
            NotGiven: The service refuses, or does not answer with DICOM JSON.
            DataError: Nothing can be got from this service.
        """
        ask = _Question(path, key, tuple(query), frozenset({key, *kept}))
        rows: dict[str, Row] = {}
        num_seen, fresh = 0, True
        for _ in range(MAX_PAGES):
            page = self._page(ask, limit=PAGE, offset=num_seen)
            fresh = not page.keys() <= rows.keys()
            rows.update(page)
            num_seen += len(page)
            if not fresh or num_seen >= MAX_ROWS:
                break
        # The same full page again: there is more, and no offset leads to it.
        stuck = not fresh and len(page) == PAGE
        if stuck:
            rows.update(self._page(ask, limit=MAX_ROWS, offset=0))
        return rows, not fresh and len(rows) < MAX_ROWS and not (stuck and len(rows) == PAGE)

    def retrieve(self, study: str, series: str, instance: str, file: BinaryIO) -> None:
        """Write one instance to ``file`` as the service stores it.

        Raises:
            NotGiven: The service refuses, or sends something else or less.
            DataError: Nothing can be got from this service.
        """
        path = f"/studies/{study}/series/{series}/instances/{instance}"

        def once() -> None:
            file.seek(0)
            file.truncate()
            with self._answer(path, (), ACCEPT_INSTANCE) as response:
                for piece in _at_most(_instance_bytes(response), MAX_INSTANCE_BYTES):
                    file.write(piece)

        self._patiently(once)

    def _page(self, ask: "_Question", *, limit: int, offset: int) -> dict[str, Row]:
        wanted = (*ask.query, ("limit", str(limit)), ("offset", str(offset)))

        def once() -> bytes:
            with self._answer(ask.path, wanted, DICOM_JSON) as response:
                return b"".join(_at_most(response.stream(CHUNK_BYTES), MAX_PAGE_BYTES))

        body = self._patiently(once)
        # No content is how some say that nothing matched (PS3.18, 8.3.4).
        return _rows(body, ask) if body else {}

    def _patiently(self, once: Callable[[], _T]) -> _T:
        for wait_s in (*BACK_OFF_S, None):
            try:
                return once()
            except _Transient as trouble:
                if wait_s is None or not self._may_retry():
                    raise self._final(trouble) from None
                self.stopped.wait(max(wait_s, trouble.wait_s))
        raise AssertionError("unreachable")

    def _may_retry(self) -> bool:
        with self._lock:
            self._retries_left -= 1
            return self._retries_left >= 0

    def _final(self, trouble: _Transient) -> Exception:
        if not trouble.unreachable:
            return NotGiven(str(trouble))
        return DataError(
            f"The DICOMweb service at {self._root} does not answer: {trouble}. Check `url` and "
            "`ca_file`, and ingest again; what was fetched is kept.",
            "UNREACHABLE",
        )

    @contextmanager
    def _answer(self, path: str, query: Query, accept: str) -> "Iterator[BaseHTTPResponse]":
        """Ask once; give a response with status 200 or 204, whose body is yet to be read."""
        from urllib3 import exceptions

        try:
            # Not every server decodes these two, and none needs them encoded (RFC 3986, 3.4).
            encoded = urlencode(query, safe="*?", quote_via=quote)
            response = self._follow(f"{self._root}{path}{'?' * bool(query)}{encoded}", accept)
            try:
                self._check_status(response.status, response.headers.get("Retry-After", ""))
                yield response
            finally:
                _end(response)
        except MultipartError as error:
            raise _Transient(str(error)) from None
        except exceptions.SSLError as error:
            raise self._tls_trouble(error) from None
        except (exceptions.NewConnectionError, exceptions.ConnectTimeoutError):
            raise _Transient("no connection", unreachable=True) from None
        except exceptions.HTTPError as error:
            raise _Transient(f"the connection broke ({type(error).__name__})") from None

    def _follow(self, url: str, accept: str) -> "BaseHTTPResponse":
        """Ask, and follow redirects that stay with this service: credentials go nowhere else."""
        for _ in range(MAX_REDIRECTS):
            if self.stopped.is_set():
                raise NotGiven("stopped")
            response = self._pool.request(
                "GET",
                url,
                headers={"Accept": accept, **self._authorization},
                redirect=False,
                preload_content=False,
                timeout=_timeout(),
            )
            if response.status not in REDIRECTS:
                return response
            _end(response)
            url = urljoin(url, response.headers.get("Location", ""))
            if origin(url) != origin(self._root):
                break
        raise DataError(
            f"The DICOMweb service at {self._root} redirects elsewhere, which is not followed: "
            "credentials stay with the address in the site file. Put the final address there."
        )

    def _tls_trouble(self, error: Exception) -> Exception:
        if not isinstance(error.args[0] if error.args else None, ssl.SSLCertVerificationError):
            return _Transient("TLS fails", unreachable=True)
        return DataError(
            f"The certificate of the DICOMweb service at {self._root} is not trusted here. Name "
            "the certificate of who issued it under `ca_file`; checking cannot be turned off.",
            "UNREACHABLE",
        )

    def _check_status(self, status: int, retry_after: str) -> None:
        if status in (200, 204):
            return
        if status == 401:
            raise DataError(
                f"The DICOMweb service at {self._root} refuses the credentials (HTTP 401). Set "
                f"{TOKEN}, or {USER} and {PASSWORD}, in the environment."
            )
        if status in TRY_AGAIN:
            seconds = float(retry_after) if retry_after.isdecimal() else 0.0
            raise _Transient(f"HTTP {status}", wait_s=min(seconds, LONGEST_WAIT_S))
        raise NotGiven(f"HTTP {status}", withheld=status in WITHHELD)


def text_of(row: Row, tag: str) -> str:
    """Return an attribute's first value as text; empty where there is none."""
    return row.get(tag, "")


@dataclass(frozen=True)
class _Question:
    """What one search asks, whichever page of its answer."""

    path: str
    key: str
    query: tuple[tuple[str, str], ...]
    kept: frozenset[str]


def _first_value(attribute: Any) -> str:
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    if not isinstance(values, list) or not values:
        return ""
    return str(values[0])[:MAX_TEXT] if isinstance(values[0], str | int | float) else ""


def _rows(body: bytes, ask: _Question) -> dict[str, Row]:
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError):
        raise NotGiven("the answer is not JSON") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise NotGiven("the answer is not a list of DICOM objects")
    texts = ({tag: _first_value(row[tag]) for tag in ask.kept & row.keys()} for row in rows)
    found: dict[str, Row] = {text_of(row, ask.key): row for row in texts}
    if not all(_UID.fullmatch(uid) for uid in found):
        raise NotGiven("a result of the search has no valid UID")
    return found


def _instance_bytes(response: "BaseHTTPResponse") -> Iterator[bytes]:
    kind, boundary = media_type(response.headers.get("Content-Type", ""))
    chunks = response.stream(CHUNK_BYTES)
    if kind == MULTIPART and boundary:
        yield from only_part(chunks, boundary)
        # Read to the end, or the connection cannot be used again.
        deque(_at_most(chunks, MAX_HEAD_BYTES), maxlen=0)
    # One part alone is allowed too (PS3.18, 8.7.3), if its end can be told.
    elif kind == DICOM and (response.length_remaining is not None or _is_chunked(response)):
        yield from chunks
    else:
        raise NotGiven("the answer is not a DICOM instance")


def _end(response: "BaseHTTPResponse") -> None:
    """Close the connection, unless all was read and it went back to the pool by itself."""
    response.close()
    response.release_conn()


def _is_chunked(response: "BaseHTTPResponse") -> bool:
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()


def _at_most(chunks: Iterable[bytes], limit_bytes: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit_bytes:
            raise NotGiven(f"the answer is larger than {limit_bytes:,} bytes")
        yield chunk


def _timeout() -> Any:
    import urllib3

    return urllib3.Timeout(connect=CONNECT_S, read=READ_S)
