"""Our spans are what the SDK's are: sampled by its samplers, within its limits, encoded alike."""

from __future__ import annotations

from typing import Any

import pytest
from collector import attributes
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind
from watched import Watched

from ruvd.core.ports.events import CompletionBegan
from ruvd.telemetry.otlp import Encoder
from ruvd.telemetry.rpc_spans import CompletionSpans, RpcCalls, current_ids, trace_headers
from ruvd.telemetry.spans import SAMPLED, Attributes, Caller, Span, Tracer, current

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def tracer(ended: list[Span]) -> Tracer:
    """One as the environment of now asks for, with a resource and a scope of its own."""
    resource = Resource({"service.name": "ruvd", "service.version": "1"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    return Tracer(provider, InstrumentationScope("ruvd", "1"), ended.append)


def caller(flags: int, state: str = "") -> Caller:
    return Caller(bytes.fromhex(TRACE), bytes.fromhex(PARENT), flags, state)


def comparable(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    """The same with every span's attributes in the order of their names."""
    for span in request.resource_spans[0].scope_spans[0].spans:
        span.attributes.sort(key=lambda pair: pair.key)
    return request


def test_spans_are_encoded_as_the_sdk_encodes_them() -> None:
    ended: list[Span] = []
    of = tracer(ended)
    every: dict[str, Any] = {
        "text": "chat", "long": "x" * 5000, "number": 3, "float": 0.25, "true": True, "one": 1,
        "same": 1.0, "many": ("a", "b"), "": "empty", "letters": "å😀",
    }  # fmt: skip
    root = Span(of, "root", None, kind=SpanKind.SERVER, known=every)
    below = Span(of, "below", root, kind=SpanKind.CLIENT)
    below.error = "CUT"
    below.link((root.trace_id, root.span_id), {"ruvd.completion.joined": "resumed"})
    remote = Span(of, "remote", caller(SAMPLED, "a=1,b=2"), known={"one": True})
    for span in (below, root, remote):
        span.end()
    encoder = Encoder()
    for _ in range(2):  # anew, then from what is kept
        ours = comparable(encoder.request(ended))
        theirs = comparable(encode_spans([span.readable() for span in ended]))
        assert ours == theirs


def test_attributes_that_never_come_again_are_not_all_kept() -> None:
    ended: list[Span] = []
    of, encoder = tracer(ended), Encoder()
    for number in range(5000):
        Span(of, "s", None, known={"id": f"session-{number}"}).end()
    encoder.request(ended)
    assert len(encoder._known) <= 2000


def test_half_a_character_costs_no_other_span() -> None:
    ended: list[Span] = []
    Span(tracer(ended), "s", None, known={"said": "\ud83d"}).end()
    (span,) = Encoder().request(ended).resource_spans[0].scope_spans[0].spans
    assert attributes(span.attributes) == {"said": "?"}


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
def test_the_sampler_is_the_one_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    argument: str,
    recorded: tuple[bool, bool, bool],
) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    ended: list[Span] = []
    of = tracer(ended)
    callers = (None, caller(0), caller(SAMPLED, "k=v"))
    for above, expected in zip(callers, recorded, strict=True):
        ended.clear()
        root = Span(of, "root", above)
        below = Span(of, "below", root)
        below.end()
        root.end()
        assert [span.name for span in ended] == (["below", "root"] if expected else [])
        # Who is called next is told, too.
        assert trace_headers(below)["traceparent"].endswith(("1", "3") if expected else ("0", "2"))
        assert below.trace_id == root.trace_id
        if above:
            assert root.trace_id.hex() == TRACE
            assert below.state == above.state


def test_attributes_keep_within_the_limits_that_the_environment_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    ended: list[Span] = []
    known: Attributes = {"a": "12345", "b": "12345", "c": "12345"}
    Span(tracer(ended), "s", None, known=known).end()
    (span,) = Encoder().request(ended).resource_spans[0].scope_spans[0].spans
    assert attributes(span.attributes) == {"b": "123", "c": "123"}
    assert span.dropped_attributes_count == 1


def test_where_nothing_is_recorded_the_callers_trace_goes_on_to_whoever_is_called() -> None:
    watched, passing = Watched(), Tracer()
    rpcs = RpcCalls(passing, watched.instruments)
    header = f"00-{TRACE}-{PARENT}-01"
    with rpcs.call("/ruvd.v1.S/M", (("traceparent", header), ("tracestate", "k=v")), ""):
        assert current_ids() == {"trace_id": TRACE, "span_id": PARENT}
        below = Span(passing, "below", current.get())
        assert trace_headers(below) == {"traceparent": header, "tracestate": "k=v"}
    with rpcs.call("/ruvd.v1.S/M", (), "") as outcome:
        assert current_ids() == trace_headers(outcome) == {}
    assert current_ids() == {}


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_header_that_cannot_be_read_begins_a_trace(header: str) -> None:
    watched = Watched()
    with watched.rpcs.call("/ruvd.v1.S/M", (("traceparent", header),), ""):
        pass
    assert watched.span("ruvd.v1").parent is None


def test_only_so_many_completions_can_be_linked_to() -> None:
    watched = Watched()
    told = CompletionSpans(watched.tracer)
    with watched.rpcs.call("/ruvd.v1.S/M", (), ""):
        for number in range(10_050):
            told(CompletionBegan(str(number)))
    assert len(told._begun) == 10_000
    assert "49" not in told._begun
