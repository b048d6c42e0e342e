"""Python loads this by its name from PYTHONPATH, in every process of a test and all they start.

It writes down every attempt to reach anything beyond this machine or the federation's own network;
and it can kill or stop a process at the moment that a test has named, see ``tests.e2e.moments``.
"""

import ipaddress
import json
import os
import re
import sys
from pathlib import Path

_NETWORK = ipaddress.ip_network(os.environ.get("COHORTIUM_TEST_NETWORK", "127.0.0.0/8"))
_MOMENTS = [one for one in os.environ.get("COHORTIUM_TEST_MOMENTS", "").split(os.pathsep) if one]
_OF_FILES = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.truncate"})
_seen: dict[str, int] = {}


def _beyond(host: object) -> bool:
    text = str(host)
    if text in ("", "localhost", "None"):
        return False
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return True
    return not (address.is_loopback or address in _NETWORK)


def _watch(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        target = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        target = arguments[0]
        target = target.decode() if isinstance(target, bytes) else target
    else:
        return
    if target is not None and _beyond(target) and target != "0.0.0.0":
        with Path(os.environ["COHORTIUM_TEST_ATTEMPTS"]).open("a") as log:
            log.write(f"{event} {target} by {sys.argv[:3]}\n")


def _die_at_the_moment(event: str, arguments: tuple) -> None:
    """Send this process a signal at the n-th call that the file of a moment describes."""
    if event not in _OF_FILES or str(arguments[0]) in _MOMENTS:
        return
    for path in _MOMENTS:
        if not Path(path).exists():
            continue
        text = Path(path).read_text()
        moment = json.loads(text)
        if not re.search(moment["call"], f"{event} {' '.join(map(str, arguments))}"):
            continue
        _seen[text] = _seen.get(text, 0) + 1
        if _seen[text] == moment["number"]:
            Path(path).rename(f"{path}.{os.getpid()}")
            os.kill(os.getpid(), moment["signal"])


if "COHORTIUM_TEST_ATTEMPTS" in os.environ:
    sys.addaudithook(_watch)
if _MOMENTS:
    sys.addaudithook(_die_at_the_moment)
