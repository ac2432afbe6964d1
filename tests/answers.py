"""Answers of an OpenAI-compatible server, as steps for `upstream.Upstream` to play.

The shapes are what OpenAI, vLLM and llama-server were seen to send; the rest is how they break.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from itertools import pairwise
from typing import Any, Literal, TypeAlias

Shape: TypeAlias = Literal["openai", "vllm", "llama-server"]
Json: TypeAlias = dict[str, Any]

DONE = b"data: [DONE]\n\n"
MODELS = ("m", "another")


class Step(Enum):
    """A step of an answer that sends no bytes."""

    STALL = "stall"  # nothing more, until the client leaves
    CUT = "cut"  # close the connection
    RESET = "reset"  # close it with RST
    TURN = "turn"  # let the event loop go round, so that what comes next is a write of its own


STALL, CUT, RESET, TURN = Step.STALL, Step.CUT, Step.RESET, Step.TURN
# A number is a pause in seconds.
Answer: TypeAlias = Sequence[bytes | Step | asyncio.Event | float]


def http(
    body: bytes,
    *,
    status: str = "200 OK",
    kind: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """A whole response with its length."""
    fields = {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return [f"HTTP/1.1 {status}\r\n{lines}\r\n".encode(), body]


def refusal(status: str, message: str, **headers: str) -> Answer:
    """A refusal as OpenAI words it; `Retry_After` is the header Retry-After."""
    body = json.dumps({"error": {"message": message, "type": "some_error"}}).encode()
    return http(body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})


def stream_head(*, chunked: bool = True, kind: str = "text/event-stream; charset=utf-8") -> bytes:
    """The head of a streamed answer, whose end is told by a chunk or by the connection's end."""
    end = "Transfer-Encoding: chunked" if chunked else "Connection: close"
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{end}\r\n\r\n".encode()


def chunk(data: bytes) -> bytes:
    """A piece of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Json) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def streamed(
    events: Iterable[bytes | Step | asyncio.Event], *, chunked: bool = True, done: bool = True
) -> Answer:
    """Events as a streamed answer, each a write of its own."""
    steps: list[bytes | Step | asyncio.Event] = [stream_head(chunked=chunked)]
    for each in [*events, *([DONE] if done else [])]:
        if isinstance(each, bytes):
            steps += [chunk(each) if chunked else each, TURN]
        else:
            steps.append(each)
    return [*steps, b"0\r\n\r\n" if chunked else CUT]


def deltas(
    *parts: Json, finish_reason: str = "stop", usage: Json | None = None, shape: Shape = "openai"
) -> list[bytes]:
    """An answer's events: the role, a delta for each part, the finish reason, the usage."""
    common: Json = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    counts = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    first: Json = {"role": "assistant", "content": ""}
    if shape == "openai":
        first["refusal"] = None
        common["system_fingerprint"] = "fp_1"
        counts = {**counts, "prompt_tokens_details": {"cached_tokens": 4}}  # type: ignore[dict-item]
    elif shape == "llama-server":
        first["content"] = None
    counts = counts if usage is None else usage

    def choice(delta: Json, finish: str | None = None) -> bytes:
        chosen: Json = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if shape == "vllm" and finish:
            chosen["stop_reason"] = None
        if shape == "openai":
            return event({**common, "choices": [chosen], "usage": None})
        return event({**common, "choices": [chosen]})

    last: Json = {**common, "choices": [], "usage": counts}
    if shape == "llama-server":
        timings = {"cache_n": 4, "prompt_n": 5, "prompt_ms": 250.0, "predicted_n": 3}
        last["timings"] = timings
    return [choice(first), *map(choice, parts), choice({}, finish_reason), event(last)]


def text(*words: str, shape: Shape = "openai", chunked: bool = True, **fields: Any) -> Answer:
    """An answer of these words."""
    parts = [{"content": word} for word in words]
    return streamed(deltas(*parts, shape=shape, **fields), chunked=chunked)


def tool_deltas(
    *calls: tuple[str, str, Sequence[str]], shape: Shape = "openai"
) -> list[dict[str, Any]]:
    """The deltas of tool calls, each an id, a name and the fragments of its arguments.

    OpenAI begins a call with empty arguments; vLLM leaves them out, and repeats nothing;
    llama-server sends the first fragment along.
    """
    parts: list[Json] = []
    for index, (call_id, name, fragments) in enumerate(calls):
        begin: Json = {"name": name}
        rest = list(fragments)
        if shape == "openai":
            begin["arguments"] = ""
        elif shape == "llama-server":
            begin["arguments"] = rest.pop(0) if rest else ""
        first = {"index": index, "id": call_id, "type": "function", "function": begin}
        parts.append({"tool_calls": [first]} | ({"content": None} if shape == "openai" else {}))
        parts += [
            {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
            for fragment in rest
        ]
    return parts


def size(answer: Answer) -> int:
    """Returns the number of bytes of an answer."""
    return sum(len(step) for step in answer if isinstance(step, bytes))


def cut(answer: Answer, count: int, end: Step = CUT) -> Answer:
    """The first `count` bytes of an answer, then a cut (or a stall)."""
    whole = b"".join(step for step in answer if isinstance(step, bytes))
    return [whole[:count], end]


def split(answer: Answer, every: int = 1) -> Answer:
    """The same bytes, `every` so many in a write."""
    whole = b"".join(step for step in answer if isinstance(step, bytes))
    cuts = [*range(0, len(whole), every), len(whole)]
    return [step for a, b in pairwise(cuts) for step in (whole[a:b], TURN)]


def endless(head: bytes, piece: bytes, total_bytes: int) -> Answer:
    """A beginning, and then the same piece again and again."""
    return [head, *[piece] * (total_bytes // len(piece)), STALL]


def models(*names: str) -> Answer:
    """The answer to GET /v1/models."""
    data = [{"id": name, "object": "model", "created": 1} for name in names or MODELS]
    return http(json.dumps({"object": "list", "data": data}).encode())
