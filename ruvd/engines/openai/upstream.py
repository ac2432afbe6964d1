"""One of the servers of an `openai` engine: its state, its circuit breaker and its calls."""

import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ruvd.core.errors import RuvdError
from ruvd.core.ports.engine import EngineChunk, EngineRequest
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.retryable import (
    Refused,
    is_failing,
    never_sent,
    refuses_credentials,
)
from ruvd.engines.openai.affinity import Affinity
from ruvd.engines.openai.circuit_breaker import CircuitBreaker, Permit

_NOT_SERVING = (502, 503, 504)
_log = logging.getLogger("ruvd.engine")


class Upstream:
    """One server. `up` is None until it is known; `problem` is the reason why it does not work.

    `answers` is whether it has answered anything at all: then calls are let through, because only
    they show whether completions work. `changed` is called when `up` or `problem` has changed.
    """

    def __init__(
        self,
        url: str,
        client: ChatCompletionsClient,
        affinity: Affinity,
        breaker: CircuitBreaker,
        changed: Callable[[], None],
    ) -> None:
        self.url = url
        self.client = client
        self.breaker = breaker
        self.up: bool | None = None
        self.problem = ""
        self.answers = False
        self._completes: bool | None = None  # as the last completion has shown
        self._affinity = affinity
        self._changed = changed

    async def check(self, seconds: float) -> None:
        """Checks whether the server is up, by a request for its models.

        Any answer with a status below 500 proves it. If there is none, though the server can be
        reached, the last completion decides: some servers serve completions and no models.
        """
        try:
            await self.client.ping(seconds=seconds)
        except RuvdError as error:
            self.answers = not never_sent(error)
            is_problem = is_failing(error) or refuses_credentials(error)
            is_up = not is_failing(error) or (self.answers and self._may_complete(error))
            text = f"no answer to GET /models: {error}" if is_failing(error) else str(error)
            self.set_state(up=is_up, problem=text if is_problem else "")
        else:
            self.answers = True
            self.set_state(up=True)

    def _may_complete(self, error: RuvdError) -> bool:
        """Returns whether completions work, or may work as none has been tried.

        A server that is starting and a gateway without a server behind it say so by their status.
        """
        if self._completes is not None:
            return self._completes
        return not (isinstance(error.__cause__, Refused) and error.__cause__.status in _NOT_SERVING)

    def set_state(self, *, up: bool, problem: str = "") -> None:
        """Sets whether the server is up. A server that comes up gets a closed circuit."""
        if self.up is False and up:
            self.breaker.reset()
        if (up, problem) != (self.up, self.problem):
            state = "up" if up else "down"
            if problem:
                _log.warning("%s is %s: %s", self.url, state, problem)
            else:
                _log.info("%s is %s", self.url, state)
            self.up, self.problem = up, problem
            self._changed()

    async def complete(
        self, request: EngineRequest, *, model: str, deadline: float
    ) -> "Call | None":
        """Returns an answer that has begun, or None if the circuit breaker rejects the call."""
        permit = self.breaker.try_acquire()
        if permit is None:
            return None
        try:
            chunks = self.client.complete(
                request,
                model=model,
                extra=self._affinity.fields(request),
                headers=self._affinity.headers(request),
                deadline=deadline,
            )
            first = await anext(chunks)
        except BaseException as error:
            has_failed = _has_failed(error, begun=False)
            if has_failed is not None:
                self._completes = not has_failed
            self.breaker.record(permit, failed=has_failed)
            raise
        self._completes = self.answers = True
        if not self.up:
            self.set_state(up=True)
        if self.breaker.is_probe(permit):  # other calls do not wait for the end of a long answer
            self.breaker.record(permit, failed=False)
        return Call(first, chunks, self.breaker, permit)


@dataclass(eq=False, slots=True)
class Call:
    """An answer that has begun: its `first` chunk, and the `chunks` after it, to be read inside
    `async with`, which closes them and records the call's result. It is no generator, because that
    would be one more layer for each chunk."""

    first: EngineChunk
    chunks: AsyncGenerator[EngineChunk, None]
    breaker: CircuitBreaker
    permit: Permit

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = False if error is None else _has_failed(error, begun=True)
        self.breaker.record(self.permit, failed=failed)
        await self.chunks.aclose()


def _has_failed(error: BaseException, *, begun: bool) -> bool | None:
    """Returns whether the server has failed, None if the error says nothing about the server.

    If an answer has `begun`, the caller's own exceptions and cancellation show that it works.
    """
    if not isinstance(error, RuvdError):
        return False if begun else None
    if isinstance(error.__cause__, TimeoutError):
        return None  # the deadline of the whole call, at which the server may have been at work
    if is_failing(error):
        return True
    return False if isinstance(error.__cause__, Refused) else None
