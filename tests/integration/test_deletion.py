"""Deleted is deleted: the files of a running daemon hold no byte of it, within seconds."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from running import StartDaemon
from wire import contents, say

from ruvd.v1 import session_service_pb2 as pb

# The promise is 10 s; the rest is for a loaded machine.
ERASED_SECONDS = 30.0
SIZES = (40, 900, 5_000, 150_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


@pytest.fixture
def flags(path: Path) -> tuple[str, ...]:
    return "--engine", "echo", "--store", f"sqlite:{path}", "--sweep-interval-seconds", "0.2"


class Sentences:
    """Unique sentences: a part of one, wherever it is cut, is found in the bytes of a file."""

    def __init__(self) -> None:
        self.marks: list[str] = []

    def new(self, size: int = 60) -> str:
        mark = secrets.token_hex(10)
        self.marks.append(mark)
        return " ".join([mark] * max(1, size // (len(mark) + 1)))


def found(path: Path, marks: Iterable[str]) -> set[str]:
    """The marks that are anywhere in the database or its log."""
    data = b""
    for file in (path, Path(f"{path}-wal")):
        with suppress(FileNotFoundError):
            data += file.read_bytes()
    return {mark for mark in marks if mark.encode() in data}


async def until_gone(path: Path, marks: Iterable[str], ended: float) -> None:
    """Waits until none of the marks is in the files."""
    while left := await asyncio.to_thread(found, path, marks):
        assert time.monotonic() - ended < ERASED_SECONDS, f"{len(left)} sentences remain"
        await asyncio.sleep(0.1)


@asynccontextmanager
async def traffic(stub: Any) -> AsyncIterator[None]:
    """Runs turns of other sessions meanwhile, some of which end."""

    async def talk(name: str) -> None:
        turns = 0
        while True:
            await say(stub, secrets.token_hex(SIZES[turns % 3] // 2), f"{name}-{turns // 7}")
            turns += 1
            if turns % 21 == 0:
                ended = f"{name}-{turns // 7 - 2}"
                await stub.EndSession(pb.EndSessionRequest(session_id=ended))

    talks = [asyncio.create_task(talk(f"other-{number}")) for number in range(4)]
    try:
        yield
        assert not any(task.done() for task in talks)
    finally:
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def plant(stub: Any, name: str, sentences: Sentences, turns: int = 4) -> None:
    """Creates a session that is full of new sentences."""
    labels = {"topic": sentences.new()}
    system = sentences.new(900)
    await stub.CreateSession(
        pb.CreateSessionRequest(session_id=name, system_prompt=system, labels=labels)
    )
    for turn in range(turns):
        text = sentences.new(SIZES[turn % len(SIZES)])
        await say(stub, text, name, request_id=f"{name}-{turn}")


async def end(stub: Any, *names: str) -> float:
    for name in names:
        await stub.EndSession(pb.EndSessionRequest(session_id=name))
    return time.monotonic()


async def test_no_byte_of_an_ended_session_stays_while_others_talk_on(
    daemon: StartDaemon, flags: tuple[str, ...], path: Path
) -> None:
    async with daemon(*flags) as d, d.stub() as stub, traffic(stub):
        sentences = Sentences()
        names = [f"s-{number}" for number in range(12)]
        # Side by side, so that their messages lie in the same pages.
        await asyncio.gather(*(plant(stub, name, sentences) for name in names))
        kept = Sentences()
        await plant(stub, "kept", kept)
        assert found(path, sentences.marks) == set(sentences.marks)
        ended = await end(stub, *names)
        await until_gone(path, sentences.marks, ended)
        assert found(path, kept.marks) == set(kept.marks)
        assert len(await contents(stub, "kept")) == 8


async def test_what_a_fork_shares_stays_until_the_last_fork_has_ended(
    daemon: StartDaemon, flags: tuple[str, ...], path: Path
) -> None:
    async with daemon(*flags) as d, d.stub() as stub, traffic(stub):
        shared, rest = Sentences(), Sentences()
        text = shared.new(5_000)
        await say(stub, text, "parent")
        for size in SIZES:
            await say(stub, rest.new(size), "parent")
        for name in ("one", "two"):
            await stub.ForkSession(
                pb.ForkSessionRequest(session_id="parent", new_session_id=name, exchange_count=1)
            )
        ended = await end(stub, "parent")
        await until_gone(path, rest.marks, ended)
        assert await contents(stub, "one") == [text, text]
        await end(stub, "one")
        assert await contents(stub, "two") == [text, text]
        ended = await end(stub, "two")
        await until_gone(path, shared.marks, ended)


async def test_expired_and_evicted_sessions_and_replaced_labels_leave_no_byte(
    daemon: StartDaemon, flags: tuple[str, ...], path: Path
) -> None:
    async with daemon(*flags, "--max-sessions", "3") as d, d.stub() as stub:
        gone = Sentences()
        await plant(stub, "evicted", gone)
        await plant(stub, "expired", gone)
        timeout = Duration(nanos=200_000_000)
        await stub.UpdateSession(
            pb.UpdateSessionRequest(session_id="expired", idle_timeout=timeout)
        )
        kept = Sentences()
        old, new = gone.new(), kept.new()
        await stub.CreateSession(
            pb.CreateSessionRequest(session_id="updated", labels={"topic": old})
        )
        await stub.UpdateSession(
            pb.UpdateSessionRequest(
                session_id="updated", labels={"topic": new}, update_mask=FieldMask(paths=["labels"])
            )
        )
        for number in range(2):
            await say(stub, kept.new(), f"new-{number}")
        await until_gone(path, gone.marks, time.monotonic())
        assert found(path, kept.marks) == set(kept.marks)


async def test_a_stop_right_after_the_end_leaves_no_byte(
    daemon: StartDaemon, flags: tuple[str, ...], path: Path
) -> None:
    async with daemon(*flags) as d, d.stub() as stub:
        sentences = Sentences()
        for name in "abc":
            await plant(stub, name, sentences)
        await end(stub, *"abc")
    assert found(path, sentences.marks) == set()


async def test_a_daemon_that_is_killed_right_after_the_end_erases_after_its_next_start(
    daemon: StartDaemon, flags: tuple[str, ...], path: Path
) -> None:
    async with daemon(*flags) as first, first.stub() as stub:
        sentences = Sentences()
        for name in "abc":
            await plant(stub, name, sentences)
        await end(stub, *"abc")
        first.kill()
        await first.ended()
    async with daemon(*flags):
        await until_gone(path, sentences.marks, time.monotonic())
