"""A real llama.cpp that stops answering is found, killed and replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from embedded import NO_IDLE_WORK, answer, running, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import RunningDaemon, StartDaemon
from wire import details, say, turn

from ruvd.core.errors import EngineUnavailable
from ruvd.core.model import Message, Role
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineRequest
from ruvd.core.ports.events import EngineStateChanged, Event
from ruvd.v1 import session_service_pb2 as pb

HANG_SECONDS = 3.0


def ask(text: str, **options: Any) -> EngineRequest:
    settings = {"max_tokens": 8, "temperature": 0.0, **options}
    return EngineRequest([Message(Role.USER, text)], CompletionOptions(**settings))


def downs(events: list[Event]) -> list[str]:
    return [each.detail for each in events if isinstance(each, EngineStateChanged) and not each.up]


async def test_a_stopped_child_fails_what_runs_and_waits_and_is_replaced() -> None:
    events: list[Event] = []
    async with running(events, hang_seconds=HANG_SECONDS) as engine:
        pid = engine.pid
        assert pid is not None
        calls = [
            asyncio.create_task(answer(engine, ask(f"Count to {number}000", max_tokens=700)))
            for number in range(4)
        ]
        await until(engine.wire.busy)
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        async with asyncio.timeout(HANG_SECONDS + 1):
            with pytest.raises(EngineUnavailable):
                await calls[0]
        assert time.monotonic() - stopped > HANG_SECONDS / 2
        assert not engine.is_ready
        # Those that waited for a slot are answered by the next process, or fail at once.
        async with asyncio.timeout(60):
            for failed in await asyncio.gather(*calls, return_exceptions=True):
                assert not isinstance(failed, BaseException) or isinstance(
                    failed, EngineUnavailable
                )
            await answer(engine, ask("Say hello"))
        assert engine.pid != pid
        assert not psutil.pid_exists(pid)
        assert downs(events) == ["the engine was killed because it did not answer for 2 s"]


async def test_a_child_that_stops_while_it_idles_is_replaced_before_anybody_asks() -> None:
    events: list[Event] = []
    async with running(events, hang_seconds=HANG_SECONDS) as engine:
        pid = engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)

        async def is_replaced() -> bool:
            return engine.is_ready and engine.pid != pid

        await until(is_replaced)
        await answer(engine, ask("Say hello"))
    assert len(downs(events)) == 2  # the last one is the end


async def test_a_long_prefill_is_no_hang() -> None:
    """One batch takes much longer than the engine may hang, as on a slow machine."""
    events: list[Event] = []
    sizes: dict[str, Any] = {"context_tokens": 2048, "slots": 1, "batch_tokens": 2048, "threads": 1}
    # Long enough that a busy machine gives the engine some time of a core meanwhile.
    async with running(events, hang_seconds=3.0, policy=NO_IDLE_WORK, **sizes) as engine:
        pid = engine.pid
        found = await answer(engine, ask("house " * 1900, max_tokens=1))
        assert found.prefill_seconds > 3.0
        assert engine.pid == pid
        assert downs(events) == []


async def is_ready(daemon: RunningDaemon) -> bool:
    async with grpc.aio.insecure_channel(daemon.socket) as channel:
        request = health_pb2.HealthCheckRequest(service="readiness")
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs lack the methods
        status = await stub.Check(request)
        return bool(status.status == health_pb2.HealthCheckResponse.SERVING)


async def test_a_stopped_engine_takes_no_turn_and_no_readiness_for_longer_than_it_is_down(
    daemon: StartDaemon,
) -> None:
    flags = ("--engine-hang-seconds", "6", "--llama-slots", "2", "--llama-context-tokens", "2048")
    async with daemon(*flags) as running, running.stub() as stub:
        brief = pb.CompletionOptions(max_tokens=16)  # the model's own end may be minutes away
        first = await say(stub, "The harbour is called Varde.", "s", options=brief)
        (child,) = psutil.Process(running.pid).children()
        options = pb.CompletionOptions(max_tokens=1000)
        options.extra_body["ignore_eos"] = True  # it goes on for as long as this test needs
        call = stub.Complete(turn("Count to a thousand.", "s", options=options))
        # Before its first token the turn would be asked of the next process, and succeed.
        async for response in call:
            if response.event.HasField("delta"):
                break
        child.suspend()
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert details(caught.value)[0] == "ENGINE_UNAVAILABLE"
        await running.logged("engine down")
        await until(lambda: is_ready(running), 60)
        last = None
        while last is None:
            with suppress(grpc.aio.AioRpcError):
                last = await say(stub, "What is its name?", "s", options=brief)
        assert time.monotonic() - began < 60
        session = (await stub.GetSession(pb.GetSessionRequest(session_id="s"))).session
        assert session.message_count == 4
        assert first.message.content


async def test_the_kernel_would_kill_the_child_before_the_daemon() -> None:
    async with running() as engine:
        own, child = [
            int(await asyncio.to_thread(Path(f"/proc/{pid}/oom_score_adj").read_text))
            for pid in ("self", engine.pid)
        ]
        assert child == min(1000, own + 500)
