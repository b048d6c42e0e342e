"""A network of a test's own: a namespace with an address for each party, and no way out of it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PREFIX = "10.213.77"
NETWORK = f"{PREFIX}.0/24"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Network:
    """Parties by name: their namespaces and addresses, joined by a bridge in one more namespace."""

    namespaces: dict[str, str]
    addresses: dict[str, str]


@contextmanager
def network(parties: list[str], mark: str) -> Iterator[Network]:
    """Make one.

    Args:
        mark: Makes the names differ from those of another test process.

    Raises:
        OSError, CalledProcessError: This machine does not let us.
    """
    switch = f"ct{mark}-sw"
    spaces = {name: f"ct{mark}-{number}" for number, name in enumerate(parties)}
    addresses = {name: f"{PREFIX}.{number + 1}" for number, name in enumerate(parties)}
    made: list[str] = []
    try:
        for space in (switch, *spaces.values()):
            ip("netns", "add", space)
            made.append(space)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for number, (name, space) in enumerate(spaces.items()):
            port = f"port{number}"
            pair = ("type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", switch, "link", "add", port, *pair)
            ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", space, "addr", "add", f"{addresses[name]}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield Network(spaces, addresses)
    finally:
        for space in made:
            subprocess.run(["ip", "netns", "del", space], check=False)


def namespace_of(pid: int) -> int:
    """Return which network namespace a process is in."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino
