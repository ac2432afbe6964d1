"""The client of one OpenAI-compatible server.

Leaving the stream in any phase, also before the headers, closes the connection, and that is
what stops the server. An answer that is one JSON object instead of a stream of events is refused:
a server that cannot stream is no engine. One without a content type is taken for a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeVar, cast

import httpx
import msgspec

from ruvd.engines.chat_errors import BREAKS, in_our_words, refusal, was_stale
from ruvd.engines.chat_request import encode
from ruvd.engines.chat_stream import Answer, AnswerBytes
from ruvd.engines.credentials import ApiKey
from ruvd.engines.patience import Patience
from ruvd.errors import EngineTimeout, EngineUnavailable, RuvdError
from ruvd.ports import EngineChunk, EngineRequest

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
        transport: httpx.AsyncBaseTransport,
        base_url: str = "http://engine/v1",
        api_key: ApiKey | None = None,
        connect_seconds: float = 5.0,
        read_seconds: float | None = None,
        keep_alive: bool = True,
        max_tokens_field: str = "max_tokens",
    ) -> None:
        self._api_key = api_key or ApiKey()
        self._max_tokens_field = max_tokens_field
        self._read_seconds = read_seconds
        self._head_seconds = None if read_seconds is None else connect_seconds + read_seconds
        # httpx's own client would merge URLs, headers, cookies and redirects anew for every
        # request, which takes longer than sending it.
        self._transport = transport
        self._closed = False
        self._base_url = base_url
        self._completions_url = httpx.URL(f"{base_url}/chat/completions")
        self._headers = {
            "Accept-Encoding": "identity",
            "Connection": "keep-alive" if keep_alive else "close",
            "User-Agent": "ruvd",
        }
        self._completions_headers = [
            (b"Host", self._completions_url.netloc),
            *((name.encode(), value.encode()) for name, value in self._headers.items()),
            (b"Content-Type", b"application/json"),
            (b"Accept", b"text/event-stream"),
        ]
        timeout = httpx.Timeout(read_seconds, connect=connect_seconds, pool=connect_seconds)
        self._extensions = {"timeout": timeout.as_dict()}

    async def call(
        self,
        method: str,
        url: str,
        into: type[T],
        *,
        content: bytes | None = None,
        seconds: float = 30.0,
    ) -> T:
        """One request, with `content` as its body; its JSON answer decoded into a type.

        `url` is a path below `base_url`, or whole. `seconds` bounds all of it.
        """
        deadline = _now() + seconds
        request = self._request(method, url, content)
        async with self._sending(request, deadline) as response:
            content = await self._content(response, _MAX_BODY_BYTES + 1, deadline)
        with in_our_words():
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
        deadline = _now() + seconds
        async with self._sending(self._request("GET", "/models"), deadline) as response:
            await self._content(response, _MAX_BODY_BYTES, deadline)

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
        more = {**request.trace_headers, **headers, "Content-Length": str(len(body))}
        sent = httpx.Request(
            "POST",
            self._completions_url,
            # With `content` it would look for a charset, a boundary and a host each time.
            stream=httpx.ByteStream(body),
            extensions=self._extensions,
            headers=[
                *self._completions_headers,
                *((name.encode(), value.encode()) for name, value in more.items()),
            ],
        )
        come = AnswerBytes()
        async with self._sending(sent, deadline) as response:
            await self._check_streams(response, deadline)
            async with aclosing(_parts(response)) as parts:
                with in_our_words(), self._patience(deadline) as patience:
                    while not come.ended or come.answer.finished:
                        try:
                            part = await patience.next(parts)
                        except (*BREAKS, EngineTimeout):
                            if come.answer.finished:
                                break  # nothing is missing
                            raise
                        if part is None:
                            break
                        is_tail = come.answer.finished
                        for chunk in come.feed(part):
                            yield chunk
                        if come.ended:
                            patience.shorten(_END_SECONDS)
                        elif come.answer.finished and not is_tail:
                            patience.shorten(_TAIL_SECONDS)
            yield come.answer.done()

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        self._closed = True
        await self._transport.aclose()

    def _request(self, method: str, url: str, content: bytes | None = None) -> httpx.Request:
        whole = f"{self._base_url}{url}" if url.startswith("/") else url
        return httpx.Request(
            method, whole, content=content, headers=self._headers, extensions=self._extensions
        )

    @asynccontextmanager
    async def _sending(
        self, request: httpx.Request, deadline: float | None
    ) -> AsyncIterator[httpx.Response]:
        """A response whose status is 200; the connection is closed or given back afterwards."""
        if key := await self._api_key.current():
            request.headers["Authorization"] = f"Bearer {key}"
        self._check_open()
        with self._redacted():
            response = await self._fresh_head(request, deadline)
            try:
                if response.status_code != httpx.codes.OK:
                    content = await self._content(response, _MAX_ERROR_BYTES, deadline)
                    raise refusal(response.status_code, response.headers, content)
                yield response
            finally:
                with in_our_words():
                    await response.aclose()

    async def _fresh_head(self, request: httpx.Request, deadline: float | None) -> httpx.Response:
        """The head, over another connection if the server has closed the one that was kept.

        That says nothing about the server, so it takes nothing from whoever counts failures.
        """
        for _ in range(_REPLACEMENTS):
            try:
                return await self._head(request, deadline)
            except EngineUnavailable as error:
                if not was_stale(error):
                    raise
                self._check_open()
        return await self._head(request, deadline)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineUnavailable("the connection to the engine is closed")

    async def _head(self, request: httpx.Request, deadline: float | None) -> httpx.Response:
        bounds = [deadline] if deadline is not None else []
        if self._head_seconds is not None:
            bounds.append(_now() + self._head_seconds)
        try:
            async with asyncio.timeout_at(min(bounds, default=None)):
                with in_our_words(before_head=True):
                    return await self._transport.handle_async_request(request)
        except TimeoutError as error:
            raise EngineTimeout("the engine did not answer in time") from error

    async def _check_streams(self, response: httpx.Response, deadline: float | None) -> None:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("", "text/event-stream"):
            return
        if kind == "application/json":
            # Some gateways answer so with an error inside.
            content = await self._content(response, _MAX_ERROR_BYTES, deadline)
            with in_our_words():
                Answer().feed(content)
        raise EngineUnavailable(f"the engine answered with {kind}, not with a stream of events")

    async def _content(self, response: httpx.Response, most: int, deadline: float | None) -> bytes:
        """The body, up to about `most` bytes of it."""
        content = b""
        async with aclosing(_parts(response)) as parts:
            with in_our_words(), self._patience(deadline) as patience:
                while len(content) < most and (part := await patience.next(parts)) is not None:
                    content += part
        return content

    def _patience(self, deadline: float | None) -> Patience:
        return Patience(deadline, self._read_seconds)

    @contextmanager
    def _redacted(self) -> Iterator[None]:
        """No error of ours carries the key on, though a server has echoed it."""
        try:
            yield
        except RuvdError as error:
            error.args = tuple(self._api_key.redact(str(text)) for text in error.args)
            raise


def _parts(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    # It is a generator, whatever its type says, and has to be closed like one. httpx's own way
    # to it, `aiter_raw`, would look at each part twice.
    return cast(
        "AsyncGenerator[bytes, None]", aiter(cast("httpx.AsyncByteStream", response.stream))
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
