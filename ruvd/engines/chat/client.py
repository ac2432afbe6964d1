"""The client of one OpenAI-compatible server.

Leaving the stream in any phase, also before the headers, closes the connection, and that is
what stops the server. An answer that is one JSON object instead of a stream of events is refused:
a server that cannot stream is no engine. One without a content type is taken for a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import httpx
import msgspec

from ruvd.core.errors import EngineTimeout, EngineUnavailable
from ruvd.core.ports.engine import EngineChunk, EngineRequest
from ruvd.engines.chat.credentials import ApiKey
from ruvd.engines.chat.errors import CONNECTION_ERRORS, EngineErrorTranslator, response_error
from ruvd.engines.chat.request import encode
from ruvd.engines.chat.retryable import was_stale
from ruvd.engines.chat.stream import Answer, AnswerBytes
from ruvd.engines.http.timeouts import ReadTimeout
from ruvd.engines.http.transport import Request, Response, Transport

T = TypeVar("T")

_MAX_ERROR_BYTES = 65_536
_MAX_BODY_BYTES = 4 << 20
# How long figures may come after the server has said why it ended: some never close.
_TAIL_SECONDS = 5.0
# How long the end may take after [DONE]; a connection is used again only if it was read whole.
_END_SECONDS = 0.1
# How many of the connections that were kept may turn out to be closed, one after the other.
_REPLACEMENTS = 2
_NO_HEADERS: Mapping[str, str] = {}
_NO_FIELDS: Mapping[str, Any] = {}


class ChatCompletionsClient:
    """The server at `base_url`, which has the `/v1`, by `transport`, which it closes.

    `read_seconds` is the longest silence that is borne, None for any, because a long prompt is
    evaluated before the first byte comes. Without `keep_alive` every request has a connection
    of its own: llama.cpp announces keep-alive and yet closes after a streamed answer, so a
    pooled connection may be gone before it is used. Every method raises as `chat_errors` says.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        base_url: str = "http://engine/v1",
        api_key: ApiKey | None = None,
        connect_seconds: float = 5.0,
        read_seconds: float | None = None,
        keep_alive: bool = True,
        max_tokens_field: str = "max_tokens",
    ) -> None:
        self._api_key = api_key or ApiKey()
        self._words = EngineErrorTranslator(self._api_key.redact)
        self._words_before_head = EngineErrorTranslator(self._api_key.redact, before_head=True)
        self._max_tokens_field = max_tokens_field
        self._read_seconds = read_seconds
        self._connect_seconds = connect_seconds
        self._transport = transport
        self._closed = False
        self._base_url = base_url
        self._completions_url = httpx.URL(f"{base_url}/chat/completions")
        self._headers = (
            (b"Accept-Encoding", b"identity"),
            (b"Connection", b"keep-alive" if keep_alive else b"close"),
            (b"User-Agent", b"ruvd"),
        )
        self._completions_headers = (
            (b"Host", self._completions_url.netloc),
            *self._headers,
            (b"Content-Type", b"application/json"),
            (b"Accept", b"text/event-stream"),
        )

    async def call(
        self,
        method: str,
        url: str,
        into: type[T],
        *,
        content: bytes = b"",
        seconds: float = 30.0,
    ) -> T:
        """One request, with `content` as its body; its JSON answer decoded into a type.

        `url` is a path below `base_url`, or whole. `seconds` bounds all of it.
        """
        request = self._request(method, url, content)
        with self._words, self._patience(_now() + seconds) as patience:
            async with aclosing(await self._sent(request, patience)) as response:
                content = await _content(response, _MAX_BODY_BYTES + 1, patience)
            if len(content) > _MAX_BODY_BYTES:
                raise EngineUnavailable("the engine's answer makes no sense: it has no end")
            return msgspec.json.decode(content, type=into)

    async def models(self, *, seconds: float = 30.0) -> list[str]:
        """The names of the models that the server offers."""
        told = await self.call("GET", "/models", object, seconds=seconds)
        # OpenAI's has a list in `data`, Together's is one.
        found = told.get("data") if isinstance(told, dict) else told
        if not isinstance(found, list):
            raise EngineUnavailable("the engine's answer makes no sense: it is no list of models")
        return [str(each["id"]) for each in found if isinstance(each, dict) and "id" in each]

    async def ping(self, *, seconds: float = 30.0) -> None:
        """Raises what `models` would, but for what the answer's body says."""
        request = self._request("GET", "/models")
        with self._words, self._patience(_now() + seconds) as patience:
            async with aclosing(await self._sent(request, patience)) as response:
                await _content(response, _MAX_BODY_BYTES, patience)

    async def complete(
        self,
        request: EngineRequest,
        *,
        model: str,
        extra: Mapping[str, Any] = _NO_FIELDS,
        headers: Mapping[str, str] = _NO_HEADERS,
        deadline: float | None = None,
    ) -> AsyncGenerator[EngineChunk, None]:
        """Stream one chat completion, as `Engine.generate` has it.

        `extra` joins the body, `headers` the request's. `deadline` is of the loop's clock;
        EngineTimeout after it.
        """
        body = encode(request, model=model, extra=extra, max_tokens_field=self._max_tokens_field)
        more = {**request.trace_headers, **headers}
        sent = Request(
            "POST",
            self._completions_url,
            [
                *self._completions_headers,
                *((name.encode(), value.encode()) for name, value in more.items()),
                (b"Content-Length", b"%d" % len(body)),
            ],
            body,
            self._connect_seconds,
        )
        come = AnswerBytes()
        with self._words, self._patience(deadline) as patience:
            async with aclosing(await self._sent(sent, patience)) as response:
                await _check_streams(response, patience)
                while not come.ended or come.answer.finished:
                    try:
                        part = await patience.wait(response.read)
                    except (*CONNECTION_ERRORS, EngineTimeout):
                        if come.answer.finished:
                            break  # nothing is missing
                        raise
                    if not part:
                        break
                    is_tail = come.answer.finished
                    for chunk in come.feed(part):
                        yield chunk
                    if come.ended:
                        if response.is_whole:
                            break
                        patience.shorten(_END_SECONDS)
                    elif come.answer.finished and not is_tail:
                        patience.shorten(_TAIL_SECONDS)
            yield come.answer.done()

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        self._closed = True
        await self._transport.aclose()

    def _request(self, method: str, url: str, content: bytes = b"") -> Request:
        whole = httpx.URL(f"{self._base_url}{url}" if url.startswith("/") else url)
        headers = [(b"Host", whole.netloc), *self._headers]
        if content:
            headers.append((b"Content-Type", b"application/json"))
        if content or method != "GET":
            headers.append((b"Content-Length", b"%d" % len(content)))
        return Request(method, whole, headers, content, self._connect_seconds)

    async def _sent(self, request: Request, patience: ReadTimeout) -> Response:
        """The response, whose status is 200. To be used within `_words`."""
        if key := await patience.wait(self._api_key.current):
            request.headers = (*request.headers, (b"Authorization", b"Bearer %s" % key.encode()))
        self._check_open()
        response = await self._fresh_head(request, patience)
        if response.status == httpx.codes.OK:
            return response
        async with aclosing(response):
            content = await _content(response, _MAX_ERROR_BYTES, patience)
        raise response_error(
            response.status,
            content,
            content_type=response.header("content-type"),
            retry_after=response.header("retry-after"),
        )

    async def _fresh_head(self, request: Request, patience: ReadTimeout) -> Response:
        """The head, over another connection if the server has closed the one that was kept.

        That says nothing about the server, so it takes nothing from whoever counts failures.
        """
        for _ in range(_REPLACEMENTS):
            try:
                return await self._head(request, patience)
            except EngineUnavailable as error:
                if not was_stale(error):
                    raise
                self._check_open()
        return await self._head(request, patience)

    async def _head(self, request: Request, patience: ReadTimeout) -> Response:
        with self._words_before_head:
            return await patience.wait(
                partial(self._transport.send, request),
                first_read_extra_seconds=self._connect_seconds,
            )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineUnavailable("the connection to the engine is closed")

    def _patience(self, deadline: float | None) -> ReadTimeout:
        return ReadTimeout(deadline, self._read_seconds)


async def _check_streams(response: Response, patience: ReadTimeout) -> None:
    kind = response.header("content-type").partition(";")[0].strip().lower()
    if kind in ("", "text/event-stream"):
        return
    if kind == "application/json":
        # Some gateways answer so with an error inside.
        Answer().feed(await _content(response, _MAX_ERROR_BYTES, patience))
    raise EngineUnavailable(f"the engine answered with {kind}, not with a stream of events")


async def _content(response: Response, most: int, patience: ReadTimeout) -> bytes:
    """The body, up to about `most` bytes of it."""
    content = b""
    while len(content) < most and (part := await patience.wait(response.read)):
        content += part
    return content


def _now() -> float:
    return asyncio.get_running_loop().time()
