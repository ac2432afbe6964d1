"""The KV state of a conversation survives a stop, a kill and a trim of real daemons."""

from __future__ import annotations

import asyncio
import signal
import stat
from pathlib import Path

import pytest
from running import RunningDaemon, StartDaemon
from wire import say

from ruvd.v1 import session_service_pb2 as pb

LLAMA = ("--engine", "llama", "--llama-threads", "1", "--llama-context-tokens", "2048")
SYSTEM = "You keep the harbour's ledger. Answer in one sentence, and only of what was said. " * 6
TALE = "The brig Fortuna came in from Lisbon with salt, and lay at the east mole until noon. " * 6
SHORT = pb.CompletionOptions(max_tokens=8, temperature=0.0, seed=1)


async def tell(running: RunningDaemon, text: str, session: str = "s") -> pb.Finished:
    async with running.stub() as stub:
        return await say(stub, text, session, system_prompt=SYSTEM, options=SHORT)


def evaluated(finished: pb.Finished) -> int:
    return int(finished.usage.prompt_tokens - finished.usage.cached_tokens)


async def until_sealed(directory: Path) -> None:
    async with asyncio.timeout(30):
        while not list(directory.glob("*.seal")):  # noqa: ASYNC110  it is another process's
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("end", ["term", "drain", "kill"])
async def test_the_first_turn_after_a_restart_evaluates_what_is_new(
    daemon: StartDaemon, tmp_path: Path, end: str
) -> None:
    flags = (*LLAMA, "--store", f"sqlite:{tmp_path}/s.db")
    states = tmp_path / "s.db-kv"
    async with daemon(*flags) as running:
        first = await tell(running, TALE)
        assert evaluated(first) > 150
        if end == "drain":
            running.process.send_signal(signal.SIGUSR1)
        if end != "term":  # a rest of some seconds is enough
            await until_sealed(states)
            running.kill()
            await running.ended()
    async with daemon(*flags) as running:
        again = await tell(running, "What came in?")
        assert evaluated(again) < 50
        async with running.stub() as stub:
            await stub.EndSession(pb.EndSessionRequest(session_id="s"))
    assert [path.name for path in states.iterdir()] == ["lock"], "it goes with its session"
    assert stat.S_IMODE(states.stat().st_mode) == 0o700


async def test_of_a_session_whose_first_turn_was_cut_no_state_stays(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    flags = (*LLAMA, "--store", f"sqlite:{tmp_path}/s.db")
    async with daemon(*flags) as running, running.stub() as stub:
        message = pb.Message(role=pb.ROLE_USER, content=TALE)
        request = pb.CompleteRequest(session_id="s", messages=[message], system_prompt=SYSTEM)
        call = stub.Complete(request)
        async for response in call:
            if response.event.WhichOneof("event") == "delta":
                break
        call.cancel()
        await running.logged("completion failed")
    assert [path.name for path in (tmp_path / "s.db-kv").iterdir()] == ["lock"]


async def test_of_a_session_that_ended_while_no_engine_had_states_none_stays(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    store, states = ("--store", f"sqlite:{tmp_path}/s.db"), tmp_path / "s.db-kv"
    async with daemon(*LLAMA, *store) as running:
        for session in ("s", "kept"):
            await tell(running, TALE, session)
    async with daemon("--engine", "echo", *store) as running, running.stub() as stub:
        await stub.EndSession(pb.EndSessionRequest(session_id="s"))
    assert len(list(states.glob("*.kv"))) == 2
    async with daemon(*LLAMA, *store):
        async with asyncio.timeout(30):
            while len(list(states.glob("*.kv"))) > 1:  # noqa: ASYNC110  it is another process's
                await asyncio.sleep(0.05)
    assert len(list(states.glob("*.kv"))) == 1


async def test_states_are_off_by_a_setting(daemon: StartDaemon, tmp_path: Path) -> None:
    flags = (*LLAMA, "--store", f"sqlite:{tmp_path}/s.db", "--kv-cache-bytes", "0")
    async with daemon(*flags) as running:
        await tell(running, TALE)
    assert not (tmp_path / "s.db-kv").exists()
    async with daemon(*flags) as running:
        assert evaluated(await tell(running, "What came in?")) > 150


async def test_a_working_directory_is_not_taken_for_states(daemon: StartDaemon) -> None:
    """An empty variable meant the working directory, which became private to its owner."""
    async with daemon(*LLAMA, under=("env", "RUVD_KV_CACHE_DIR=")) as running:
        running.folder.chmod(0o755)
        assert evaluated(await tell(running, TALE)) > 150
        assert not (running.folder / "lock").exists()
    async with daemon(*LLAMA, "--kv-cache-dir", ".", folder=running.folder) as running:
        assert evaluated(await tell(running, TALE)) > 150
        assert not (running.folder / "lock").exists()
        assert any("the KV cache is off" in line["event"] for line in running.log)
    assert stat.S_IMODE(running.folder.stat().st_mode) == 0o755


async def test_nobody_waits_for_a_trim(daemon: StartDaemon) -> None:
    flags = (*LLAMA, "--max-exchanges", "2", "--keep-exchanges", "1", "--log-level", "debug")
    async with daemon(*flags) as running:
        for number in range(3):
            await tell(running, f"{number}. {TALE}")
        assert (await running.logged("evaluated ahead"))["tokens"] > 100
        trimmed = await tell(running, "What came in?")
        assert evaluated(trimmed) < 60


async def test_evaluating_ahead_is_off_by_a_setting(daemon: StartDaemon) -> None:
    flags = (*LLAMA, "--max-exchanges", "2", "--keep-exchanges", "1", "--evaluate-ahead", "off")
    async with daemon(*flags) as running:
        for number in range(3):
            await tell(running, f"{number}. {TALE}")
        assert evaluated(await tell(running, "What came in?")) > 100
