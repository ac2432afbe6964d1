"""An OpenAI-compatible server that costs next to nothing, to measure relays against.

It parses as little HTTP as it can and answers every chat completion with the same bytes, made
before the first request: a chunk for the role, one for each token, one for the finish reason, one
for the usage if asked for, `[DONE]`. Each token is a write of its own, in a turn of the event loop
of its own, as a server that generates for many at a time does it; so a relay gets them one by one
unless it is busy. A model whose name ends with `-paced` waits before the first token and between
tokens, any other does not.

Run it with `.venv/bin/python bench/mock_upstream.py`; it prints the port that it has on loopback.
`bench/relay.py` runs it by itself, and measures what it can do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import dataclass
from typing import Any, cast

import uvloop

MODEL = "mock"
PACED_MODEL = "mock-paced"
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + _CHUNKED
_END = b"0\r\n\r\n"


def token(number: int) -> str:
    """The text of a token."""
    return f" word{number:02}"


@dataclass(frozen=True)
class Answer:
    """The bytes of an answer, and its pace in seconds."""

    head: bytes
    tokens: tuple[bytes, ...]
    finish: bytes
    usage: bytes
    first_seconds: float = 0.0
    token_seconds: float = 0.0


def answer(
    model: str, tokens: int, first_seconds: float = 0.0, token_seconds: float = 0.0
) -> Answer:
    """Prebuild the answer of a model."""

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
    return Answer(
        head=_STREAM_HEAD + _event(chunk({"role": "assistant", "content": ""})),
        tokens=tuple(_event(chunk({"content": token(number)})) for number in range(tokens)),
        finish=_event(chunk({}, "stop")),
        usage=_event({**common, "choices": [], "usage": counts}),
        first_seconds=first_seconds,
        token_seconds=token_seconds,
    )


def _event(data: dict[str, Any]) -> bytes:
    return _http_chunk(b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n")


def _http_chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


_DONE = _http_chunk(b"data: [DONE]\n\n") + _END


class Connection(asyncio.Protocol):
    """One connection: requests one after the other, kept alive."""

    def __init__(self, answers: dict[bool, Answer]) -> None:
        self._answers = answers
        self._buffer = b""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from no class

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

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
            self._begin(body)
        else:
            models = [{"id": name, "object": "model"} for name in (MODEL, PACED_MODEL)]
            content = json.dumps({"object": "list", "data": models}).encode()
            lines = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            self._write(lines % len(content) + content)

    def _begin(self, body: bytes) -> None:
        answer = self._answers[f'{PACED_MODEL}"'.encode() in body]
        rest = answer.finish + (answer.usage if b'"include_usage"' in body else b"") + _DONE
        if answer.first_seconds:
            self._loop.call_later(answer.first_seconds, self._send, answer, 0, rest)
        else:
            self._send(answer, 0, rest)

    def _send(self, answer: Answer, number: int, rest: bytes) -> None:
        """Write token `number`, and arrange for the next."""
        if self._transport is None:
            return
        head = b"" if number else answer.head
        if number + 1 == len(answer.tokens):
            self._write(head + answer.tokens[number] + rest)
            return
        self._write(head + answer.tokens[number])
        if answer.token_seconds:
            self._loop.call_later(answer.token_seconds, self._send, answer, number + 1, rest)
        else:
            self._loop.call_soon(self._send, answer, number + 1, rest)

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
    answers = {
        False: answer(MODEL, options.tokens),
        True: answer(PACED_MODEL, options.tokens, *pace),
    }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(answers), "127.0.0.1", options.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0, help="0 is any free one")
    parser.add_argument("--tokens", type=int, default=32, help="a stream")
    parser.add_argument("--first-ms", type=float, default=20.0, help="to the first token, if paced")
    parser.add_argument("--token-ms", type=float, default=1.0, help="between tokens, if paced")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
