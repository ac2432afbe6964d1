"""The outcomes of a batch, for threads and for asyncio: one call after the other.

Items are taken from their iterable only as calls need them, so that there may be any number.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import aclosing
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from ruvd_client.batch_calls import BatchItem, BatchOutcome, Work
from ruvd_client.protocol import RuvdError, error_from
from ruvd_client.v1 import session_service_pb2 as pb

_CANCELLED = (grpc.StatusCode.CANCELLED, "", "cancelled by this client")


class _Method(Protocol):
    def __call__(self, request: pb.BatchCompleteRequest, /, *, timeout: float | None) -> Any: ...


class Batch(Iterator[BatchOutcome]):
    """Outcomes as they come; leave the `with` block to cancel what has none yet.

    `summary` is what has come so far. Iterating raises RuvdError when a call fails as a whole;
    the outcomes before it hold.
    """

    def __init__(self, method: _Method, items: Iterable[BatchItem], work: Work) -> None:
        self.summary = work.summary
        self._method = method
        self._items = items
        self._work = work
        self._cancelled = threading.Event()
        self._responses: Any = None
        self._outcomes = self._read()

    def cancel(self) -> None:
        """Stop everything that runs. Does nothing after the end."""
        self._cancelled.set()
        if self._responses is not None:
            self._responses.cancel()

    def __next__(self) -> BatchOutcome:
        return next(self._outcomes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def _read(self) -> Generator[BatchOutcome, None, None]:
        for item in self._items:
            if self._work.add(item):
                yield from self._run()
        self._work.flush()
        yield from self._run()

    def _run(self) -> Generator[BatchOutcome, None, None]:
        while call := self._work.next_call():
            failure = None
            self._responses = self._method(call.request, timeout=self._work.seconds_left())
            if self._cancelled.is_set():
                self._responses.cancel()
            try:
                for response in self._responses:
                    if outcome := self._work.take(call, response):
                        yield outcome
            except grpc.RpcError as error:
                if self._cancelled.is_set():
                    raise RuvdError(*_CANCELLED) from error
                failure = error_from(error)
                if outcome := self._work.refused(call, failure):
                    yield outcome
            finally:
                self._responses.cancel()
            self._cancelled.wait(self._work.ended(call, failure))


class AsyncBatch(AsyncIterator[BatchOutcome]):
    """Outcomes as they come; leave the `async with` block to cancel what has none yet.

    `summary` is what has come so far. Iterating raises RuvdError when a call fails as a whole;
    the outcomes before it hold.
    """

    def __init__(
        self, method: _Method, items: Iterable[BatchItem] | AsyncIterable[BatchItem], work: Work
    ) -> None:
        self.summary = work.summary
        self._method = method
        self._items = items
        self._work = work
        self._cancelled = asyncio.Event()
        self._responses: Any = None
        self._outcomes = self._read()

    def cancel(self) -> None:
        """Stop everything that runs. Does nothing after the end."""
        self._cancelled.set()
        if self._responses is not None:
            self._responses.cancel()

    async def __anext__(self) -> BatchOutcome:
        return await anext(self._outcomes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    async def _read(self) -> AsyncGenerator[BatchOutcome, None]:
        async with aclosing(_each(self._items)) as items:
            async for item in items:
                if self._work.add(item):
                    async with aclosing(self._run()) as outcomes:
                        async for outcome in outcomes:
                            yield outcome
        self._work.flush()
        async with aclosing(self._run()) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def _run(self) -> AsyncGenerator[BatchOutcome, None]:
        while call := self._work.next_call():
            failure = None
            self._responses = self._method(call.request, timeout=self._work.seconds_left())
            if self._cancelled.is_set():
                self._responses.cancel()
            try:
                async for response in self._responses:
                    if outcome := self._work.take(call, response):
                        yield outcome
            except grpc.RpcError as error:
                failure = error_from(error)
                if outcome := self._work.refused(call, failure):
                    yield outcome
            except asyncio.CancelledError as error:
                # grpc.aio reports a call that was cancelled here as if the task had been.
                task = asyncio.current_task()
                if not self._cancelled.is_set() or (task is not None and task.cancelling()):
                    raise
                raise RuvdError(*_CANCELLED) from error
            finally:
                self._responses.cancel()
            await asyncio.sleep(self._work.ended(call, failure))


async def _each(
    items: Iterable[BatchItem] | AsyncIterable[BatchItem],
) -> AsyncGenerator[BatchItem, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
