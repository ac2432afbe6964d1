"""TLS of the TCP addresses, with certificates that may be renewed while the daemon runs.

gRPC asks for the certificates at every new connection, so a renewal cuts no stream. Certificates
are checked before gRPC gets them, because gRPC would refuse every connection without saying why.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from ruvd.rpc.watched_files import Contents, WatchedFiles


class TlsSettings(NamedTuple):
    """The names of the settings for files, for messages that say which one is wrong."""

    cert: str = "tls_cert_file"
    key: str = "tls_key_file"
    client_ca: str = "client_ca_file"


_LISTENERS = TlsSettings()


class ServerTls:
    """The daemon's certificate and key, and the authorities whose clients may connect.

    With `client_ca_file` every client needs a certificate that one of its authorities has signed.
    Raises FilesInvalid if the files cannot be used.
    """

    def __init__(
        self,
        cert_file: Path,
        key_file: Path,
        client_ca_file: Path | None,
        settings: TlsSettings = _LISTENERS,
    ) -> None:
        self._settings = settings
        files = {settings.cert: cert_file, settings.key: key_file}
        if client_ca_file:
            files[settings.client_ca] = client_ca_file
        self._asks_clients = client_ca_file is not None
        self._current: grpc.ServerCertificateConfiguration
        # They load the same files for other protocols, and raise ValueError if they cannot.
        self.followers: list[Callable[[], None]] = []
        self.files = WatchedFiles(files, self._load)

    def credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials of one listening port."""
        fetcher: Any = self._fetcher()  # the type stubs omit that it may return None
        return grpc.dynamic_ssl_server_credentials(
            self._current, fetcher, require_client_authentication=self._asks_clients
        )

    def _fetcher(self) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
        """Returns the function that gRPC calls in a thread of its own at every new connection.

        It returns None while nothing has changed since its last call.
        """
        used = self._current

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            current = self._current
            if current is used:
                return None
            used = current
            return current

        return fetch

    def _load(self, contents: Contents) -> None:
        settings = self._settings
        chain, key = contents[settings.cert], contents[settings.key]
        _check_certificate(settings, _certificates(settings.cert, chain)[0], key)
        authorities = contents.get(settings.client_ca)
        if authorities is not None:
            _certificates(settings.client_ca, authorities)
        for follow in self.followers:
            follow()
        self._current = grpc.ssl_server_certificate_configuration(
            [(key, chain)], root_certificates=authorities
        )


def _certificates(setting: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ValueError(f"{setting}: the file has no valid PEM certificate") from None


def _check_certificate(
    settings: TlsSettings, certificate: x509.Certificate, key_pem: bytes
) -> None:
    try:
        key = load_pem_private_key(key_pem, password=None)
    except TypeError:
        raise ValueError(f"{settings.key}: the key is encrypted; it must not be") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{settings.key}: the file has no valid PEM private key") from None
    match key:
        case rsa.RSAPrivateKey() | ec.EllipticCurvePrivateKey():
            pass
        case _:
            raise ValueError(
                f"{settings.key}: the key must be an RSA or EC key"
            )  # gRPC takes no other
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise ValueError(
            f"{settings.key}: the key does not belong to the first certificate of {settings.cert}"
        )
    expiry = certificate.not_valid_after_utc
    if expiry <= datetime.now(UTC):
        raise ValueError(f"{settings.cert}: the certificate expired on {expiry:%Y-%m-%d %H:%M} UTC")
