"""The measurement of requests: how long each took, and how it ended."""

from collections.abc import Awaitable
from contextlib import AbstractContextManager
from typing import Protocol

from ruvd.http.scopes import ASGIApp, Message, Receive, Scope, Send

_OUTCOME = "ruvd.outcome"


class RequestOutcome(Protocol):
    """The outcome of a request, which is written while the request is handled.

    `route` is the template of its path, `status` that of the response, and `error` the reason why
    the server has failed.
    """

    route: str
    status: int
    error: str


class RequestMeasurements(Protocol):
    """Measures every request."""

    def call(self, scope: Scope) -> AbstractContextManager[RequestOutcome]:
        """Measures the request of an ASGI scope while the context lasts."""


def note_route(scope: Scope, route: str) -> None:
    """Says which template the path of a request follows, such as `/v1/files/{file_id}`."""
    if outcome := _outcome(scope):
        outcome.route = route


def note_error(scope: Scope, error: str) -> None:
    """Says why the server has failed, also where the status was sent before."""
    if outcome := _outcome(scope):
        outcome.error = error


def _outcome(scope: Scope) -> RequestOutcome | None:
    found: RequestOutcome | None = scope.get("extensions", {}).get(_OUTCOME)
    return found


class Measured:
    """An application whose requests are measured, those that it refuses included."""

    def __init__(self, app: ASGIApp, measurements: RequestMeasurements) -> None:
        self._app = app
        self._measurements = measurements

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        with self._measurements.call(scope) as outcome:

            def noting(message: Message) -> Awaitable[None]:  # no coroutine more for each event
                if message["type"] == "http.response.start":
                    outcome.status = message["status"]
                return send(message)

            extensions = {**scope.get("extensions", {}), _OUTCOME: outcome}
            await self._app({**scope, "extensions": extensions}, receive, noting)
