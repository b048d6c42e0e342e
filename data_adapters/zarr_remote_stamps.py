"""What tells that a remote Zarr image changed, without fetching its chunks: one HEAD request each.

A server says ETag, or Last-Modified and Content-Length, of each object (RFC 9110, 8.8); S3 always
has an ETag. Where one of them is missing nothing is known, and the image is fetched.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from data_adapters import zarr_remote
from data_adapters.dicomweb_access import no_addresses_logged, trust
from data_adapters.ome_zarr_stamps import ABSENT
from data_adapters.zarr_places import Place

AT_A_TIME = 16
# Times have a resolution of a second: what is younger can change and keep its time.
SETTLED = timedelta(seconds=3)


def remote_stamp(objects: Sequence[tuple[Place, str]]) -> str:
    """Return what changes when one of the objects changes; empty where the server does not tell.

    Args:
        objects: Each a place and a name there. Some may be absent (a chunk of nothing but the fill
            value), not all.
    """
    digest, present = hashlib.sha256(), 0
    with no_addresses_logged():
        for (place, name), said in zip(objects, _asked(objects), strict=True):
            if not said:
                return ""
            present += said != ABSENT
            digest.update(f"{place.below}/{name}\0{said}\0".encode())
    return digest.hexdigest() if present else ""


def _asked(objects: Sequence[tuple[Place, str]]) -> Iterator[str]:
    """Yield a validator of each object in order; ABSENT, or empty where there is none."""
    if urlsplit(objects[0][0].root).scheme.lower() == "s3":
        yield from _asked_s3(objects)
        return
    import urllib3

    with urllib3.PoolManager(
        maxsize=AT_A_TIME, block=True, ssl_context=trust(None), timeout=zarr_remote.STANDSTILL_S
    ) as pool:
        threads = ThreadPoolExecutor(AT_A_TIME)
        try:
            yield from threads.map(lambda one: _head(pool, *one), objects)
        finally:
            threads.shutdown(cancel_futures=True)


def _head(pool: Any, place: Place, name: str) -> str:
    import urllib3

    path = "/".join(part for part in (place.root.rstrip("/"), place.below, name) if part)
    parts = urlsplit(path)
    url = f"{parts.scheme}://{parts.netloc}{quote(parts.path)}"
    try:
        answer = pool.request("HEAD", url, redirect=False, retries=2)
    except (urllib3.exceptions.HTTPError, ValueError):
        return ""
    if answer.status == 404:
        return ABSENT
    return _validator(answer.headers) if answer.status == 200 else ""


def _validator(headers: Any) -> str:
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
    if etag.startswith('"'):
        return f"{etag} {headers.get('Content-Length', '')}"
    size = headers.get("Content-Length", "")
    return f"{etag} {modified} {size}" if size and _is_settled(modified, headers) else ""


def _is_settled(modified: str, headers: Any) -> bool:
    try:
        age = parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(modified)
    except (ValueError, TypeError):
        return False
    return age >= SETTLED


def _asked_s3(objects: Sequence[tuple[Place, str]]) -> Iterator[str]:
    """Yield tensorstore's generation of each object, which is its ETag."""
    import tensorstore

    stores: dict[Place, Any] = {}
    timeout = zarr_remote.METADATA_TIMEOUT_S
    for start in range(0, len(objects), AT_A_TIME):
        asked = []
        for place, name in objects[start : start + AT_A_TIME]:
            if place not in stores:
                stores[place] = tensorstore.KvStore.open(place.kvstore()).result(timeout=timeout)
            asked.append(stores[place].read(name, byte_range=slice(0, 0)))
        for future in asked:
            try:
                found = future.result(timeout=timeout)
            except (ValueError, OSError):
                yield ""
                continue
            yield ABSENT if found.state == "missing" else found.stamp.generation.hex()
