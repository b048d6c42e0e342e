"""``cohortium site start``: a site's preflight, its connection and its agent, put together."""

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ssl import SSLContext

from cryptography import x509

from federation.agent_state import AgentFolder
from federation.certificates import public_text, read_certificate
from federation.egress import EgressJournal
from federation.errors import FederationError
from federation.flower.agent import Agent
from federation.flower.client_app import client_app
from federation.flower.fleet import FleetConnection, load_node_key, tls_context
from federation.flower.reaching import compare_clocks, may_pass, why_not_admitted
from federation.rounds import LocalRounds
from federation.signed_requests import Gate
from federation.site import Site
from federation.site_config import HubConfig

MIN_FREE_BYTES = 2 * 1024**3
_SOON_DAYS = 30


@dataclass(frozen=True)
class Finding:
    """One line of the preflight.

    Attributes:
        what: What was looked at.
        found: What there is.
        remedy: What to do; empty if all is well.
        blocks: Whether the agent cannot start like this.
    """

    what: str
    found: str
    remedy: str = ""
    blocks: bool = False


def preflight(site: Site, *, knock: bool = False) -> Iterator[Finding]:
    """Look at all that a site needs to answer a hub, without opening an image.

    Args:
        knock: Also go to the hub and leave again, to see whether it admits this site.
    """
    hub = site.config.hub
    if hub is None:
        yield Finding("hub", "none in the site file", "add a 'hub' section, see docs/hub.md", True)
        return
    yield Finding("hub", f"{hub.address}, key {hub.key[:16]}...")
    context = yield from _certificate(site, hub)
    if context is not None:
        yield from _reached(site, hub, context, knock=knock)
    yield from _data(site)
    yield _budget(site)
    yield _disk(site)
    yield _device()


def require_ready(site: Site, findings: Iterable[Finding]) -> None:
    """Check what the preflight has found.

    Raises:
        FederationError: Something blocks; says the first of it.
    """
    for one in findings:
        if one.blocks:
            raise FederationError(f"{site.name}: {one.what}: {one.found}; {one.remedy}")


def _certificate(site: Site, hub: HubConfig) -> Generator[Finding, None, SSLContext | None]:
    """Look at the certificate; return what the hub can be called with, if it can."""
    key_path = AgentFolder(site.config.state).key_path
    try:
        key = load_node_key(key_path)
        certificate = read_certificate(hub.certificate)
        context = tls_context(hub.ca, hub.certificate, key_path)
    except FederationError as error:
        yield Finding("certificate", "cannot be used", str(error), blocks=True)
        return None
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    ask = "ask the hub's operator for a new one: cohortium hub add-site"
    if public_text(key.public_key()) != _key_of(certificate):
        yield Finding("certificate", f"{hub.certificate} is for another key", ask, blocks=True)
    elif left.total_seconds() <= 0:
        yield Finding("certificate", f"expired {-left.days} days ago", ask, blocks=True)
    else:
        soon = ask if left.days < _SOON_DAYS else ""
        yield Finding("certificate", f"valid for {left.days} days", soon)
        return context
    return None


def _reached(site: Site, hub: HubConfig, context: SSLContext, *, knock: bool) -> Iterator[Finding]:
    folder = AgentFolder(site.config.state)
    clock = compare_clocks(hub.address, context)
    if clock is None:
        yield Finding("clock", "the hub cannot be reached", "compare the clock by hand")
    else:
        remedy = "" if clock.fits else "set it: NTP keeps it right"
        yield Finding("clock", str(clock), remedy, blocks=not clock.fits)
    if knock and folder.status() is not None:
        yield Finding("key", "used by the agent that runs")
    elif knock:
        refused = why_not_admitted(hub.address, context, load_node_key(folder.key_path))
        yield _key_finding(refused)


def _key_finding(refused: FederationError | None) -> Finding:
    if refused is None:
        return Finding("key", "registered: the hub admits this site")
    return Finding("key", "not admitted now", str(refused), blocks=not may_pass(refused))


def _key_of(certificate: x509.Certificate) -> str:
    return public_text(certificate.public_key())  # type: ignore[arg-type]


def _data(site: Site) -> Iterator[Finding]:
    for part in site.parts:
        try:
            manifest = site.manifest(part)
        except FederationError as error:
            yield Finding(f"{part} data", "not ingested", str(error), blocks=True)
        else:
            empty = "" if manifest.subjects else "no subject can be used: cohortium site check"
            yield Finding(f"{part} data", f"{len(manifest.subjects)} subjects", empty, bool(empty))


def _budget(site: Site) -> Finding:
    spent, limit = site.ledger.spent_epsilon, site.ledger.policy.epsilon
    used_up = "" if spent < limit else "nothing is left: requests will be refused"
    return Finding("budget", f"epsilon {spent:.2f} of {limit:g} spent", used_up)


def _disk(site: Site) -> Finding:
    free = shutil.disk_usage(site.config.state).free
    low = free < MIN_FREE_BYTES
    remedy = "free some space: updates are kept before they are sent" if low else ""
    return Finding("disk", f"{free / 1024**3:.1f} GiB free", remedy)


def _device() -> Finding:
    from federation.training import default_device

    return Finding("device", str(default_device()))


def serve(
    site: Site,
    stop: threading.Event,
    *,
    outage_s: float = 24 * 3600.0,
    told: Callable[[str], None] = lambda _: None,
) -> None:
    """Answer the site's hub until ``stop`` is set.

    Raises:
        FederationError: Another agent runs, the hub refuses this site or was away for longer than
            ``outage_s`` seconds.
    """
    folder = AgentFolder(site.config.state)
    hub = _required(site.config.hub)
    rounds = LocalRounds(site, hub_key=hub.key, halted=stop.is_set)
    key = load_node_key(folder.key_path)
    context = tls_context(hub.ca, hub.certificate, folder.key_path)

    def tell(doing: str) -> None:
        folder.note(doing)
        told(doing)

    agent = Agent(
        client_app(rounds, Gate(site.name, hub.key)),
        EgressJournal(site.config.state),
        tick_s=hub.tick_s,
        stop=stop,
        paused=lambda: folder.paused,
        told=tell,
    )
    with folder.held(site.name), _logged(site):
        agent.serve(lambda: FleetConnection(hub.address, context, key), outage_s=outage_s)


class _OwnersLog(logging.FileHandler):
    """A log on a full disk loses lines quietly: the agent itself says that the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing where the disk did not take a line."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextmanager
def _logged(site: Site) -> Iterator[None]:
    """Let refusals and failures be written to the site's own log, which its owner alone reads."""
    logger = logging.getLogger("cohortium.site")
    os.close(os.open(site.log_path, os.O_CREAT | os.O_WRONLY, 0o600))
    handler = _OwnersLog(site.log_path)
    form = logging.Formatter("%(asctime)sZ %(message)s", "%Y-%m-%dT%H:%M:%S")
    form.converter = time.gmtime
    handler.setFormatter(form)
    level, logger.propagate = logger.level, False
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True
        with suppress(OSError):  # lines that the disk never took
            handler.close()


def _required(hub: HubConfig | None) -> HubConfig:
    if hub is None:
        raise FederationError("The site file names no hub.")
    return hub
