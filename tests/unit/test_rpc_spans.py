"""Spans have the right attributes and parents, and end however a call ends."""

from __future__ import annotations

import asyncio
import inspect
import json
from contextlib import aclosing
from typing import Any

import pytest
import semconv
from core import collect, failed, settle
from fakes import done
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from watched import Watched

from ruvd.core.completions.completion import CompletionPolicy, CompletionRef
from ruvd.core.errors import (
    CompletionCancelled,
    EngineRejected,
    EngineUnavailable,
    StoreUnavailable,
)
from ruvd.core.model import (
    FinishReason,
    IfBusy,
    Message,
    OnDisconnect,
    Role,
    ToolCall,
    ToolCallDelta,
)
from ruvd.core.options import CompletionOptions, Tool
from ruvd.core.ports.engine import Engine, EngineDone, EngineReasoning, EngineText
from ruvd.core.ports.store import Commit, RemovedSession, Store
from ruvd.stores.memory import MemoryStore
from ruvd.telemetry.conventions import NEWEST, V1_41_1, Conventions, Provider, provider
from ruvd.telemetry.metered_engine import MeteredEngine
from ruvd.telemetry.metered_store import MeteredStore

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
CALLER = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
METHOD = "/ruvd.v1.SessionService/Complete"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def ids(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def parent(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


@pytest.mark.parametrize(("wrapper", "port"), [(MeteredEngine, Engine), (MeteredStore, Store)])
def test_every_method_of_a_port_is_in_its_wrapper(wrapper: type, port: type) -> None:
    for name, method in inspect.getmembers(port):
        if name.startswith("_"):
            continue
        own = inspect.getattr_static(wrapper, name)
        if inspect.isfunction(method):
            assert inspect.signature(own) == inspect.signature(method), name


async def test_one_trace_leads_from_the_caller_through_the_rpc_to_the_engine() -> None:
    watched = Watched()
    with watched.rpcs.call(METHOD, CALLER, "ipv4:127.0.0.1:4711"):
        await collect(watched.start(messages=(Message(Role.USER, "hi"),)))
    rpc, chat, commit = (watched.span(each) for each in ("ruvd.v1", "chat", "ruvd.store.commit"))
    assert rpc.name == "ruvd.v1.SessionService/Complete"
    assert (rpc.kind, parent(rpc)) == (SpanKind.SERVER, PARENT)
    assert parent(chat) == parent(commit) == ids(rpc)[1]
    assert {ids(span)[0] for span in (rpc, chat, commit)} == {TRACE}
    assert attributes(rpc) == {
        "rpc.system.name": "grpc",
        "rpc.method": "ruvd.v1.SessionService/Complete",
        "rpc.response.status_code": "OK",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": 4711,
    }
    sent = watched.engine.requests[0].trace_headers
    assert sent["traceparent"] == f"00-{TRACE}-{ids(chat)[1]}-01"


async def test_the_span_of_a_generation_has_the_attributes_of_the_conventions() -> None:
    remote = Provider("vllm", remote=True, address="gpu.local", port=8000)
    watched = Watched(provider=remote)
    watched.engine.scripts = [[EngineText("yes"), done(prompt=20, cached=15, completion=3)]]
    options = CompletionOptions(
        model="m", temperature=0.5, top_p=0.9, max_tokens=7, stop=("END",), seed=4,
        frequency_penalty=0.1, presence_penalty=0.2,
    )  # fmt: skip
    await collect(watched.start(session_id="s", options=options))
    span = watched.span("chat")
    said = attributes(span)
    assert (span.name, span.kind, span.status.status_code) == (
        "chat m", SpanKind.CLIENT, StatusCode.UNSET,
    )  # fmt: skip
    assert said.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "server.address": "gpu.local",
        "server.port": 8000,
        "gen_ai.request.model": "m",
        "gen_ai.conversation.id": "s",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.stop_sequences": ("END",),
        "gen_ai.request.seed": 4,
        "gen_ai.request.frequency_penalty": 0.1,
        "gen_ai.request.presence_penalty": 0.2,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 15,
    }
    assert not semconv.strangers(set(said), semconv.GENAI_SPAN_ATTRIBUTES)


async def test_an_embedded_engine_is_internal_and_a_stateless_call_has_no_conversation() -> None:
    watched = Watched()
    await collect(watched.start(session_id=""))
    span = watched.span("chat")
    assert span.kind is SpanKind.INTERNAL
    assert "gen_ai.conversation.id" not in attributes(span)


async def test_a_cancelled_generation_is_marked_as_one() -> None:
    watched = Watched()
    watched.engine.scripts = [[EngineText("par"), asyncio.Event()]]
    completion = watched.start()
    async with aclosing(completion.events()) as events:
        assert [(await anext(events)).sequence for _ in range(2)] == [1, 2]
    await settle()
    span = watched.span("chat")
    assert attributes(span)["error.type"] == "CANCELLED"
    assert span.status.status_code is StatusCode.ERROR
    assert "gen_ai.response.finish_reasons" not in attributes(span)
    assert completion.error


@pytest.mark.parametrize(
    ("script", "error", "marked"),
    [
        ([EngineRejected("no")], EngineRejected, "ENGINE_REJECTED"),
        ([EngineText("par")], EngineUnavailable, "CUT"),
    ],
)
async def test_a_generation_that_failed_or_was_cut_says_so(
    script: list[Any], error: type[Any], marked: str
) -> None:
    watched = Watched()
    watched.engine.scripts = [script]
    await failed(watched.start(), error)
    span = watched.span("chat")
    assert attributes(span)["error.type"] == marked
    assert span.status.status_code is StatusCode.ERROR


async def test_a_long_wait_has_a_span_and_a_short_one_has_none() -> None:
    watched = Watched()
    hold = asyncio.Event()
    watched.engine.scripts = [[EngineText("1"), hold, done()]]
    first = watched.start("one")
    await settle()
    with watched.rpcs.call(METHOD, (), "unix:"):
        second = watched.start("two")
    await settle()
    watched.clock.advance(2.0)
    hold.set()
    await asyncio.gather(collect(first), collect(second))
    wait = watched.span("ruvd.queue")
    assert parent(wait) == ids(watched.span("ruvd.v1"))[1]
    assert wait.start_time is not None
    assert wait.end_time is not None
    assert wait.end_time - wait.start_time == 2_000_000_000


async def test_a_wait_that_ends_in_an_error_is_a_span_with_the_reason() -> None:
    watched = Watched()
    watched.engine.scripts = [[EngineText("1"), asyncio.Event()]]
    first = watched.start("one")
    await settle()
    second = watched.start("two")
    await settle()
    watched.clock.advance(2.0)
    await watched.completions.cancel(CompletionRef(second.id), keep_partial=False)
    await watched.completions.cancel(CompletionRef(first.id), keep_partial=False)
    assert attributes(watched.span("ruvd.queue"))["error.type"] == "COMPLETION_CANCELLED"


async def test_a_completion_that_outlives_its_call_stays_below_that_calls_span() -> None:
    watched = Watched()
    go_on = asyncio.Event()
    watched.engine.scripts = [[EngineText("par"), go_on, done()]]
    with watched.rpcs.call(METHOD, CALLER, ""):
        completion = watched.start(on_disconnect=OnDisconnect.CONTINUE)
        async with aclosing(completion.events()) as events:
            await anext(events)
    rpc = watched.span("ruvd.v1")
    assert not watched.spans("chat")
    go_on.set()
    await completion.ended()
    assert parent(watched.span("chat")) == ids(rpc)[1]
    assert parent(watched.span("ruvd.store.commit")) == ids(rpc)[1]


@pytest.mark.parametrize("first_has", ["begun", "ended"])
async def test_a_retry_that_attaches_or_replays_is_linked_to_the_call_that_began(
    first_has: str,
) -> None:
    watched = Watched(completion_policy=CompletionPolicy(retention_seconds=600))
    with watched.rpcs.call("/ruvd.v1.S/First", CALLER, ""):
        first = watched.start(request_id="r")
        if first_has == "ended":
            await collect(first)
    with watched.rpcs.call("/ruvd.v1.S/Second", (), ""):
        await collect(watched.start(request_id="r", if_busy=IfBusy.QUEUE))
    (link,) = watched.span("ruvd.v1.S/Second").links
    assert f"{link.context.span_id:016x}" == ids(watched.span("ruvd.v1.S/First"))[1]
    assert dict(link.attributes or {}) == {
        "ruvd.completion.id": first.id,
        "ruvd.completion.joined": "deduplicated",
    }
    assert ids(watched.span("ruvd.v1.S/Second"))[0] != TRACE
    assert len(watched.spans("chat")) == 1
    assert watched.statistics.deduplicated == 1


async def test_a_resume_is_linked_to_the_call_that_began() -> None:
    watched = Watched()
    with watched.rpcs.call("/ruvd.v1.S/First", CALLER, ""):
        first = watched.start()
        await collect(first)
    with watched.rpcs.call("/ruvd.v1.S/Second", (), ""):
        resumed = watched.completions.resume(CompletionRef(first.id), 1)
        assert [event.sequence async for event in resumed] == [2, 3]
    (link,) = watched.span("ruvd.v1.S/Second").links
    assert f"{link.context.span_id:016x}" == ids(watched.span("ruvd.v1.S/First"))[1]
    assert dict(link.attributes or {})["ruvd.completion.joined"] == "resumed"
    assert watched.statistics.resumed == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [("INTERNAL", "INTERNAL"), ("UNAVAILABLE", "UNAVAILABLE"), ("NOT_FOUND", None), ("OK", None)],
)
async def test_only_codes_of_server_errors_are_errors_of_the_rpc(
    code: str, error: str | None
) -> None:
    watched = Watched()
    with watched.rpcs.call(METHOD, (), "ipv6:%5B::1%5D:5") as outcome:
        outcome.code = code
    span = watched.span("ruvd.v1")
    assert (span.status.status_code is StatusCode.ERROR) is bool(error)
    assert attributes(span).get("error.type") == error
    assert attributes(span)["network.peer.address"] == "::1"
    assert not semconv.strangers(set(attributes(span)), semconv.RPC_SPAN_ATTRIBUTES)


async def converse(watched: Watched) -> dict[str, Any]:
    call = ToolCallDelta(0, "id1", "weather", '{"city":')
    watched.engine.scripts = [
        [
            EngineReasoning("hm"),
            EngineText("let me see"),
            call,
            ToolCallDelta(0, arguments='"Oslo"}'),
            EngineDone(FinishReason.TOOL_CALLS),
        ]
    ]
    earlier = (
        Message(Role.SYSTEM, "be brief"),
        Message(Role.USER, "secret words"),
        Message(Role.ASSISTANT, tool_calls=(ToolCall("id0", "time", "{}"),)),
        Message(Role.TOOL, "noon", tool_call_id="id0"),
    )
    options = CompletionOptions(tools=(Tool("weather", "tells the weather"),))
    await collect(watched.start(session_id="", messages=earlier, options=options))
    return attributes(watched.span("chat"))


async def test_message_content_is_on_no_span_unless_it_is_enabled() -> None:
    said = await converse(Watched())
    assert not semconv.CONTENT_ATTRIBUTES & set(said)
    assert "secret words" not in repr(said)


@pytest.mark.parametrize("names", [V1_41_1, NEWEST])
async def test_content_has_the_form_that_the_conventions_give_it(names: Any) -> None:
    said = await converse(Watched(Conventions(names, content=True)))
    assert json.loads(said["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "be brief"}]},
        {"role": "user", "parts": [{"type": "text", "content": "secret words"}]},
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "id0", "name": "time", "arguments": "{}"}],
        },
        {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": "id0", "response": "noon"}],
        },
    ]
    reason = {"finish_reason": "tool_call"} if names is V1_41_1 else {}
    assert json.loads(said["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "hm"},
                {"type": "text", "content": "let me see"},
                {
                    "type": "tool_call",
                    "id": "id1",
                    "name": "weather",
                    "arguments": '{"city":"Oslo"}',
                },
            ],
            **reason,
        }
    ]
    assert json.loads(said["gen_ai.tool.definitions"]) == [{"type": "function", "name": "weather"}]
    known = semconv.GENAI_SPAN_ATTRIBUTES | semconv.CONTENT_ATTRIBUTES
    assert not semconv.strangers(set(said), known)


class BrokenStore(MemoryStore):
    async def commit(self, commit: Commit) -> list[RemovedSession]:
        raise StoreUnavailable("the disk is full")


async def test_a_quick_commit_is_measured_and_has_no_span() -> None:
    watched = Watched(min_commit_span_seconds=60.0)
    await collect(watched.start())
    assert not watched.spans("ruvd.store")
    (point,) = watched.histogram("ruvd.store.commit.duration")
    assert point.count == 1


async def test_a_commit_that_failed_has_a_span_however_quick_it_was() -> None:
    watched = Watched(store=BrokenStore(), min_commit_span_seconds=60.0)
    await failed(watched.start(), StoreUnavailable)
    span = watched.span("ruvd.store.commit")
    assert attributes(span)["error.type"] == "STORE_UNAVAILABLE"
    assert watched.value("ruvd.store.errors", ruvd__store__operation="commit") == 1
    (point,) = watched.histogram("ruvd.store.commit.duration")
    assert dict(point.attributes or {})["error.type"] == "STORE_UNAVAILABLE"


@pytest.mark.parametrize(
    ("engine", "affinity", "urls", "expected"),
    [
        ("llama", "none", [], Provider("llama.cpp")),
        ("echo", "none", [], Provider("echo")),
        (
            "openai",
            "none",
            ["https://api.openai.com/v1"],
            Provider("openai", remote=True, address="api.openai.com", port=443),
        ),
        (
            "openai",
            "vllm",
            ["http://gpu:8000/v1"],
            Provider("vllm", remote=True, address="gpu", port=8000),
        ),
        (
            "openai",
            "none",
            ["http://a/v1", "http://b/v1"],
            Provider("openai-compatible", remote=True),
        ),
    ],
)
def test_the_provider_is_known_by_host_then_by_kind(
    engine: str, affinity: str, urls: list[str], expected: Provider
) -> None:
    assert provider(engine, affinity, urls) == expected


async def test_a_reader_that_was_cancelled_late_leaves_no_span_open() -> None:
    watched = Watched()
    completion = watched.start()
    await completion.ended()
    completion.cancel(CompletionCancelled("late"))
    assert attributes(watched.span("chat"))["gen_ai.response.finish_reasons"] == ("stop",)
