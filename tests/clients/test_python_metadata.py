"""The metadata of the Python client's calls, and its retries of read-only calls."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from ruvd_client import AsyncClient, Client, RuvdError
from scripted_service import serving

from ruvd.v1 import session_service_pb2 as pb

TRACE = trace.SpanContext(
    trace_id=0xABC, span_id=0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1)
)


class Recorder:
    """A server that records the metadata of calls. Its first `failures` calls are UNAVAILABLE."""

    def __init__(self, failures: int = 0) -> None:
        self.address = ""
        self.received: list[Mapping[str, str | bytes]] = []
        self._failures = failures

    async def _list_models(
        self,
        request: pb.ListModelsRequest,
        context: grpc.aio.ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse],
    ) -> pb.ListModelsResponse:
        self.received.append(dict(context.invocation_metadata() or ()))
        if len(self.received) <= self._failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
        return pb.ListModelsResponse(models=["m"])

    async def _complete(
        self,
        request: pb.CompleteRequest,
        context: grpc.aio.ServicerContext[pb.CompleteRequest, pb.CompleteResponse],
    ) -> AsyncIterator[pb.CompleteResponse]:
        self.received.append(dict(context.invocation_metadata() or ()))
        if len(self.received) <= self._failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
        yield pb.CompleteResponse(event=pb.CompletionEvent(sequence=1, finished=pb.Finished()))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Recorder]:
        """Listens on a free loopback port and sets `address`."""
        handlers: dict[str, Callable[..., Any]] = {
            "ListModels": self._list_models,
            "Complete": self._complete,
        }
        async with serving(handlers) as self.address:
            yield self


async def test_every_call_carries_the_callers_metadata_and_trace_context() -> None:
    def use(address: str) -> None:
        with (
            Client(address, metadata=[("x-tenant", "blue")]) as client,
            trace.use_span(trace.NonRecordingSpan(TRACE)),
        ):
            client.list_models()
            client.complete("hi").text()

    async with Recorder().running() as server:
        await asyncio.to_thread(use, server.address)
        async with AsyncClient(server.address, metadata=[("x-tenant", "blue")]) as client:
            with trace.use_span(trace.NonRecordingSpan(TRACE)):
                await client.list_models()
                await client.complete("hi").text()
            await client.list_models()
    *traced, untraced = server.received
    assert len(traced) == 4
    for metadata in traced:
        assert metadata["x-tenant"] == "blue"
        assert metadata["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert untraced["x-tenant"] == "blue"
    assert "traceparent" not in untraced


async def test_the_client_does_not_import_opentelemetry_by_itself(address: str) -> None:
    program = (
        "import sys; from ruvd_client import Client\n"
        "with Client() as client: print(client.complete('hi').text())\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env={"RUVD_ADDRESS": address},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        assert await process.communicate() == (b"hi\n", b"")


async def test_a_read_is_attempted_four_times_while_the_daemon_is_unavailable() -> None:
    async with Recorder(failures=3).running() as server, AsyncClient(server.address) as client:
        assert (await client.list_models()).models == ["m"]
        assert len(server.received) == 4
    async with Recorder(failures=4).running() as server, AsyncClient(server.address) as client:
        with pytest.raises(RuvdError) as caught:
            await client.list_models()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert len(server.received) == 4


async def test_every_attempt_of_a_completion_asks_for_a_token() -> None:
    numbers = itertools.count(1)

    def token() -> str:
        return f" t{next(numbers)}\n"

    async def async_token() -> str:
        return token()

    def use(address: str) -> None:
        with Client(address, token=token) as client:
            client.complete("hi").text()

    async with Recorder(failures=1).running() as server:
        await asyncio.to_thread(use, server.address)
    async with (
        Recorder(failures=1).running() as again,
        AsyncClient(again.address, token=async_token) as client,
    ):
        await client.complete("hi").text()
    sent = [metadata["authorization"] for metadata in (*server.received, *again.received)]
    assert sent == [f"Bearer t{number}" for number in range(1, 5)]


async def test_a_function_that_has_no_token_fails_the_call_and_nothing_is_sent() -> None:
    def no_token() -> str:
        raise LookupError("the vault is sealed")

    failures: list[RuvdError] = []

    def use(address: str) -> None:
        with Client(address, token=no_token) as client:
            for call in (client.list_models, partial(client.complete, "hi")):
                with pytest.raises(RuvdError) as caught:
                    call()
                failures.append(caught.value)
            with pytest.raises(RuvdError) as caught:
                list(client.batch(["hi"]))
            failures.append(caught.value)

    async with Recorder().running() as server:
        await asyncio.to_thread(use, server.address)
        async with AsyncClient(server.address, token=no_token) as client:
            for call in (client.list_models, client.complete("hi").text):
                with pytest.raises(RuvdError) as caught:
                    await call()
                failures.append(caught.value)
    assert len(failures) == 5
    assert not server.received
    for failure in failures:
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "")
        assert "the vault is sealed" in failure.message
