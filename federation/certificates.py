"""Certificates for a federation that has no authority of its own: X.509 (RFC 5280) on P-256.

One authority at the hub signs the proxy's certificate and each site's. A hospital that has its own
authority uses that, and none of this.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.errors import FederationError
from federation.files import write_atomically
from federation.key_slot import create_secret, read_secret

VALID_DAYS = 730
AUTHORITY_KEY = "ca.key"
_SKEW = timedelta(hours=1)


def new_key(path: Path, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """Make a key in a new file that its owner alone can read, sealed where its folder's keys are.

    Raises:
        FederationError: The file exists; it is never replaced.
    """
    key = ec.generate_private_key(curve or ec.SECP256R1())
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        create_secret(path, text)
    except FileExistsError as error:
        raise FederationError(f"{path} exists already and was not touched.") from error
    return key


def public_text(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key as text, PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Return a public key from a PEM file.

    Raises:
        FederationError: The file is missing, or holds another thing.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FederationError(
            f"{path} is not a public key ({error}). A site makes one: cohortium site keygen."
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FederationError(f"{path} is not an elliptic-curve key; use 'cohortium site keygen'.")
    return key


def read_certificate(path: Path) -> x509.Certificate:
    """Return a certificate from a PEM file.

    Raises:
        FederationError: The file is missing, or holds another thing.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FederationError(f"{path} is not a certificate ({error}).") from error


def fingerprint(path: Path) -> str:
    """Return a certificate's SHA-1 fingerprint, hex, by which nginx tells certificates apart.

    Raises:
        FederationError: The file is missing, or holds another thing.
    """
    return read_certificate(path).fingerprint(hashes.SHA1()).hex()  # noqa: S303 - nginx's own


def make_authority(folder: Path, name: str) -> None:
    """Make ``ca.key`` and the certificate ``ca.crt`` that it signs itself."""
    key = new_key(folder / AUTHORITY_KEY)
    subject = _named(name)
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _begun(subject, subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.crt", certificate)


def certify_server(folder: Path, name: str, hosts: list[str]) -> None:
    """Make ``NAME.key`` and ``NAME.crt`` for a server at these host names or addresses."""
    key = new_key(folder / f"{name}.key")
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    purpose = _purpose(ExtendedKeyUsageOID.SERVER_AUTH)
    certificate = _signed(folder, _named(hosts[0]), key.public_key(), [names, purpose])
    _write(folder / f"{name}.crt", certificate)


def certify_site(folder: Path, site: str, key: ec.EllipticCurvePublicKey, out: Path) -> None:
    """Write the certificate that a site shows to the proxy. Its private key stays with it."""
    purpose = _purpose(ExtendedKeyUsageOID.CLIENT_AUTH)
    _write(out, _signed(folder, _named(site), key, [purpose]))


def _signed(
    folder: Path,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    extensions: Sequence[x509.ExtensionType],
) -> x509.Certificate:
    try:
        authority = load_pem_private_key(read_secret(folder / AUTHORITY_KEY), password=None)
        issuer = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()).subject
    except (OSError, ValueError) as error:
        raise FederationError(
            f"{folder} holds no authority that can sign ({error}). Let your own authority sign."
        ) from error
    if not isinstance(authority, ec.EllipticCurvePrivateKey):
        raise FederationError(f"{folder / AUTHORITY_KEY} is not an elliptic-curve key.")
    builder = _begun(subject, issuer, key).add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    whose = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    for extension in (whose, *extensions):
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(authority, hashes.SHA256())


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=VALID_DAYS))
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _purpose(oid: x509.ObjectIdentifier) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([oid])


def _usage(*, key_cert_sign: bool, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, certificate: x509.Certificate) -> None:
    write_atomically(path, certificate.public_bytes(Encoding.PEM), mode=0o644)
