"""The main job on the embedded engine: the real daemon, the real model, small prompts."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import RunningDaemon, StartDaemon
from wire import contents, details, events, say, turn

from ruvd.v1 import session_service_pb2 as pb

LLAMA = ("--engine", "llama", "--llama-threads", "1")
SHORT = pb.CompletionOptions(max_tokens=8, temperature=0.0, seed=1)
LONG = pb.CompletionOptions(max_tokens=600, temperature=0.0, seed=1)
SHARED = Path(__file__).parents[3] / "shared" / "data" / "conversations.jsonl"
OWN = [
    ["What is the capital of France?", "And of Italy?", "Which of the two is older?"],
    ["I have three apples.", "I eat one.", "How many are left?"],
    ["Name a colour.", "Another one.", "Mix the two."],
    ["My dog is called Rex.", "He likes the park.", "What is my dog called?"],
]


def conversations(count: int, turns: int) -> list[list[str]]:
    """Returns real conversations if the machine has them, and built-in ones otherwise."""
    if not SHARED.exists():
        return [OWN[index % len(OWN)][:turns] for index in range(count)]
    lines = SHARED.read_text().splitlines()[:count]
    return [json.loads(line)["turns"][:turns] for line in lines]


async def test_cached_tokens_grow_with_the_conversation_and_the_window_sees_every_turn(
    daemon: StartDaemon,
) -> None:
    async with daemon(*LLAMA) as running, running.stub() as stub:
        cached = []
        for index in range(4):
            finished = await say(stub, f"Tell me fact number {index}.", "s", options=SHORT)
            assert finished.usage.HasField("cached_tokens")
            assert finished.timings.HasField("prefill")
            assert 0 < finished.usage.cached_tokens + 1 <= finished.usage.prompt_tokens
            cached.append(finished.usage.cached_tokens)
        assert cached == sorted(cached)
        assert cached[-1] > cached[1] > 0
        metrics = (await stub.GetSessionMetrics(pb.GetSessionMetricsRequest())).metrics
        assert 0 < metrics.cache_hit_rate < 100
        assert 0 < metrics.avg_prefill_reduction < 100


async def test_eight_concurrent_sessions_of_real_conversations_run_to_their_end(
    daemon: StartDaemon,
) -> None:
    async with daemon(*LLAMA) as running, running.stub() as stub:

        async def converse(number: int, turns: list[str]) -> None:
            for index, text in enumerate(turns):
                finished = await say(stub, text, f"s{number}", options=SHORT)
                assert finished.exchange_count == index + 1
            assert (await contents(stub, f"s{number}"))[::2] == turns

        talks = conversations(8, 3)
        await asyncio.gather(*(converse(number, turns) for number, turns in enumerate(talks)))


@pytest.mark.parametrize("phase", ["answer", "prefill"])
async def test_a_client_that_leaves_frees_the_engines_only_slot(
    daemon: StartDaemon, phase: str
) -> None:
    flags = ("--llama-slots", "1", "--llama-batch-tokens", "64")
    async with daemon(*LLAMA, *flags) as running, running.stub() as stub:
        await say(stub, "hi", options=SHORT)
        text = "Tell a long story." if phase == "answer" else "word " * 3000
        call = stub.Complete(turn(text, options=LONG))
        stream = aiter(call)
        await anext(stream)  # Started: the prompt is evaluated next
        if phase == "answer":
            await anext(stream)
        call.cancel()
        cancelled = time.monotonic()
        await say(stub, "hi", options=SHORT)
        # Promised are 2 s and one batch; the rest is for a busy machine.
        assert time.monotonic() - cancelled < 10
        await running.logged("completion failed", reason="COMPLETION_CANCELLED")


async def test_an_engine_that_is_killed_fails_its_streams_and_comes_back(
    daemon: StartDaemon,
) -> None:
    async with daemon(*LLAMA) as running, running.stub() as stub:
        await say(stub, "hi", "s", options=SHORT)
        call = stub.Complete(turn("Tell a long story.", "s", options=LONG))
        stream = aiter(call)
        await anext(stream)
        await anext(stream)
        child = engine_of(running)
        child.kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stream:
                pass
        reason, _, retry = details(caught.value)
        assert (caught.value.code(), reason) == (
            grpc.StatusCode.UNAVAILABLE,
            "ENGINE_UNAVAILABLE",
        )
        assert retry is not None
        assert (await say(stub, "and now?", "s", options=SHORT)).exchange_count == 2
        assert engine_of(running).pid != child.pid


async def test_no_connection_is_lost_when_an_engine_is_started(daemon: StartDaemon) -> None:
    """Starting a child forks, and gRPC's fork handlers would cut live connections.

    They run only if no thread is calling into gRPC at that moment, and otherwise log that they do
    not. So it is the log that tells for certain whether they are off.
    """
    async with daemon(*LLAMA) as running, running.stub() as stub, AsyncExitStack() as stack:
        await say(stub, "hi", options=SHORT)
        watches = []
        for _ in range(20):
            options = [("grpc.use_local_subchannel_pool", 1)]  # a separate connection
            channel = grpc.aio.insecure_channel(running.socket, options=options)
            await stack.enter_async_context(channel)
            health: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="liveness")
            watches.append(health.Watch(request))
            await anext(aiter(watches[-1]))
        for starts in (2, 3, 4):
            engine_of(running).kill()
            await running.logged("engine up", count=starts)
        assert [watch.done() for watch in watches] == [False] * 20
        assert not [line for line in running.log if "fork() handlers" in line["event"]]


async def test_no_engine_is_left_behind_when_the_daemon_is_killed(daemon: StartDaemon) -> None:
    async with daemon(*LLAMA) as running, running.stub() as stub:
        await say(stub, "hi", options=SHORT)
        child = engine_of(running)
        running.kill()
        await running.ended()
        await asyncio.to_thread(psutil.wait_procs, [child], timeout=10)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def test_a_completion_waits_for_an_engine_that_is_coming_up(daemon: StartDaemon) -> None:
    async with daemon(*LLAMA) as running, running.stub() as stub:
        # Sent as soon as the sockets are bound, before "engine up".
        started = (await events(stub, turn("hi", options=SHORT)))[0].started
        assert started.model == "SmolLM2-135M-Instruct.Q4_1"
        await running.logged("engine up")


async def test_a_forks_first_turn_hits_the_engines_cache(daemon: StartDaemon) -> None:
    async with daemon(*LLAMA) as running, running.stub() as stub:
        known = "You know all about the harbour. " + "Ships come and go. " * 60
        await stub.CreateSession(pb.CreateSessionRequest(session_id="s", system_prompt=known))
        for index in range(3):
            last = await say(stub, f"Tell me fact number {index}.", "s", options=SHORT)
        await stub.ForkSession(pb.ForkSessionRequest(session_id="s", new_session_id="f"))
        forked = await say(stub, "And another one.", "f", options=SHORT)
        assert forked.usage.cached_tokens >= last.usage.prompt_tokens
        early = pb.ForkSessionRequest(session_id="s", new_session_id="e", exchange_count=1)
        await stub.ForkSession(early)
        forked = await say(stub, "And another one.", "e", options=SHORT)
        # It copies the shared prefix from the parent's slot, and leaves the slot unchanged.
        assert 200 < forked.usage.cached_tokens < last.usage.prompt_tokens
        again = await say(stub, "Go on.", "s", options=SHORT)
        assert again.usage.cached_tokens >= last.usage.prompt_tokens
        assert await contents(stub, "e") == [
            *(await contents(stub, "s"))[:2],
            "And another one.",
            forked.message.content,
        ]


async def test_an_overlong_prompt_is_refused_with_a_reason_and_affects_no_other_call(
    daemon: StartDaemon,
) -> None:
    flags = ("--llama-context-tokens", "512", "--llama-answer-tokens", "64")
    async with daemon(*LLAMA, *flags) as running, running.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(stub, "word " * 2000, "s", options=SHORT)
        assert details(caught.value)[0] == "CONTEXT_TOO_LONG"
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        for index in range(8):  # more than fits: the window is trimmed by tokens
            finished = await say(stub, f"{index} " + "word " * 80, "s", options=SHORT)
            assert finished.exchange_count == index + 1
        assert len(await contents(stub, "s")) == 16


async def test_bypass_cache_leaves_nothing_for_the_next_caller(daemon: StartDaemon) -> None:
    private = pb.CompletionOptions(max_tokens=4, temperature=0.0, bypass_cache=True)
    async with daemon(*LLAMA) as running, running.stub() as stub:
        text = "The secret word of today is marmalade, and nobody else may know of it."
        for _ in range(2):
            finished = await say(stub, text, options=private)
            assert finished.usage.cached_tokens < 5


def engine_of(running: RunningDaemon) -> psutil.Process:
    """Returns the daemon's only child process."""
    (child,) = psutil.Process(running.pid).children()
    return child
