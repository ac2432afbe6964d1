"""Requests as clients really send them: with an upgrade on offer, in pieces, several at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ruvd.http.listener import HttpListener
from ruvd.http.scopes import Receive, Scope, Send

BOUND_SECONDS = 60.0
# What java.net.http.HttpClient sends with every request over plain text.
OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
)


class Application:
    """Answers with method, path and body. `/wait` notes that it waits, and that its client went."""

    def __init__(self) -> None:
        self.waits = asyncio.Semaphore(0)
        self.gone = asyncio.Semaphore(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        if scope["path"] == "/wait":
            self.waits.release()
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone.release()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"late"})
            return
        told = f"{scope['method']} {scope['path']} ".encode() + body
        offers = [name for name, _ in scope["headers"] if name in (b"upgrade", b"http2-settings")]
        assert not offers
        headers = [(b"content-length", b"%d" % len(told))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": told})


@asynccontextmanager
async def serving(application: Application) -> AsyncIterator[int]:
    bound = socket.socket()
    bound.settimeout(0)
    bound.bind(("127.0.0.1", 0))
    bound.listen()
    listener = HttpListener(application, bound)
    task = asyncio.create_task(listener.run())
    try:
        yield bound.getsockname()[1]
    finally:
        await listener.close(0.0)
        await asyncio.wait_for(task, BOUND_SECONDS)


async def exchange(port: int, *pieces: bytes, ends_with: bytes) -> bytes:
    """Sends pieces and returns what comes back up to an ending, or until the connection closes."""
    async with asyncio.timeout(BOUND_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            with contextlib.suppress(asyncio.IncompleteReadError):
                return await reader.readuntil(ends_with)
            return b""
        finally:
            writer.close()


def post(path: bytes, *headers: bytes, body: bytes = b"hello") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST %s HTTP/1.1\r\nHost: a\r\n%s%s\r\n" % (path, b"".join(headers), length) + body


CHUNKED = (
    b"POST /b HTTP/1.1\r\nHost: a\r\n" + OFFER + b"Transfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
)


@pytest.mark.parametrize("sent", [post(b"/b", OFFER), CHUNKED])
async def test_an_upgrade_that_is_offered_does_not_lose_the_body(sent: bytes) -> None:
    async with serving(Application()) as port:
        whole = await exchange(port, sent, ends_with=b"POST /b hello")
        assert whole.startswith(b"HTTP/1.1 200")
        pieces = [sent[at : at + 7] for at in range(0, len(sent), 7)]
        assert await exchange(port, *pieces, ends_with=b"POST /b hello")


async def test_offers_among_pipelined_requests_are_answered_in_order() -> None:
    async with serving(Application()) as port:
        requests = [post(b"/%d" % n, OFFER if n % 2 else b"", body=b"b%d" % n) for n in range(200)]
        answers = await exchange(port, b"".join(requests), ends_with=b"POST /199 b199")
        assert [answers.index(b"POST /%d b%d" % (n, n)) for n in range(200)] == sorted(
            answers.index(b"POST /%d b%d" % (n, n)) for n in range(200)
        )


async def test_other_offers_are_declined_and_tunnels_refused() -> None:
    websocket = b"GET /w HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade\r\n"
    websocket += b"Upgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    async with serving(Application()) as port:
        assert (await exchange(port, websocket, ends_with=b"GET /w ")).startswith(b"HTTP/1.1 200")
        tunnel = b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"
        assert b" 400 " in await exchange(port, tunnel, ends_with=b"received.")


async def test_every_pipelined_request_hears_that_the_client_has_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    application = Application()
    async with serving(application) as port:
        async with asyncio.timeout(BOUND_SECONDS):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(b"/wait") + post(b"/later"))
            await application.waits.acquire()
            writer.transport.abort()
            await application.gone.acquire()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
