"""Quirks of servers: a row says what a server sends, and what must come out of the engine `openai`.

Each file of `tests/quirks` has a table. A new case is one line in the table of its kind:

    Quirk("vLLM: an empty delta", stream(delta(), say("Hi", "stop")), text="Hi"),

The name begins with the server. The second argument is the response, byte by byte: `stream` builds
a stream of events, `reply` any other response, and a list of bytes, pauses in seconds (`float`)
and `answers.CUT`, `RESET` or `STALL` is sent as it is. The rest is what must come out:

| argument | meaning |
|---|---|
| `text`, `reasoning`, `calls` | the parts of the answer; `calls` has a (name, arguments) for each |
| `raw` | the server's own word for the finish reason; not checked if it is left out |
| `finish` | the name of the finish reason, by default STOP, or TOOL_CALLS if there are `calls` |
| `usage` | (prompt, cached, completion) tokens; None for no usage; not checked if it is left out |
| `error` | the class of the error, instead of an answer |
| `words` | what the error's text must contain; several are a tuple |
| `retry_after` | the seconds to wait that the error tells; not checked if it is left out |
| `retried` | whether the request was sent again; the second response is then the text `AGAIN` |
| `models` | the response to `GET /models`, with health checks running |
| `request`, `settings`, `path` | what is asked, settings of the engine, and what follows `/v1` |
| `sends` | a check of the requests that the server got, called with the `Upstream` |

`check` runs a row against the real engine and a server on a raw socket, in this process.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import pytest
from answers import CUT, DONE, TURN, Answer, Step, chunk, event, text
from google.rpc import error_details_pb2
from upstream import Upstream, serving

from ruvd.core.errors import RuvdError
from ruvd.core.model import Message, Role, ToolCallDelta, Usage
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineRequest, EngineText
from ruvd.engines.openai.engine import OpenAIEngine
from ruvd.rpc.status import to_status

AGAIN = "again"
Framing = Literal["chunked", "length", "close"]
Event = Mapping[str, Any] | bytes | float | Step

_NOT_CHECKED: Any = object()


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request: its messages and its options."""

    messages: Sequence[Message] = (Message(Role.USER, "hi"),)
    options: Mapping[str, Any] = field(default_factory=dict)
    session: str = ""


@dataclass(frozen=True)
class Quirk:
    """One row. See the module's docstring."""

    name: str
    answer: Answer
    _: KW_ONLY
    text: str = ""
    reasoning: str = ""
    calls: Sequence[tuple[str, str]] = ()
    finish: str = ""
    raw: str = _NOT_CHECKED
    usage: tuple[int, int | None, int] | None = _NOT_CHECKED
    error: type[RuvdError] | None = None
    words: str | tuple[str, ...] = ()
    retried: bool = False
    retry_after: float | None = _NOT_CHECKED
    models: Answer | None = None
    request: Ask = Ask()
    settings: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    sends: Callable[[Upstream], object] | None = None


def table(*rows: Quirk) -> pytest.MarkDecorator:
    """Makes a test of each row, which the test gets as `quirk`."""
    names = [row.name for row in rows]
    assert len(set(names)) == len(names), "each row has a name of its own"
    return pytest.mark.parametrize("quirk", rows, ids=names)


# --- what a server sends -----------------------------------------------------------------------


def delta(finish: str | None = None, /, *, index: int = 0, **parts: Any) -> dict[str, Any]:
    """A chunk with these parts of a delta, and a finish reason."""
    return {"choices": [{"index": index, "delta": parts, "finish_reason": finish}]}


def say(content: Any, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk with some text; `fields` are beside its choices."""
    return {**delta(finish, content=content), **fields}


def end(finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """A chunk with nothing but a finish reason."""
    return {**delta(finish), **fields}


def used(prompt: Any = 9, completion: Any = 3, **fields: Any) -> dict[str, Any]:
    """A chunk without choices and with usage."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, **fields}
    return {"choices": [], "usage": usage}


def stream(
    *events: Event,
    done: bool = True,
    framing: Framing = "chunked",
    whole: bool = True,
    status: str = "200 OK",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """A response of these events, each a write of its own.

    A mapping is sent as JSON, bytes as they are, and a pause or a step takes place. `done` adds
    `[DONE]`. The body ends by its last chunk, by its length or by the connection's end; unless it
    is `whole`, the connection is closed before the end that was announced.
    """
    parts = [event(dict(part)) if isinstance(part, Mapping) else part for part in events]
    if done:
        parts.append(DONE)
    size = sum(len(part) for part in parts if isinstance(part, bytes))
    ends = {
        "chunked": "Transfer-Encoding: chunked",
        "length": f"Content-Length: {size + (not whole)}",
        "close": "Connection: close",
    }
    fields = {"Content-Type": "text/event-stream", **(headers or {})}
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    head = "\r\n".join([f"HTTP/1.1 {status}", *lines, ends[framing], "\r\n"])
    steps: list[Any] = [head.encode()]
    for part in parts:
        is_piece = isinstance(part, bytes) and framing == "chunked"
        steps += [chunk(part) if is_piece and isinstance(part, bytes) else part, TURN]
    if framing == "chunked" and whole:
        return [*steps, b"0\r\n\r\n"]
    return steps if framing == "length" and whole else [*steps, CUT]


def reply(
    body: Any = b"", status: str = "200 OK", kind: str = "application/json", **headers: str
) -> Answer:
    """A whole response with its length. A body that is no bytes is sent as JSON.

    `headers` are keywords; those with a dash are passed by `**{"Retry-After": "5"}`.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Type": kind, "Content-Length": str(len(content)), **headers}
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    return ["\r\n".join([f"HTTP/1.1 {status}", *lines, "\r\n"]).encode(), content]


def line(data: bytes | str) -> bytes:
    """An event with this data."""
    return b"data: %s\n\n" % (data.encode() if isinstance(data, str) else data)


# --- what must come out ------------------------------------------------------------------------


async def check(quirk: Quirk) -> None:
    """Runs a row, and compares what comes out with what it says."""
    async with serving() as server, _engine(server.url + quirk.path, quirk.settings) as engine:
        server.scripts.append(quirk.answer)
        server.answer = lambda _: text(AGAIN)
        if (models := quirk.models) is not None:
            server.lookup = lambda _: models
            await engine.start()
            await server.until(lambda: server.lookups, seconds=60.0)
            if not engine.is_ready:
                await engine.ready()
        got = await _outcome(engine, quirk.request)
        assert _expected(quirk, got) == {name: got[name] for name in _expected(quirk, got)}, got
        for words in [quirk.words] if isinstance(quirk.words, str) else quirk.words:
            assert words in got["message"]
        assert len(server.requests) == 1 + quirk.retried
        if quirk.sends is not None:
            assert quirk.sends(server) is not False


def _expected(quirk: Quirk, got: Mapping[str, Any]) -> dict[str, Any]:
    if quirk.error is not None:
        is_checked = quirk.retry_after is not _NOT_CHECKED
        return {"error": quirk.error} | ({"retry_after": quirk.retry_after} if is_checked else {})
    finish = quirk.finish or ("TOOL_CALLS" if quirk.calls else "STOP")
    expected = {
        "error": None,
        "text": AGAIN if quirk.retried and not quirk.text else quirk.text,
        "reasoning": quirk.reasoning,
        "calls": [*quirk.calls],
        "finish": finish,
        "usage": Usage(*quirk.usage) if isinstance(quirk.usage, tuple) else quirk.usage,
    }
    if quirk.usage is _NOT_CHECKED:
        expected["usage"] = got["usage"]
    if quirk.raw is not _NOT_CHECKED:
        expected["raw"] = quirk.raw
    return expected


@asynccontextmanager
async def _engine(url: str, settings: Mapping[str, Any]) -> AsyncIterator[OpenAIEngine]:
    engine = OpenAIEngine(
        observer=lambda _: None,
        base_urls=[url],
        **{"model": "m", "connect_seconds": 60.0, "read_seconds": 60.0, "retries": 1, **settings},
    )
    try:
        yield engine
    finally:
        await engine.close()


async def _outcome(engine: OpenAIEngine, ask: Ask) -> dict[str, Any]:
    """Returns all that came out of one generation, also beside an error."""
    got: dict[str, Any] = {"text": "", "reasoning": "", "error": None, "message": ""}
    got |= {"finish": "", "raw": "", "usage": None}
    calls: dict[int, tuple[str, str]] = {}
    options = CompletionOptions(**ask.options)
    try:
        async for part in engine.generate(EngineRequest(ask.messages, options, ask.session)):
            match part:
                case EngineText():
                    got["text"] += part.text
                case EngineReasoning():
                    got["reasoning"] += part.text
                case ToolCallDelta():
                    name, arguments = calls.get(part.index, (part.name, ""))
                    calls[part.index] = (name, arguments + part.arguments)
                case EngineDone():
                    got |= {"finish": part.finish_reason.name, "usage": part.usage}
                    got["raw"] = part.raw_finish_reason
    except RuvdError as error:
        got |= {"error": type(error), "message": str(error)}
        got["retry_after"] = _retry_delay(error)
    got["calls"] = [calls[index] for index in sorted(calls)]
    return got


def _retry_delay(error: RuvdError) -> float | None:
    """Returns the delay in the error's status, which can be made for every error."""
    retry = error_details_pb2.RetryInfo()
    for detail in to_status(error)[1].details:
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToNanoseconds() / 1e9)
    return None
