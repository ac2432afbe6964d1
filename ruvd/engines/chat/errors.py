"""The mapping of a server's refusals, silences and broken answers to errors of the core.

| the server | the error | retried |
|---|---|---|
| no connection, or closed before an answer began | ENGINE_UNAVAILABLE | yes |
| 408, 425, 502, 503, 529 | ENGINE_UNAVAILABLE | yes |
| 429 (unless a quota is used up) | ENGINE_RATE_LIMITED | yes |
| 401, 402, 403: the operator's fault, not the caller's | ENGINE_UNAVAILABLE | on another server |
| the prompt does not fit, in the words of each known server | CONTEXT_TOO_LONG | no |
| any other 4xx, with the server's message | ENGINE_REJECTED | no |
| any other status, an answer that is cut or cannot be decoded | ENGINE_UNAVAILABLE | no |
| silence for `read_seconds` | ENGINE_TIMEOUT | no |

The last column is decided in `retryable`, from each error's cause.
"""

import email.utils
import re
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
    EngineUnavailable,
    RuvdError,
)
from ruvd.engines.chat.retryable import (
    CONNECT_ERRORS,
    CREDENTIAL_STATUSES,
    RETRYABLE_STATUSES,
    NoAnswer,
    Refused,
)
from ruvd.engines.chat.sse import EventTooLarge

_TOO_LONG_CODES = {"exceed_context_size_error", "context_length_exceeded"}
# In the words of vLLM, OpenAI and OpenRouter (the same), SGLang, vLLM's engine, TGI (two), Mistral
# and a router of SGLang's.
_LIMIT = re.compile(
    r"maximum context length(?: is| of) (\d+) tokens"
    r"|model's context length \((\d+) tokens\)"
    r"|maximum model length of (\d+)"
    r"|`max_new_tokens` must be <= (\d+)"
    r"|`inputs` must have less than (\d+) tokens"
    r"|model with (\d+) maximum context length"
    r"|maximum context length \((\d+)\)"
)
# The same servers' figures: the prompt alone if they give it, else prompt and answer together.
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
_REQUESTED = re.compile(r"you requested(?: a total of| about)? (\d+) tokens")
_MAX_MESSAGE = 1000  # a gRPC status travels in trailers, which gRPC limits to 8 KiB

# The exceptions of a connection that breaks.
CONNECTION_ERRORS = (httpx.HTTPError, httpx.StreamError, OSError)
# Those of a connection that breaks after it was established.
_DROP_ERRORS = (httpx.RemoteProtocolError, httpx.NetworkError, ConnectionError)
# The exceptions of an answer that cannot be decoded.
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, EventTooLarge)


class Error(msgspec.Struct):
    """An error object of OpenAI's API; llama.cpp adds both figures."""

    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _Body(msgspec.Struct):
    """An error body. vLLM and SGLang had the fields at the top level; FastAPI uses `detail`."""

    error: Error | str | None = None
    message: str | None = None
    detail: str | None = None
    type: str | None = None
    code: str | int | None = None


def response_error(
    status: int, content: bytes, *, content_type: str = "", retry_after: str = "", date: str = ""
) -> RuvdError:
    """Returns the error for a response other than 200. The error's cause is a `Refused`."""
    body = _decode(content, content_type)
    seconds = _retry_after(retry_after, date)
    error = _status_error(status, body, seconds)
    error.__cause__ = Refused(status, seconds, str(body.code or body.type or ""))
    return error


def stream_error(body: Error, *, begun: bool) -> RuvdError:
    """Returns the error for an error object in a stream; `begun` is set after the first chunk."""
    if not begun and (too_long := _too_long(body)):
        return too_long
    return EngineUnavailable(clip(body.message) or "the engine broke off with an error")


class EngineErrorTranslator:
    """A context manager that raises the exceptions of HTTP as errors of the core.

    Each error's cause is the original exception, or a `NoAnswer` with that cause if the connection
    dropped and `before_head` is set. `redact` removes secrets from the texts. It holds no state, so
    it may be entered again and at the same time.
    """

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
            self._redact_args(error)
        elif error is not None:
            translated, cause = _translate(error, before_head=self._before_head)
            if translated is not None:
                self._redact_args(translated)
                try:
                    raise translated from cause
                finally:
                    # The traceback refers to this frame, which must not refer to the error.
                    del translated

    def _redact_args(self, error: RuvdError) -> None:
        error.args = tuple(self._redact(str(text)) for text in error.args)


def clip(text: str | None) -> str:
    """Returns a server's text, shortened to what fits in a gRPC status."""
    text = (text or "").strip()
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "…"


def _translate(
    error: BaseException, *, before_head: bool
) -> tuple[RuvdError | None, BaseException]:
    """Returns the core's error, or None for an unrelated exception, and the error's cause."""
    if isinstance(error, CONNECTION_ERRORS):
        text = clip(str(error)) or type(error).__name__
        translated = EngineUnavailable(f"the engine cannot be reached: {text}")
        is_drop = isinstance(error, _DROP_ERRORS) and not isinstance(error, CONNECT_ERRORS)
        if before_head and is_drop:
            cause = NoAnswer()
            cause.__cause__ = error
            return translated, cause
        return translated, error
    if isinstance(error, _DECODE_ERRORS):
        return EngineUnavailable(f"the engine's answer makes no sense: {error}"), error
    return None, error


def _status_error(status: int, body: Error, retry_after: float | None) -> RuvdError:
    message = clip(body.message) or f"the engine answered with HTTP status {status}"
    if status in CREDENTIAL_STATUSES:
        return EngineUnavailable(
            f"the engine's server refuses the daemon's credentials (HTTP status {status}):"
            f" {clip(body.message) or 'it gives no reason'}"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return EngineRateLimited(message, retry_after_seconds=retry_after)
    if httpx.codes.is_client_error(status) and status not in RETRYABLE_STATUSES:
        return _too_long(body) or EngineRejected(message)
    if not httpx.codes.is_server_error(status) or not body.message:
        message = f"the engine answered with HTTP status {status}"
    # llama.cpp has reported a context overflow with status 500, too.
    return _too_long(body) or EngineUnavailable(message, retry_after_seconds=retry_after)


def _too_long(body: Error) -> ContextTooLong | None:
    """Returns the error for a context overflow, or None if the body reports something else."""
    message = body.message or ""
    limit = _LIMIT.search(message)
    if limit is None and not _TOO_LONG_CODES & {body.type, body.code}:
        return None
    prompt = _PROMPT.search(message) or _REQUESTED.search(message)
    return ContextTooLong(
        clip(message) or "the prompt does not fit the engine's context",
        prompt_tokens=body.n_prompt_tokens or _figure(prompt),
        limit_tokens=body.n_ctx or _figure(limit),
    )


def _figure(match: re.Match[str] | None) -> int | None:
    return None if match is None else int(match[match.lastindex or 0])


def _decode(content: bytes, content_type: str) -> Error:
    try:
        body = msgspec.json.decode(content, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = content[:_MAX_MESSAGE].decode(errors="replace").strip()
        # An HTML page is made for people with a browser. The status alone says as much.
        is_page = "html" in content_type.lower() or text.startswith("<")
        return Error(message="" if is_page else text)
    if isinstance(body.error, Error):
        return body.error
    message = body.error or body.message or body.detail
    return Error(message=message, type=body.type, code=body.code)


def _retry_after(value: str, date: str) -> float | None:
    """Returns the seconds to wait by a Retry-After header: a number of seconds, or a date.

    A date is compared with that of the response, as this machine's clock may differ.
    """
    if value.strip().isdecimal():
        return float(value)
    until, now = _seconds(value), _seconds(date)
    if until is None:
        return None
    return max(0.0, until - (time.time() if now is None else now))


def _seconds(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
