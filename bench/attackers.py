"""Callers that attack a daemon, each in a way that has taken its memory or its time before.

Every attack runs in a loop of its own, and each of its calls is counted by its outcome: `answered`,
the reason of the refusal, or a bare status. A bare status is not allowed, but for what gRPC's core
refuses above its receive limit (`too large for gRPC`). Prints one JSON object at the end. It is a
process of its own, so that its load on the CPU is not the clients'.

Run it with `.venv/bin/python -m bench.attackers --address unix:PATH --seconds 60`; the sessions
that some attacks read are made first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
import h2.config
import h2.connection
from google.rpc import error_details_pb2, status_pb2

from bench.mock_upstream import HUGE_MODEL, MODEL, PACED_MODEL
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

SERVICE = "/ruvd.v1.SessionService/"
LARGE_SESSION = "attack-large"
_EMPTY_MESSAGES = b"\x12\x00" * 1_900_000
_GZIP_BYTES = 64 << 20
_SESSION_MB = 15
_SESSIONS = 1000
_CALL_SECONDS = 30.0
OWN_DEADLINE = "own deadline"
_PAUSE_SECONDS = 0.1
_HOLD_SECONDS = 3.0
_CHANNELS = 6
_CONSTANTS = 980


class Attackers:
    """The attacks on one daemon, and the outcomes of their calls."""

    def __init__(self, address: str, stack: AsyncExitStack, *, embedded: bool) -> None:
        self._embedded = embedded
        self._path = address.removeprefix("unix:")
        self._address = address
        self._stack = stack
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self._channels: list[grpc.aio.Channel] = []
        self._stubs: list[Any] = []
        self._number = 0

    async def connect(self) -> None:
        """Opens the connections, which several callers share."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        for _ in range(_CHANNELS):
            channel = grpc.aio.insecure_channel(self._address, options)
            self._channels.append(await self._stack.enter_async_context(channel))
            self._stubs.append(pb_grpc.SessionServiceStub(channel))

    async def prepare(self) -> None:
        """Makes a session of 15 MB, and 1,000 sessions with 64 labels each."""
        stub = self._stubs[0]
        await stub.EndSession(pb.EndSessionRequest(session_id=LARGE_SESSION, allow_missing=True))
        await stub.CreateSession(pb.CreateSessionRequest(session_id=LARGE_SESSION))
        text = "x" * 99_990
        roles = (pb.ROLE_USER, pb.ROLE_ASSISTANT)
        messages = [pb.Message(role=roles[number % 2], content=text) for number in range(10)]
        for _ in range(_SESSION_MB):
            await stub.AppendMessages(
                pb.AppendMessagesRequest(session_id=LARGE_SESSION, messages=messages)
            )
        labels = {f"{number:03}-{'k' * 59}": "v" * 255 for number in range(64)}
        for number in range(_SESSIONS):
            await stub.CreateSession(
                pb.CreateSessionRequest(session_id=f"labelled-{number}", labels=labels)
            )

    async def run(self, seconds: float, only: Sequence[str] = ()) -> None:
        """Runs all attacks, or those that are named, at the same time."""
        until = time.monotonic() + seconds
        attacks: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.empty_messages, 2), (self.gzip_bomb, 2), (self.no_protobuf, 2),
            (self.full_history, 50), (self.list_sessions, 20), (self.huge_answer, 4),
            (self.slow_readers, 1), (self.slow_streams, 1), (self.rapid_resets, 2),
            (self.flood, 2), (self.large_request, 10),
        ]  # fmt: skip
        if self._embedded:
            attacks += [(self.schemas, 4)]
        async with asyncio.TaskGroup() as group:
            for attack, callers in attacks:
                if only and attack.__name__ not in only:
                    continue
                for _ in range(callers):
                    group.create_task(self._repeat(attack, until))

    async def _repeat(self, attack: Callable[[], Awaitable[None]], until: float) -> None:
        while time.monotonic() < until:
            with suppress(OSError):  # the daemon closes connections that misbehave
                await attack()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _count(self, name: str, call: Awaitable[Any]) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            self.outcomes[name][outcome(error)] += 1
        else:
            self.outcomes[name]["answered"] += 1

    def _next(self) -> int:
        self._number += 1
        return self._number % _CHANNELS

    async def _bytes(self, data: bytes, compression: grpc.Compression | None = None) -> None:
        complete: Any = self._channels[self._next()].unary_stream(f"{SERVICE}Complete")
        async for _ in complete(data, timeout=_CALL_SECONDS, compression=compression):
            pass

    async def _complete(self, request: pb.CompleteRequest) -> None:
        async for _ in self._stubs[self._next()].Complete(request, timeout=_CALL_SECONDS):
            pass

    async def empty_messages(self) -> None:
        """1.9 million empty messages in 3.8 MB."""
        await self._count("empty messages", self._bytes(_EMPTY_MESSAGES))

    async def gzip_bomb(self) -> None:
        """64 MiB in 61 kB."""
        bomb = self._bytes(bytes(_GZIP_BYTES), grpc.Compression.Gzip)
        await self._count("gzip bombs", bomb)

    async def no_protobuf(self) -> None:
        """Bytes that are no request."""
        await self._count("no protobuf", self._bytes(b"\xff" * 50))

    async def full_history(self) -> None:
        """A page of the session of 15 MB, as large as it may be."""
        request = pb.GetSessionRequest(
            session_id=LARGE_SESSION, view=pb.SESSION_VIEW_FULL, page_size=1000
        )
        call = self._stubs[self._next()].GetSession(request, timeout=_CALL_SECONDS)
        await self._count("full histories", call)

    async def list_sessions(self) -> None:
        """A page of the sessions with 64 labels, as large as it may be."""
        request = pb.ListSessionsRequest(page_size=1000)
        call = self._stubs[self._next()].ListSessions(request, timeout=_CALL_SECONDS)
        await self._count("lists of sessions", call)

    async def huge_answer(self) -> None:
        """An upstream that streams 390 MB in small deltas."""
        await self._count("huge answers", self._complete(self._turn("go on", HUGE_MODEL)))

    async def schemas(self) -> None:
        """Schemas with as many values as are allowed, and with twenty times as many."""
        for count in (20_000, 330, 980):
            names = [f"property_{number}" for number in range(count)]
            schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
            if count == _CONSTANTS:
                schema = {"enum": [f"{name} {'x' * 900}" for name in names]}
            request = self._turn("go on")
            request.options.response_format.json_schema = json.dumps(schema)
            await self._count("schemas", self._complete(request))

    def _turn(self, text: str, model: str = MODEL) -> pb.CompleteRequest:
        """Returns a request for the mock upstream's model, or a short one for the embedded one."""
        request = turn(text, "" if self._embedded else model)
        if self._embedded:
            request.options.max_tokens = 1000 if model == HUGE_MODEL else 2
        return request

    async def large_request(self) -> None:
        """A valid request of 3 MB."""
        request = self._turn("hi")
        for _ in range(3):
            request.messages.insert(0, pb.Message(role=pb.ROLE_USER, content="x" * 1_000_000))
        await self._count("large requests", self._complete(request))

    async def flood(self) -> None:
        """500 calls at once."""
        calls = [self._complete(self._turn("hi")) for _ in range(500)]
        await asyncio.gather(*(self._count("floods", call) for call in calls))

    async def slow_readers(self) -> None:
        """20 readers of large histories that never read."""
        request = pb.GetSessionRequest(
            session_id=LARGE_SESSION, view=pb.SESSION_VIEW_FULL, page_size=1000
        )
        await self._hold("GetSession", request.SerializeToString())

    async def slow_streams(self) -> None:
        """20 readers of long answers that never read."""
        await self._hold("Complete", self._turn("go on", HUGE_MODEL).SerializeToString())

    async def _hold(self, method: str, data: bytes) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(20):
                connection = await RawConnection.open(self._path)
                stack.callback(connection.close)
                await connection.call(1, method, data)
                self.outcomes[f"never read {method}"]["sent"] += 1
            await asyncio.sleep(_HOLD_SECONDS)

    async def rapid_resets(self) -> None:
        """100 calls that are reset at once, on one connection."""
        connection = await RawConnection.open(self._path)
        try:
            data = self._turn("hi", PACED_MODEL).SerializeToString()
            for number in range(100):
                await connection.call(2 * number + 1, "Complete", data, reset=True)
                self.outcomes["rapid resets"]["sent"] += 1
        finally:
            connection.close()


class RawConnection:
    """An HTTP/2 connection that never reads: it lets a server send the first 64 KiB only."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._http.initiate_connection()

    @classmethod
    async def open(cls, path: str) -> RawConnection:
        """Connects to a Unix socket."""
        _, writer = await asyncio.open_unix_connection(path)
        return cls(writer)

    async def call(self, stream: int, method: str, data: bytes, *, reset: bool = False) -> None:
        """Makes a call, and may reset it at once."""
        headers = {
            ":method": "POST", ":scheme": "http", ":path": f"{SERVICE}{method}",
            ":authority": "localhost", "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        self._http.send_headers(stream, list(headers.items()))
        message = b"\0" + len(data).to_bytes(4, "big") + data
        self._http.send_data(stream, message, end_stream=True)
        if reset:
            self._http.reset_stream(stream)
        self._writer.write(self._http.data_to_send())
        await self._writer.drain()

    def close(self) -> None:
        """Closes the connection without a goodbye."""
        self._writer.transport.abort()


def turn(text: str, model: str = MODEL) -> pb.CompleteRequest:
    """Returns a request without a session."""
    message = pb.Message(role=pb.ROLE_USER, content=text)
    return pb.CompleteRequest(messages=[message], options=pb.CompletionOptions(model=model))


def outcome(error: grpc.aio.AioRpcError) -> str:
    """Returns the reason of a failed call, or its bare status."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return str(info.reason)
    code, text = error.code(), error.details() or ""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in text:
        return "too large for gRPC"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{OWN_DEADLINE} of {_CALL_SECONDS:g} s"
    return f"bare {code.name}: {text}"[:120]


async def attack(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Prepares, prints a line, and attacks."""
    async with AsyncExitStack() as stack:
        attackers = Attackers(options.address, stack, embedded=options.embedded)
        await attackers.connect()
        await attackers.prepare()
        print("attacking", flush=True)
        await attackers.run(options.seconds, options.only)
        return {name: dict(counts) for name, counts in attackers.outcomes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", required=True, help="unix:PATH of the daemon")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--embedded", action="store_true", help="the engine is the embedded one")
    parser.add_argument("--only", nargs="*", default=(), help="the attacks, by method")
    json.dump(asyncio.run(attack(parser.parse_args())), sys.stdout)
    print(flush=True)


if __name__ == "__main__":
    main()
