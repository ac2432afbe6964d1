"""The listener of ASGI applications: bounds, renewed certificates, restarts and drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from certificates import Authority, Files

from ruvd.http import connection
from ruvd.http.listener import HttpListener
from ruvd.http.scopes import Receive, Scope, Send, auth_context, peer
from ruvd.http.tls import ListenerTls

BOUND_SECONDS = 60.0


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the peer and its certificate; `/wait` answers when the client has gone."""
    if scope["path"] == "/wait":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    certificate = next(iter(auth_context(scope).get("x509_pem_cert", ())), b"")
    body = f"{peer(scope)}\n".encode() + certificate
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def bound_socket() -> socket.socket:
    bound = socket.socket()
    bound.settimeout(0)
    bound.bind(("127.0.0.1", 0))
    return bound


@asynccontextmanager
async def serving(
    tls: ListenerTls | None = None, bound: socket.socket | None = None
) -> AsyncIterator[tuple[HttpListener, int]]:
    bound = bound or bound_socket()
    port = bound.getsockname()[1] if bound.family == socket.AF_INET else 0
    listener = HttpListener(application, bound, tls)
    task = asyncio.create_task(listener.run())
    try:
        if port:
            await connected(port)
        yield listener, port
    finally:
        await listener.close(0.0)
        await asyncio.wait_for(task, BOUND_SECONDS)


async def connected(port: int) -> None:
    """Waits until a connection is accepted."""
    async with asyncio.timeout(BOUND_SECONDS):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.01)


async def answer(port: int, *pieces: bytes) -> bytes:
    """Sends pieces, each after the one before has left, and returns all that comes back."""
    async with asyncio.timeout(BOUND_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            with contextlib.suppress(ConnectionError):
                return await reader.read()
            return b""
        finally:
            writer.close()


async def test_headers_that_are_too_large_are_refused_and_others_are_served() -> None:
    async with serving() as (_, port):
        large = [b"GET / HTTP/1.1\r\n", *(b"x-a%d: %s\r\n" % (n, b"v" * 8000) for n in range(40))]
        refused = await answer(port, *large, b"\r\n")
        assert refused == b"" or b" 431 " in refused or b" 400 " in refused
        endless = [b"GET / HTTP/1.1\r\nx: ", *([b"v" * 60_000] * 20)]
        refused = await answer(port, *endless)
        assert refused == b"" or b" 431 " in refused
        fitting = b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"v" * 30_000 + b"\r\n"
        assert b"200 OK" in await answer(port, fitting + b"connection: close\r\n\r\n")
        assert b"400 Bad Request" in await answer(port, b"nonsense\r\n\r\n")


async def test_a_client_that_sends_no_request_in_time_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    async with serving() as (_, port):
        assert b"408 Request Timeout" in await answer(port)
        assert b"408 Request Timeout" in await answer(port, b"GET / HTTP/1.1\r\nhost: ")
        async with asyncio.timeout(BOUND_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            writer.write(b"\r\n")  # no request yet, but it ends uvicorn's timer
            assert b"408 Request Timeout" in await reader.read()
            writer.close()


async def test_connections_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as (_, port), httpx.AsyncClient(timeout=BOUND_SECONDS) as client:
        await client.get(f"http://127.0.0.1:{port}/")
        monkeypatch.setattr(connection, "MAX_CONNECTIONS", 1)
        assert b"503 Service Unavailable" in await answer(port)
        monkeypatch.setattr(connection, "MAX_CONNECTIONS", 1000)
        assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200


async def test_it_serves_again_after_a_failure_and_closes_running_requests() -> None:
    bound = bound_socket()
    port = bound.getsockname()[1]
    listener = HttpListener(application, bound)
    for _ in range(2):  # the supervisor starts a task that has failed again
        task = asyncio.create_task(listener.run())
        await connected(port)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    task = asyncio.create_task(listener.run())
    await connected(port)
    async with httpx.AsyncClient(timeout=BOUND_SECONDS) as client:
        waiting = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/wait"))
        assert (await client.get(f"http://127.0.0.1:{port}/")).text.startswith("ipv4:127.0.0.1:")
        await listener.close(0.0)
        with pytest.raises(httpx.RemoteProtocolError):
            await waiting
    await asyncio.wait_for(task, BOUND_SECONDS)
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_unix_socket_is_served(tmp_path: Path) -> None:
    bound = socket.socket(socket.AF_UNIX)
    bound.settimeout(0)
    bound.bind(str(tmp_path / "h.sock"))
    async with serving(bound=bound):
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "h.sock"), retries=100)
        async with httpx.AsyncClient(transport=transport, timeout=BOUND_SECONDS) as client:
            assert (await client.get("http://localhost/")).text == "unix:\n"


async def test_new_connections_get_a_renewed_certificate_and_show_the_clients_own(
    tmp_path: Path,
) -> None:
    files = Files(tmp_path)
    tls = ListenerTls(files.certificate, files.key, files.ca)
    certificate, key = files.issue("client", "spiffe://example.org/web")
    old = ssl.create_default_context(cafile=files.ca)
    old.load_cert_chain(certificate, key)
    async with serving(tls) as (_, port):
        url = f"https://localhost:{port}/"
        async with httpx.AsyncClient(verify=old, timeout=BOUND_SECONDS) as client:
            assert "BEGIN CERTIFICATE" in (await client.get(url)).text
            renewed = Authority()
            for path, content in zip(
                (files.certificate, files.key), renewed.issue("localhost"), strict=True
            ):
                await asyncio.to_thread(path.write_bytes, content)
            await asyncio.to_thread(tls.load)
            assert (await client.get(url)).status_code == 200  # on the connection that it has
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient(verify=old, timeout=BOUND_SECONDS) as client:
                async with asyncio.timeout(BOUND_SECONDS):
                    while True:
                        await client.get(url, headers={"connection": "close"})
        new = ssl.create_default_context(cadata=renewed.pem.decode())
        new.load_cert_chain(certificate, key)
        async with httpx.AsyncClient(verify=new, timeout=BOUND_SECONDS) as client:
            assert (await client.get(url)).status_code == 200
        without = ssl.create_default_context(cadata=renewed.pem.decode())
        with pytest.raises(httpx.TransportError):
            async with httpx.AsyncClient(verify=without, timeout=BOUND_SECONDS) as client:
                await client.get(url)


def test_files_that_cannot_be_used_leave_the_last_context(tmp_path: Path) -> None:
    files = Files(tmp_path)
    tls = ListenerTls(files.certificate, files.key, None)
    before = tls.context
    files.key.write_text("nonsense")
    with pytest.raises(ValueError, match="tls_key_file"):
        tls.load()
    assert tls.context is before


async def test_uvicorn_sets_up_no_logging() -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    async with serving():
        loggers = [logging.getLogger(n) for n in ("uvicorn", "uvicorn.error", "uvicorn.access")]
        assert root.handlers == before
        assert not any(each.handlers for each in loggers)
