"""Certificates for tests: an authority, and the certificates that it signs."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Authority:
    """A certificate authority with a key of its own."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("tests")
        unsigned = _unsigned(self._name, self._name, self._key, days=10).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.pem = unsigned.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def issue(self, *names: str, days: float = 1.0) -> tuple[bytes, bytes]:
        """Returns a certificate and its key, valid for so many days from now on.

        A name is a URI if it has a colon and two slashes, otherwise an IP address or a host.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        unsigned = _unsigned(_name("leaf"), self._name, key, days)
        if names:
            alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
            unsigned = unsigned.add_extension(alternatives, critical=False)
        certificate = unsigned.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return certificate, key.private_bytes(*form)


class Files:
    """Files with an authority's certificate, and the certificate and key of a daemon."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self.folder = folder
        self.authority = authority or Authority()
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self.authority.pem)
        self.certificate, self.key = self.issue("server", "localhost", "127.0.0.1")

    def issue(self, file: str, *names: str, days: float = 1.0) -> tuple[Path, Path]:
        """Writes a new certificate and its key, named for `file`; returns their paths."""
        paths = self.folder / f"{file}.pem", self.folder / f"{file}.key"
        for path, content in zip(paths, self.authority.issue(*names, days=days), strict=True):
            path.write_bytes(content)
        return paths

    @property
    def flags(self) -> tuple[str, ...]:
        """The daemon's flags for TLS."""
        return ("--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=20))
        .not_valid_after(now + timedelta(days=days))
    )


def _alternative(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
