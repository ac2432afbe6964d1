"""Daemons that share a PostgreSQL database and forward calls to each other, for tests."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Files
from google.protobuf.duration_pb2 import Duration
from postgres import Server, running
from running import RunningDaemon, StartDaemon
from wire import details

from ruvd.v1 import session_service_pb2 as pb

LEASE_SECONDS = 2.0
SLOW = ("--echo-delay-seconds", "0.1")
WORDS = "one two three four five six seven eight nine ten"
GRACE = Duration(seconds=60)


@contextmanager
def database() -> Iterator[Server]:
    """Runs a PostgreSQL server."""
    with tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory) / "server") as started:
            yield started


def empty_store(server: Server) -> str:
    """Returns the setting `store` of daemons that share an empty database."""
    conninfo = server.new_schema()
    schema = conninfo.partition("search_path=")[2].rstrip("'")
    return f"postgresql://ruvd@/postgres?host={server.directory}&options=-csearch_path%3D{schema}"


def peer_flags(files: Files) -> tuple[str, ...]:
    """Returns the flags of a daemon that other replicas may call."""
    return (
        *("--peer-listen", "127.0.0.1:0", "--peer-tls-ca-file", str(files.ca)),
        *("--peer-tls-cert-file", str(files.certificate), "--peer-tls-key-file", str(files.key)),
    )


@asynccontextmanager
async def replicas(
    daemon: StartDaemon, folder: Path, store: str, count: int, *flags: str
) -> AsyncIterator[tuple[list[RunningDaemon], list[Any]]]:
    """Yields daemons that share a store, and stubs of them."""
    async with AsyncExitStack() as stack:
        started = []
        for number in range(count):
            place = folder / str(number)
            place.mkdir(exist_ok=True)
            context = daemon(
                *("--engine", "echo", "--store", store, *flags),
                *("--store-lease-seconds", str(LEASE_SECONDS), "--drain-seconds", "1"),
                folder=place,
            )
            started.append(await stack.enter_async_context(context))
        yield started, [await stack.enter_async_context(each.stub()) for each in started]


async def until_delta(call: Any) -> list[pb.CompletionEvent]:
    """Reads a stream until its first delta."""
    read = []
    async for response in call:
        read.append(response.event)
        if response.event.HasField("delta"):
            return read
    raise AssertionError("the stream ended without a delta")


async def rest(call: Any) -> list[pb.CompletionEvent]:
    """Reads the rest of a stream."""
    return [response.event async for response in call]


def texts(read: list[pb.CompletionEvent]) -> str:
    """Returns the text of the deltas."""
    return "".join(each.delta.text for each in read)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """Returns the error of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            await rest(call)
        else:
            await call
    return caught.value


async def reason(call: Any) -> str:
    """Returns the reason with which a call fails."""
    return details(await failure(call))[0]
