"""TLS of the HTTP addresses, with the certificates of the gRPC addresses.

When the files change, a new context is made. The listener takes it for new connections.
"""

import ssl
from collections.abc import Callable
from pathlib import Path


class ListenerTls:
    """The current context. With `client_ca_file` every client needs a certificate of its CAs.

    `on_change` is called, perhaps in another thread, when there is a new context.
    """

    def __init__(self, cert_file: Path, key_file: Path, client_ca_file: Path | None) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.context: ssl.SSLContext
        self._cert_file = cert_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self.load()

    def load(self) -> None:
        """Reads the files, which blocks. Raises ValueError if they cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            # Without a password an encrypted key would be asked for on the terminal.
            context.load_cert_chain(self._cert_file, self._key_file, password="")
            if self._client_ca_file:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self._client_ca_file)
        except OSError as error:
            raise ValueError(f"tls_cert_file, tls_key_file, client_ca_file: {error}") from None
        self.context = context
        self.on_change()
