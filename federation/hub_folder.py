"""A hub's folder: its settings, its keys, the sites that it knows, and its runs."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from federation import certificates
from federation.documents import Strict, load_document
from federation.elsewhere import ADDRESS
from federation.errors import FederationError
from federation.files import private_folder, write_atomically
from federation.key_slot import is_protected, unlock
from federation.ledger.keys import SiteKey
from federation.proxy import Proxy, nginx_config

HUB_FILE = "hub.yaml"
HUB_KEY = "hub-key"
NGINX_FILE = "nginx.conf"
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHARED = "superexec-secret"
_SITES = "sites.json"
_NODES = "nodes.json"
_ISSUED = "issued.json"
_OWN_CA = Path("ca.crt")

Port = Annotated[int, Field(ge=1, le=65_535)]


class HubConfig(Strict):
    """The hub file.

    Attributes:
        address: Host and port under which sites reach the proxy.
        listen: Address and port that the proxy binds.
        link_port: Port of Flower's SuperLink, on loopback alone.
        certificate, key: Of the proxy, PEM; beside the hub file if not absolute.
        ca: Who signs the certificates that sites show, PEM.
        crl: What that authority has revoked, PEM. The hub's own authority needs none: what it
            signed is let through by name, until 'hub remove-site'.
        tracking: Address of an MLflow server or store that is to know of every run, too.
    """

    format: Annotated[str, Field(pattern=r"^cohortium-hub/1$")]
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$")]
    listen: Annotated[str, Field(pattern=r"^[0-9A-Za-z.\[\]:*]+:\d{1,5}$")]
    link_port: Port
    certificate: Path = Path("proxy.crt")
    key: Path = Path("proxy.key")
    ca: Path = _OWN_CA
    crl: Path | None = None
    tracking: Annotated[str, Field(pattern=ADDRESS)] | None = None


@dataclass(frozen=True)
class KnownSite:
    """A site that may connect.

    Attributes:
        public_key: Of its connection, PEM.
    """

    name: str
    public_key: str


@dataclass(frozen=True)
class HubFolder:
    """A hub's folder. Make one with ``init_hub``, open one with ``open_hub``."""

    path: Path
    config: HubConfig

    @property
    def key(self) -> SiteKey:
        """What the hub signs its requests with."""
        return SiteKey.load(self.path, HUB_KEY)

    @property
    def sites(self) -> dict[str, KnownSite]:
        """The sites that may connect, by name."""
        values = _read_json(self.path / _SITES, default={})
        return {name: KnownSite(name, key) for name, key in sorted(values.items())}

    @property
    def nodes(self) -> dict[int, str]:
        """Flower's node ids, for as long as the SuperLink that gave them runs, to site names."""
        return {int(i): name for i, name in _read_json(self.path / _NODES, default={}).items()}

    @property
    def proxy(self) -> Proxy:
        """What the proxy's configuration is made of."""
        home = self.path
        return Proxy(
            listen=self.config.listen,
            link_port=self.config.link_port,
            certificate=home / self.config.certificate,
            key=home / self.config.key,
            ca=home / self.config.ca,
            link_ca=home / "ca.crt",
            folder=home / "proxy",
            admitted=self._admitted,
            revoked=home / self.config.crl if self.config.crl else None,
        )

    @property
    def _admitted(self) -> tuple[str, ...] | None:
        """Fingerprints of what the hub's own authority has signed for sites that it knows now."""
        if self.config.ca != _OWN_CA:
            return None
        known = self.sites
        issued = {f for f, name in self._issued.items() if name in known}
        files = (self.path / "sites" / f"{name}.crt" for name in known)
        issued |= {certificates.fingerprint(path) for path in files if path.is_file()}
        return tuple(sorted(issued))

    @property
    def _issued(self) -> dict[str, str]:
        """Fingerprint to site, of every certificate that was given out and not taken back."""
        return _read_json(self.path / _ISSUED, default={})

    @property
    def secret_path(self) -> Path:
        """The secret that SuperLink and SuperExec share."""
        return self.path / _SHARED

    def require_keys_without_terminal(self) -> None:
        """Check that the processes of a hub, which no terminal has, can open its keys.

        Raises:
            FederationError: They are under a passphrase that no file or credential gives.
        """
        if is_protected(self.path):
            unlock(self.path, terminal=False)

    def write_nodes(self, nodes: Mapping[int, str]) -> None:
        """Remember which site has which node id."""
        _write_json(self.path / _NODES, {str(i): name for i, name in nodes.items()})

    def write_proxy(self) -> Path:
        """Write the proxy's configuration and return where it lies."""
        private_folder(self.path / "proxy")
        path = self.path / NGINX_FILE
        write_atomically(path, nginx_config(self.proxy).encode())
        return path

    def add_site(self, name: str, public_key: Path) -> Path:
        """Admit a site; return its certificate, which the site needs, too.

        Raises:
            FederationError: The name is taken or odd, or the file is no public key.
        """
        if not SITE_NAME.fullmatch(name):
            raise FederationError(
                f"{name!r} is no name of a site: small letters, digits and '-', at most 63."
            )
        key = certificates.read_public_key(public_key)
        text = certificates.public_text(key)
        known = self.sites
        if name in known and known[name].public_key != text:
            raise FederationError(
                f"{name} is registered with another key. If the site lost its key, remove it "
                f"first (cohortium hub remove-site {name}), then add it with the new one."
            )
        twin = next((s.name for s in known.values() if s.public_key == text and s.name != name), "")
        if twin:
            raise FederationError(f"This key is {twin}'s. Every site has a key of its own.")
        out = private_folder(self.path / "sites") / f"{name}.crt"
        certificates.certify_site(self.path, name, key, out)
        _write_json(self.path / _ISSUED, {**self._issued, certificates.fingerprint(out): name})
        self._write_sites({**{s.name: s.public_key for s in known.values()}, name: text})
        return out

    def remove_site(self, name: str) -> KnownSite:
        """Admit a site no longer, and none of its certificates; return what is known of it.

        Raises:
            FederationError: There is none of this name.
        """
        known = self.sites
        if name not in known:
            raise FederationError(f"No site is called {name}. Known: {', '.join(known) or 'none'}.")
        removed = known.pop(name)
        # First: should the site come back under this name, what it has now stays shut out.
        left = {f: one for f, one in self._issued.items() if one != name}
        _write_json(self.path / _ISSUED, left)
        (self.path / "sites" / f"{name}.crt").unlink(missing_ok=True)
        self._write_sites({site.name: site.public_key for site in known.values()})
        return removed

    def _write_sites(self, keys: Mapping[str, str]) -> None:
        """Write who is known; a running hub lets the proxy read its file again when it changes."""
        _write_json(self.path / _SITES, dict(sorted(keys.items())))
        self.write_proxy()


def init_hub(folder: Path, *, address: str, listen: str, link_port: int) -> HubFolder:
    """Make a hub: keys, an authority for certificates, the proxy's configuration.

    Raises:
        FederationError: There is a hub in this folder already; it was not touched.
    """
    if (folder / HUB_FILE).exists():
        raise FederationError(f"{folder} holds a hub already and was not touched.")
    config = HubConfig(
        format="cohortium-hub/1", address=address, listen=listen, link_port=link_port
    )
    home = private_folder(folder.resolve())
    SiteKey.create(home, HUB_KEY)
    certificates.make_authority(home, "Cohortium hub")
    host = address.rpartition(":")[0].strip("[]")
    certificates.certify_server(home, "proxy", [host])
    certificates.certify_server(home, "link", ["127.0.0.1", "localhost"])
    write_atomically(home / _SHARED, secrets.token_bytes(32))
    hub = HubFolder(home, config)
    hub.write_proxy()
    write_atomically(home / HUB_FILE, _hub_file(config).encode())  # last: now it is a hub
    return hub


def open_hub(hub_file: Path) -> HubFolder:
    """Open the hub whose ``hub.yaml`` this is.

    Raises:
        FederationError: It is missing or invalid.
    """
    return HubFolder(hub_file.resolve().parent, load_document(hub_file, HubConfig, "hub"))


def _hub_file(config: HubConfig) -> str:
    return f"""\
format: cohortium-hub/1
address: "{config.address}"     # what sites connect to
listen: "{config.listen}"       # what the proxy binds
link_port: {config.link_port}                # Flower's SuperLink, on loopback alone
# Certificates of your own authority go here, in place of the ones that 'hub init' made:
certificate: {config.certificate}
key: {config.key}
ca: {config.ca}
# An MLflow server that is to know of every finished run, too (its password: in the environment):
# tracking: http://127.0.0.1:5000
"""


def _read_json(path: Path, *, default: dict[str, str]) -> dict[str, str]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise FederationError(f"{path} is damaged ({error}). Restore it from backup.") from error
    return {str(name): str(text) for name, text in value.items()}


def _write_json(path: Path, value: Mapping[str, str]) -> None:
    write_atomically(path, json.dumps(dict(value), indent=1).encode())
