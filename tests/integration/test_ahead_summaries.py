"""Summaries between turns in real daemons: over kills, and on the cached prefix of the model."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

from llama_http import API_KEY, MODEL, llama_server
from running import RunningDaemon, StartDaemon
from wire import events, turn

from ruvd.v1 import session_service_pb2 as pb

SECONDS = 90.0
WINDOW = pb.ContextWindow(
    keep_exchanges=1, max_exchanges=40, compaction=pb.COMPACTION_SUMMARY, compact_at=0.1
)


async def session_of(stub: Any) -> pb.Session:
    response: pb.GetSessionResponse = await stub.GetSession(pb.GetSessionRequest(session_id="s"))
    return response.session


async def compacted(stub: Any, count: int) -> pb.Session:
    """Waits until the session has had so many summaries."""
    async with asyncio.timeout(SECONDS):
        while True:
            session = await session_of(stub)
            if session.compactions >= count:
                return session
            await asyncio.sleep(0.02)


async def test_a_daemon_that_is_killed_at_any_step_has_the_old_window_or_the_new_one(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    # The echo engine writes a summary of some 40 words, one every 10 ms.
    flags = ("--engine", "echo", "--echo-delay-seconds", "0.01", "--store", f"sqlite:{tmp_path}/s")
    count, exchanges = 0, 0
    for seconds in (0.05, 0.3, None):
        async with daemon(*flags) as running, running.stub() as stub:
            if not exchanges:
                request = pb.CreateSessionRequest(session_id="s", context_window=WINDOW)
                await stub.CreateSession(request)
            before = await session_of(stub)
            count = before.compactions
            while True:
                started = (await events(stub, turn("hi", "s")))[0].started
                assert_whole(before, started, exchanges)
                exchanges += 1
                if exchanges - before.summary_exchange_count >= 4:
                    break
            # The summary is due now, and is being written.
            if seconds is None:
                await compacted(stub, count + 1)
            else:
                await asyncio.sleep(seconds)  # any moment of the summary is as good
            running.kill()
            await running.ended()
        async with daemon(*flags) as running, running.stub() as stub:
            after = await session_of(stub)
            assert after.exchange_count == exchanges
            if after.compactions == count:
                assert (after.summary, after.summary_exchange_count) == (
                    before.summary,
                    before.summary_exchange_count,
                )
            else:
                assert after.compactions == count + 1
                assert after.summary_exchange_count == exchanges - 1
                assert after.summary.startswith("Summarise")
            started = (await events(stub, turn("on", "s")))[0].started
            assert_whole(after, started, exchanges)
            exchanges += 1
            running.kill()
            await running.ended()
    assert after.compactions >= 1


def assert_whole(session: pb.Session, started: pb.Started, exchanges: int) -> None:
    """The prompt has the summary, if there is one, and exactly what that does not stand for."""
    window = exchanges - session.summary_exchange_count
    summary = 2 if session.compactions else 0
    assert not started.context_trimmed
    assert started.context_summarized == bool(session.compactions)
    assert started.context_messages == summary + 2 * window + 1


async def test_the_summary_is_read_from_the_cache_and_so_is_the_turn_after_it(
    daemon: StartDaemon,
) -> None:
    flags = ("--engine", "llama", "--metrics-listen", "127.0.0.1:0", "--llama-slots", "2")
    async with daemon(*flags) as running, running.stub() as stub:
        request = pb.CreateSessionRequest(session_id="s", context_window=WINDOW)
        await stub.CreateSession(request)
        for number in range(4):
            text = f"Ship {number} brought salt, oranges and eleven crates of glass to the mole. "
            await events(stub, turn(text * 3, "s", options=pb.CompletionOptions(max_tokens=8)))
        session = await compacted(stub, 1)
        assert session.summary_exchange_count == 3
        *_, last = await events(
            stub, turn("And now?", "s", options=pb.CompletionOptions(max_tokens=4))
        )
        usage = last.finished.usage
        assert usage.cached_tokens >= 0.7 * usage.prompt_tokens
        tokens = await asyncio.to_thread(compaction_tokens, running)
        assert tokens["cached"] >= 0.7 * tokens["prompt"]


async def test_a_real_server_elsewhere_reads_the_summary_from_its_cache(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(API_KEY)
    async with llama_server(context_tokens=2048, slots=1) as server:
        flags = (
            "--engine", "openai", "--base-url", server.url, "--model", MODEL,
            "--api-key-file", str(tmp_path / "key"), "--affinity", "llama-server",
            "--metrics-listen", "127.0.0.1:0",
        )  # fmt: skip
        async with daemon(*flags) as running, running.stub() as stub:
            request = pb.CreateSessionRequest(session_id="s", context_window=WINDOW)
            await stub.CreateSession(request)
            for number in range(4):
                text = f"Ship {number} brought salt, oranges and eleven crates of glass. " * 3
                await events(stub, turn(text, "s", options=pb.CompletionOptions(max_tokens=8)))
            session = await compacted(stub, 1)
            assert session.summary_exchange_count == 3
            assert session.summary
            started, *_ = await events(
                stub, turn("And now?", "s", options=pb.CompletionOptions(max_tokens=4))
            )
            assert started.started.context_summarized
            tokens = await asyncio.to_thread(compaction_tokens, running)
            assert tokens["cached"] >= 0.7 * tokens["prompt"]


def compaction_tokens(running: RunningDaemon) -> dict[str, float]:
    address = next(line for line in running.log if line["event"] == "serving metrics")["address"]
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        lines = response.read().decode().splitlines()
    mine = [line for line in lines if line.startswith("ruvd_compaction_tokens_total")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in mine}
