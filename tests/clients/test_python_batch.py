"""Batches of the Python client, against a real daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from running import StartDaemon
from ruvd_client import (
    AsyncClient,
    BatchItem,
    BatchOutcome,
    Client,
    RuvdError,
    SessionView,
    request,
)

NONCE = ("--engine", "echo", "--echo-nonce")


def numbers(count: int, **arguments: str) -> Iterator[BatchItem]:
    return (request(f"number {n}", **arguments) for n in range(count))  # type: ignore[arg-type]


def texts(outcomes: list[BatchOutcome]) -> list[str]:
    """Returns the texts in the order of the items, each of which must occur only once."""
    by_index = {outcome.index: outcome.text() for outcome in outcomes}
    assert len(by_index) == len(outcomes)
    return [by_index[index] for index in range(len(outcomes))]


async def test_every_item_has_one_outcome_and_the_summary_has_their_totals(address: str) -> None:
    async with AsyncClient(address) as client:
        batch = client.batch(["just a text", *numbers(50)], max_concurrency=8)
        outcomes = [outcome async for outcome in batch]
        assert texts(outcomes) == ["just a text", *(f"number {n}" for n in range(50))]
        assert all(outcome.request.request_id for outcome in outcomes)
        assert (batch.summary.succeeded, batch.summary.failed) == (51, 0)
        assert batch.summary.usage.completion_tokens == 103
        assert batch.summary.usage.HasField("cached_tokens")
        assert batch.summary.wall_seconds > 0
        assert batch.summary.latency_seconds > 0
        empty = client.batch([])
        assert [outcome async for outcome in empty] == []
        assert empty.summary.succeeded == 0


async def test_outcomes_come_in_the_order_in_which_items_end(slow_address: str) -> None:
    async with AsyncClient(slow_address) as client:
        items = ["word " * 20, "quick"]
        assert [outcome.index async for outcome in client.batch(items)] == [1, 0]


async def test_items_are_split_into_calls_and_read_only_when_needed(address: str) -> None:
    taken = 0

    async def items() -> AsyncIterator[BatchItem]:
        nonlocal taken
        for n in range(200):
            taken += 1
            yield f"number {n}"

    async with AsyncClient(address) as client:
        max_read_ahead, outcomes = 0, []
        async for outcome in client.batch(items(), max_call_bytes=1000):
            outcomes.append(outcome)
            max_read_ahead = max(max_read_ahead, taken - len(outcomes))
        assert texts(outcomes) == [f"number {n}" for n in range(200)]
        assert (
            1 < max_read_ahead < 20
        )  # at least 60 bytes each, plus the first item of the next call


async def test_the_items_of_a_session_keep_their_order_across_calls(address: str) -> None:
    async with AsyncClient(address) as client:
        items = [request(f"{name} {n}", session_id=name) for n in range(20) for name in ("a", "b")]
        batch = client.batch(items, max_call_bytes=500)
        assert all([outcome.error is None async for outcome in batch])
        for name in ("a", "b"):
            session = await client.get_session(name, SessionView.SESSION_VIEW_FULL)
            questions = [message.content for message in session.messages[::2]]
            assert questions == [f"{name} {n}" for n in range(20)]


async def test_a_failed_item_has_the_error_of_a_single_call_and_does_not_affect_the_others(
    address: str,
) -> None:
    async with AsyncClient(address) as client:
        invalid = request("x", session_id="no spaces", top_p=7.0)
        batch = client.batch(["fine", invalid, request("x", session_id="a", require_existing=True)])
        outcomes = {outcome.index: outcome async for outcome in batch}
        assert outcomes[0].text() == "fine"
        with pytest.raises(RuvdError) as raised:
            outcomes[1].text()
        assert raised.value is outcomes[1].error
        assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert raised.value.reason == "INVALID_REQUEST"
        assert {violation.field for violation in raised.value.violations} >= {
            "session_id",
            "options.top_p",
        }
        missing = outcomes[2].error
        assert missing is not None
        assert missing.reason == "SESSION_NOT_FOUND"
        assert (batch.summary.succeeded, batch.summary.failed) == (1, 2)


async def test_an_item_that_is_too_large_for_a_call_is_rejected_alone(daemon: StartDaemon) -> None:
    """This holds also if the daemon's limit is below the client's call size."""
    async with (
        daemon("--engine", "echo", "--max-request-bytes", "2000") as running,
        AsyncClient(running.address) as client,
    ):
        items = [f"number {n}" for n in range(100)]
        items[40] = "word " * 1000
        items[70] = "x" * (65 << 20)  # above gRPC's limit
        outcomes = {outcome.index: outcome async for outcome in client.batch(items)}
        errors = {index: outcome.error for index, outcome in outcomes.items() if outcome.error}
        assert len(outcomes) == 100
        assert set(errors) == {40, 70}
        assert errors[40].reason == "INVALID_REQUEST"
        assert "max_request_bytes" in errors[40].message
        assert errors[70].code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_error_of_the_whole_call_is_raised(address: str) -> None:
    async with AsyncClient(address) as client:
        with pytest.raises(RuvdError) as raised:
            _ = [outcome async for outcome in client.batch(["x", "y"], max_concurrency=-1)]
        assert raised.value.violations[0].field == "max_concurrency"


async def test_a_batch_fails_at_once_if_there_is_no_daemon_at_its_start() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(RuvdError) as raised:
            await anext(client.batch(["x"]))
        assert raised.value.code is grpc.StatusCode.UNAVAILABLE


async def test_the_same_request_ids_are_not_generated_twice(daemon: StartDaemon) -> None:
    async with daemon(*NONCE) as running, AsyncClient(running.address) as client:
        first = [outcome async for outcome in client.batch(numbers(20))]
        again = client.batch([outcome.request for outcome in first], max_call_bytes=500)
        by_id = {outcome.request.request_id: outcome.text() for outcome in first}
        assert {o.request.request_id: o.text() async for o in again} == by_id


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_batch_continues_after_a_restart_of_the_daemon(
    daemon: StartDaemon, how: str
) -> None:
    """The nonces show that each outcome is the answer that the session committed."""
    flags = (*NONCE, "--echo-delay-seconds", "0.02", "--store", "sqlite:s.db")
    items = [request(f"number {n}", session_id=f"s{n % 30}") for n in range(60)]
    async with (
        daemon(*flags, "--drain-seconds", "0.1") as running,
        AsyncClient(running.socket) as client,
    ):
        batch = client.batch(items, max_concurrency=4)
        outcomes = [await anext(batch) for _ in range(10)]
        if how == "kill":
            running.kill()
            await running.ended()
        else:
            await running.stop()
        async with daemon(*flags, folder=running.folder):
            outcomes += [outcome async for outcome in batch]
            answers = texts(outcomes)
            assert batch.summary.succeeded == 60
            for n in range(30):
                session = await client.get_session(f"s{n}", SessionView.SESSION_VIEW_FULL)
                messages = [message.content for message in session.messages]
                assert messages[::2] == [f"number {n}", f"number {n + 30}"]
                assert messages[1::2] == [answers[n], answers[n + 30]]


async def test_a_batch_fails_after_reconnect_seconds_without_a_daemon(daemon: StartDaemon) -> None:
    async with (
        daemon("--engine", "echo", "--echo-delay-seconds", "0.05") as running,
        AsyncClient(running.address) as client,
    ):
        batch = client.batch(numbers(50), max_concurrency=2, reconnect_seconds=0.5)
        await anext(batch)
        running.kill()
        with pytest.raises(RuvdError) as raised:
            _ = [outcome async for outcome in batch]
        assert raised.value.code is grpc.StatusCode.UNAVAILABLE
        assert batch.summary.succeeded < 50


async def test_the_timeout_applies_to_the_whole_batch(slow_address: str) -> None:
    async with AsyncClient(slow_address) as client:
        # Each call has one item and takes 0.2 s, far less than the timeout.
        batch = client.batch(["word " * 4] * 400, timeout=4.0, max_concurrency=1, max_call_bytes=1)
        with pytest.raises(RuvdError) as raised:
            _ = [outcome async for outcome in batch]
        assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < batch.summary.succeeded < 400


async def test_leaving_the_block_cancels_the_running_items(daemon: StartDaemon) -> None:
    async with (
        daemon("--engine", "echo", "--echo-delay-seconds", "0.05") as running,
        AsyncClient(running.address) as client,
    ):
        items = ["quick", *(f"{n} " + "word " * 1000 for n in range(3))]
        async with client.batch(items) as batch:
            assert (await anext(batch)).index == 0
        await running.logged("completion failed", count=3)
        with pytest.raises(RuvdError) as raised:
            await anext(batch)
        assert raised.value.code is grpc.StatusCode.CANCELLED


async def test_cancelling_the_task_is_no_error_of_the_batch(slow_address: str) -> None:
    async with AsyncClient(slow_address) as client:
        batch = client.batch(["word " * 1000])
        task = asyncio.ensure_future(anext(batch))
        _, running = await asyncio.wait({task}, timeout=0.2)
        assert running
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- Client --------------------------------------------------------------------------------


async def test_the_blocking_client_runs_batches_and_reports_errors(address: str) -> None:
    def run() -> None:
        with Client(address) as client:
            batch = client.batch(numbers(100), max_call_bytes=1000)
            assert texts(list(batch)) == [f"number {n}" for n in range(100)]
            assert batch.summary.succeeded == 100
            outcomes = list(client.batch(["fine", request("x", session_id="no spaces")]))
            errors = [outcome.error.reason for outcome in outcomes if outcome.error]
            assert errors == ["INVALID_REQUEST"]
            with pytest.raises(RuvdError) as raised:
                list(client.batch(["x"], max_concurrency=-1))
            assert raised.value.reason == "INVALID_REQUEST"

    await asyncio.to_thread(run)


async def test_the_blocking_client_continues_after_a_restart_of_the_daemon(
    daemon: StartDaemon,
) -> None:
    flags = ("--engine", "echo", "--echo-delay-seconds", "0.02")
    async with daemon(*flags) as running:
        with Client(running.socket) as client:
            batch = client.batch(numbers(60), max_concurrency=4)
            outcomes = [await asyncio.to_thread(next, batch) for _ in range(10)]
            running.kill()
            await running.ended()
            async with daemon(*flags, folder=running.folder):
                outcomes += await asyncio.to_thread(list, batch)
            assert texts(outcomes) == [f"number {n}" for n in range(60)]


async def test_the_blocking_client_cancels_the_running_items(daemon: StartDaemon) -> None:
    async with daemon("--engine", "echo", "--echo-delay-seconds", "0.05") as running:
        with Client(running.address) as client:
            with client.batch(["quick", *(f"{n} " + "word " * 1000 for n in range(3))]) as batch:
                first = await asyncio.to_thread(next, batch)
                assert first.index == 0
            await running.logged("completion failed", count=3)
            with pytest.raises(RuvdError) as raised:
                await asyncio.to_thread(next, batch)
            assert raised.value.code is grpc.StatusCode.CANCELLED
