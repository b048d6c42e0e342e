"""A hub's folder: keys, certificates that really work, who may connect, the proxy's file."""

import re
import shutil
import ssl
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from federation.certificates import fingerprint, new_key, public_text
from federation.errors import FederationError
from federation.hub_folder import init_hub, open_hub
from federation.proxy import FLEET_CALLS


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "hub"
    return init_hub(folder, address="127.0.0.1:18443", listen="127.0.0.1:18443", link_port=19091)


@pytest.fixture
def copied(hub, tmp_path):
    shutil.copytree(hub.path, tmp_path / "hub")
    return open_hub(tmp_path / "hub" / "hub.yaml")


@pytest.fixture
def site_key(tmp_path):
    """Make a site's key; return the private file and the public one."""

    def make(name):
        key = new_key(tmp_path / f"{name}.key", ec.SECP384R1())
        public = tmp_path / f"{name}.pub"
        public.write_text(public_text(key.public_key()))
        return tmp_path / f"{name}.key", public

    return make


def test_it_opens_as_it_was_made(hub):
    opened = open_hub(hub.path / "hub.yaml")
    assert opened.config == hub.config
    assert opened.key.public_bytes == hub.key.public_bytes


def test_secrets_are_for_their_owner_only(hub):
    for name in ("hub-key", "ca.key", "proxy.key", "link.key", "superexec-secret"):
        assert stat.S_IMODE((hub.path / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(hub.path.stat().st_mode) == 0o700


def test_a_hub_is_never_made_over_another(hub):
    before = (hub.path / "hub-key").read_bytes()
    with pytest.raises(FederationError, match="holds a hub already"):
        init_hub(hub.path, address="a:1", listen="127.0.0.1:1", link_port=1)
    assert (hub.path / "hub-key").read_bytes() == before


def test_a_site_is_admitted_once_and_under_one_key(copied, site_key):
    _, public = site_key("ward-b")
    assert copied.add_site("ward-b", public).is_file()
    copied.add_site("ward-b", public)
    assert list(copied.sites) == ["ward-b"]
    with pytest.raises(FederationError, match="registered with another key"):
        copied.add_site("ward-b", site_key("other")[1])
    with pytest.raises(FederationError, match="This key is ward-b's"):
        copied.add_site("ward-c", public)


@pytest.mark.parametrize("name", ["", "Ward", "../ward", "ward b", "x" * 64])
def test_odd_names_are_refused(copied, site_key, name):
    with pytest.raises(FederationError, match="is no name of a site"):
        copied.add_site(name, site_key("a")[1])
    assert copied.sites == {}


def test_what_is_no_public_key_is_refused(copied, tmp_path):
    (tmp_path / "odd.pub").write_text("ssh-ed25519 AAAA")
    with pytest.raises(FederationError, match=r"not a public key.*site keygen"):
        copied.add_site("ward-b", tmp_path / "odd.pub")


def test_a_removed_site_may_come_back_with_a_new_key(copied, site_key):
    copied.add_site("ward-b", site_key("old")[1])
    copied.remove_site("ward-b")
    assert copied.sites == {}
    copied.add_site("ward-b", site_key("new")[1])
    with pytest.raises(FederationError, match=r"No site is called ward-x. Known: ward-b"):
        copied.remove_site("ward-x")


def test_a_damaged_registry_is_told(copied):
    (copied.path / "sites.json").write_text("{")
    with pytest.raises(FederationError, match=r"sites.json is damaged"):
        _ = copied.sites


class TestCertificates:
    @staticmethod
    def handshake(server, client):
        """Let two contexts talk in memory; return what the client showed of itself."""
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        there = server.wrap_bio(to_server, to_client, server_side=True)
        here = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
        for _ in range(10):
            for side in (here, there):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        return there.getpeercert()

    @staticmethod
    def server(hub):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(hub.path / "proxy.crt", hub.path / "proxy.key")
        context.load_verify_locations(cafile=hub.path / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    @staticmethod
    def client(hub, certificate, key):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=hub.path / "ca.crt")
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return context

    def test_proxy_and_site_know_one_another(self, copied, site_key):
        key, public = site_key("ward-b")
        certificate = copied.add_site("ward-b", public)
        shown = self.handshake(self.server(copied), self.client(copied, certificate, key))
        assert shown["subject"][0] == ((("commonName", "ward-b"),))

    def test_a_site_without_certificate_stays_out(self, copied):
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            self.handshake(self.server(copied), self.client(copied, None, None))

    def test_a_site_of_another_authority_stays_out(self, copied, site_key, tmp_path):
        key, public = site_key("ward-b")
        other = init_hub(
            tmp_path / "other", address="127.0.0.1:2", listen="127.0.0.1:2", link_port=2
        )
        certificate = other.add_site("ward-b", public)
        with pytest.raises(ssl.SSLError):
            self.handshake(self.server(copied), self.client(copied, certificate, key))

    def test_a_proxys_certificate_is_no_sites(self, copied):
        own = (copied.path / "proxy.crt", copied.path / "proxy.key")
        with pytest.raises(ssl.SSLError):
            self.handshake(self.server(copied), self.client(copied, *own))


class TestWhoseCertificatesAreAdmitted:
    @staticmethod
    def admitted(hub):
        return set(
            re.findall(r"^ +([0-9a-f]{40}) 1;$", (hub.path / "nginx.conf").read_text(), re.M)
        )

    def test_those_that_were_made_for_known_sites_also_when_made_anew(self, copied, site_key):
        _, public = site_key("ward-b")
        assert self.admitted(copied) == set()
        first = fingerprint(copied.add_site("ward-b", public))
        second = fingerprint(copied.add_site("ward-b", public))
        assert first != second
        assert self.admitted(copied) == {first, second}

    def test_none_of_a_site_that_was_removed_also_when_it_comes_back(self, copied, site_key):
        old = fingerprint(copied.add_site("ward-b", site_key("old")[1]))
        other = fingerprint(copied.add_site("ward-c", site_key("c")[1]))
        copied.remove_site("ward-b")
        assert self.admitted(copied) == {other}
        new = fingerprint(copied.add_site("ward-b", site_key("new")[1]))
        assert self.admitted(copied) == {other, new} and old != new

    def test_those_of_a_folder_from_before_there_was_a_list(self, copied, site_key):
        made = fingerprint(copied.add_site("ward-b", site_key("b")[1]))
        (copied.path / "issued.json").unlink()
        copied.write_proxy()
        assert self.admitted(copied) == {made}

    def test_all_of_an_authority_that_is_not_the_hubs_but_those_it_revoked(self, copied):
        file = copied.path / "hub.yaml"
        file.write_text(file.read_text().replace("ca: ca.crt", "ca: own.crt\ncrl: revoked.pem"))
        opened = open_hub(file)
        opened.write_proxy()
        text = (opened.path / "nginx.conf").read_text()
        assert "default 1;" in text and f"ssl_crl {opened.path / 'revoked.pem'};" in text


class TestProxy:
    def test_it_names_what_a_site_calls_and_nothing_that_steers(self, hub):
        text = (hub.path / "nginx.conf").read_text()
        assert f"^/v1/fleet/({'|'.join(FLEET_CALLS)})$" in text
        assert "control" not in text and "runtime" not in text
        assert "register-node" not in FLEET_CALLS and "get-fab" not in FLEET_CALLS

    def test_the_real_program_takes_it(self, copied):
        program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        if program is None:
            pytest.skip("nginx is not installed (Debian: nginx-light)")
        config = copied.write_proxy()
        command = [program, "-t", "-e", "stderr", "-p", str(copied.path / "proxy")]
        done = subprocess.run([*command, "-c", str(config)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warn" not in done.stderr
