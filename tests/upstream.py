"""An OpenAI-compatible server on loopback whose answers a test chooses, down to single bytes.

It is written on bare TCP, because no HTTP server can cut, stall and garble an answer at any byte.
It records each request, and whether the client left before its answer was sent.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

from answers import CUT, STALL, TURN, Answer, Json, Step, models, text


@dataclass(eq=False)
class Request:
    """A request. Header names are in lower case.

    `answered` is set when the whole answer was sent, `left` when the client closed the
    connection before that.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def body(self) -> Json:
        decoded: Json = json.loads(self.raw)
        return decoded

    @property
    def last(self) -> str:
        """The text of the last message."""
        return str(self.body["messages"][-1]["content"])

    @property
    def messages_json(self) -> bytes:
        """The bytes of the array `messages` in the body."""
        start = self.raw.index(b'"messages":') + len(b'"messages":')
        text = self.raw[start:].decode()
        _, end = json.JSONDecoder().raw_decode(text)
        return text[:end].encode()


class Upstream:
    """The server, with its recorded requests and its answers.

    `scripts` are the answers to the next completions. After them, `answer` chooses. Requests other
    than `POST .../chat/completions` are recorded in `lookups` and answered by `lookup`.
    """

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[Request] = []
        self.lookups: list[Request] = []
        self.scripts: deque[Answer] = deque()
        self.answer: Callable[[Request], Answer] = lambda _: text("Hello", " there", "!")
        self.lookup: Callable[[Request], Answer] = lambda _: models()
        self.accepted = 0
        self._open: set[_Connection] = set()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def start(self) -> None:
        """Listens, on the same port as before if there was one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, reuse_address=True, backlog=512
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuses connections and resets the open ones. It can be started again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._open):
            connection.abort()
        await self.until(lambda: not self._open)

    async def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Waits until a condition on this server's state holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self._changed.wait()

    async def asked(self, count: int = 1, seconds: float = 10.0) -> Request:
        """Waits for `count` completion requests, and returns the last of them."""
        await self.until(lambda: len(self.requests) >= count, seconds)
        return self.requests[count - 1]

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def choose(self, request: Request) -> Answer:
        """Records the request and returns its answer."""
        path = request.path.partition("?")[0]
        if request.method != "POST" or not path.endswith("/chat/completions"):
            self.lookups.append(request)
            return self.lookup(request)
        self.requests.append(request)
        return self.scripts.popleft() if self.scripts else self.answer(request)

    def joined(self, connection: _Connection) -> None:
        self.accepted += 1
        self._open.add(connection)
        self.notify()

    def gone(self, connection: _Connection) -> None:
        self._open.discard(connection)
        self.notify()


@asynccontextmanager
async def serving() -> AsyncIterator[Upstream]:
    """A server on a port of its own."""
    upstream = Upstream()
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.stop()


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._received = bytearray()
        self._gone = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._upstream.joined(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._next()

    def eof_received(self) -> bool:
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._upstream.gone(self)

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def abort(self) -> None:
        self._transport.abort()

    def _leave(self) -> None:
        self._gone.set()
        self._may_write.set()

    def _next(self) -> None:
        if self._task is None and (request := self._take()):
            answer = self._upstream.choose(request)
            self._upstream.notify()
            self._task = asyncio.create_task(self._play(request, answer))

    def _take(self) -> Request | None:
        """Returns the next request if it has arrived completely."""
        head, end, rest = bytes(self._received).partition(b"\r\n\r\n")
        if not end:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return None
        del self._received[: len(head) + len(end) + length]
        return Request(method, path, headers, rest[:length])

    async def _play(self, request: Request, answer: Answer) -> None:
        for step in answer:
            if self._gone.is_set():
                break
            if isinstance(step, bytes):
                self._transport.write(step)
                await self._may_write.wait()
            elif isinstance(step, asyncio.Event):
                await self._first_of(step)
            elif isinstance(step, float):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), step)
            else:
                await self._act(step)
        if self._gone.is_set():
            request.left.set()
        else:
            request.answered.set()
        self._upstream.notify()
        self._task = None
        if not self._transport.is_closing():
            self._next()

    async def _act(self, step: Step) -> None:
        if step is STALL:
            await self._gone.wait()
        elif step is TURN:
            await asyncio.sleep(0)
        elif step is CUT:
            self._transport.close()
        else:
            # This sends RST instead of FIN.
            endpoint = self._transport.get_extra_info("socket")
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    async def _first_of(self, event: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(each.wait()) for each in (event, self._gone)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


@contextmanager
def deaf() -> Iterator[str]:
    """The URL of a server that neither accepts nor refuses connections."""
    with socket.socket() as listening, suppress(BlockingIOError):
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        # These fill the queue, so that later connections are not answered.
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.settimeout(0)
            filler.connect_ex(("127.0.0.1", port))
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            for filler in fillers:
                filler.close()


def unused_url() -> str:
    """A URL at which no server listens."""
    with socket.socket() as endpoint:
        endpoint.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{endpoint.getsockname()[1]}/v1"
