"""The checks of the daemon's certificates before gRPC gets them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Authority, Files
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from ruvd.rpc.tls import ServerTls
from ruvd.rpc.watched_files import FilesInvalid


def _encrypted_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = BestAvailableEncryption(b"secret")
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _ed25519_key() -> bytes:
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("server.pem", lambda: b"nothing", "tls_cert_file: the file has no valid PEM certificate"),
        ("server.key", lambda: b"nothing", "tls_key_file: the file has no valid PEM private key"),
        ("server.key", _encrypted_key, "tls_key_file: the key is encrypted"),
        ("server.key", _ed25519_key, "tls_key_file: the key must be an RSA or EC key"),
        ("server.key", lambda: Authority().issue()[1], "tls_key_file: the key does not belong"),
        ("ca.pem", lambda: b"", "client_ca_file: the file has no valid PEM certificate"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_setting(
    tmp_path: Path, file: str, content: Callable[[], bytes], message: str
) -> None:
    files = Files(tmp_path)
    ServerTls(files.certificate, files.key, files.ca)
    (tmp_path / file).write_bytes(content())
    with pytest.raises(FilesInvalid, match=message):
        ServerTls(files.certificate, files.key, files.ca)


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.issue("server", "localhost", days=-1)
    with pytest.raises(FilesInvalid, match="tls_cert_file: the certificate expired on"):
        ServerTls(files.certificate, files.key, None)
