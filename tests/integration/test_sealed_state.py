"""Sealed state: no file of a daemon with a key holds a sentence of a conversation."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import command_line
import grpc
import pytest
from running import StartDaemon
from wire import contents, history, say

from ruvd.v1 import session_service_pb2 as pb

SESSIONS = 20
ECHO = ("--engine", "echo")
WAIT_SECONDS = 120.0


class Planted:
    """Sentences that are in no other place: five of them for each session."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def new(self) -> str:
        sentence = f"The number of the vault is {secrets.token_hex(12)} and nobody knows it."
        self.sentences.append(sentence)
        return sentence

    async def plant(self, stub: Any, name: str) -> None:
        """Makes a session with a sentence of each kind, and a fork that goes on with another."""
        call = pb.ToolCall(id="c1", name="look", arguments=f'{{"for": "{self.new()}"}}')
        said = pb.Message(role=pb.ROLE_USER, content=self.new())
        asked = pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[call])
        result = pb.Message(role=pb.ROLE_TOOL, tool_call_id="c1", content=self.new())
        answer = pb.Message(role=pb.ROLE_ASSISTANT, content="So it is.")
        await stub.CreateSession(
            pb.CreateSessionRequest(
                session_id=name,
                system_prompt=self.new(),
                labels={"topic": self.new()},
                messages=[said, asked, result, answer],
                request_id=f"create-{name}",
            )
        )
        await say(stub, said.content, name, request_id=f"turn-{name}")
        fork = pb.ForkSessionRequest(session_id=name, new_session_id=f"{name}-fork")
        await stub.ForkSession(fork)
        await say(stub, said.content, f"{name}-fork")


def found(folders: Iterable[Path], sentences: Iterable[str]) -> set[str]:
    """Returns the sentences that are in any file of the folders, in UTF-8 or UTF-16."""
    data = b""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with suppress(FileNotFoundError):  # it is deleted right now
                    data += path.read_bytes()
    codes = ("utf-8", "utf-16-le", "utf-16-be")
    # Also a part of a sentence gives its number away.
    parts = {each: each.split()[6] for each in sentences}
    return {
        each for each, part in parts.items() if any(part.encode(code) in data for code in codes)
    }


async def kill_in_the_middle(running: Any) -> None:
    """Kills a daemon while it has many turns under way."""

    async def talk(number: int) -> None:
        async with running.stub() as stub:
            for index in range(10_000):
                await say(stub, f"go on {index}", f"talk-{number}")

    talks = [asyncio.create_task(talk(number)) for number in range(4)]
    async with running.stub() as stub, asyncio.timeout(WAIT_SECONDS):
        while True:
            with suppress(grpc.aio.AioRpcError):
                if len(await history(stub, "talk-0")) >= 20:
                    break
            await asyncio.sleep(0.02)
    running.kill()
    await running.ended()
    for each in await asyncio.gather(*talks, return_exceptions=True):
        assert isinstance(each, grpc.aio.AioRpcError)


def make_key(path: Path, key_id: str) -> None:
    ruvd("key", "create", "--file", str(path), "--id", key_id)


def ruvd(*arguments: str, code: int = 0) -> str:
    """Runs a command to its end, checks the exit code, and returns its output."""
    done = command_line.run_to_end(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("keys", ["a key", ""], ids=["with a key", "without a key"])
async def test_none_of_100_planted_sentences_is_in_the_files_of_a_killed_daemon_with_a_key(
    daemon: StartDaemon, tmp_path: Path, keys: str
) -> None:
    state = tmp_path / "state"
    flags: tuple[str, ...] = (*ECHO, "--store", f"sqlite:{state}/s.db", "--max-sessions", "1000")
    if keys:
        await asyncio.to_thread(make_key, tmp_path / "keys", "one")
        flags = (*flags, "--encryption-key-file", f"{tmp_path}/keys")
    planted = Planted()
    async with daemon(*flags) as running:
        folders = [state, running.folder]
        async with running.stub() as stub:
            names = [f"s{number}" for number in range(SESSIONS)]
            await asyncio.gather(*(planted.plant(stub, name) for name in names))
            assert len(planted.sentences) == 100
            expected = set() if keys else set(planted.sentences)
            before = {name: await history(stub, name) for name in names}
            seen = await asyncio.to_thread(found, folders, planted.sentences)
            assert seen == expected
        await kill_in_the_middle(running)
        log = str(running.log)
    assert await asyncio.to_thread(found, folders, planted.sentences) == expected
    async with daemon(*flags) as running, running.stub() as stub:
        assert {name: await history(stub, name) for name in names} == before
        request = pb.ListSessionsRequest(label_filter={"topic": planted.sentences[4]})
        listed = (await stub.ListSessions(request)).sessions
        assert [session.id for session in listed] == ["s0", "s0-fork"]
        # A repeated request gets its stored answer.
        again = await say(stub, before["s1"][0].content, "s1", request_id="turn-s1")
        assert again.message.content == before["s1"][0].content
        log += str(running.log)
    assert await asyncio.to_thread(found, folders, planted.sentences) == expected
    assert not {each for each in planted.sentences if each in log}


async def test_a_daemon_with_a_key_dumps_no_core(daemon: StartDaemon, tmp_path: Path) -> None:
    await asyncio.to_thread(make_key, tmp_path / "keys", "one")
    async with daemon(*ECHO, "--encryption-key-file", f"{tmp_path}/keys") as running:
        limits = await asyncio.to_thread(Path(f"/proc/{running.pid}/limits").read_text)
        (core,) = (line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["1", "1"]


async def test_a_daemon_without_the_keys_of_its_store_ends_with_code_2_and_names_them(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    keys, other = tmp_path / "keys", tmp_path / "other"
    await asyncio.to_thread(make_key, keys, "mine")
    await asyncio.to_thread(make_key, other, "another")
    store = (*ECHO, "--store", f"sqlite:{tmp_path}/s.db")
    async with (
        daemon(*store, "--encryption-key-file", str(keys)) as running,
        running.stub() as stub,
    ):
        await say(stub, "kept", "s")
    serve = ("serve", *store, "--listen", f"unix:{tmp_path}/r.sock")
    text = await asyncio.to_thread(ruvd, *serve, code=2)
    assert "the store is encrypted with the keys mine: set encryption_key_file" in text
    text = await asyncio.to_thread(ruvd, *serve, "--encryption-key-file", str(other), code=2)
    assert "encryption_key_file lacks the keys mine" in text
    await asyncio.to_thread(other.write_text, "mine:nonsense\n")
    text = await asyncio.to_thread(ruvd, *serve, "--encryption-key-file", str(other), code=2)
    assert "line 1: the key mine is not 32 bytes" in text
    async with (
        daemon(*store, "--encryption-key-file", str(keys)) as running,
        running.stub() as stub,
    ):
        assert await contents(stub, "s") == ["kept", "kept"]


async def test_keys_are_changed_while_the_daemon_serves_and_the_old_one_is_needed_no_more(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    keys, path = tmp_path / "keys", tmp_path / "s.db"
    await asyncio.to_thread(make_key, keys, "old")
    flags = (*ECHO, "--store", f"sqlite:{path}", "--encryption-key-file", str(keys))
    async with daemon(*flags) as running, running.stub() as stub:
        for number in range(10):
            await say(stub, f"kept {number}", f"s{number}")
        await asyncio.to_thread(make_key, keys, "new")
        rekey = asyncio.create_task(
            asyncio.to_thread(ruvd, "rekey", "--store", f"sqlite:{path}", "--file", str(keys))
        )
        turns = 0
        while not rekey.done():
            await say(stub, "go on", "s0")
            turns += 1
        text = await rekey
        assert turns > 1
        assert "is encrypted with the key new" in text
        assert "no longer needs the keys old" in text
        await running.logged("data keys of the store sealed with another key", key="new")
    lines = keys.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["new", "old"]
    await asyncio.to_thread(keys.write_text, f"{lines[0]}\n")
    async with daemon(*flags) as running, running.stub() as stub:
        assert (await contents(stub, "s9")) == ["kept 9", "kept 9"]
        assert len(await contents(stub, "s0")) == 2 + 2 * turns


async def test_a_store_is_encrypted_and_made_plain_again_while_no_daemon_runs(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    keys, state = tmp_path / "keys", tmp_path / "state"
    path = state / "s.db"
    await asyncio.to_thread(make_key, keys, "one")
    store = (*ECHO, "--store", f"sqlite:{path}")
    rekey = ("rekey", "--store", f"sqlite:{path}", "--file", str(keys))
    planted = Planted()
    async with daemon(*store) as running, running.stub() as stub:
        await asyncio.gather(*(planted.plant(stub, f"s{number}") for number in range(3)))
        expected = await history(stub, "s1-fork")
        text = await asyncio.to_thread(ruvd, *rekey, "--plain", code=1)
        assert "is in use by another ruvd" in text
    assert await asyncio.to_thread(found, [state], planted.sentences) == set(planted.sentences)
    await asyncio.to_thread(ruvd, *rekey)
    assert not await asyncio.to_thread(found, [state], planted.sentences)
    sealed = (*store, "--encryption-key-file", str(keys))
    async with daemon(*sealed) as running, running.stub() as stub:
        assert await history(stub, "s1-fork") == expected
        await say(stub, "later", "s1-fork")
        await stub.EndSession(pb.EndSessionRequest(session_id="s1"))
        running.kill()
        await running.ended()
    text = await asyncio.to_thread(ruvd, *rekey, "--plain")
    assert "is no longer encrypted" in text
    async with daemon(*store) as running, running.stub() as stub:
        assert await history(stub, "s1-fork") == [
            *expected,
            pb.Message(role=pb.ROLE_USER, content="later"),
            pb.Message(role=pb.ROLE_ASSISTANT, content="later"),
        ]
        request = pb.ListSessionsRequest(label_filter={"topic": planted.sentences[4]})
        listed = (await stub.ListSessions(request)).sessions
        assert {session.id for session in listed} <= {"s0", "s0-fork", "s1-fork", "s2", "s2-fork"}


async def test_a_backup_is_encrypted_and_opens_with_the_key(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    keys, state, copies = tmp_path / "keys", tmp_path / "state", tmp_path / "copies"
    copies.mkdir()
    await asyncio.to_thread(make_key, keys, "one")
    flags: tuple[str, ...] = (*ECHO, "--encryption-key-file", str(keys))
    planted = Planted()
    async with daemon(*flags, "--store", f"sqlite:{state}/s.db") as running:
        async with running.stub() as stub:
            await planted.plant(stub, "s")
            expected = await history(stub, "s")
        backup = ("backup", f"{copies}/copy.db", "--store", f"sqlite:{state}/s.db")
        text = await asyncio.to_thread(ruvd, *backup)
        assert "encrypted: keep its keys one with it" in text
    assert not await asyncio.to_thread(found, [copies], planted.sentences)
    flags = (*flags, "--store", f"sqlite:{copies}/copy.db")
    async with daemon(*flags) as running, running.stub() as stub:
        assert await history(stub, "s") == expected
