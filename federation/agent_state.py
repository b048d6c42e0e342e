"""What a running agent leaves in its site's folder, and how an operator steers it from outside."""

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from federation.errors import FederationError
from federation.files import private_folder, write_atomically
from federation.ledger.records import now

NODE_KEY = "node-key.pem"
NODE_PUBLIC = "node-key.pub"
_STATUS, _PAUSED, _LOCK = "agent.json", "agent.paused", "agent.lock"


@dataclass(frozen=True)
class AgentStatus:
    """What an agent does.

    Attributes:
        since: Of ``doing``, as the ledger's records write times.
        pid: Of its process.
    """

    doing: str
    since: str
    pid: int


class AgentFolder:
    """The part of a site's state folder that an agent and its operator share."""

    def __init__(self, state: Path) -> None:
        self.state = state

    @property
    def key_path(self) -> Path:
        """The private key of the site's connection."""
        return self.state / NODE_KEY

    @property
    def paused(self) -> bool:
        """Whether new requests are to wait."""
        return (self.state / _PAUSED).exists()

    def pause(self) -> None:
        """Let new requests wait, also after a restart. A round that is under way is finished."""
        write_atomically(private_folder(self.state) / _PAUSED, b"")

    def resume(self) -> None:
        """Answer requests again."""
        (self.state / _PAUSED).unlink(missing_ok=True)

    def note(self, doing: str) -> None:
        """Write down what the agent does. A full disk does not stop it."""
        status = AgentStatus(doing, now(), os.getpid())
        with suppress(OSError):
            write_atomically(self.state / _STATUS, json.dumps(asdict(status)).encode())

    def status(self) -> AgentStatus | None:
        """Return what a running agent does; None where none runs."""
        if not self._is_held():
            return None
        try:
            return AgentStatus(**json.loads((self.state / _STATUS).read_bytes()))
        except (OSError, ValueError, TypeError):
            return AgentStatus("starting", now(), 0)

    def stop(self) -> bool:
        """Tell a running agent to end: a round under way stops at its next step.

        Returns:
            Whether one ran.
        """
        status = self.status()
        if status is None or status.pid == 0:
            return False
        with suppress(ProcessLookupError):
            os.kill(status.pid, signal.SIGTERM)
        return True

    @contextmanager
    def held(self, site: str) -> Iterator[None]:
        """Be the one agent of this site.

        Raises:
            FederationError: There is one already.
        """
        descriptor = self._open_lock()
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FederationError(
                    f"{site}: an agent runs already (see 'cohortium site status'). Stop it first."
                ) from error
            yield
        finally:
            os.close(descriptor)

    def _is_held(self) -> bool:
        if not (self.state / _LOCK).exists():
            return False
        descriptor = self._open_lock()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _open_lock(self) -> int:
        return os.open(private_folder(self.state) / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
