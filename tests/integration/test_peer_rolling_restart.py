"""Replicas restart one after the other under load; clients with all addresses notice nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from certificates import Files
from peer_replicas import database, empty_store, peer_flags
from running import RunningDaemon, start_serve
from ruvd_client import AsyncClient

STREAMS = 64
WAIT_SECONDS = 120
TEXT = "one two three four five six"

pytestmark = pytest.mark.timeout(400)


async def stored(address: str) -> list[int]:
    """Returns the number of exchanges of each session."""
    async with AsyncClient(address) as client:
        found = [await client.get_session(f"s{number}") for number in range(STREAMS // 2)]
    return [session.exchange_count for session in found]


async def test_a_rolling_restart_under_64_streams_fails_no_call(tmp_path: Path) -> None:
    """Two streams share each session, through different replicas."""
    with database() as server:
        store, files = empty_store(server), Files(tmp_path)
        folders = [tmp_path / str(number) for number in range(3)]
        for folder in folders:
            folder.mkdir()
        addresses = [f"unix:{folder}/r.sock" for folder in folders]

        async def start(number: int) -> RunningDaemon:
            started = await start_serve(
                *("--engine", "echo", "--echo-delay-seconds", "0.05", "--store", store),
                *("--listen", addresses[number], "--admin-listen", "none"),
                *("--drain-seconds", "20", *peer_flags(files)),
                folder=folders[number],
            )
            await started.listening(1)
            return started

        running = [await start(number) for number in range(3)]
        turns, stopping = [0] * STREAMS, asyncio.Event()

        async def talk(number: int) -> None:
            first = number % 3  # the streams of a session have different ones
            order = ",".join(addresses[first:] + addresses[:first])
            async with AsyncClient(order) as client:
                while not stopping.is_set():
                    said = f"{TEXT} {number} {turns[number]}"
                    answer = await client.complete(said, session_id=f"s{number // 2}").text()
                    assert answer == said
                    turns[number] += 1

        async def until_each_talked(streams: list[asyncio.Task[None]]) -> None:
            before = list(turns)
            async with asyncio.timeout(WAIT_SECONDS):
                while not all(now > then for now, then in zip(turns, before, strict=True)):
                    failed = [each for each in streams if each.done()]
                    assert not failed, failed[0].exception()
                    await asyncio.sleep(0.1)

        streams = [asyncio.create_task(talk(number)) for number in range(STREAMS)]
        try:
            for number in range(3):
                await until_each_talked(streams)
                running[number].process.terminate()
                async with asyncio.timeout(WAIT_SECONDS):
                    assert await running[number].process.wait() == 0
                running[number] = await start(number)
            await until_each_talked(streams)
            stopping.set()
            async with asyncio.timeout(WAIT_SECONDS):
                await asyncio.gather(*streams)
            expected = [sum(turns[number : number + 2]) for number in range(0, STREAMS, 2)]
            assert await stored(addresses[0]) == expected
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
            for each in running:
                await each.stop()
