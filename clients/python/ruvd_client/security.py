"""The TLS settings and the token of a client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

# A bearer token, or a function that returns it, which is called for every call.
Token: TypeAlias = str | Callable[[], str]


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
        """Reads the files. Raises OSError."""
        return grpc.ssl_channel_credentials(
            *map(_read, (self.ca_file, self.key_file, self.cert_file))
        )

    def options(self) -> tuple[tuple[str, str], ...]:
        """Returns the options of the channel."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()


def _read(path: Path | str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def authorization(token: Token) -> tuple[str, str]:
    """Returns the metadata that carries a token."""
    return ("authorization", f"Bearer {token if isinstance(token, str) else token()}")
