"""The client of an OpenAI-compatible chat completions API.

The transport is aiohttp's under httpx's API. On a Unix socket every request has a connection of
its own: llama.cpp announces keep-alive and yet closes after a streamed answer, so a pooled
connection may be gone before it is used, and opening one costs less than a millisecond. There
is no read time-out by default, because a long prompt is evaluated before the first byte comes.
Leaving the stream in any phase, also before the headers, closes the connection, and that is
what stops the server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport

from ruvd.engines.sse import EventTooLarge, SseDecoder
from ruvd.errors import (
    ContextTooLong,
    EngineRateLimited,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    RuvdError,
)
from ruvd.model import FinishReason, Usage
from ruvd.options import CompletionOptions
from ruvd.ports import EngineChunk, EngineDone, EngineRequest, EngineText

T = TypeVar("T")

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
}
_MAX_ERROR_BYTES = 65_536


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Timings(msgspec.Struct):
    """What llama.cpp adds; `cache_n` tokens were cached."""

    cache_n: int | None = None
    prompt_ms: float | None = None


class _Error(msgspec.Struct):
    message: str = ""
    type: str | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: _Error | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str


_chunk_decoder = msgspec.json.Decoder(_Chunk)


def never_sent(error: EngineUnavailable) -> bool:
    """Whether there was no connection, so that the server has not seen the request."""
    cause = error.__cause__
    return cause is not None and isinstance(cause.__cause__, aiohttp.ClientConnectorError)


class OpenAIClient:
    """One server: `base_url` (without `/v1`), or `socket_path` of a Unix socket.

    `read_seconds` is the longest silence that is borne, None for any. Every method raises
    EngineUnavailable when the server cannot be reached, answers with a 5xx, breaks off or makes
    no sense, EngineTimeout after too long a silence, and EngineRateLimited and EngineRejected
    as the server says.
    """

    def __init__(
        self,
        *,
        base_url: str = "http://engine",
        socket_path: Path | None = None,
        api_key: str = "",
        connect_seconds: float = 5.0,
        read_seconds: float | None = None,
    ) -> None:
        headers = {"Accept-Encoding": "identity"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        if socket_path is not None:
            headers["Connection"] = "close"

        # A session belongs to the running loop, so the transport makes it at the first request.
        def session() -> aiohttp.ClientSession:
            connector = (
                aiohttp.TCPConnector(limit=0)
                if socket_path is None
                else aiohttp.UnixConnector(path=str(socket_path), force_close=True, limit=0)
            )
            return aiohttp.ClientSession(connector=connector)

        self._http = httpx.AsyncClient(
            # `verify` is of the session that is not used; aiohttp's own connector verifies.
            transport=AiohttpTransport(client=session, verify=False),
            base_url=base_url,
            headers=headers,
            timeout=httpx.Timeout(read_seconds, connect=connect_seconds, pool=None),
            trust_env=False,
        )

    async def call(self, method: str, path: str, into: type[T]) -> T:
        """One request without a body; its JSON answer decoded into a type."""
        self._check_open()
        with _as_unavailable():
            response = await self._http.request(method, path)
        if response.status_code != httpx.codes.OK:
            raise _refusal(response.status_code, response.headers, response.content)
        with _as_unavailable():
            return msgspec.json.decode(response.content, type=into)

    async def complete(
        self, request: EngineRequest, *, model: str, extra: Mapping[str, Any]
    ) -> AsyncGenerator[EngineChunk, None]:
        """Stream one chat completion, as `Engine.generate` has it; `extra` joins the body."""
        body = {**_body(request, model), **extra}
        done: EngineDone | None = None
        texts = 0
        async with self._stream(body, request.trace_headers) as events:
            async for data in events:
                if data == b"[DONE]":
                    break
                with _as_unavailable():
                    chunk = _chunk_decoder.decode(data)
                if chunk.error is not None:
                    raise _broken(chunk.error, begun=texts > 0)
                for choice in chunk.choices[:1]:
                    if choice.delta.content:
                        texts += 1
                        yield EngineText(choice.delta.content)
                    if choice.finish_reason is not None:
                        done = EngineDone(
                            _FINISH_REASONS.get(choice.finish_reason, FinishReason.STOP)
                        )
                if chunk.usage is not None and done is not None:
                    done = _measured(done, chunk.usage, chunk.timings)
        if done is None:
            raise EngineUnavailable("the engine's answer ended before its end")
        yield done

    @asynccontextmanager
    async def _stream(
        self, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self._check_open()
        request = self._http.build_request(
            "POST",
            "/v1/chat/completions",
            content=msgspec.json.encode(body),
            headers={**headers, "Content-Type": "application/json", "Accept": "text/event-stream"},
        )
        with _as_unavailable():
            response = await self._http.send(request, stream=True)
        try:
            if response.status_code != httpx.codes.OK:
                raise _refusal(
                    response.status_code, response.headers, await _error_content(response)
                )
            content_type = response.headers.get("content-type", "")
            if not content_type.startswith("text/event-stream"):
                raise EngineUnavailable(
                    f"the engine answered with {content_type or 'no content type'},"
                    " not with a stream of events"
                )
            async with aclosing(_events(response)) as events:
                yield events
        finally:
            with _as_unavailable():
                await response.aclose()

    def _check_open(self) -> None:
        if self._http.is_closed:
            raise EngineUnavailable("the connection to the engine is closed")

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._http.aclose()


async def _events(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    decoder = SseDecoder()
    with _as_unavailable():
        async for part in response.aiter_raw():
            for event in decoder.feed(part):
                yield event


async def _error_content(response: httpx.Response) -> bytes:
    content = b""
    with _as_unavailable():
        async for part in response.aiter_raw():
            content += part
            if len(content) > _MAX_ERROR_BYTES:
                break
    return content


def _body(request: EngineRequest, model: str) -> dict[str, Any]:
    options: CompletionOptions = request.options
    optional = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_tokens,
        "stop": list(options.stop) or None,
        "seed": options.seed,
    }
    return {
        "model": model,
        "messages": [
            {"role": message.role.value, "content": message.content} for message in request.messages
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in optional.items() if value is not None},
    }


def _measured(done: EngineDone, usage: _Usage, timings: _Timings | None) -> EngineDone:
    details, timings = usage.prompt_tokens_details, timings or _Timings()
    cached = details.cached_tokens if details is not None else None
    return EngineDone(
        done.finish_reason,
        Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=timings.cache_n if cached is None else cached,
            completion_tokens=usage.completion_tokens,
        ),
        prefill_seconds=None if timings.prompt_ms is None else timings.prompt_ms / 1000,
    )


def _refusal(status: int, headers: Mapping[str, str], content: bytes) -> RuvdError:
    """The error that a response other than 200 means."""
    try:
        decoded = msgspec.json.decode(content, type=_ErrorBody).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        decoded = content[:500].decode(errors="replace").strip()
    error = _Error(message=decoded) if isinstance(decoded, str) else decoded
    message = error.message or f"the engine answered with HTTP status {status}"
    if error.type == "exceed_context_size_error":
        return _too_long(error)
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return EngineRateLimited(message, retry_after_seconds=_retry_after(headers))
    if httpx.codes.is_client_error(status):
        return EngineRejected(message)
    return EngineUnavailable(message, retry_after_seconds=_retry_after(headers))


def _broken(error: _Error, *, begun: bool) -> RuvdError:
    """The error that an error object inside a stream means."""
    if error.type == "exceed_context_size_error" and not begun:
        return _too_long(error)
    return EngineUnavailable(error.message or "the engine broke off with an error")


def _too_long(error: _Error) -> ContextTooLong:
    return ContextTooLong(
        error.message, prompt_tokens=error.n_prompt_tokens, limit_tokens=error.n_ctx
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after", "")
    return float(value) if value.isdecimal() else None


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """What goes wrong on the way, in our words."""
    try:
        yield
    except httpx.ReadTimeout as error:
        raise EngineTimeout("the engine was silent for too long") from error
    except (httpx.HTTPError, httpx.StreamError, aiohttp.ClientError, OSError) as error:
        raise EngineUnavailable(f"the engine cannot be reached: {error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, EventTooLarge) as error:
        raise EngineUnavailable(f"the engine's answer makes no sense: {error}") from error
