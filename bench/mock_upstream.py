"""An OpenAI-compatible server that uses very little CPU, as the upstream of measured relays.

It parses as little HTTP as possible and answers every chat completion with the same prepared bytes:
a chunk for the role, one for each token, one for the finish reason, one for the usage if requested,
and `[DONE]`. Each token is a separate write in a separate pass of the event loop, like those of a
server that generates for many callers at a time. So a relay receives the tokens one by one, unless
it is busy. The Responses API is answered in the same way, each answer with a new id, for gateways
that keep a history only there.

The model of a request sets the pace. `MODEL` does not wait. `PACED_MODEL` waits before the first
token and between tokens. `POD_MODEL` has the pace of an engine that serves a pod: 64 tokens, 50 ms
to the first, 10 ms for each other. The models have names that gateways with a catalogue know.
`HUGE_MODEL` streams 390 MB in small deltas, 10 MB/s.

Run it with `.venv/bin/python -m bench.mock_upstream`; it prints its loopback port. `bench/relay.py`
starts it and measures its throughput without a relay as well.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import uvloop

MODEL = "gpt-4o-mini"
PACED_MODEL = "gpt-4o"
POD_MODEL = "gpt-4.1"
HUGE_MODEL = "huge"
_HUGE_BYTES = 390 << 20
_HUGE_PART = 250
# So that a few huge answers do not hold up the others of this server.
_HUGE_SECONDS = 0.005
POD_TOKENS, POD_FIRST_MS, POD_TOKEN_MS = 64, 50.0, 10.0
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + _CHUNKED
_JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_END = b"0\r\n\r\n"
# The end of the ids of a response and of its message. It is as long as the ones that replace it, so
# that the HTTP chunks keep their lengths.
_NUMBER = b"_0123456789"
_RESPONSE_ID = f"resp{_NUMBER.decode()}"
_MESSAGE_ID = f"msg{_NUMBER.decode()}"


def token(number: int) -> str:
    """Returns the text of a token."""
    return f" word{number:02}"


@dataclass(frozen=True)
class Answer:
    """The bytes of an answer, and its pace in seconds."""

    head: bytes
    tokens: tuple[bytes, ...]
    rest: bytes
    first_seconds: float = 0.0
    token_seconds: float = 0.0

    def numbered(self, number: bytes) -> Answer:
        """Returns the answer with other ids: some gateways store messages by their ids."""
        return replace(
            self,
            head=self.head.replace(_NUMBER, number),
            tokens=tuple(token.replace(_NUMBER, number) for token in self.tokens),
            rest=self.rest.replace(_NUMBER, number),
        )


@dataclass(frozen=True)
class Answers:
    """The answers of a model: a chat completion with usage and one without, a response."""

    with_usage: Answer
    without_usage: Answer
    response: Answer


def prepare_answers(
    model: str, tokens: int, first_seconds: float = 0.0, token_seconds: float = 0.0
) -> Answers:
    """Prepares the answers of a model."""
    pace = first_seconds, token_seconds
    return Answers(
        _completion(model, tokens, *pace, usage=True),
        _completion(model, tokens, *pace, usage=False),
        _response(model, tokens, *pace),
    )


def _completion(model: str, tokens: int, *pace: float, usage: bool) -> Answer:
    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**common, "choices": [choice]}

    common = {
        "id": "chatcmpl-mock",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": model,
    }
    counts = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}
    rest = _event(chunk({}, "stop"))
    if usage:
        rest += _event({**common, "choices": [], "usage": counts})
    return Answer(
        _STREAM_HEAD + _event(chunk({"role": "assistant", "content": ""})),
        tuple(_event(chunk({"content": token(number)})) for number in range(tokens)),
        rest + _http_chunk(b"data: [DONE]\n\n") + _END,
        *pace,
    )


def _response(model: str, tokens: int, *pace: float) -> Answer:
    sequence = itertools.count()

    def named(kind: str, **fields: Any) -> bytes:
        return _event({"type": kind, "sequence_number": next(sequence), **fields}, kind)

    def response(status: str, output: Sequence[Any], usage: Any) -> dict[str, Any]:
        return {
            "id": _RESPONSE_ID, "object": "response", "created_at": 1_700_000_000,
            "status": status, "model": model, "output": output, "usage": usage, "tools": [],
            "parallel_tool_calls": True, "tool_choice": "auto", "error": None, "metadata": {},
        }  # fmt: skip

    def item(status: str, content: Sequence[Any]) -> dict[str, Any]:
        own = {"id": _MESSAGE_ID, "type": "message", "status": status}
        return {**own, "role": "assistant", "content": content}

    text = "".join(token(number) for number in range(tokens))
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    usage = {"input_tokens": 9, "output_tokens": tokens, "total_tokens": 9 + tokens}
    at = {"item_id": _MESSAGE_ID, "output_index": 0, "content_index": 0}
    head = _STREAM_HEAD + b"".join(
        (
            named("response.created", response=response("in_progress", [], None)),
            named("response.output_item.added", output_index=0, item=item("in_progress", [])),
            named("response.content_part.added", **at, part={**part, "text": ""}),
        )
    )
    deltas = tuple(
        named("response.output_text.delta", **at, delta=token(number), logprobs=[])
        for number in range(tokens)
    )
    done = item("completed", [part])
    rest = b"".join(
        (
            named("response.output_text.done", **at, text=text, logprobs=[]),
            named("response.content_part.done", **at, part=part),
            named("response.output_item.done", output_index=0, item=done),
            named("response.completed", response=response("completed", [done], usage)),
            _END,
        )
    )
    return Answer(head, deltas, rest, *pace)


def _event(data: dict[str, Any], name: str = "") -> bytes:
    line = f"event: {name}\n".encode() if name else b""
    text = json.dumps(data, separators=(",", ":")).encode()
    return _http_chunk(line + b"data: " + text + b"\n\n")


def _http_chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


class Connection(asyncio.Protocol):
    """A persistent connection that serves one request after the other."""

    _responses = itertools.count(1)

    def __init__(self, models: dict[str, Answers]) -> None:
        self._models = models
        self._buffer = b""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._is_paused = False
        self._huge_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, as uvloop's transports do not derive from this class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._huge_bytes:
            self._loop.call_soon(self._send_huge)

    def _send_huge(self) -> None:
        """Writes a part of the huge answer, and schedules the next part."""
        if self._transport is None:
            return
        answer = self._models[MODEL].without_usage
        part = answer.tokens[0] * _HUGE_PART
        self._huge_bytes = max(0, self._huge_bytes - len(part))
        self._write(part)
        if not self._huge_bytes:
            self._write(answer.rest)
        elif not self._is_paused:  # or resume_writing goes on
            self._loop.call_later(_HUGE_SECONDS, self._send_huge)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = _content_length(head)
        if len(rest) < length:
            return
        body, self._buffer = rest[:length], rest[length:]
        if head.startswith(b"POST /v1/chat/completions"):
            answers = self._answers_for(body)
            if f'"{HUGE_MODEL}"'.encode() in body:
                self._huge_bytes = _HUGE_BYTES
                self._write(answers.without_usage.head)
                self._send_huge()
                return
            usage = b'"include_usage"' in body
            self._begin(answers.with_usage if usage else answers.without_usage)
        elif head.startswith(b"POST /v1/responses"):
            answer = self._answers_for(body).response
            self._begin(answer.numbered(b"_%010d" % next(self._responses)))
        else:
            models = [{"id": name, "object": "model"} for name in self._models]
            content = json.dumps({"object": "list", "data": models}).encode()
            self._write(_JSON_HEAD % len(content) + content)

    def _answers_for(self, body: bytes) -> Answers:
        for name in (PACED_MODEL, POD_MODEL):
            if f'"{name}"'.encode() in body:
                return self._models[name]
        return self._models[MODEL]

    def _begin(self, answer: Answer) -> None:
        if answer.first_seconds:
            self._loop.call_later(answer.first_seconds, self._send, answer, 0, answer.head)
        else:
            self._send(answer, 0, answer.head)

    def _send(self, answer: Answer, number: int, head: bytes = b"") -> None:
        """Writes token `number` after `head`, and schedules the next token."""
        if self._transport is None:
            return
        if number + 1 == len(answer.tokens):
            self._write(head + answer.tokens[number] + answer.rest)
            return
        self._write(head + answer.tokens[number])
        if answer.token_seconds:
            self._loop.call_later(answer.token_seconds, self._send, answer, number + 1)
        else:
            self._loop.call_soon(self._send, answer, number + 1)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def serve(options: argparse.Namespace) -> None:
    pace = options.first_ms / 1000, options.token_ms / 1000
    models = {
        MODEL: prepare_answers(MODEL, options.tokens),
        PACED_MODEL: prepare_answers(PACED_MODEL, options.tokens, *pace),
        POD_MODEL: prepare_answers(POD_MODEL, POD_TOKENS, POD_FIRST_MS / 1000, POD_TOKEN_MS / 1000),
    }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(models), "127.0.0.1", options.port, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0, help="0 means any free port")
    parser.add_argument("--tokens", type=int, default=32, help="tokens per stream")
    parser.add_argument(
        "--first-ms", type=float, default=20.0, help="time to the first token, if paced"
    )
    parser.add_argument("--token-ms", type=float, default=1.0, help="time between tokens, if paced")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
