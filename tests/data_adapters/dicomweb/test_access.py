"""Who is asked, with which credentials, over which connection."""

import datetime
import ipaddress
import logging
import re
import ssl
from pathlib import Path

import pytest
from pydantic import ValidationError

from data_adapters.dicomweb import mirror
from data_adapters.dicomweb_client import DicomWebClient
from data_adapters.errors import DataError
from data_adapters.sources import DicomWebSource
from tests.data_adapters.conftest import CLASSES
from tests.data_adapters.dicomweb.fake_pacs import (
    FakePacs,
    change,
    contents,
    reply,
    running,
)

UID = re.compile(r"\d+(\.\d+){3,}")


class TestAccess:
    def test_without_credentials_the_error_says_where_they_come_from(self, pacs, source):
        pacs.misbehave = lambda handler: not reply(handler, 401)
        with pytest.raises(DataError, match="COHORTIUM_DICOMWEB_TOKEN, or COHORTIUM_DICOMWEB_USER"):
            mirror(source)

    def test_an_account_that_may_not_search(self, pacs, source):
        pacs.misbehave = lambda handler: not reply(handler, 403)
        with pytest.raises(DataError, match=r"HTTP 403.*must be allowed to search"):
            mirror(source)

    def test_basic_credentials_come_from_the_environment(self, pacs, source, monkeypatch):
        monkeypatch.setenv("COHORTIUM_DICOMWEB_USER", "jörg")
        monkeypatch.setenv("COHORTIUM_DICOMWEB_PASSWORD", "a:b")
        mirror(source)
        assert set(pacs.seen["Authorization"]) == {"Basic asO2cmc6YTpi"}

    def test_so_does_a_token(self, pacs, source, monkeypatch):
        monkeypatch.setenv("COHORTIUM_DICOMWEB_TOKEN", "abc.def")
        mirror(source)
        assert set(pacs.seen["Authorization"]) == {"Bearer abc.def"}

    @pytest.mark.parametrize(
        "given",
        [
            {"TOKEN": "secret", "USER": "u"},
            {"USER": "secret"},
            {"PASSWORD": "secret"},
            {"USER": "secret:u", "PASSWORD": "p"},
            {"TOKEN": "secret\r\nHost: elsewhere"},
        ],
    )
    def test_credentials_that_cannot_be_meant_are_refused_unread(self, given):
        environment = {f"COHORTIUM_DICOMWEB_{name}": value for name, value in given.items()}
        with pytest.raises(DataError) as caught:
            DicomWebClient("http://127.0.0.1:1", connections=1, environment=environment)
        assert "secret" not in str(caught.value)

    def test_a_redirect_elsewhere_is_not_followed(self, pacs, source, monkeypatch):
        monkeypatch.setenv("COHORTIUM_DICOMWEB_TOKEN", "abc")
        with running(FakePacs()) as other:
            pacs.misbehave = lambda h: not reply(h, 307, Location=f"{other.url}/studies")
            with pytest.raises(DataError, match="redirects elsewhere"):
                mirror(source)
            assert not other.asked

    def test_a_redirect_within_the_service_is(self, pacs, source):
        moved = "/dicom-web/studies?limit=997&offset="

        def redirect(handler):
            if "includefield" not in handler.path:
                return False
            offset = handler.path.split("offset=")[1].split("&")[0]
            return not reply(handler, 302, Location=moved + offset)

        pacs.misbehave = redirect
        mirror(source)
        assert len(contents(source)) == 15

    def test_redirects_in_a_circle_end(self, pacs, source):
        pacs.misbehave = lambda handler: not reply(handler, 302, Location=handler.path)
        with pytest.raises(DataError, match="redirects"):
            mirror(source)

    @pytest.mark.parametrize("host", ["pacs.example", "10.0.0.1", "localhost.example", "[2001::1]"])
    def test_plain_http_is_for_this_machine(self, source, host):
        with pytest.raises(DataError, match="plain http"):
            mirror(change(source, url=f"http://{host}/dicom-web"))

    def test_proxies_in_the_environment_are_not_asked(self, pacs, source, monkeypatch):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        mirror(source)
        assert len(contents(source)) == 15

    def test_neither_logs_nor_errors_hold_identifiers_or_credentials(
        self, pacs, source, monkeypatch, caplog
    ):
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv("COHORTIUM_DICOMWEB_TOKEN", "abc.def")
        pacs.misbehave = lambda h: "/instances/" in h.path and not reply(h, 404, b"1.2.3.4 P-1")
        found = str(mirror(source)) + caplog.text
        assert not UID.search(found.replace("127.0.0.1", ""))
        assert "abc.def" not in found and "P-1" not in found


class TestTls:
    @pytest.fixture
    def authority(self, tmp_path_factory):
        return make_authority(tmp_path_factory.mktemp("tls"))

    @pytest.fixture
    def secure(self, authority, exports):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority / "server.pem")
        with running(FakePacs(), context) as fake:
            fake.store(exports)
            yield fake

    def test_a_certificate_of_the_sites_own_authority_is_trusted(self, secure, source, authority):
        mirror(change(source, url=secure.url, ca_file=authority / "ca.pem"))
        assert len(contents(source)) == 15

    def test_an_unknown_certificate_is_refused_at_once(self, secure, source):
        with pytest.raises(DataError, match=r"not trusted here. Name .* `ca_file`"):
            mirror(change(source, url=secure.url))
        assert not secure.asked

    def test_a_certificate_for_another_name_is_refused(self, secure, source, authority):
        url = secure.url.replace("127.0.0.1", "localhost")
        with pytest.raises(DataError, match="not trusted"):
            mirror(change(source, url=url, ca_file=authority / "ca.pem"))

    def test_an_authority_that_cannot_be_read(self, source, tmp_path):
        with pytest.raises(DataError, match="PEM"):
            mirror(change(source, ca_file=tmp_path / "none.pem"))


class TestSource:
    @pytest.mark.parametrize(
        "fields",
        [
            {"url": "https://user:secret@pacs.example"},
            {"url": "ftp://pacs.example"},
            {"url": "https://pacs.example/?token=secret"},
            {"study_dates": ("20200102", "20200101")},
            {"study_dates": ("2020-01-02", "20200101")},
            {"targets": {"path": "t", "key": "image", "id_column": "i", "column": "c"}},
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, fields):
        known = {"path": "m", "url": "https://pacs.example/dicom-web", "classes": CLASSES}
        DicomWebSource.model_validate(known)
        with pytest.raises(ValidationError):
            DicomWebSource.model_validate(known | fields)


def make_authority(folder: Path) -> Path:
    """Write ca.pem, and server.pem (key and certificate) for 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def certificate(name, key, issuer, issuer_key, extensions):
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
            subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(days=1),
            not_valid_after=now + datetime.timedelta(days=1),
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        signed = builder.sign(issuer_key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    basic = x509.BasicConstraints(ca=True, path_length=None)
    (folder / "ca.pem").write_bytes(certificate("ca", ca_key, "ca", ca_key, [basic]))
    (folder / "server.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate("server", key, "ca", ca_key, [here])
    )
    return folder
