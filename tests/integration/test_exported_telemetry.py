"""Telemetry of a real daemon: what a collector receives, what Prometheus reads, and that neither
can delay a request."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
import semconv
from collector import Collector, attributes, collecting, points
from http_door import HTTP, base_url
from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic
from running import RunningDaemon, StartDaemon
from upstream import serving

from ruvd.telemetry.exporters import Outage
from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo")
WARNING = "telemetry is not exported; what does not fit into its queue is dropped"


def export_to(monkeypatch: pytest.MonkeyPatch, collector: Collector, **more: str) -> None:
    """Makes daemons that start from now on export to a collector with little delay."""
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
    }
    for name, value in {**settings, **more}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


async def complete(
    daemon: RunningDaemon, text: str = "hi", session_id: str = "", **options: Any
) -> list[pb.CompletionEvent]:
    """One completion over the daemon's socket, to its end."""
    metadata = options.pop("metadata", ())
    request = pb.CompleteRequest(
        session_id=session_id,
        messages=[pb.Message(role=pb.ROLE_USER, content=text)],
        **options,
    )
    async with daemon.stub() as stub:
        return [each.event async for each in stub.Complete(request, metadata=metadata)]


def traced(name: str) -> tuple[tuple[tuple[str, str], ...], str, str]:
    """The span of a caller: the metadata that carries it, its trace id and its span id."""
    span = TracerProvider(shutdown_on_exit=False).get_tracer("caller").start_span(name)
    carrier: dict[str, str] = {}
    inject(carrier, trace.set_span_in_context(span))
    context = span.get_span_context()
    return tuple(carrier.items()), f"{context.trace_id:032x}", f"{context.span_id:016x}"


async def test_one_trace_connects_caller_daemon_and_upstream_in_the_conventions_words(
    daemon: StartDaemon, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, collector, OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test")
    metadata, trace_id, caller = traced("the caller")
    async with serving() as upstream:
        remote = ("--engine", "openai", "--base-url", upstream.url, "--model", "m")
        async with daemon(*remote) as d:
            await complete(d, "private", "s1", metadata=metadata)
            line = await d.logged("completion")
        asked = await upstream.asked()
    rpc = await collector.span("ruvd.v1.SessionService/Complete")
    chat = await collector.span("chat m")
    assert {each.trace_id.hex() for each in (rpc, chat)} == {trace_id}
    assert rpc.parent_span_id.hex() == caller
    assert chat.parent_span_id == rpc.span_id
    assert asked.headers["traceparent"].startswith(f"00-{trace_id}-{chat.span_id.hex()}-")
    assert (line["trace_id"], line["span_id"]) == (trace_id, rpc.span_id.hex())
    assert (rpc.kind, chat.kind) == (rpc.SPAN_KIND_SERVER, chat.SPAN_KIND_CLIENT)
    said = attributes(chat.attributes)
    assert said["gen_ai.conversation.id"] == "s1"
    assert said["server.port"] == upstream.port
    assert collector.resource["service.name"] == "ruvd"
    assert collector.resource["deployment.environment.name"] == "test"
    for span in collector.spans:
        known = semconv.RPC_SPAN_ATTRIBUTES if span is rpc else semconv.GENAI_SPAN_ATTRIBUTES
        assert not semconv.strangers(set(attributes(span.attributes)), known), span.name
    assert "private" not in repr(collector.spans) + repr(d.log)
    check_metrics(collector, semconv.V1_41_1)
    # The last figures are sent while the daemon goes down.
    (active,) = points(collector.metrics["ruvd.sessions.active"])
    assert active.as_int == 1


def check_metrics(collector: Collector, known: dict[str, Any]) -> None:
    names = set(collector.metrics)
    theirs = {name for name in names if not name.startswith("ruvd.")}
    assert theirs <= set(known)
    assert len(theirs) > len(known) - 2
    for name in names:
        for point in points(collector.metrics[name]):
            used = attributes(point.attributes)
            assert not semconv.strangers(set(used), semconv.METRIC_ATTRIBUTES), name
            assert "s1" not in used.values()
            if name in known and known[name][1]:
                assert list(point.explicit_bounds) == known[name][1], name


async def test_the_newest_names_and_content_come_only_where_they_are_asked_for(
    daemon: StartDaemon, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(
        monkeypatch,
        collector,
        OTEL_SEMCONV_STABILITY_OPT_IN="gen_ai_latest_experimental",
        OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="true",
        OTEL_SERVICE_NAME="mine",
    )
    async with daemon(*ECHO) as d:
        await complete(d, "two words", "s1")
    said = attributes((await collector.span("chat")).attributes)
    assert "two words" in said["gen_ai.output.messages"]
    assert collector.resource["service.name"] == "mine"
    check_metrics(collector, semconv.NEWEST)


async def test_telemetry_goes_over_http_where_that_is_asked_for(
    daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collecting("http") as collector:
        export_to(monkeypatch, collector, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf")
        async with daemon(*ECHO) as d:
            await complete(d)
            await collector.span("chat")
            await collector.until(lambda: "rpc.server.call.duration" in collector.metrics)
        assert WARNING not in [line["event"] for line in d.log]


async def test_requests_over_http_have_the_spans_of_the_conventions(
    daemon: StartDaemon, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, collector)
    metadata, trace_id, caller = traced("the caller")
    async with daemon(*ECHO, *HTTP) as d, httpx.AsyncClient(timeout=60) as http:
        body = {"model": "echo", "messages": [{"role": "user", "content": "private"}]}
        url = f"{await base_url(d)}/chat/completions"
        assert (await http.post(url, json=body, headers=dict(metadata))).status_code == 200
        span = await collector.span("POST /v1/chat/completions")
        chat = await collector.span("chat")
        await collector.until(lambda: "http.server.request.duration" in collector.metrics)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace_id, caller)
    assert chat.parent_span_id == span.span_id
    assert span.kind == span.SPAN_KIND_SERVER
    used = attributes(span.attributes)
    assert used["http.response.status_code"] == 200
    assert not semconv.strangers(set(used), semconv.HTTP_SPAN_ATTRIBUTES)
    assert "private" not in repr(collector.spans)
    (point,) = points(collector.metrics["http.server.request.duration"])
    assert attributes(point.attributes)["http.route"] == "/v1/chat/completions"
    assert list(point.explicit_bounds) == semconv.RPC


async def test_the_span_of_a_call_whose_caller_left_ends_and_so_does_its_generation(
    daemon: StartDaemon, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, collector)
    request = pb.CompleteRequest(messages=[pb.Message(role=pb.ROLE_USER, content="one two three")])
    async with daemon(*ECHO, "--echo-delay-seconds", "30") as d:
        async with d.stub() as stub:
            call = stub.Complete(request)
            assert (await anext(aiter(call))).event.HasField("started")
            call.cancel()
        rpc = attributes((await collector.span("ruvd.v1")).attributes)
        chat = attributes((await collector.span("chat")).attributes)
    assert rpc["rpc.response.status_code"] == "CANCELLED"
    assert "error.type" not in rpc  # the server is not to blame
    assert chat["error.type"] == "CANCELLED"


async def test_a_call_that_is_refused_or_too_late_has_its_code(
    daemon: StartDaemon, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, collector)
    async with daemon(*ECHO, "--echo-delay-seconds", "30") as d, d.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetSession(pb.GetSessionRequest(session_id="none"))
        request = pb.CompleteRequest(messages=[pb.Message(role=pb.ROLE_USER, content="a b")])
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stub.Complete(request, timeout=0.3):
                pass
        refused = attributes((await collector.span("ruvd.v1.SessionService/Get")).attributes)
        late = attributes((await collector.span("ruvd.v1.SessionService/Complete")).attributes)
    assert refused["rpc.response.status_code"] == "NOT_FOUND"
    # On a slow machine the caller's cancel may look like one well before the deadline.
    assert late["rpc.response.status_code"] in ("DEADLINE_EXCEEDED", "CANCELLED")


async def test_a_stalled_collector_holds_nothing_up_and_what_waits_for_it_is_bounded(
    daemon: StartDaemon, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, batch, calls = 20, 10, 100
    deferred = 64  # at most so many spans have not ended yet when their calls have
    export_to(
        monkeypatch,
        collector,
        OTEL_BSP_MAX_QUEUE_SIZE=str(queue),
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE=str(batch),
        OTEL_METRICS_EXPORTER="none",
        OTEL_EXPORTER_OTLP_TIMEOUT="600",
    )
    collector.stall()
    async with daemon(*ECHO) as d:
        for number in range(calls):  # each ends before the collector has answered an export
            events = await complete(d, f"call {number}")
            assert events[-1].HasField("finished")
        await collector.until(lambda: collector.exports)
        assert not collector.answers.is_set()
        held_up = len(collector.spans)
        collector.answers.set()
        last, _, _ = traced("last")
        await complete(d, "last", metadata=last)
        await collector.until(
            lambda: any(span.trace_id.hex() in last[0][1] for span in collector.spans)
        )
        # Each call has two spans, and the queue kept only so many of them.
        assert len(collector.spans) <= held_up + queue + batch + deferred < 2 * calls
    events_logged = [line["event"] for line in d.log]
    assert events_logged.count("completion") == calls + 1
    assert events_logged.count(WARNING) <= 1


async def test_a_daemon_goes_down_in_time_though_the_collector_never_answers(
    daemon: StartDaemon, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, collector, OTEL_EXPORTER_OTLP_TIMEOUT="600")
    collector.stall()
    async with daemon(*ECHO) as d:
        await complete(d)
        await collector.until(lambda: collector.spans)
        assert await d.stop() == 0  # within the deadline of `stop`, far below 600 s
    assert "stopped" in [line["event"] for line in d.log]
    assert d.crashed() is False


async def test_a_killed_collector_costs_one_warning_and_its_return_is_told(
    daemon: StartDaemon, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, collector, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    async with daemon(*ECHO) as d:
        await complete(d)
        await collector.span("chat")
        await collector.stop()
        await d.logged(WARNING)
        for _ in range(20):
            assert (await complete(d))[-1].HasField("finished")
        collector.spans.clear()
        await collector.start()
        await d.logged("telemetry is exported again")
        await complete(d)
        await collector.span("chat")
        assert [line["event"] for line in d.log].count(WARNING) == 1


async def scrape(address: str, accept: str = "") -> str:
    request = urllib.request.Request(  # a URL of ours
        f"http://{address}/metrics", headers={"Accept": accept} if accept else {}
    )

    def read() -> str:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            body: bytes = answer.read()
            return body.decode()

    return await asyncio.to_thread(read)


async def test_prometheus_reads_the_figures_with_exemplars_that_lead_to_the_callers_trace(
    daemon: StartDaemon,
) -> None:
    metadata, trace_id, _ = traced("the caller")
    async with daemon(*ECHO, "--metrics-listen", "127.0.0.1:0") as d:
        for _ in range(2):
            await complete(d, "hi", "s1", metadata=metadata)
        address = (await d.logged("serving metrics"))["address"]
        text = await scrape(address, "application/openmetrics-text; version=1.0.0")
        plain = await scrape(address)
        async with d.stub() as stub:
            ours = (await stub.GetSessionMetrics(pb.GetSessionMetricsRequest())).metrics
    families = {family.name: family for family in openmetrics(text)}  # type: ignore[no-untyped-call]
    exemplars = [
        sample.exemplar.labels["trace_id"]
        for sample in families["gen_ai_client_operation_duration_seconds"].samples
        if sample.exemplar
    ]
    assert exemplars
    assert set(exemplars) == {trace_id}
    values = {sample.name: sample.value for f in families.values() for sample in f.samples}
    assert values["ruvd_sessions_active"] == ours.active_sessions == 1
    assert values["ruvd_completion_duration_seconds_count"] == ours.session_completions == 2
    hits = 100 * values["ruvd_prompt_cached_tokens_total"] / values["ruvd_prompt_tokens_total"]
    assert hits == pytest.approx(ours.cache_hit_rate)
    assert "s1" not in text
    # The older format has the same families, but no exemplars.
    assert {family.name for family in classic(plain)} >= {
        "gen_ai_client_operation_duration_seconds", "ruvd_sessions_active", "ruvd_prompt_tokens",
    }  # fmt: skip
    assert "trace_id" not in plain


async def test_a_metrics_address_that_is_taken_is_told_at_once(daemon: StartDaemon) -> None:
    async with daemon(*ECHO, "--metrics-listen", "127.0.0.1:0") as d:
        address = (await d.logged("serving metrics"))["address"]
        with pytest.raises(AssertionError, match="cannot listen"):
            async with daemon(*ECHO, "--metrics-listen", address):
                pass


async def test_the_log_level_is_switched_while_it_runs(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as d:
        d.process.send_signal(signal.SIGUSR2)
        await d.logged("log level", log_level="debug")
        await complete(d, session_id="s1")
        await d.logged("session created", session_id="s1")
        d.process.send_signal(signal.SIGUSR2)
        await d.logged("log level", log_level="info")


def test_nothing_of_opentelemetry_is_imported_where_nobody_wants_it() -> None:
    program = """
import sys
import time
import ruvd.cli.serve
from ruvd.config.settings import Settings
from ruvd.server import daemon
assert daemon.build_monitoring(Settings(), daemon.Statistics()) is None
assert not [name for name in sys.modules if name.startswith(("opentelemetry", "prometheus"))]
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "RUVD_"))}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_an_export_that_began_before_the_collector_came_back_is_no_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage = Outage()
    with caplog.at_level(logging.INFO, "ruvd.telemetry"):
        began = time.monotonic()
        outage.report("traces", began, exported=False)
        outage.report("traces", time.monotonic(), exported=True)
        outage.report("metrics", began, exported=False)
        assert caplog.messages == [WARNING, "telemetry is exported again"]
        outage.report("metrics", time.monotonic(), exported=False)
        assert caplog.messages[2:] == [WARNING]
