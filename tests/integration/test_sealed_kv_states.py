"""KV states of the embedded engine with a key: the disk has no token of them in plain."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from embedded import (
    NO_IDLE_WORK,
    STORIES,
    Talk,
    WatchedEngine,
    evaluated,
    moved,
    running,
    tell_all,
    until,
)
from running import StartDaemon
from wire import say

from ruvd.core.ports.events import Event
from ruvd.engines.llama.scratch import Scratch
from ruvd.engines.llama.state_directory import open_directory
from ruvd.sealing.keys import KeyRing, OperatorKeys, add_key
from ruvd.v1 import session_service_pb2 as pb

MEMORY = Path("/dev/shm")  # noqa: S108
pytestmark = pytest.mark.skipif(not MEMORY.is_dir(), reason="there is no tmpfs at /dev/shm")


def keys(key_id: str = "k") -> OperatorKeys:
    return OperatorKeys(KeyRing({key_id: key_id.encode() * 32}))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on a tmpfs."""
    path = Path(tempfile.mkdtemp(prefix="ruvd-test-", dir=MEMORY))
    yield path
    shutil.rmtree(path)


def plain_files(memory: Path) -> list[Path]:
    return list(memory.rglob("*.kv"))


async def tokens(engine: WatchedEngine, text: str) -> bytes:
    """Returns the tokens of a text as llama.cpp writes them into a file."""
    transport = httpx.AsyncHTTPTransport(uds=str(engine.wire.socket))
    headers = {"Authorization": engine.wire.authorization}
    async with httpx.AsyncClient(transport=transport, headers=headers) as http:
        response = await http.post("http://engine/tokenize", json={"content": text})
    found = response.json()["tokens"]
    # Those at the ends depend on what is beside them.
    return struct.pack(f"<{len(found) - 4}i", *found[2:-2])


async def on_disk(engine: WatchedEngine) -> bytes:
    return b"".join(await asyncio.gather(*map(asyncio.to_thread, _reads(engine))))


def _reads(engine: WatchedEngine) -> Iterator[Any]:
    for path in engine.files():
        yield path.read_bytes


@pytest.mark.parametrize("has_key", ["a key", ""], ids=["with a key", "without a key"])
async def test_no_token_of_a_conversation_is_in_a_file_and_a_restart_finds_its_state(
    tmp_path: Path, memory: Path, has_key: str
) -> None:
    settings: dict[str, Any] = {"states_path": tmp_path / "kv", "policy": NO_IDLE_WORK}

    def scratch() -> Scratch | None:
        return Scratch(memory, keys()) if has_key else None

    async with running(**settings, scratch=scratch()) as engine:
        talks = await tell_all(engine)
        await engine.cache.save()
        assert len(engine.files()) == len(talks)
        data = await on_disk(engine)
        for story in STORIES.values():
            assert (await tokens(engine, story) in data) is not bool(has_key)
        assert plain_files(memory) == []
    assert list(memory.iterdir()) == []
    events: list[Event] = []
    async with running(events, **settings, scratch=scratch()) as engine:
        for talk in talks.values():
            found = await talk.turn(engine, "What was told?")
            assert evaluated(found) < 50
        assert moved(events).count(("restore", "ok")) == len(talks)


async def test_states_that_were_saved_in_plain_are_deleted_when_there_is_a_key(
    tmp_path: Path, memory: Path
) -> None:
    settings: dict[str, Any] = {"states_path": tmp_path / "kv", "policy": NO_IDLE_WORK}
    async with running(**settings) as engine:
        talks = await tell_all(engine)
    before = list((tmp_path / "kv").glob("*.kv"))
    assert len(before) == len(talks)
    async with running(**settings, scratch=Scratch(memory, keys())):
        assert not {path for path in before if path.exists()}
    async with running(**settings) as engine:
        await tell_all(engine)
    # A directory that is not in memory.
    scratch = Scratch(tmp_path, keys())
    async with running(**settings, scratch=scratch) as engine:
        assert engine.files() == []
        await tell_all(engine)
        await engine.cache.save()
        assert engine.files() == []


async def test_without_a_tmpfs_nothing_is_saved_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    scratch = Scratch(tmp_path, keys())
    async with running(events, states_path=tmp_path / "kv", scratch=scratch) as engine:
        talk = Talk("ann")
        await talk.turn(engine, STORIES["ann"])
        await engine.cache.save()
        assert not list(tmp_path.rglob("*.kv"))
    assert ("save", "refused") in moved(events)
    assert f"kv_scratch_dir {tmp_path} is not on a tmpfs" in caplog.text


async def test_a_state_that_another_key_has_sealed_costs_time_and_no_answer(
    tmp_path: Path, memory: Path
) -> None:
    settings: dict[str, Any] = {"states_path": tmp_path / "kv", "policy": NO_IDLE_WORK}
    talk = Talk("ann")
    async with running(**settings, scratch=Scratch(memory, keys("k"))) as engine:
        await talk.turn(engine, STORIES["ann"] * 4)
    events: list[Event] = []
    async with running(events, **settings, scratch=Scratch(memory, keys("x"))) as engine:
        assert (await talk.turn(engine, "What was told?")).text
        assert moved(events) == [("restore", "corrupt")]
        assert engine.files() == []
        assert plain_files(memory) == []


async def test_a_state_that_is_too_large_for_the_memory_is_not_saved(
    tmp_path: Path, memory: Path
) -> None:
    events: list[Event] = []
    scratch = Scratch(memory, keys())
    settings: dict[str, Any] = {"states_path": tmp_path / "kv", "policy": NO_IDLE_WORK}
    settings |= {"scratch": scratch, "scratch_bytes": 1 << 20}
    async with running(events, **settings) as engine:
        talk = Talk("ann")
        await talk.turn(engine, STORIES["ann"] * 4)
        await engine.cache.save()
        assert moved(events) == [("save", "failed")]
        assert engine.files() == plain_files(memory) == []
        assert (await talk.turn(engine, "What was told?")).text


async def test_a_killed_daemon_finds_its_encrypted_states_again(
    daemon: StartDaemon, tmp_path: Path, memory: Path
) -> None:
    await asyncio.to_thread(add_key, tmp_path / "keys")
    flags: tuple[str, ...] = (
        "--engine",
        "llama",
        "--llama-threads",
        "1",
        "--llama-context-tokens",
        "1024",
    )
    flags = (*flags, "--store", f"sqlite:{tmp_path}/s.db", "--kv-scratch-dir", str(memory))
    flags = (*flags, "--encryption-key-file", f"{tmp_path}/keys", "--llama-answer-tokens", "256")
    states = tmp_path / "s.db-kv"
    async with daemon(*flags) as started, started.stub() as stub:
        options = pb.CompletionOptions(max_tokens=8, temperature=0.0)
        await say(stub, STORIES["ann"] * 8, "s", options=options)
        started.process.send_signal(signal.SIGUSR1)
        await until(lambda: asyncio.to_thread(lambda: bool(list(states.glob("*.seal")))), 60)
        started.kill()
        await started.ended()
    (file,) = states.glob("*.kv")
    assert (await asyncio.to_thread(file.read_bytes)).startswith(b"ruvd sealed file 1\n")
    async with daemon(*flags) as started, started.stub() as stub:
        again = await say(stub, "What came in?", "s", options=options)
        assert again.usage.prompt_tokens - again.usage.cached_tokens < 50
        assert plain_files(memory) == []
    assert list(memory.iterdir()) == []


def test_what_a_killed_daemon_left_in_memory_is_removed_and_nobody_elses(memory: Path) -> None:
    prefix = f"ruvd-kv-{os.geteuid()}-"
    stale, used, other = (memory / name for name in (f"{prefix}a", f"{prefix}b", "others"))
    for path in (stale, other):
        opened = open_directory(path)
        opened.create(f"{'0' * 24}.kv")
        opened.close()
    holder = open_directory(used)
    scratch = Scratch(memory, keys())
    path = scratch.open()
    assert sorted(memory.iterdir()) == sorted([used, other, path])
    assert path.stat().st_mode & 0o777 == 0o700
    scratch.close()
    assert sorted(memory.iterdir()) == sorted([used, other])
    holder.close()
