"""TLS between replicas: one certificate for both directions, and the authorities of the others."""

from pathlib import Path

import grpc

from ruvd.rpc.tls import ServerTls, TlsSettings
from ruvd.rpc.watched_files import Contents

_SETTINGS = TlsSettings("peer_tls_cert_file", "peer_tls_key_file", "peer_tls_ca_file")


class PeerTls(ServerTls):
    """The certificate of this replica. Whoever connects needs one of the same authorities.

    `client_credentials` are new objects after each change of the files, so connections that were
    made before can be told from those with the files in use.
    """

    client_credentials: grpc.ChannelCredentials

    def __init__(self, cert_file: Path, key_file: Path, ca_file: Path) -> None:
        super().__init__(cert_file, key_file, ca_file, _SETTINGS)

    def _load(self, contents: Contents) -> None:
        super()._load(contents)
        self.client_credentials = grpc.ssl_channel_credentials(
            root_certificates=contents[_SETTINGS.client_ca],
            private_key=contents[_SETTINGS.key],
            certificate_chain=contents[_SETTINGS.cert],
        )
