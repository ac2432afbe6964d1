"""Sampling, limits and propagation of spans follow the standard variables and headers."""

from __future__ import annotations

import pytest
from core import collect
from opentelemetry.trace import NoOpTracer
from watched import Watched

from ruvd.core.model import Message, Role
from ruvd.core.ports.engine import EngineRequest
from ruvd.core.ports.events import CompletionBegan, CompletionJoined
from ruvd.telemetry.dispatch import observer_of
from ruvd.telemetry.metered_engine import MeteredEngine
from ruvd.telemetry.rpc_spans import CompletionSpans, RpcCalls, current_ids

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
METHOD = "/ruvd.v1.S/M"
REQUEST = EngineRequest((Message(Role.USER, "hi"),))


def headers(flags: str) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{TRACE}-{PARENT}-{flags}"), ("tracestate", "k=v"))


@pytest.mark.parametrize(
    ("sampler", "argument", "recorded"),
    [
        ("", "", (True, False, True)),
        ("parentbased_always_off", "", (False, False, True)),
        ("always_on", "", (True, True, True)),
        ("always_off", "", (False, False, False)),
        ("traceidratio", "0", (False, False, False)),
        ("parentbased_traceidratio", "1", (True, False, True)),
    ],
)
async def test_the_sampler_is_the_one_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    argument: str,
    recorded: tuple[bool, bool, bool],
) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    callers = ((), headers("00"), headers("01"))
    for metadata, expected in zip(callers, recorded, strict=True):
        watched = Watched()
        with watched.rpcs.call(METHOD, metadata, ""):
            trace_id = current_ids()["trace_id"]
            await collect(watched.start())
        names = [span.name for span in watched.spans("")]
        assert names == (["chat scripted", "ruvd.store.commit", "ruvd.v1.S/M"] if expected else [])
        # The engine learns of the decision.
        sent = watched.engine.requests[0].trace_headers
        assert sent["traceparent"].endswith(("1", "3") if expected else ("0", "2"))
        assert sent["traceparent"].split("-")[1] == trace_id
        if metadata:
            assert trace_id == TRACE
            assert sent["tracestate"] == "k=v"


async def test_attributes_keep_within_the_limits_that_the_environment_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    watched = Watched()
    with watched.rpcs.call(METHOD, (), ""):
        pass
    span = watched.span("ruvd.v1")
    assert dict(span.attributes or {}) == {
        "rpc.method": "ruv",
        "rpc.response.status_code": "OK",
    }
    assert span.dropped_attributes == 1


async def test_the_callers_trace_reaches_the_engine_where_no_spans_are_recorded() -> None:
    watched, tracer = Watched(), NoOpTracer()
    rpcs = RpcCalls(tracer, watched.instruments, watched.deferred)
    engine = MeteredEngine(
        watched.engine,
        tracer,
        watched.instruments,
        watched.deferred,
        watched.provider,
        watched.conventions,
    )
    with rpcs.call(METHOD, headers("01"), ""):
        assert current_ids() == {"trace_id": TRACE, "span_id": PARENT}
        async for _ in engine.generate(REQUEST):
            pass
    assert dict(watched.engine.requests[0].trace_headers) == dict(headers("01"))
    with rpcs.call(METHOD, (), ""):
        assert current_ids() == {}
        async for _ in engine.generate(REQUEST):
            pass
    assert watched.engine.requests[1].trace_headers == {}
    assert current_ids() == {}


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01"])
async def test_a_header_that_cannot_be_read_begins_a_trace(header: str) -> None:
    watched = Watched()
    with watched.rpcs.call(METHOD, (("traceparent", header),), ""):
        pass
    assert watched.span("ruvd.v1").parent is None


async def test_the_number_of_completions_that_can_be_linked_to_is_bounded() -> None:
    watched = Watched()
    observe = observer_of(CompletionSpans(watched.tracer).handlers)
    with watched.rpcs.call("/ruvd.v1.S/First", (), ""):
        for number in range(10_050):
            observe(CompletionBegan(str(number)))
    with watched.rpcs.call("/ruvd.v1.S/Second", (), ""):
        observe(CompletionJoined("49", resumed=True))
        observe(CompletionJoined("50", resumed=True))
    links = watched.span("ruvd.v1.S/Second").links
    assert [(link.attributes or {})["ruvd.completion.id"] for link in links] == ["50"]
