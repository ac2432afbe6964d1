"""How the bytes travel: aiohttp under httpx's API, or httpx's own transport for HTTP/2.

aiohttp's is several times faster but speaks HTTP/1.1 only. Proxies are looked up once, for the
one server that a transport is for, by the standard library's rules (HTTP_PROXY, HTTPS_PROXY,
ALL_PROXY, NO_PROXY); aiohttp's own `trust_env` would read ~/.netrc too, in the event loop.
There is no bound on connections: the engine's `slots` are that.
"""

from __future__ import annotations

import ssl
import urllib.request
from contextvars import ContextVar
from pathlib import Path

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from ruvd.engines.http2 import Http2Transport
from ruvd.errors import EngineUnavailable

_kept: ContextVar[bool] = ContextVar("kept", default=False)


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


def tcp_transport(
    *, tls: ssl.SSLContext, proxy: str | None, http2: bool
) -> httpx.AsyncBaseTransport:
    """A transport to one server. HTTP/2 is agreed on by TLS, so `http://` is HTTP/1.1."""
    if http2:
        return Http2Transport(tls=tls, proxy=proxy)

    # A session belongs to the running loop, so the transport makes it at the first request.
    def session() -> aiohttp.ClientSession:
        traces = aiohttp.TraceConfig()
        traces.on_connection_create_end.append(_connected)
        traces.on_connection_reuseconn.append(_took_a_kept_one)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[traces],
        )

    # `verify` is of the session that is not used; aiohttp's own connector verifies.
    return AiohttpTransport(
        client=session, verify=False, proxy=None if proxy is None else httpx.Proxy(proxy)
    )


def unix_transport(path: Path) -> httpx.AsyncBaseTransport:
    """A transport to the server at a Unix socket; each request has a connection of its own."""

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(path=str(path), force_close=True, limit=0)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    return AiohttpTransport(client=session, verify=False)


def connection_was_kept() -> bool:
    """Whether this task's last request went over a connection that an earlier one had made."""
    return _kept.get()


async def _connected(session: aiohttp.ClientSession, context: object, params: object) -> None:
    _kept.set(False)


async def _took_a_kept_one(session: aiohttp.ClientSession, context: object, params: object) -> None:
    _kept.set(True)


def _no_password() -> str:
    raise ValueError("the client's key is encrypted")
