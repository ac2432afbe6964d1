"""Makes the transport to a server: HTTP/1.1 of `http1`, or httpx's transport through a proxy.

Only proxies need httpx's transport, which takes eight times the CPU time. A server's proxy is
looked up once, when its transport is made, by the standard library's rules (HTTP_PROXY,
HTTPS_PROXY, ALL_PROXY, NO_PROXY). The number of connections has no limit here: the engine's
`slots` limit it.

HTTP/2 is not offered. A request needed a connection of its own, because httpcore does not reset a
stream that is left before its end (seen with 1.0), and only that stops a server from generating.
"""

import ssl
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import httpx

from ruvd.core.errors import EngineUnavailable
from ruvd.engines.http.http1 import Http1Transport
from ruvd.engines.http.transport import HttpxTransport, Transport

TransportFactory: TypeAlias = Callable[[str], Transport]


def transport_factory(
    ca_file: Path | None, client_cert_file: Path | None, client_key_file: Path | None
) -> TransportFactory:
    """Returns a function that makes a transport to the server at a URL.

    Reads the files, so it must run in a thread. Raises EngineUnavailable if one cannot be used.
    """
    return partial(_transport, _tls_context(ca_file, client_cert_file, client_key_file))


def environment_proxy(url: str) -> str | None:
    """Returns the URL of the proxy that the environment names for a server, or None."""
    server = httpx.URL(url)
    proxies = urllib.request.getproxies()
    # NO_PROXY may name a host with its port, or an IPv6 address without brackets.
    if any(map(urllib.request.proxy_bypass, (server.host, server.netloc.decode()))):
        return None
    proxy = proxies.get(server.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _transport(tls: ssl.SSLContext, url: str) -> Transport:
    proxy = environment_proxy(url)
    if proxy is None:
        return Http1Transport(tls=tls)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return HttpxTransport(
        httpx.AsyncHTTPTransport(verify=tls, proxy=proxy, limits=limits, trust_env=False)
    )


def _tls_context(
    ca_file: Path | None, client_cert_file: Path | None, client_key_file: Path | None
) -> ssl.SSLContext:
    """Returns a context that trusts only `ca_file`, or else the usual authorities."""
    try:
        if ca_file is None:
            context = httpx.create_ssl_context()  # respects SSL_CERT_FILE and SSL_CERT_DIR
        else:
            context = ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:
        raise EngineUnavailable(f"cannot use ca_file {ca_file}: {error}") from None
    if client_cert_file is not None:
        try:
            # Without a password function, an encrypted key would ask for one on the terminal.
            context.load_cert_chain(client_cert_file, client_key_file, password=_no_password)
        except (OSError, ValueError) as error:
            text = f"cannot use client_cert_file {client_cert_file}: {error}"
            raise EngineUnavailable(text) from None
    return context


def _no_password() -> str:
    raise ValueError("the client's key is encrypted")
