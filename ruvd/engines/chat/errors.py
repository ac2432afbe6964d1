"""The mapping of a server's refusals, silences and broken answers to errors of the core.

| the server | the error | retried |
|---|---|---|
| no connection, or closed before an answer began | ENGINE_UNAVAILABLE | yes |
| 408, 425, 502, 503, 529 | ENGINE_UNAVAILABLE | yes |
| 429 (unless a quota is used up) | ENGINE_RATE_LIMITED | yes |
| 401, 402, 403: the operator's fault, not the caller's | ENGINE_UNAVAILABLE | on another server |
| the prompt does not fit, in the words of any server | CONTEXT_TOO_LONG | no |
| any other 4xx, with the server's message | ENGINE_REJECTED | no |
| any other status, an answer that is cut or cannot be decoded | ENGINE_UNAVAILABLE | no |
| an error in a stream or in a body with status 200 | as the status that it stands for | as that |
| silence for `read_seconds` | ENGINE_TIMEOUT | no |

The last column is decided in `retryable`, from each error's cause.
"""

import email.utils
import math
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType

import httpx
import msgspec

from ruvd.core.errors import EngineRateLimited, EngineRejected, EngineUnavailable, RuvdError
from ruvd.engines.chat.chunks import ChunkError, load, valid_text
from ruvd.engines.chat.error_body import ErrorBody, error_in
from ruvd.engines.chat.overflow import context_overflow
from ruvd.engines.chat.retryable import (
    CONNECT_ERRORS,
    CREDENTIAL_STATUSES,
    RETRYABLE_STATUSES,
    NoAnswer,
    Refused,
)
from ruvd.engines.chat.sse import EventTooLarge

_MAX_MESSAGE = 1000  # a gRPC status travels in trailers, which gRPC limits to 8 KiB
_DELAY = re.compile(r"\s*(\d{1,300}(?:\.\d{1,300})?)\s*s?(?:econds?)?\s*(?:,|$)", re.IGNORECASE)
# Codes of a quota that is used up. Waiting does not help.
_USED_UP = {"insufficient_quota", "insufficientquota", "quota_exceeded", "billing_hard_limit"}

# The exceptions of a connection that breaks.
CONNECTION_ERRORS = (httpx.HTTPError, httpx.StreamError, OSError)
# Those of a connection that breaks after it was established.
_DROP_ERRORS = (httpx.RemoteProtocolError, httpx.NetworkError, ConnectionError)
# The exceptions of an answer that cannot be decoded.
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, EventTooLarge, ChunkError)


def response_error(
    status: int,
    content: bytes,
    *,
    content_type: str = "",
    retry_after: str = "",
    date: str = "",
    max_retry_after_seconds: float = 3600.0,
) -> RuvdError:
    """Returns the error for a response other than 2xx. The error's cause is a `Refused`.

    A Retry-After is cut to `max_retry_after_seconds`.
    """
    body = _decode(content, content_type)
    seconds = _retry_after(retry_after, date)
    if seconds is not None:
        seconds = min(seconds, max_retry_after_seconds)
    error = _status_error(status, body, seconds, f"HTTP status {status}")
    error.__cause__ = Refused(status, seconds, _code(body))
    return error


def stream_error(body: ErrorBody, *, begun: bool) -> RuvdError:
    """Returns the error for one that was reported in a response with status 200.

    It is the error of the HTTP status that the server's code or words stand for. `begun` is set
    after the first chunk: an overflow no longer counts then, because trimming would come too late.
    """
    status = body.status
    if begun and (status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or context_overflow(body, status)):
        return EngineUnavailable(clip(body.message) or "the engine broke off with an error")
    name = body.code or body.type
    words = f"error {name}" if name else "an error and no reason"
    error = _status_error(status, body, None, words)
    error.__cause__ = Refused(status or HTTPStatus.INTERNAL_SERVER_ERROR, None, _code(body))
    return error


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
    text = valid_text(text or "").strip()
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


def _status_error(
    status: int | None, body: ErrorBody, retry_after: float | None, words: str
) -> RuvdError:
    """Returns the error for a status; None is unknown. `words` stand for a missing message."""
    message = clip(body.message) or f"the engine answered with {words}"
    if status in CREDENTIAL_STATUSES:
        return EngineUnavailable(
            f"the engine's server refuses the daemon's credentials ({words}):"
            f" {clip(body.message) or 'it gives no reason'}"
        )
    if overflow := context_overflow(body, status):
        default = f"the prompt does not fit the engine's context ({words})"
        overflow.args = (clip(body.message) or default,)
        return overflow
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return EngineRateLimited(message, retry_after_seconds=retry_after)
    if status is not None and httpx.codes.is_client_error(status):
        if status not in RETRYABLE_STATUSES:
            return EngineRejected(message)
    elif status is not None and not httpx.codes.is_server_error(status):
        message = f"the engine answered with {words}"
    return EngineUnavailable(message, retry_after_seconds=retry_after)


def _code(body: ErrorBody) -> str:
    used_up = {name.lower() for name in (body.code, body.type)} & _USED_UP
    return "insufficient_quota" if used_up else body.code or body.type


def _decode(content: bytes, content_type: str) -> ErrorBody:
    try:
        value = load(content)
    except ChunkError:
        value = None
    if isinstance(value, (dict, str)) or (isinstance(value, list) and dict in map(type, value)):
        return error_in(value, always=True) or ErrorBody()
    text = content[: 4 * _MAX_MESSAGE].decode(errors="replace").strip()
    # An HTML page is made for people with a browser. The status alone says as much.
    is_page = "html" in content_type.lower() or text.startswith("<")
    return ErrorBody("" if is_page else text)


def _retry_after(value: str, date: str) -> float | None:
    """Returns the seconds to wait by a Retry-After header: a number of seconds, or a date.

    A date is compared with that of the response, as this machine's clock may differ. A value that
    is neither, such as a negative number, is ignored. Of a repeated header the first value counts.
    """
    if match := _DELAY.match(value):
        seconds = float(match[1])
        return seconds if math.isfinite(seconds) else None
    until, now = _seconds(value), _seconds(date)
    if until is None:
        return None
    return max(0.0, until - (time.time() if now is None else now))


def _seconds(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
