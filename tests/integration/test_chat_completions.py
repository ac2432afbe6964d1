"""The client of the chat completions API, against servers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ruvd.core.errors import (
    ContextTooLong,
    EngineRateLimited,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    RuvdError,
)
from ruvd.core.model import FinishReason, Message, Role, Usage
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, EngineText
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.credentials import ApiKey
from ruvd.engines.http.http1 import Http1Transport

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

REQUEST = EngineRequest([Message(Role.USER, "hi")], trace_headers={"traceparent": "00-1-2-01"})
TEXT = b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
TOO_LONG = (
    b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error",'
    b'"n_prompt_tokens":9,"n_ctx":5}}'
)


def answer(body: bytes, *, status: str = "200 OK", kind: str = "text/event-stream") -> bytes:
    """A response whose end is the end of the connection."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


@asynccontextmanager
async def serving(path: Path, handler: Handler) -> AsyncIterator[ChatCompletionsClient]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(handle, path)
    client = ChatCompletionsClient(
        transport=Http1Transport(path=path),
        api_key=ApiKey("key"),
        read_seconds=0.5,
        connect_seconds=0.2,
        keep_alive=False,
    )
    try:
        yield client
    finally:
        await client.close()
        server.close()
        await server.wait_closed()


def saying(response: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(response)
        await writer.drain()

    return handler


async def collect(client: ChatCompletionsClient) -> list[EngineChunk]:
    return [chunk async for chunk in client.complete(REQUEST, model="m")]


async def test_an_answer_carries_what_the_server_measured(tmp_path: Path) -> None:
    figures = (
        b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2},'
        b'"timings":{"cache_n":5,"prompt_ms":250.0}}\r\n\r\n'
    )
    body = b": ping\n\n" + TEXT + END + figures + b"data: [DONE]\n\n"
    async with serving(tmp_path / "s", saying(answer(body))) as client:
        chunks = await collect(client)
    done = EngineDone(FinishReason.STOP, Usage(7, 5, 2), 0.25, "stop")
    assert chunks == [EngineText("Hel"), done]


async def test_the_request_has_the_key_and_the_trace_headers(tmp_path: Path) -> None:
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(answer(END))

    async with serving(tmp_path / "s", handler) as client:
        assert await collect(client) == [EngineDone(FinishReason.STOP, raw_finish_reason="stop")]
    (request,) = requests
    head = request.lower().partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert b"traceparent: 00-1-2-01" in head
    assert b"authorization: bearer key" in head


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (answer(TEXT), EngineUnavailable, "ended before its end"),
        (answer(b""), EngineUnavailable, "ended before its end"),
        (b"", EngineUnavailable, "cannot be reached"),
        (b"\x00\x01 this is not HTTP\r\n\r\n", EngineUnavailable, "cannot be reached"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 999\r\n\r\n"
            + TEXT,
            EngineUnavailable,
            "cannot be reached",
        ),
        (answer(b"data: {nonsense\n\n"), EngineUnavailable, "makes no sense"),
        (answer(b'data: {"choices": 7}\n\n'), EngineUnavailable, "ended before its end"),
        (answer(b"data: \xff\xfe\n\n"), EngineUnavailable, "before its end: .\ufffd\ufffd"),
        (answer(b"<html>", kind="text/html"), EngineUnavailable, "text/html"),
        (answer(TEXT + b'data: {"error":{"message":"boom"}}\n\n'), EngineUnavailable, "boom"),
        (answer(b"data: " + TOO_LONG + b"\n\n"), ContextTooLong, "too long"),
        (answer(TEXT + b"data: " + TOO_LONG + b"\n\n"), EngineUnavailable, "too long"),
        (answer(TOO_LONG, status="400 Bad Request"), ContextTooLong, "too long"),
        (answer(b'{"error":"no"}', status="422 Unprocessable"), EngineRejected, "no"),
        (answer(b"not json", status="404 Not Found"), EngineRejected, "not json"),
        (answer(b"", status="401 Unauthorized"), EngineUnavailable, "refuses the daemon's cred"),
        (answer(b"", status="500 Oops"), EngineUnavailable, "500"),
        (answer(b"", status="302 Found"), EngineUnavailable, "302"),
    ],
)
async def test_each_way_to_fail_is_one_of_our_errors(
    tmp_path: Path, response: bytes, error: type[RuvdError], words: str
) -> None:
    async with serving(tmp_path / "s", saying(response)) as client:
        with pytest.raises(error, match=words) as raised:
            await collect(client)
    if isinstance(raised.value, ContextTooLong):
        assert (raised.value.prompt_tokens, raised.value.limit_tokens) == (9, 5)


async def test_a_rate_limit_says_when_to_come_back(tmp_path: Path) -> None:
    response = answer(b"{}", status="429 Too Many\r\nRetry-After: 7")
    async with serving(tmp_path / "s", saying(response)) as client:
        with pytest.raises(EngineRateLimited) as limited:
            await collect(client)
    assert limited.value.retry_after_seconds == 7.0


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    client = ChatCompletionsClient(transport=Http1Transport(path=tmp_path / "none"))
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await collect(client)
    await client.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        await collect(client)


async def test_silence_longer_than_the_read_time_out_is_a_timeout(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(TEXT))
        await reader.read()

    async with serving(tmp_path / "s", handler) as client:
        with pytest.raises(EngineTimeout):
            await collect(client)


@pytest.mark.parametrize("before_headers", [True, False])
async def test_cancelling_closes_the_connection_at_once(
    tmp_path: Path,
    before_headers: bool,  # noqa: FBT001
) -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        if not before_headers:
            writer.write(answer(TEXT))
        asked.set()
        assert await reader.read() == b""
        closed.set()

    async with serving(tmp_path / "s", handler) as client:
        task = asyncio.create_task(collect(client))
        await asyncio.wait_for(asked.wait(), 5)
        task.cancel()
        await asyncio.wait_for(closed.wait(), 0.4)
        await asyncio.wait([task])
        assert task.cancelled()
