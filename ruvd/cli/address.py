"""The address of a daemon and the credentials to call it with: flags of every command that calls.

`Address` prints as the address alone. A token has no flag of its own, because every user of a
machine can read a process's command line; RUVD_TOKEN or a file holds it.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token
from ruvd_client import Tls
from ruvd_client.protocol import DEFAULT_ADDRESS

from ruvd.cli import health_check


def _address(_: type, tokens: Sequence[Token]) -> str:
    return tokens[0].value or DEFAULT_ADDRESS  # an empty variable counts as unset


def _path(_: type, tokens: Sequence[Token]) -> Path | None:
    return Path(tokens[0].value) if tokens[0].value else None  # so it does here


def _file(variable: str, text: str) -> Parameter:
    return Parameter(env_var=variable, converter=_path, help=text)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Address:
    """A daemon's address, the files for TLS, and the file with the caller's token."""

    address: Annotated[
        str,
        Parameter(
            env_var="RUVD_ADDRESS",
            converter=_address,
            help="Address of the daemon: HOST:PORT or unix:PATH.",
            negative=(),
        ),
    ] = DEFAULT_ADDRESS
    tls_ca_file: Annotated[
        Path | None,
        _file("RUVD_TLS_CA_FILE", "CA certificates (PEM) that the daemon's is checked with."),
    ] = None
    tls_client_cert_file: Annotated[
        Path | None,
        _file("RUVD_TLS_CLIENT_CERT_FILE", "Client certificate (PEM), if the daemon asks for one."),
    ] = None
    tls_client_key_file: Annotated[
        Path | None, _file("RUVD_TLS_CLIENT_KEY_FILE", "Key (PEM) of the client certificate.")
    ] = None
    tls_server_name: Annotated[
        str,
        Parameter(
            env_var="RUVD_TLS_SERVER_NAME",
            help="Name in the daemon's certificate, if it is not the host of the address.",
        ),
    ] = ""
    token_file: Annotated[
        Path | None, _file("RUVD_TOKEN_FILE", "File with a bearer token. Default: RUVD_TOKEN.")
    ] = None

    def __str__(self) -> str:
        return self.address

    @property
    def tls(self) -> Tls | None:
        """The files for TLS, or None if the connection is not encrypted: a Unix socket never is."""
        if self.address.startswith("unix:"):
            return None
        files = (self.tls_ca_file, self.tls_client_cert_file, self.tls_client_key_file)
        ca, cert, key = files
        return Tls(ca, cert, key, self.tls_server_name) if any(files) else None

    @property
    def probe_tls(self) -> health_check.Tls | None:
        """The same for a health check."""
        tls = self.tls
        if tls is None:
            return None
        files = (tls.ca_file, tls.cert_file, tls.key_file)
        ca, cert, key = (str(file or "") for file in files)
        return health_check.Tls(ca, cert, key, tls.server_name)

    @property
    def token(self) -> Callable[[], str] | None:
        """Returns the token at each call, as a file may be renewed. None if there is none."""
        if path := self.token_file:
            return lambda: path.read_text().strip()
        token = os.environ.get("RUVD_TOKEN", "")
        return (lambda: token) if token else None


default_address = Address()
