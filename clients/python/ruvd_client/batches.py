"""Batches for threads and for asyncio, whose calls are made one after the other.

Items are taken from their iterable only when the next call needs them: there may be any number.
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
from typing import Any, Self

import grpc

from ruvd_client.async_connection import AsyncConnection
from ruvd_client.batch_calls import BatchCalls, BatchItem, BatchOutcome
from ruvd_client.connection import Connection
from ruvd_client.protocol import RuvdError, error_from

_CANCELLED = (grpc.StatusCode.CANCELLED, "", "cancelled by this client")


class Batch(Iterator[BatchOutcome]):
    """An iterator over a batch's outcomes. Leaving the `with` block cancels the unfinished items.

    `summary` holds the totals so far. Iterating raises RuvdError when a call fails as a whole; the
    outcomes before the error remain valid.
    """

    def __init__(
        self, connection: Connection, items: Iterable[BatchItem], calls: BatchCalls
    ) -> None:
        self.summary = calls.summary
        self._connection = connection
        self._metadata = connection.metadata()
        self._channel = connection.channels.current()
        self._items = items
        self._calls = calls
        self._cancelled = threading.Event()
        self._responses: Any = None
        self._outcomes = self._read_items()

    def cancel(self) -> None:
        """Cancels all unfinished items. Has no effect after the end."""
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

    def _read_items(self) -> Generator[BatchOutcome, None, None]:
        for item in self._items:
            if self._calls.add(item):
                yield from self._run_calls()
        self._calls.flush()
        yield from self._run_calls()

    def _run_calls(self) -> Generator[BatchOutcome, None, None]:
        while call := self._calls.next_call():
            failure = None
            self._responses = self._connection.batch(
                self._metadata,
                call.request,
                channel=self._channel,
                timeout=self._calls.seconds_left(),
            )
            if self._cancelled.is_set():
                self._responses.cancel()
            try:
                for response in self._responses:
                    if outcome := self._calls.handle_response(call, response):
                        yield outcome
            except grpc.RpcError as error:
                if self._cancelled.is_set():
                    raise RuvdError(*_CANCELLED) from error
                failure = error_from(error)
                if outcome := self._calls.handle_failure(call, failure):
                    yield outcome
            finally:
                self._responses.cancel()
            retry = self._calls.finish(call, failure)
            self._cancelled.wait(retry.pause_seconds)
            self._channel = self._connection.channel_after(self._channel, retry.step)


class AsyncBatch(AsyncIterator[BatchOutcome]):
    """An iterator over a batch's outcomes. Leaving `async with` cancels the unfinished items.

    `summary` holds the totals so far. Iterating raises RuvdError when a call fails as a whole; the
    outcomes before the error remain valid.
    """

    def __init__(
        self,
        connection: AsyncConnection,
        items: Iterable[BatchItem] | AsyncIterable[BatchItem],
        calls: BatchCalls,
    ) -> None:
        self.summary = calls.summary
        self._connection = connection
        self._metadata = connection.metadata()
        self._channel = connection.channels.current()
        self._items = items
        self._calls = calls
        self._cancelled = asyncio.Event()
        self._responses: Any = None
        self._outcomes = self._read_items()

    def cancel(self) -> None:
        """Cancels all unfinished items. Has no effect after the end."""
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

    async def _read_items(self) -> AsyncGenerator[BatchOutcome, None]:
        async with aclosing(_iterate(self._items)) as items:
            async for item in items:
                if self._calls.add(item):
                    async with aclosing(self._run_calls()) as outcomes:
                        async for outcome in outcomes:
                            yield outcome
        self._calls.flush()
        async with aclosing(self._run_calls()) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def _run_calls(self) -> AsyncGenerator[BatchOutcome, None]:
        while call := self._calls.next_call():
            failure = None
            self._responses = self._connection.batch(
                self._metadata,
                call.request,
                channel=self._channel,
                timeout=self._calls.seconds_left(),
            )
            if self._cancelled.is_set():
                self._responses.cancel()
            try:
                async for response in self._responses:
                    if outcome := self._calls.handle_response(call, response):
                        yield outcome
            except grpc.RpcError as error:
                failure = error_from(error)
                if outcome := self._calls.handle_failure(call, failure):
                    yield outcome
            except asyncio.CancelledError as error:
                # grpc.aio raises CancelledError also if only the call was cancelled, not the task.
                task = asyncio.current_task()
                if not self._cancelled.is_set() or (task is not None and task.cancelling()):
                    raise
                raise RuvdError(*_CANCELLED) from error
            finally:
                self._responses.cancel()
            retry = self._calls.finish(call, failure)
            await asyncio.sleep(retry.pause_seconds)
            self._channel = self._connection.channel_after(self._channel, retry.step)


async def _iterate(
    items: Iterable[BatchItem] | AsyncIterable[BatchItem],
) -> AsyncGenerator[BatchItem, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
