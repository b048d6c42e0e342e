"""Writes down every attempt of a Python process to reach anything beyond this machine.

Python loads this by its name from PYTHONPATH, in every process and in all that they start.
"""

import ipaddress
import os
import sys
from pathlib import Path


def _beyond(host: object) -> bool:
    text = str(host)
    if text in ("", "localhost", "None"):
        return False
    try:
        return not ipaddress.ip_address(text.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return True


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


if "COHORTIUM_TEST_ATTEMPTS" in os.environ:
    sys.addaudithook(_watch)
