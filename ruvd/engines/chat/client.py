"""The client of one OpenAI-compatible server.

Leaving the stream in any phase, also before the response's head, closes the connection, and that
stops the server. A finish reason counts when the answer's end is confirmed: by [DONE], by the chunk
with usage and no choices, or by the complete body. A body that breaks off is an error before that.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import httpx
import msgspec

from ruvd.core.errors import EngineRejected, EngineTimeout, EngineUnavailable
from ruvd.core.ports.engine import EngineChunk, EngineRequest
from ruvd.engines.chat.body import BodyDecoder
from ruvd.engines.chat.credentials import ApiKey
from ruvd.engines.chat.engine_data import origin
from ruvd.engines.chat.errors import (
    CONNECTION_ERRORS,
    EngineErrorTranslator,
    clip,
)
from ruvd.engines.chat.messages import SendBack
from ruvd.engines.chat.request import DEFAULT_SEND_BACK, Rewrite, encode
from ruvd.engines.chat.sender import RequestSender, read_body
from ruvd.engines.http.timeouts import ReadTimeout
from ruvd.engines.http.transport import Request, Response, Transport

T = TypeVar("T")

_MAX_BODY_BYTES = 4 << 20
# More may follow a confirmed end for this long. Some servers never end the stream.
_TAIL_SECONDS = 5.0
# The response's end may follow [DONE] for this long. Only a response that was read to its end
# leaves its connection for another request.
_END_SECONDS = 0.1
# The origin of what the embedded engine's server gave.
_EMBEDDED = "embedded"
_NO_HEADERS: Mapping[str, str] = {}
_NO_FIELDS: Mapping[str, Any] = {}


class ChatCompletionsClient:
    """A client of the server at `base_url`, which includes `/v1`. It closes its `transport`.

    A query of `base_url` is sent with every request.

    `read_seconds` limits each silence, also before the first byte, when a long prompt is evaluated;
    None is no limit. Without `keep_alive` every request has a connection of its own: llama.cpp
    announces keep-alive and yet closes after a streamed answer, so a pooled connection may be
    closed before it is used. `rewrite` changes the messages that are sent. `send_back` says what of
    its answers the server gets back, and no other server; None is the default, for the embedded
    engine's server, whose address means nothing. Every method raises the errors of the table in
    `errors`.
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
        rewrite: Rewrite | None = None,
        max_retry_after_seconds: float = 3600.0,
        send_back: SendBack | None = None,
    ) -> None:
        self._api_key = api_key or ApiKey()
        self._translated_errors = EngineErrorTranslator(self._api_key.redact)
        self._max_tokens_field = max_tokens_field
        self._rewrite = rewrite
        self._send_back = send_back
        self._read_seconds = read_seconds
        self._connect_seconds = connect_seconds
        self._sender = RequestSender(
            transport,
            self._api_key,
            connect_seconds=connect_seconds,
            max_retry_after_seconds=max_retry_after_seconds,
        )
        self._base_url = base_url
        self._completions_url = httpx.URL(self._below("/chat/completions"))
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
        """Sends one request with `content` as its body, and decodes the JSON response into a type.

        `url` is absolute, or a path below `base_url`. `seconds` limits the whole call.
        """
        request = self._request(method, url, content)
        with self._translated_errors, self._timeout(_now() + seconds) as timeout:
            async with aclosing(await self._sender.send(request, timeout)) as response:
                content = await read_body(response, _MAX_BODY_BYTES + 1, timeout)
            if len(content) > _MAX_BODY_BYTES:
                raise EngineUnavailable("the engine's answer makes no sense: it has no end")
            return msgspec.json.decode(content, type=into)

    async def models(self, *, seconds: float = 30.0) -> list[str]:
        """Returns the names of the models that the server offers."""
        body = await self.call("GET", "/models", object, seconds=seconds)
        # OpenAI's response has a list in `data`, Together's is a list.
        models = body.get("data") if isinstance(body, dict) else body
        if not isinstance(models, list):
            raise EngineUnavailable("the engine's answer makes no sense: it is no list of models")
        return [str(model["id"]) for model in models if isinstance(model, dict) and "id" in model]

    async def ping(self, *, seconds: float = 30.0) -> None:
        """Requests the models and ignores the body. Raises as `models`."""
        request = self._request("GET", "/models")
        with self._translated_errors, self._timeout(_now() + seconds) as timeout:
            async with aclosing(await self._sender.send(request, timeout)) as response:
                await read_body(response, _MAX_BODY_BYTES, timeout)

    def encode(
        self, request: EngineRequest, *, model: str, extra: Mapping[str, Any] = _NO_FIELDS
    ) -> bytes:
        """Returns the body of a request. Raises as `request.encode`."""
        return encode(
            request,
            model=model,
            extra=extra,
            max_tokens_field=self._max_tokens_field,
            rewrite=self._rewrite,
            origin=self._origin(model),
            send_back=self._send_back or DEFAULT_SEND_BACK,
        )

    async def complete(
        self,
        request: EngineRequest,
        *,
        model: str,
        extra: Mapping[str, Any] = _NO_FIELDS,
        headers: Mapping[str, str] = _NO_HEADERS,
        deadline: float | None = None,
    ) -> AsyncGenerator[EngineChunk, None]:
        """Streams one chat completion, by the contract of `Engine.generate`.

        `extra` is added to the body and `headers` to the request's headers. Raises EngineTimeout
        after the `deadline`, a time of the loop's clock.
        """
        body = self.encode(request, model=model, extra=extra)
        extra_headers = {**request.trace_headers, **headers}
        http_request = Request(
            "POST",
            self._completions_url,
            [
                *self._completions_headers,
                *((name.encode(), value.encode()) for name, value in extra_headers.items()),
                (b"Content-Length", b"%d" % len(body)),
            ],
            body,
            self._connect_seconds,
        )
        with self._translated_errors, self._timeout(deadline) as timeout:
            async with aclosing(await self._sender.send(http_request, timeout)) as response:
                decoder = self._decoder(response, model)
                while not (decoder.ended and response.is_whole):
                    try:
                        part = await timeout.wait(response.read)
                    except (*CONNECTION_ERRORS, EngineTimeout):
                        if decoder.is_whole:
                            break
                        raise
                    if not part:
                        for chunk in decoder.end():
                            yield chunk
                        decoder.answer.check()
                        break
                    for chunk in decoder.feed(part):
                        yield chunk
                    decoder.answer.check()
                    if decoder.ended or decoder.answer.finished:
                        timeout.shorten(_tail_seconds(decoder))
            for chunk in decoder.answer.rest():
                yield chunk
            if (words := decoder.answer.refusal) and request.options.response_format is not None:
                text = f"the model has refused to answer in the requested format: {clip(words)}"
                raise EngineRejected(text)
            yield decoder.done()

    async def close(self) -> None:
        """Closes every connection. Idempotent."""
        await self._sender.close()

    def _request(self, method: str, url: str, content: bytes = b"") -> Request:
        absolute = httpx.URL(self._below(url) if url.startswith("/") else url)
        headers = [(b"Host", absolute.netloc), *self._headers]
        if content:
            headers.append((b"Content-Type", b"application/json"))
        if content or method != "GET":
            headers.append((b"Content-Length", b"%d" % len(content)))
        return Request(method, absolute, headers, content, self._connect_seconds)

    def _below(self, path: str) -> str:
        """Returns the URL of a path below the base URL, with the base URL's query."""
        base, mark, query = self._base_url.partition("?")
        return f"{base}{path}{mark}{query}"

    def _decoder(self, response: Response, model: str) -> BodyDecoder:
        marks = self._send_back is not None and bool(self._send_back.reasoning)
        kind = response.header("content-type")
        return BodyDecoder(kind, self._origin(model), marks_reasoning=marks)

    def _origin(self, model: str) -> str:
        """Returns the name under which the server gets back what it gave, and no other server."""
        return _EMBEDDED if self._send_back is None else origin(self._base_url, model)

    def _timeout(self, deadline: float | None) -> ReadTimeout:
        return ReadTimeout(deadline, self._read_seconds)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _tail_seconds(decoder: BodyDecoder) -> float | None:
    """Returns how long the rest of a response is waited for; None if its answer is not whole."""
    if decoder.ended:
        return _END_SECONDS
    return _TAIL_SECONDS if decoder.is_whole else None
