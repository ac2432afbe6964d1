"""An OpenAI-compatible server whose answers name the turn before, as the prompt shows it."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

NOTHING = "nothing"
_PARTS = 4


def saw(answer: str) -> str:
    """The id of the turn that an answer says it saw."""
    return answer.split()[1]


def _answer(messages: list[dict[str, Any]]) -> str:
    users = [each["content"].split()[0] for each in messages if each["role"] == "user"]
    return f"saw {users[-2] if len(users) > 1 else NOTHING} {secrets.token_hex(8)}"


class RememberingUpstream:
    """Answers in four parts, with a random pause of up to `max_pause_seconds` before each."""

    def __init__(self, max_pause_seconds: float, seed: int = 1) -> None:
        self.url = ""
        self._max_pause_seconds = max_pause_seconds
        self._choose = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RememberingUpstream]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                    length = 0
                    for line in head.split("\r\n"):
                        if line.startswith("content-length:"):
                            length = int(line.partition(":")[2])
                    body = await reader.readexactly(length)
                    if head.startswith("post"):
                        await self._complete(json.loads(body), writer)
                    else:
                        models = json.dumps({"data": [{"id": "m"}]}).encode()
                        writer.write(
                            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                            b"Content-Length: %d\r\n\r\n%s" % (len(models), models)
                        )
                        await writer.drain()
        finally:
            writer.close()

    async def _complete(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        answer = _answer(body["messages"])
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        size = -(-len(answer) // _PARTS)
        for start in range(0, len(answer), size):
            await asyncio.sleep(self._choose.random() * self._max_pause_seconds)
            delta = {"content": answer[start : start + size]}
            self._send(writer, {"choices": [{"index": 0, "delta": delta}]})
            await writer.drain()
        self._send(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._write(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _send(self, writer: asyncio.StreamWriter, chunk: dict[str, Any]) -> None:
        self._write(writer, b"data: " + json.dumps({"id": "1", **chunk}).encode() + b"\n\n")

    @staticmethod
    def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
