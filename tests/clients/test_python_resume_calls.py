"""The Python client where its stream breaks, is left or is dropped."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from fault_proxy import FaultProxy
from running import RunningDaemon, StartDaemon
from ruvd_client import AsyncClient, Client, OnDisconnect, RuvdError
from ruvd_client.answers import GRACE_SECONDS

LONG_MESSAGE = " ".join(["word"] * 2_000)
SLOW = ("--engine", "echo", "--echo-delay-seconds", "0.05")


@asynccontextmanager
async def slow_daemon(daemon: StartDaemon) -> AsyncIterator[RunningDaemon]:
    async with daemon(*SLOW) as running:
        yield running


# --- breaks ------------------------------------------------------------------------------------


async def test_text_comes_whole_and_once_over_many_cuts(slow_address: str) -> None:
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


async def test_a_cut_is_resumed_for_threads_as_well(slow_address: str) -> None:
    proxy = FaultProxy(slow_address, after=2, times=None)

    def use(address: str) -> None:
        with Client(address) as client:
            answer = client.complete("one two three four", session_id="s")
            assert "".join(answer) == "one two three four"
            assert client.get_session("s").message_count == 2

    async with proxy.running():
        await asyncio.to_thread(use, proxy.address)
    assert proxy.cuts > 1


async def test_a_completion_that_was_only_resumed_is_resumed_again(slow_address: str) -> None:
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


async def test_a_daemon_that_stays_away_is_unavailable_after_reconnect_seconds(
    slow_address: str,
) -> None:
    proxy = FaultProxy(slow_address)
    async with proxy.running(), AsyncClient(proxy.address, reconnect_seconds=0.5) as client:
        answer = client.complete(LONG_MESSAGE, disconnect_grace_seconds=0)
        assert await anext(answer)
        began = time.monotonic()
        proxy.closed = True
        with pytest.raises(RuvdError) as caught:
            await answer.text()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.reason == ""
        assert 0.4 < time.monotonic() - began < 10
        with pytest.raises(RuvdError):  # and it stays failed
            await answer.text()


# --- leaving -----------------------------------------------------------------------------------


async def test_leaving_stops_the_engine_at_once_and_not_after_the_grace(
    daemon: StartDaemon,
) -> None:
    async with slow_daemon(daemon) as running, AsyncClient(running.address) as client:
        async with client.complete(LONG_MESSAGE, session_id="s") as answer:
            assert await anext(answer)
            left = time.monotonic()
        assert time.monotonic() - left < 1.0
        line = await running.logged("completion failed", session_id="s")
        assert line["reason"] == "COMPLETION_CANCELLED"
        assert time.monotonic() - left < GRACE_SECONDS / 2


async def test_a_task_that_is_cancelled_stops_the_engine_at_once(daemon: StartDaemon) -> None:
    async with slow_daemon(daemon) as running, AsyncClient(running.address) as client:
        answer = client.complete(LONG_MESSAGE, session_id="s")
        assert await anext(answer)
        left = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await answer.text()
        await running.logged("completion failed", session_id="s")
        assert time.monotonic() - left < GRACE_SECONDS / 2


async def test_a_loop_that_is_broken_out_of_stops_the_engine_at_once(daemon: StartDaemon) -> None:
    async with slow_daemon(daemon) as running, AsyncClient(running.address) as client:
        async for _ in client.complete(LONG_MESSAGE, session_id="s"):
            break
        left = time.monotonic()
        gc.collect()
        await running.logged("completion failed", session_id="s")
        assert time.monotonic() - left < GRACE_SECONDS / 2


async def test_a_loop_of_a_thread_that_is_broken_out_of_is_over_by_the_next_call(
    slow_address: str,
) -> None:
    def use() -> None:
        with Client(slow_address) as client:
            for _ in client.complete(LONG_MESSAGE, session_id="s"):
                break
            gc.collect()
            left = time.monotonic()
            assert client.complete("next", session_id="s").text() == "next"
            assert time.monotonic() - left < GRACE_SECONDS / 2
            assert client.get_session("s").message_count == 2

    await asyncio.to_thread(use)


async def test_closing_the_client_sends_what_is_to_be_cancelled(daemon: StartDaemon) -> None:
    def use(address: str) -> None:
        with Client(address) as client, client.complete(LONG_MESSAGE, session_id="s") as answer:
            assert next(answer)

    async with slow_daemon(daemon) as running:
        await asyncio.to_thread(use, running.address)
        left = time.monotonic()
        await running.logged("completion failed", session_id="s")
        assert time.monotonic() - left < GRACE_SECONDS / 2


async def test_who_asks_to_go_on_without_a_reader_may_leave(slow_address: str) -> None:
    async with AsyncClient(slow_address) as client:
        async with client.complete(
            "a b c d", session_id="s", on_disconnect=OnDisconnect.ON_DISCONNECT_CONTINUE
        ) as answer:
            assert await anext(answer) == "a"
        assert await client.complete("next", session_id="s").text() == "next"
        assert (await client.get_session("s")).message_count == 4


async def test_an_answer_whose_client_is_closed_ends_with_an_error(slow_address: str) -> None:
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
        await asyncio.sleep(0)  # it reads now
        await client.close()
        with pytest.raises(RuvdError) as caught:
            await reading
        assert caught.value.code is grpc.StatusCode.CANCELLED
