"""The Python client after a broken stream, and completions that their caller leaves."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from fault_proxy import FaultProxy
from running import RunningDaemon, StartDaemon
from ruvd_client import AsyncClient, Client, OnDisconnect, RuvdError
from ruvd_client.protocol import CompleteArguments

LONG_MESSAGE = " ".join(["word"] * 2_000)
# With this grace, only an explicit cancel call ends a completion within the tests' time limits.
LONG_GRACE: CompleteArguments = {"session_id": "s", "disconnect_grace_seconds": 120.0}
SLOW = ("--engine", "echo", "--echo-delay-seconds", "0.05")


@asynccontextmanager
async def slow_daemon(daemon: StartDaemon) -> AsyncIterator[RunningDaemon]:
    async with daemon(*SLOW) as running:
        yield running


# --- broken streams ----------------------------------------------------------------------------


async def test_each_text_is_delivered_once_over_many_cuts(slow_address: str) -> None:
    words = " ".join(f"w{number}" for number in range(12))
    for after in (0, 1, 2):
        times = None if after else 2
        proxy = FaultProxy(slow_address, after=after, times=times)
        async with proxy.running(), AsyncClient(proxy.address) as client:
            pieces = [text async for text in client.complete(words, session_id=f"s{after}")]
            assert "".join(pieces) == words
        async with AsyncClient(slow_address) as client:
            assert (await client.get_session(f"s{after}")).message_count == 2
        assert proxy.cuts > 1


async def test_the_blocking_client_resumes_a_cut_stream(slow_address: str) -> None:
    proxy = FaultProxy(slow_address, after=2, times=None)

    def use(address: str) -> None:
        with Client(address) as client:
            answer = client.complete("one two three four", session_id="s")
            assert "".join(answer) == "one two three four"
            assert client.get_session("s").message_count == 2

    async with proxy.running():
        await asyncio.to_thread(use, proxy.address)
    assert proxy.cuts > 1


async def test_a_resumed_completion_is_resumed_again_after_a_cut(slow_address: str) -> None:
    proxy = FaultProxy(slow_address, after=2, times=None)
    async with (
        proxy.running(),
        AsyncClient(slow_address) as client,
        AsyncClient(proxy.address) as cut,
    ):
        answer = client.complete("a b c d e f", session_id="s", request_id="r")
        assert await anext(answer) == "a"
        again = cut.resume_completion(session_id="s", request_id="r")
        assert "".join([text async for text in again]) == "a b c d e f"
        assert await answer.text() == "a b c d e f"
    assert proxy.cuts > 1


async def test_an_answer_fails_after_reconnect_seconds_without_a_daemon(
    slow_address: str,
) -> None:
    proxy = FaultProxy(slow_address)
    async with (
        proxy.running(),
        AsyncClient(proxy.address, reconnect_seconds=0.5) as client,
        AsyncClient(proxy.address) as patient,
    ):
        answer, other = (
            each.complete(LONG_MESSAGE, disconnect_grace_seconds=0) for each in (client, patient)
        )
        assert await anext(answer)
        assert await anext(other)
        start = time.monotonic()
        proxy.closed = True
        waiting = asyncio.create_task(other.text())
        with pytest.raises(RuvdError) as caught:
            await answer.text()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.reason == ""
        assert time.monotonic() - start > 0.4
        assert not waiting.done()  # by default it takes ten seconds
        with pytest.raises(RuvdError):  # the error persists
            await answer.text()
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting


# --- leaving -----------------------------------------------------------------------------------


async def test_leaving_the_block_stops_the_engine_before_the_grace_ends(
    daemon: StartDaemon,
) -> None:
    async with slow_daemon(daemon) as running, AsyncClient(running.address) as client:
        async with client.complete(LONG_MESSAGE, **LONG_GRACE) as answer:
            assert await anext(answer)
        line = await running.logged("completion failed", session_id="s")
        assert line["reason"] == "COMPLETION_CANCELLED"


async def test_cancelling_the_task_stops_the_engine_before_the_grace_ends(
    daemon: StartDaemon,
) -> None:
    async with slow_daemon(daemon) as running, AsyncClient(running.address) as client:
        answer = client.complete(LONG_MESSAGE, **LONG_GRACE)
        assert await anext(answer)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await answer.text()
        await running.logged("completion failed", session_id="s")


async def test_breaking_out_of_the_loop_stops_the_engine_before_the_grace_ends(
    daemon: StartDaemon,
) -> None:
    async with slow_daemon(daemon) as running, AsyncClient(running.address) as client:
        async for _ in client.complete(LONG_MESSAGE, **LONG_GRACE):
            break
        gc.collect()
        await running.logged("completion failed", session_id="s")


async def test_breaking_out_of_a_blocking_loop_stops_the_engine_with_the_next_call(
    slow_address: str,
) -> None:
    def use() -> None:
        with Client(slow_address) as client:
            for _ in client.complete(LONG_MESSAGE, **LONG_GRACE):
                break
            gc.collect()
            assert client.complete("next", session_id="s", timeout=30).text() == "next"
            assert client.get_session("s").message_count == 2

    await asyncio.to_thread(use)


async def test_closing_the_client_sends_pending_cancel_calls(daemon: StartDaemon) -> None:
    def use(address: str) -> None:
        with Client(address) as client, client.complete(LONG_MESSAGE, **LONG_GRACE) as answer:
            assert next(answer)

    async with slow_daemon(daemon) as running:
        await asyncio.to_thread(use, running.address)
        await running.logged("completion failed", session_id="s")


async def test_a_completion_with_on_disconnect_continue_is_committed_without_a_reader(
    slow_address: str,
) -> None:
    async with AsyncClient(slow_address) as client:
        async with client.complete(
            "a b c d", session_id="s", on_disconnect=OnDisconnect.ON_DISCONNECT_CONTINUE
        ) as answer:
            assert await anext(answer) == "a"
        assert await client.complete("next", session_id="s").text() == "next"
        assert (await client.get_session("s")).message_count == 4


async def test_closing_the_client_ends_its_answers_with_an_error(slow_address: str) -> None:
    def use() -> None:
        client = Client(slow_address)
        answer = client.complete(LONG_MESSAGE, disconnect_grace_seconds=0)
        assert next(answer)
        client.close()
        with pytest.raises(RuvdError) as caught:
            answer.text()
        assert caught.value.code is grpc.StatusCode.CANCELLED
        with pytest.raises(RuvdError):
            client.complete("too late")

    await asyncio.to_thread(use)
    async with AsyncClient(slow_address) as client:
        answer = client.complete(LONG_MESSAGE, disconnect_grace_seconds=0)
        assert await anext(answer)
        reading = asyncio.create_task(answer.text())
        await asyncio.sleep(0)  # lets the task start reading
        await client.close()
        with pytest.raises(RuvdError) as caught:
            await reading
        assert caught.value.code is grpc.StatusCode.CANCELLED
