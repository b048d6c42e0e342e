"""A hardened systemd unit for a site's agent: what it may touch is what it needs."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from federation.key_slot import is_protected
from federation.passphrase import PASSPHRASE, PIN
from federation.site_config import SiteConfig


def unit_for(site_file: Path, config: SiteConfig) -> str:
    """Return the unit's text. Images are read-only to it, the state folder alone is written.

    Only the hub's addresses can be reached, as they are now: systemd filters by address, so write
    the unit again if the hub moves. Name resolution goes through the local resolver's socket.
    """
    program = Path(sys.executable).with_name("cohortium")
    hosts = "\n".join(f"IPAddressAllow={address}" for address in _addresses(config))
    readable = "\n".join(f"ReadOnlyPaths={path}" for path in dict.fromkeys(_images(config)))
    credentials = "".join(f"{line}\n" for line in _credentials(config))
    return f"""\
[Unit]
Description=Cohortium site {config.site}
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={program} site start {site_file.resolve()}
Restart=on-failure
RestartSec=30
KillSignal=SIGTERM
TimeoutStopSec=60
User=cohortium
UMask=0077
{credentials}
# No more rights than these, and no more of the machine than it reads and writes.
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={config.state}
{readable}
PrivateTmp=yes
PrivateDevices=no
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

# No image of its memory on disk, and no way out but to the hub.
LimitCORE=0
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
IPAddressDeny=any
IPAddressAllow=localhost
{hosts}

Environment=FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 RAY_USAGE_STATS_ENABLED=0

[Install]
WantedBy=multi-user.target
"""


def _credentials(config: SiteConfig) -> Iterator[str]:
    """Yield how the service gets what opens its keys; its own user need not read those files."""
    wanted = []
    folders = (config.state, *((config.linking,) if config.linking else ()))
    if any(is_protected(folder) for folder in folders):
        wanted.append((PASSPHRASE, "passphrase"))
    if config.keys is not None:
        wanted.append((PIN, "pin"))
    if wanted:
        yield "# Files of root's, mode 600; or sealed for this machine: LoadCredentialEncrypted="
        yield "# with what 'systemd-creds encrypt' made."
    for asked, ending in wanted:
        yield f"LoadCredential={asked.credential}:/etc/cohortium/{config.site}.{ending}"


def _addresses(config: SiteConfig) -> Iterator[str]:
    if config.hub is None:
        return
    host, _, port = config.hub.address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        yield f"  # {host} did not resolve when this was written: put its address here"
        return
    yield from dict.fromkeys(str(entry[4][0]) for entry in found)


def _images(config: SiteConfig) -> Iterator[Path]:
    for source in config.every_source:
        path = getattr(source, "path", None)
        if isinstance(path, Path):
            yield path
