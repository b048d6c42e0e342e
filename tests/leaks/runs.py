"""Whole runs by the command line, every byte of which is kept to be searched."""

import contextlib
import functools
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import federation.run
from federation.cli.app import main
from federation.flower.grid import LocalGrid
from tests.leaks.planting import source_of


@dataclass
class Ran:
    """What a run was made from and what it left."""

    folder: Path
    names: tuple[str, ...]
    screen: str = ""
    wire: bytes = b""

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def site(self, name: str) -> Path:
        return self.folder / "sites" / name

    def state(self, name: str) -> Path:
        return self.site(name) / "state"

    def source(self, name: str) -> Path:
        return source_of(self.site(name))

    @property
    def site_files(self) -> list[Path]:
        return [self.site(name) / "site.yaml" for name in self.names]


@contextlib.contextmanager
def recorded(patch, done):
    """Keep the bytes of every message between hub and sites, and who sent them."""
    messages = []

    def record(direction, site, data):
        messages.append(f"\n{direction} {site}\n".encode() + data)

    patch.setattr(federation.run, "LocalGrid", functools.partial(LocalGrid, recorder=record))
    yield
    done.wire += b"".join(messages)


def typed(patch, arguments, status=0):
    """Run the command line here and return all that it shows."""
    patch.setattr(sys, "argv", ["cohortium", *arguments])
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        try:
            main()
        except SystemExit as stopped:
            assert (stopped.code or 0) == status, screen.getvalue()
    return screen.getvalue()


def check_clean(hits):
    assert not hits, "\n".join(f"{hit.token.text!r} as {hit.form!r} in {hit.where}" for hit in hits)
