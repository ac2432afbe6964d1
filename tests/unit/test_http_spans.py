"""Requests over HTTP have spans and durations by the conventions, and nothing without telemetry."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import semconv
from console_pages import ConsoleOfCore
from core import Core
from openai_door import Door, user
from opentelemetry.sdk.metrics.export import HistogramDataPoint
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from watched import Watched

from ruvd.core.errors import EngineTimeout
from ruvd.core.ports.engine import EngineText
from ruvd.http.browser_guard import BrowserGuard
from ruvd.http.measurement import Measured
from ruvd.http.scopes import ASGIApp

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
DURATION = "http.server.request.duration"


def measured(app: ASGIApp, watched: Watched) -> httpx.AsyncClient:
    """Returns a client of an application whose requests are measured."""
    guarded = Measured(BrowserGuard(app, loopback_only=True), watched.http)
    transport = httpx.ASGITransport(guarded, client=("127.0.0.1", 4711))
    return httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers={"user-agent": "tests"}
    )


def attributes(of: ReadableSpan | HistogramDataPoint) -> dict[str, Any]:
    return dict(of.attributes or {})


async def test_a_request_has_a_span_of_the_callers_trace_above_that_of_its_completion() -> None:
    watched = Watched()
    door = Door(Core(store=watched.metered_store))
    async with measured(door.app, watched) as http:
        body = {"model": "m", "messages": [user("hi")]}
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-ruvd-session-id": "s"}
        answer = await http.post("/v1/chat/completions?a=b", json=body, headers=headers)
        assert answer.status_code == 200
    span = watched.span("POST")
    assert (span.name, span.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    common = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.scheme": "http",
    }
    assert attributes(span) == common | {
        "url.path": "/v1/chat/completions",
        "url.query": "a=b",
        "network.protocol.version": "1.1",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": 4711,
        "user_agent.original": "tests",
    }
    (point,) = watched.histogram(DURATION)
    assert attributes(point) == common
    assert point.count == 1
    commit = watched.span("ruvd.store.commit")
    assert commit.parent is not None
    assert commit.parent.span_id == span.context.span_id


@pytest.mark.parametrize(
    ("method", "path", "headers", "name", "status"),
    [
        ("GET", "/v1/models/a/b", {}, "GET /v1/models/{model}", 404),
        ("GET", "/v1/files/x", {}, "GET /v1/files/{file_id}", 404),
        ("GET", "/nothing", {}, "GET", 404),
        ("PUT", "/v1/models", {}, "PUT", 405),
        ("PROPFIND", "/v1/models", {}, "HTTP", 405),
        ("GET", "/v1/models", {"host": "evil.com"}, "GET", 403),
        ("GET", "/v1/models", {"traceparent": "00-nonsense"}, "GET /v1/models", 200),
    ],
)
async def test_names_have_the_template_of_the_path_and_refusals_are_no_errors(
    method: str, path: str, headers: dict[str, str], name: str, status: int
) -> None:
    watched = Watched()
    async with measured(Door().app, watched) as http:
        assert (await http.request(method, path, headers=headers)).status_code == status
    span = watched.span(name)
    assert (span.name, span.status.status_code) == (name, StatusCode.UNSET)
    assert span.parent is None
    (point,) = watched.histogram(DURATION)
    for each in (span, point):
        told = attributes(each)
        assert told["http.response.status_code"] == status
        assert "error.type" not in told
        assert name.partition(" ")[2] == told.get("http.route", "")
        assert not semconv.strangers(set(told), semconv.HTTP_SPAN_ATTRIBUTES)
    assert not semconv.strangers(set(attributes(point)), semconv.METRIC_ATTRIBUTES)


@pytest.mark.parametrize(("stream", "status"), [(False, 504), (True, 200)])
async def test_a_failure_of_the_server_is_an_error_also_within_a_stream(
    *, stream: bool, status: int
) -> None:
    watched, door = Watched(), Door()
    door.answers(EngineText("par"), EngineTimeout("late"))
    body = {"model": "m", "messages": [user("hi")], "stream": stream}
    async with measured(door.app, watched) as http:
        await http.post("/v1/chat/completions", json=body)
    span = watched.span("POST")
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "ENGINE_TIMEOUT"
    assert attributes(span)["http.response.status_code"] == status


async def test_pages_of_the_console_are_measured_by_their_templates() -> None:
    watched, console = Watched(), ConsoleOfCore()
    await console.core.say("hi", "s")
    async with measured(await console.application(), watched) as http:
        assert (await http.get("/sessions/s")).status_code == 200
        assert (await http.get("/no/such/page")).status_code == 404
    assert {span.name for span in watched.spans("GET")} == {"GET", "GET /sessions/{session_id}"}


async def test_a_request_whose_client_goes_before_the_answer_has_no_status() -> None:
    watched, door = Watched(), Door()
    gone, asked = asyncio.Event(), asyncio.Event()
    door.answers(EngineText("par"), asyncio.Event())
    messages = [
        {"type": "http.request", "body": b'{"messages": [{"role": "user", "content": "a"}]}'}
    ]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        asked.set()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "scheme": "http", "http_version": "1.1", "client": None,
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    request = asyncio.create_task(Measured(door.app, watched.http)(scope, receive, send))
    await asyncio.wait_for(asked.wait(), 60)
    gone.set()
    await asyncio.wait_for(request, 60)
    span = watched.span("POST")
    assert span.status.status_code is StatusCode.UNSET
    assert not {"http.response.status_code", "error.type"} & set(attributes(span))
