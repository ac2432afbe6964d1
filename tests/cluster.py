"""The parts of a Kubernetes cluster that tokens of service accounts need: an issuer, an API server
that tells its keys to whoever has a token for it, and the files that a kubelet projects into a pod.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from certificates import Authority
from web_tokens import Issuer, key_set

# The default of kubeadm, and one of a managed cluster.
ISSUERS = (
    "https://kubernetes.default.svc.cluster.local",
    "https://oidc.eks.eu-central-1.amazonaws.com/id/ABCDEF",
)
NAMESPACE, ACCOUNT = "prod", "chat"


class Cluster:
    """A cluster with one issuer of tokens."""

    def __init__(self, issuer: str = ISSUERS[0]) -> None:
        self.issuer = issuer
        self.url = ""
        self.authority = Authority()
        self.key_requests: list[str] = []  # the Authorization header of each
        self._keys = Issuer("cluster", "RS256")
        self.api_token = self.token(audience=issuer)

    def token(self, account: str = ACCOUNT, audience: str = "ruvd", seconds: float = 600.0) -> str:
        """Returns a token of a service account, as the TokenRequest API makes them."""
        subject = f"system:serviceaccount:{NAMESPACE}:{account}"
        return self._keys.token(subject, iss=self.issuer, aud=[audience], seconds=seconds)

    def project(self, token_folder: Path, issuer_folder: Path) -> None:
        """Writes the files of the volumes ruvd-token and ruvd-issuer."""
        (token_folder / "token").write_text(self.token())
        if issuer_folder.is_dir():
            (issuer_folder / "token").write_text(self.api_token)
            (issuer_folder / "ca.crt").write_bytes(self.authority.pem)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        given = {name.lower(): value for name, value in headers.items()}.get("authorization", "")
        self.key_requests.append(given)
        status, body = "200 OK", key_set(self._keys)
        if given != f"Bearer {self.api_token}":
            status, body = "401 Unauthorized", b"{}"
        elif path != "/openid/v1/jwks":
            status, body = "404 Not Found", b"{}"
        size = f"content-length: {len(body)}\r\nconnection: close"
        writer.write(f"HTTP/1.1 {status}\r\n{size}\r\n\r\n".encode() + body)
        writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves the keys at `url`, which is that of an API server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder) / "crt", Path(folder) / "key"
            for file, content in zip(files, self.authority.issue("127.0.0.1"), strict=True):
                file.write_bytes(content)
            context.load_cert_chain(*files)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()
