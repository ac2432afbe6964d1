"""On a full disk sessions can be read and ended, and afterwards turns work again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import grpc
from running import StartDaemon
from small_disk import SmallDisk, disk
from wire import contents, details, say

from ruvd.v1 import session_service_pb2 as pb

WAIT_SECONDS = 60.0

__all__ = ["disk"]


async def refusal(stub: Any, session_id: str, text: str) -> grpc.aio.AioRpcError | None:
    """The error of a turn, or None if it was answered."""
    try:
        await say(stub, text, session_id)
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def fill(stub: Any, marks: dict[str, str]) -> grpc.aio.AioRpcError:
    """Runs turns of sessions, of ever smaller size, until all are refused; returns a refusal."""
    for size in (100_000, 10_000, 1_000):
        while True:
            name = f"s-{len(marks) % 30}"
            mark = secrets.token_hex(10)
            error = await refusal(stub, name, mark * (size // 20))
            if error is not None:
                break
            marks[mark] = name
    assert error is not None
    return error


def owned(marks: dict[str, str], names: set[str]) -> set[str]:
    """The marks in these sessions."""
    return {mark for mark, name in marks.items() if name in names}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110  what is awaited is in another process
            await asyncio.sleep(0.1)


async def until_turns_work(stub: Any) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while await refusal(stub, "new", "Is there room?"):  # noqa: ASYNC110  as above
            await asyncio.sleep(0.1)


async def until_gone(disk: SmallDisk, marks: set[str]) -> None:
    await until(lambda: not any(disk.has(mark) for mark in marks))


async def end_sessions(stub: Any, names: set[str]) -> None:
    for name in names:
        await stub.EndSession(pb.EndSessionRequest(session_id=name))


async def test_on_a_full_disk_sessions_can_be_read_and_ended_and_then_turns_work_again(
    daemon: StartDaemon, disk: SmallDisk
) -> None:
    async with daemon(*disk.flags(), under=disk.under) as d, d.stub() as stub:
        marks: dict[str, str] = {}
        for _ in range(2):
            error = await fill(stub, marks)
            assert details(error)[0] == "STORE_UNAVAILABLE"
            assert "the disk is full" in (error.details() or "")
            kept = {f"s-{number}" for number in range(3)}
            for name in kept:
                texts = await contents(stub, name)
                assert {text[:20] for text in texts} == owned(marks, {name})
            ended = set(marks.values()) - kept
            await end_sessions(stub, ended)
            await until_turns_work(stub)
            await until_gone(disk, owned(marks, ended))
            marks = {mark: marks[mark] for mark in owned(marks, kept)}
        await d.logged("store up", count=3)


async def test_a_daemon_that_starts_on_a_full_disk_can_end_sessions(
    daemon: StartDaemon, disk: SmallDisk
) -> None:
    marks: dict[str, str] = {}
    async with daemon(*disk.flags(), under=disk.under) as first, first.stub() as stub:
        await fill(stub, marks)
        await until(disk.has_reserve)
        first.kill()
        await first.ended()
    disk.fill()  # but for the reserve
    async with daemon(*disk.flags(), under=disk.under) as second, second.stub() as stub:
        await end_sessions(stub, set(marks.values()))
        await until_turns_work(stub)
        await until_gone(disk, set(marks))


async def test_a_disk_that_another_program_fills_and_frees_costs_no_session(
    daemon: StartDaemon, disk: SmallDisk
) -> None:
    async with daemon(*disk.flags(), under=disk.under) as d, d.stub() as stub:
        await say(stub, "Kept.", "kept")
        await say(stub, secrets.token_hex(500_000), "large")
        filler = await asyncio.to_thread(disk.fill)
        while await refusal(stub, "kept", "x" * 10_000) is None:
            pass
        await end_sessions(stub, {"large"})
        assert (await contents(stub, "kept"))[0] == "Kept."
        filler.unlink()
        await until_turns_work(stub)
        assert await refusal(stub, "kept", "Still.") is None
