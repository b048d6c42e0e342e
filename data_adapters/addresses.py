"""Which addresses are this machine's own."""

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_this_machine(host: str) -> bool:
    """Tell the loopback from any other host.

    >>> is_this_machine("127.0.0.1"), is_this_machine("::1"), is_this_machine("localhost.example")
    (True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_private(url: str) -> bool:
    """Say whether what travels to ``url`` is encrypted, or stays on this machine.

    >>> is_private("https://lab.example"), is_private("http://[::1]:80"), is_private("http://10.0.0.1")
    (True, True, False)
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # half an IPv6 address
        return False
    own = parts.scheme == "http" and is_this_machine(parts.hostname or "")
    return parts.scheme == "https" or own
