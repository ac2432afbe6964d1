"""How the bytes travel: by our own HTTP/1.1, or by httpx for all else.

Proxies and HTTP/2 are httpx's, which is several times slower. Proxies are looked up once, for the
one server that a transport is for, by the standard library's rules (HTTP_PROXY, HTTPS_PROXY,
ALL_PROXY, NO_PROXY). There is no bound on connections: the engine's `slots` are that.
"""

from __future__ import annotations

import ssl
import urllib.request
from pathlib import Path

import httpx

from ruvd.core.errors import EngineUnavailable
from ruvd.engines.http.http1 import Http1Transport
from ruvd.engines.http.http2 import Http2Transport
from ruvd.engines.http.transport import HttpxTransport, Transport


def tls_context(
    ca_file: Path | None, client_cert_file: Path | None, client_key_file: Path | None
) -> ssl.SSLContext:
    """What servers are verified by: `ca_file` and nothing else, or the usual authorities.

    Reads files, so it belongs in a thread. Raises EngineUnavailable for one that cannot be used.
    """
    try:
        if ca_file is None:
            context = httpx.create_ssl_context()  # with SSL_CERT_FILE and SSL_CERT_DIR
        else:
            context = ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:
        raise EngineUnavailable(f"cannot use ca_file {ca_file}: {error}") from None
    if client_cert_file is not None:
        try:
            # An encrypted key would ask for its password on the terminal.
            context.load_cert_chain(client_cert_file, client_key_file, password=_no_password)
        except (OSError, ValueError) as error:
            text = f"cannot use client_cert_file {client_cert_file}: {error}"
            raise EngineUnavailable(text) from None
    return context


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for a server."""
    parsed = httpx.URL(url)
    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(parsed.host):
        return None
    proxy = proxies.get(parsed.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def tcp_transport(*, tls: ssl.SSLContext, proxy: str | None, http2: bool) -> Transport:
    """A transport to one server. HTTP/2 is agreed on by TLS, so `http://` is HTTP/1.1."""
    if http2:
        return HttpxTransport(Http2Transport(tls=tls, proxy=proxy))
    if proxy is None:
        return Http1Transport(tls=tls)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return HttpxTransport(
        httpx.AsyncHTTPTransport(verify=tls, proxy=proxy, limits=limits, trust_env=False)
    )


def _no_password() -> str:
    raise ValueError("the client's key is encrypted")
