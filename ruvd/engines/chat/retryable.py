"""The causes of engine errors, and what each says about another try.

An error's `__cause__` is a `Refused` if the server answered with an HTTP status, a `NoAnswer` if
the connection ended before the response's head, and otherwise the exception of the HTTP transport.
A 500 or 504 is not retried, because the server has already worked on the request.
"""

import ssl
from http import HTTPStatus

import httpx

from ruvd.core.errors import ContextTooLong, EngineTimeout, EngineUnavailable, RuvdError
from ruvd.engines.http.http1 import StaleConnection

RETRYABLE_STATUSES = {408, 425, 429, 502, 503, 529}  # 529 is Anthropic's, for an overload
CREDENTIAL_STATUSES = {401, 402, 403}
CONNECT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class Refused(Exception):
    """The cause of an error that the server answered with an HTTP status other than 200."""

    def __init__(self, status: int, retry_after_seconds: float | None, code: str) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.code = code


class NoAnswer(Exception):
    """The cause of an error when an open connection ended before the response's head."""


def never_sent(error: RuvdError) -> bool:
    """Returns whether there was no connection, so that the server has not seen the request."""
    return isinstance(error.__cause__, CONNECT_ERRORS)


def was_stale(error: RuvdError) -> bool:
    """Returns whether an idle connection turned out to be closed, which is no server failure."""
    cause = error.__cause__
    return isinstance(cause, NoAnswer) and isinstance(cause.__cause__, StaleConnection)


def may_retry(error: RuvdError) -> bool:
    """Returns whether the same server may be tried again after a pause."""
    cause = error.__cause__
    if isinstance(error, ContextTooLong):
        return False
    if isinstance(cause, Refused):
        return cause.status in RETRYABLE_STATUSES and cause.code != "insufficient_quota"
    if isinstance(cause, NoAnswer):
        return True
    return never_sent(error) and not _is_tls_failure(error)


def may_go_elsewhere(error: RuvdError) -> bool:
    """Returns whether another server may be tried at once."""
    cause = error.__cause__
    if isinstance(error, ContextTooLong):
        return False
    is_limited = isinstance(cause, Refused) and cause.status == HTTPStatus.TOO_MANY_REQUESTS
    return may_retry(error) or never_sent(error) or refuses_credentials(error) or is_limited


def refuses_credentials(error: RuvdError) -> bool:
    """Returns whether the server does not accept the daemon's credentials."""
    return isinstance(error.__cause__, Refused) and error.__cause__.status in CREDENTIAL_STATUSES


def is_failing(error: RuvdError) -> bool:
    """Returns whether the error is a server failure, which a circuit breaker counts."""
    if isinstance(error.__cause__, Refused):
        return error.__cause__.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, (EngineUnavailable, EngineTimeout))


def _is_tls_failure(error: BaseException) -> bool:
    """Returns whether TLS has failed, as it would again."""
    cause = error.__cause__
    return cause is not None and (isinstance(cause, ssl.SSLError) or _is_tls_failure(cause))
