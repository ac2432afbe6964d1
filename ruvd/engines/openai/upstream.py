"""One of the servers that an `openai` engine may ask: whether it is up, and its circuit breaker.

The breaker is our own thirty lines because `purgatory` (3.0.1), the one library that is kept up,
counts a cancelled stream as an error or a success where it is neither, lets every waiting call
through at once when it half opens, goes by the wall clock, and raises one shared exception.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self

from ruvd.core.errors import RuvdError
from ruvd.core.ports.engine import EngineChunk, EngineRequest
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.retryable import Refused, is_failing, refuses_credentials
from ruvd.engines.openai.affinity import Affinity

_SERVER_ERROR = 500

_log = logging.getLogger("ruvd.engine")


class Breaker:
    """Opens after `failures` in a row, for `seconds`; then one call decides."""

    def __init__(self, *, failures: int, seconds: float) -> None:
        self._most = failures
        self._seconds = seconds
        self._failures = 0
        self._opened: float | None = None
        self._probing = False

    @property
    def wait_seconds(self) -> float:
        """How long it lets nobody through; 0 if it does now."""
        if self._opened is None:
            return 0.0
        left = self._opened + self._seconds - time.monotonic()
        # A call that decides will have done so soon.
        return max(left, 1.0 if self._probing else 0.0)

    def begin(self) -> bool:
        """Take a place; whether this is the call that decides."""
        probes = self._opened is not None
        self._probing = self._probing or probes
        return probes

    def end(self, *, failed: bool | None, probes: bool) -> None:
        """Count how it went; None says nothing about the server."""
        if probes:
            self._probing = False
        if failed:
            self._failures += 1
            if probes or self._failures >= self._most:
                self._opened = time.monotonic()
        elif failed is not None:
            self.reset()

    def reset(self) -> None:
        """The server is well."""
        self._failures, self._opened = 0, None


class Upstream:
    """One server. `up` is None until it is known; `trouble` says what is wrong."""

    def __init__(
        self,
        url: str,
        client: ChatCompletionsClient,
        affinity: Affinity,
        breaker: Breaker,
        changed: Callable[[], None],
    ) -> None:
        self.url = url
        self.client = client
        self.breaker = breaker
        self.up: bool | None = None
        self.trouble = ""
        self._affinity = affinity
        self._changed = changed

    async def check(self, seconds: float) -> None:
        """Ask whether it is alive: any answer below 500 says so."""
        try:
            await self.client.ping(seconds=seconds)
        except RuvdError as error:
            cause = error.__cause__
            alive = isinstance(cause, Refused) and cause.status < _SERVER_ERROR
            is_told = not alive or refuses_credentials(error)
            self.tell(up=alive, trouble=str(error) if is_told else "")
        else:
            self.tell(up=True)

    def tell(self, *, up: bool, trouble: str = "") -> None:
        """It is known to be up or down."""
        if self.up is False and up:
            self.breaker.reset()
        if (up, trouble) != (self.up, self.trouble):
            state = "up" if up else "down"
            if trouble:
                _log.warning("%s is %s: %s", self.url, state, trouble)
            else:
                _log.info("%s is %s", self.url, state)
            self.up, self.trouble = up, trouble
            self._changed()

    async def complete(self, request: EngineRequest, *, model: str, deadline: float) -> Call:
        """One answer that has begun."""
        probes = self.breaker.begin()
        chunks = self.client.complete(
            request,
            model=model,
            extra=self._affinity.fields(request),
            headers=self._affinity.headers(request),
            deadline=deadline,
        )
        try:
            first = await anext(chunks)
        except BaseException as error:
            self.breaker.end(failed=_verdict(error, began=False), probes=probes)
            raise
        self.tell(up=True)
        if probes:  # nobody is to wait for the end of a long answer
            self.breaker.end(failed=False, probes=True)
        return Call(first, chunks, self.breaker)


class Call:
    """An answer that has begun: `first`, and the `chunks` after it, to be read inside `async with`,
    which closes them and counts how it went. No generator, which would be one more layer for each
    chunk."""

    def __init__(
        self, first: EngineChunk, chunks: AsyncGenerator[EngineChunk, None], breaker: Breaker
    ) -> None:
        self.first = first
        self.chunks = chunks
        self._breaker = breaker

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = False if error is None else _verdict(error, began=True)
        self._breaker.end(failed=failed, probes=False)
        await self.chunks.aclose()


def _verdict(error: BaseException, *, began: bool) -> bool | None:
    """Whether the server has failed; None if the error says nothing about it."""
    if not isinstance(error, RuvdError):
        return False if began else None
    if isinstance(error.__cause__, TimeoutError):
        return None  # the time-out of the whole, and it may have been at work
    if is_failing(error):
        return True
    return False if isinstance(error.__cause__, Refused) else None
