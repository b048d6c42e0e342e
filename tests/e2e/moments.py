"""Kill or stop a process of a federation at a certain call, from outside and without its knowledge.

Python reports every file that is opened, renamed or removed to its audit hooks (PEP 578);
``guard/sitecustomize.py`` looks there for the moment that a test has written down.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Moment:
    """The moment that one process dies at, or stops. Give the processes its ``environment``."""

    path: Path

    def at(self, call: str, *, number: int = 1, how: int = signal.SIGKILL) -> None:
        """Choose the n-th call from now that matches, such as ``os.rename .*checkpoint.json``."""
        written = self.path.with_suffix(".new")
        written.write_text(json.dumps({"call": call, "number": number, "signal": int(how)}))
        written.rename(self.path)

    def wait(self, until: Callable[..., None]) -> int:
        """Wait until it has come; return which process it was."""
        until(lambda: not self.path.exists(), f"the moment {self.path.name}")
        (past,) = self.path.parent.glob(f"{self.path.name}.[0-9]*")
        pid = int(past.suffix[1:])
        past.unlink()
        return pid

    def forget(self) -> None:
        """Choose none."""
        self.path.unlink(missing_ok=True)


def environment(*moments: Moment) -> dict[str, str]:
    """Return what makes a process, and all that it starts, look for these."""
    return {"COHORTIUM_TEST_MOMENTS": os.pathsep.join(str(one.path) for one in moments)}


def is_stopped(pid: int) -> bool:
    """Tell whether a process was stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] == "T"


def go_on(pid: int) -> None:
    """Let a stopped process go on."""
    os.kill(pid, signal.SIGCONT)
