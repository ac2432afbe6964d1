"""The TLS settings and the token of a client, by the rules of `clients/CONFORMANCE.md`."""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import grpc.aio

from ruvd_client.addresses import Address
from ruvd_client.protocol import RuvdError

# A bearer token, a file with one, or a function that returns one. The file is read, and the
# function is called, for every call. Only AsyncClient takes an async function.
Token: TypeAlias = str | Path | Callable[[], str] | Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Tls:
    """The files (PEM) for a daemon that listens with TLS.

    `ca_file` has the CA certificates to trust instead of the system's. `cert_file` and `key_file`
    are the client's own certificate and key, where the daemon asks for them. `server_name` is the
    name in the daemon's certificate, if it is not the host in the address.
    """

    ca_file: Path | str | None = None
    cert_file: Path | str | None = None
    key_file: Path | str | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError, and ValueError if they cannot be used."""
        ca, key, cert = map(_read, (self.ca_file, self.key_file, self.cert_file))
        self._check()
        return grpc.ssl_channel_credentials(ca, key, cert)

    def options(self) -> tuple[tuple[str, str], ...]:
        """Returns the options of the channel."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()

    def _check(self) -> None:
        # gRPC would report such files only as a connection that cannot be made.
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("a client certificate and its key belong together")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca_file is not None:
                context.load_verify_locations(self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file, password="")
        except ssl.SSLError as error:
            raise ValueError(f"the files for TLS cannot be used: {error}") from error


def _read(path: Path | str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


class Credential:
    """The token of a client, which is looked up for every call."""

    def __init__(self, token: Token) -> None:
        self._token = _clean(token) if isinstance(token, str) else token

    def authorization(self) -> tuple[str, str]:
        """Returns the metadata with the token. Raises RuvdError."""
        try:
            return _authorization(self._look_up())
        except Exception as error:
            text = _explain(error)
            raise RuvdError(grpc.StatusCode.UNAUTHENTICATED, "", text) from error

    async def async_authorization(self) -> tuple[str, str]:
        """Does the same for an interceptor, whose error is one of grpc.aio: raises AioRpcError."""
        try:
            token = self._look_up()
            return _authorization(token if isinstance(token, str) else await token)
        except Exception as error:
            empty = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAUTHENTICATED, empty, empty, details=_explain(error)
            ) from error

    def _look_up(self) -> str | Awaitable[str]:
        if isinstance(self._token, Path):
            return self._token.read_text(encoding="utf-8")
        return self._token if isinstance(self._token, str) else self._token()


def find_tls(addresses: Iterable[Address], tls: Tls | None) -> Tls | None:
    """Returns the caller's TLS settings or those of the environment; None for Unix sockets."""
    if all(address.is_socket for address in addresses):
        return None
    if tls is not None:
        return tls
    names = ("RUVD_TLS_CA_FILE", "RUVD_TLS_CLIENT_CERT_FILE", "RUVD_TLS_CLIENT_KEY_FILE")
    ca, cert, key = (os.environ.get(name) or None for name in names)
    return (
        Tls(ca, cert, key, os.environ.get("RUVD_TLS_SERVER_NAME", ""))
        if ca or cert or key
        else None
    )


def find_credential(
    addresses: Iterable[Address], token: Token | None, tls: Tls | None
) -> Credential | None:
    """Returns the caller's token or that of the environment, if there is one.

    Raises ValueError if it cannot be sent, or would be sent to another machine in plain text.
    """
    if token is None:
        file = os.environ.get("RUVD_TOKEN_FILE")
        token = Path(file) if file else os.environ.get("RUVD_TOKEN", "")
    if token == "":
        return None
    for address in addresses:
        if tls is None and not address.is_local:
            target = address.target
            raise ValueError(f"a token is not sent to {target} without TLS: use tls=Tls(...)")
    return Credential(token)


def _authorization(token: object) -> tuple[str, str]:
    if not isinstance(token, str):
        raise TypeError("the function did not return a str (AsyncClient takes async functions)")
    return ("authorization", f"Bearer {_clean(token)}")


def _clean(token: str) -> str:
    """Returns the token without whitespace around it. Raises ValueError if it cannot be sent."""
    token = token.strip()
    if not token:
        raise ValueError("the token is empty")
    if not all("!" <= char <= "~" for char in token):
        raise ValueError("the token has a character that is not visible ASCII")
    return token


def _explain(error: Exception) -> str:
    return f"there is no token for the call: {error or type(error).__name__}"
