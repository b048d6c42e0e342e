"""No two sites over the same images: one of them would spend what the other protects."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from data_adapters.sources import AnySource, DicomWebSource
from federation.errors import FederationError
from federation.site import Site
from federation.site_data import root_of

_PORTS = {"http": 80, "https": 443}


def require_separate_data(sites: Sequence[Site]) -> None:
    """Refuse two sites over one folder or one PACS, if one of them protects what is in it.

    Raises:
        FederationError: Names both sites, and what they share.
    """
    for site in sites:
        for other in sites:
            if site.name != other.name:
                _require_apart(site, other)


def _require_apart(site: Site, other: Site) -> None:
    for protected in site.config.protected:
        for another in other.config.every_source:
            shared = _shared(protected, another)
            if shared:
                both = another in other.config.protected
                what = f"both protect {shared}" if both else f"both read {shared}, one as public"
                raise FederationError(
                    f"{site.name} and {other.name} {what}. Its subjects have one budget: name one "
                    "site for it."
                )


def _shared(source: AnySource, another: AnySource) -> str:
    """Return what two sources both read, or nothing. Queries of one PACS can find one patient."""
    if isinstance(source, DicomWebSource) and isinstance(another, DicomWebSource):
        address = one_address(source.url)
        if address == one_address(another.url):
            return address
    inside, root = root_of(another), root_of(source)
    if inside.is_relative_to(root):
        return str(inside)
    return str(root) if root.is_relative_to(inside) else ""


def one_address(url: str) -> str:
    """Return a URL as every way to write it (RFC 3986, 6.2.2 and 6.2.3).

    >>> one_address("HTTPS://PACS.example:443/dicom-web/")
    'https://pacs.example/dicom-web'
    """
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
    port = "" if parts.port in {None, _PORTS.get(scheme)} else f":{parts.port}"
    address = f"[{host}]" if ":" in host else host
    return f"{scheme}://{address}{port}{parts.path.rstrip('/')}"
