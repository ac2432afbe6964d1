"""What a server's refusals, silences and broken answers mean in our words. THE table.

| the server | the error | tried again |
|---|---|---|
| no connection, or closed before an answer began | ENGINE_UNAVAILABLE | yes |
| 408, 425, 502, 503, 529 | ENGINE_UNAVAILABLE | yes |
| 429 (but for a quota that is used up) | ENGINE_RATE_LIMITED | yes |
| 401, 402, 403: the operator's fault, not the caller's | ENGINE_UNAVAILABLE | elsewhere |
| the prompt does not fit, in the words of each known server | CONTEXT_TOO_LONG | no |
| any other 4xx, with the server's message | ENGINE_REJECTED | no |
| any other status, an answer cut or without sense | ENGINE_UNAVAILABLE | no |
| silence for `read_seconds` | ENGINE_TIMEOUT | no |

A 504 and a 500 are not tried again: the server has worked on it, and would once more.
"""

from __future__ import annotations

import email.utils
import re
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType

import httpx
import msgspec

from ruvd.core.errors import (
    ContextTooLong,
    EngineRateLimited,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    RuvdError,
)
from ruvd.engines.chat.sse import EventTooLarge
from ruvd.engines.http.http1 import StaleConnection

_TRY_AGAIN = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    529,  # what Anthropic's API says when it is overloaded
}
_OPERATORS_FAULT = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.PAYMENT_REQUIRED,
    HTTPStatus.FORBIDDEN,
}
_TOO_LONG = {"exceed_context_size_error", "context_length_exceeded"}
# The words of vLLM, OpenAI and OpenRouter, of SGLang, of vLLM's engine, of TGI (two), of Mistral,
# of a router of SGLang's.
_LIMIT = re.compile(
    r"maximum context length(?: is| of) (\d+) tokens"
    r"|model's context length \((\d+) tokens\)"
    r"|maximum model length of (\d+)"
    r"|`max_new_tokens` must be <= (\d+)"
    r"|`inputs` must have less than (\d+) tokens"
    r"|model with (\d+) maximum context length"
    r"|maximum context length \((\d+)\)"
)
# The same servers' figures: the prompt alone if they say it, else all that was asked for.
_PROMPT = re.compile(
    r"\((\d+) in the messages"
    r"|(\d+) tokens from the input messages"
    r"|has (\d+) input tokens"
    r"|The input \((\d+) tokens\)"
    r"|prompt \(length (\d+)\)"
    r"|resulted in (\d+) tokens"
    r"|Given: (\d+)"
    r"|Prompt contains (\d+) tokens"
    r"|Input length \((\d+)\)"
)
_ASKED = re.compile(r"you requested(?: a total of| about)? (\d+) tokens")
_MAX_MESSAGE = 1000  # a status travels in trailers, for which gRPC has 8 KiB


class Refused(Exception):
    """The cause of an error that is an HTTP status: what the table above goes by."""

    def __init__(self, status: int, retry_after_seconds: float | None, code: str) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.code = code


class NoAnswer(Exception):
    """The cause of an error: the connection ended before the answer's head."""


_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_DROPS = (httpx.RemoteProtocolError, httpx.NetworkError, ConnectionError)


class Error(msgspec.Struct):
    """An error object, as OpenAI has it; llama.cpp adds both figures."""

    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _Body(msgspec.Struct):
    """vLLM and SGLang had the error's fields at the top; FastAPI's own is `detail`."""

    error: Error | str | None = None
    message: str | None = None
    detail: str | None = None
    type: str | None = None
    code: str | int | None = None


def refusal(
    status: int, content: bytes, *, content_type: str = "", retry_after: str = ""
) -> RuvdError:
    """The error that a response other than 200 means, of its body and the values of two headers;
    its cause is a `Refused`."""
    error = _read(content, content_type)
    seconds = _retry_after(retry_after)
    raised = _meaning(status, error, seconds)
    raised.__cause__ = Refused(status, seconds, str(error.code or error.type or ""))
    return raised


def broken(error: Error, *, begun: bool) -> RuvdError:
    """The error that an error object inside a stream, or with status 200, means."""
    if not begun and (too_long := _too_long(error)):
        return too_long
    return EngineUnavailable(clip(error.message) or "the engine broke off with an error")


def never_sent(error: RuvdError) -> bool:
    """Whether there was no connection, so that the server has not seen the request."""
    return isinstance(error.__cause__, _NO_CONNECTION)


def dropped(error: RuvdError) -> bool:
    """Whether the connection ended before the answer's head."""
    return isinstance(error.__cause__, NoAnswer)


def was_stale(error: RuvdError) -> bool:
    """Whether the server had closed a connection that was kept, which says nothing about it."""
    cause = error.__cause__
    return isinstance(cause, NoAnswer) and isinstance(cause.__cause__, StaleConnection)


def may_retry(error: RuvdError) -> bool:
    """Whether the same server may be asked again, after a while."""
    cause = error.__cause__
    if isinstance(cause, Refused):
        return cause.status in _TRY_AGAIN and cause.code != "insufficient_quota"
    return (never_sent(error) and not _untrusted(error)) or dropped(error)


def may_go_elsewhere(error: RuvdError) -> bool:
    """Whether another server may be asked at once."""
    cause = error.__cause__
    quota = isinstance(cause, Refused) and cause.status == HTTPStatus.TOO_MANY_REQUESTS
    return may_retry(error) or never_sent(error) or refuses_credentials(error) or quota


def refuses_credentials(error: RuvdError) -> bool:
    """Whether the server does not let the daemon in."""
    return isinstance(error.__cause__, Refused) and error.__cause__.status in _OPERATORS_FAULT


def is_failing(error: RuvdError) -> bool:
    """Whether it says that the server is not well: what a circuit breaker counts."""
    if isinstance(error.__cause__, Refused):
        return error.__cause__.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, (EngineUnavailable, EngineTimeout))


# What a connection that breaks raises.
CONNECTION_ERRORS = (httpx.HTTPError, httpx.StreamError, OSError)
# What an answer that is none raises.
_NONSENSE = (msgspec.MsgspecError, UnicodeDecodeError, EventTooLarge)


class EngineErrorTranslator:
    """What goes wrong inside is raised as one of our errors, whose cause says what it was; `redact`
    hides what no text may have in it. A context manager, to be entered as often as one likes."""

    def __init__(self, redact: Callable[[str], str], *, before_head: bool = False) -> None:
        self._redact = redact
        self._before_head = before_head

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, RuvdError):
            self._hide(error)
        elif error is not None:
            told, cause = _translate(error, before_head=self._before_head)
            if told is not None:
                self._hide(told)
                try:
                    raise told from cause
                finally:
                    del told  # or its traceback would hold this frame, and this frame it

    def _hide(self, error: RuvdError) -> None:
        error.args = tuple(self._redact(str(text)) for text in error.args)


def _translate(
    error: BaseException, *, before_head: bool
) -> tuple[RuvdError | None, BaseException]:
    """Our error for one of theirs, if it has one, and its cause."""
    if isinstance(error, CONNECTION_ERRORS):
        text = clip(str(error)) or type(error).__name__
        told = EngineUnavailable(f"the engine cannot be reached: {text}")
        if before_head and _is_drop(error):
            cause = NoAnswer()
            cause.__cause__ = error
            return told, cause
        return told, error
    if isinstance(error, _NONSENSE):
        return EngineUnavailable(f"the engine's answer makes no sense: {error}"), error
    return None, error


def _is_drop(error: BaseException) -> bool:
    return isinstance(error, _DROPS) and not isinstance(error, _NO_CONNECTION)


def _untrusted(error: BaseException) -> bool:
    """Whether TLS has failed, as it would again."""
    cause = error.__cause__
    return cause is not None and (isinstance(cause, ssl.SSLError) or _untrusted(cause))


def _meaning(status: int, error: Error, retry_after: float | None) -> RuvdError:
    message = clip(error.message) or f"the engine answered with HTTP status {status}"
    if status in _OPERATORS_FAULT:
        return EngineUnavailable(
            f"the engine's server refuses the daemon's credentials (HTTP status {status}):"
            f" {clip(error.message) or 'it gives no reason'}"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return EngineRateLimited(message, retry_after_seconds=retry_after)
    if httpx.codes.is_client_error(status) and status not in _TRY_AGAIN:
        return _too_long(error) or EngineRejected(message)
    if not httpx.codes.is_server_error(status) or not error.message:
        message = f"the engine answered with HTTP status {status}"
    # llama.cpp has said it with a 500, too.
    return _too_long(error) or EngineUnavailable(message, retry_after_seconds=retry_after)


def _too_long(error: Error) -> ContextTooLong | None:
    message = error.message or ""
    limit = _LIMIT.search(message)
    if limit is None and not _TOO_LONG & {error.type, error.code}:
        return None
    asked = _PROMPT.search(message) or _ASKED.search(message)
    return ContextTooLong(
        clip(message) or "the prompt does not fit the engine's context",
        prompt_tokens=error.n_prompt_tokens or _figure(asked),
        limit_tokens=error.n_ctx or _figure(limit),
    )


def _figure(match: re.Match[str] | None) -> int | None:
    return None if match is None else int(match[match.lastindex or 0])


def _read(content: bytes, content_type: str) -> Error:
    try:
        body = msgspec.json.decode(content, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = content[:_MAX_MESSAGE].decode(errors="replace").strip()
        # A page is made for people with a browser; the status says as much.
        is_page = "html" in content_type.lower() or text.startswith("<")
        return Error(message="" if is_page else text)
    if isinstance(body.error, Error):
        return body.error
    message = body.error or body.message or body.detail
    return Error(message=message, type=body.type, code=body.code)


def clip(text: str | None) -> str:
    """A server's text, not longer than a gRPC status may be."""
    text = (text or "").strip()
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "…"


def _retry_after(value: str) -> float | None:
    """Seconds from now: the header has a number of them, or a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
