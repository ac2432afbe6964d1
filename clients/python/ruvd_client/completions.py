"""An answer on its way, for threads and for asyncio. When its stream breaks, it is resumed.

grpc.aio reports a call that was cancelled here as CancelledError, which would look as if the
task had been cancelled. `AsyncCompletion` tells the two apart: its own `cancel` ends the
iteration with RuvdError, as in the blocking client.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc

from ruvd_client.answers import Answer, Request
from ruvd_client.connections import AsyncConnection, Connection
from ruvd_client.protocol import RuvdError, error_from
from ruvd_client.v1 import session_service_pb2 as pb


def _cancelled() -> RuvdError:
    return RuvdError(grpc.StatusCode.CANCELLED, "", "cancelled by this client")


def _cut_short() -> RuvdError:
    return RuvdError(grpc.StatusCode.UNKNOWN, "", "the stream has ended without Finished")


class _Progress:
    """What both kinds say of themselves."""

    _answer: Answer

    @property
    def request(self) -> Request:
        """What was asked, with the request id that it was given."""
        return self._answer.request

    @property
    def started(self) -> pb.Started | None:
        """Set when the turn has the engine."""
        return self._answer.started

    @property
    def finished(self) -> pb.Finished | None:
        """Set when the answer is complete and, in a session, committed."""
        return self._answer.finished

    @property
    def last_sequence(self) -> int:
        """The number of the last event that has come, to resume after."""
        return self._answer.last_sequence


class Completion(_Progress, Iterator[str]):
    """One answer on its way: iterate for its text, leave the `with` block to cancel it.

    A stream that breaks is resumed by itself. Iterating raises RuvdError when the completion fails
    or is cancelled.
    """

    def __init__(self, connection: Connection, answer: Answer) -> None:
        self._answer = answer
        self._connection = connection
        self._cancelled = threading.Event()
        self._metadata = connection.metadata()
        self._drained = False
        self._responses = self._call()

    def events(self) -> Generator[pb.CompletionEvent, None, None]:
        """The events that have not been read yet, instead of their text.

        After a restart of the daemon Finished may come without deltas: its message is whole.
        """
        while (event := self._next()) is not None:
            yield event

    def deltas(self) -> Generator[pb.Delta, None, None]:
        """What has not been read yet of the answer: text, reasoning and tool calls."""
        for event in self.events():
            yield from self._answer.deltas(event)

    def text(self) -> str:
        """Wait for the end; the answer's whole text."""
        return self.message().content

    def message(self) -> pb.Message:
        """Wait for the end; the whole answer, with its tool calls and its reasoning."""
        for _ in self.events():
            pass
        return self.finished.message if self.finished else pb.Message()

    def cancel(self) -> None:
        """Stop generating, and do not wait for it. Does nothing after the end.

        With ON_DISCONNECT_CONTINUE the completion loses this reader and no more.
        """
        if self._cancelled.is_set() or self._answer.ended:
            return
        self._cancelled.set()
        self._responses.cancel()
        if request := self._answer.cancel_request():
            self._connection.cancel(request, self._metadata)

    def __next__(self) -> str:
        for event in self.events():
            for delta in self._answer.deltas(event):
                if delta.text:
                    return delta.text
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # Who breaks out of a loop over it has left it, too; gRPC cancels the stream then.
        if not self._cancelled.is_set() and (request := self._answer.cancel_request()):
            self._connection.drop(request, self._metadata)

    def _next(self) -> pb.CompletionEvent | None:
        answer = self._answer
        if answer.error is not None:
            raise answer.error
        while answer.finished is None:
            try:
                event = next(self._responses).event
            except StopIteration:
                failure = _cut_short()
            except grpc.RpcError as error:
                failure = error_from(error)
            else:
                answer.take(event)
                return event  # type: ignore[no-any-return]
            if not self._has_left():
                self._cancelled.wait(answer.broke(failure))
            self._responses = self._call()
        if not self._drained:
            self._drained = True
            with suppress(grpc.RpcError):
                next(self._responses, None)  # so that the call ends by itself and not cancelled
        return None

    def _call(self) -> Any:
        if self._has_left():
            raise self._answer.failed(_cancelled())
        answer = self._answer
        call = self._connection.stream(answer.next_call(), answer.seconds_left(), self._metadata)
        if self._cancelled.is_set():  # by another thread, in the meantime
            call.cancel()
        return call

    def _has_left(self) -> bool:
        return self._cancelled.is_set() or self._connection.closed


class AsyncCompletion(_Progress, AsyncIterator[str]):
    """One answer on its way: iterate for its text, leave the `async with` block to cancel it.

    A stream that breaks is resumed by itself. Iterating raises RuvdError when the completion fails
    or is cancelled. A task that is cancelled while it waits for more has left, too.
    """

    def __init__(self, connection: AsyncConnection, answer: Answer) -> None:
        self._answer = answer
        self._connection = connection
        self._cancelled = asyncio.Event()
        self._metadata = connection.metadata()
        self._drained = False
        self._loop = asyncio.get_running_loop()
        self._call, self._responses = self._stream()

    async def events(self) -> AsyncGenerator[pb.CompletionEvent, None]:
        """The events that have not been read yet, instead of their text.

        After a restart of the daemon Finished may come without deltas: its message is whole.
        """
        while (event := await self._next()) is not None:
            yield event

    async def deltas(self) -> AsyncGenerator[pb.Delta, None]:
        """What has not been read yet of the answer: text, reasoning and tool calls."""
        while (event := await self._next()) is not None:
            for delta in self._answer.deltas(event):
                yield delta

    async def text(self) -> str:
        """Wait for the end; the answer's whole text."""
        return (await self.message()).content

    async def message(self) -> pb.Message:
        """Wait for the end; the whole answer, with its tool calls and its reasoning."""
        while await self._next() is not None:
            pass
        return self.finished.message if self.finished else pb.Message()

    def cancel(self) -> None:
        """Stop generating, and do not wait for it. Does nothing after the end.

        With ON_DISCONNECT_CONTINUE the completion loses this reader and no more.
        """
        if self._cancelled.is_set() or self._answer.ended:
            return
        self._cancelled.set()
        self._call.cancel()
        if request := self._answer.cancel_request():
            self._connection.cancel(request, self._metadata)

    async def __anext__(self) -> str:
        while (event := await self._next()) is not None:
            for delta in self._answer.deltas(event):
                if delta.text:
                    return delta.text
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # Who breaks out of a loop over it has left it, too; gRPC cancels the stream then.
        if self._cancelled.is_set() or not (request := self._answer.cancel_request()):
            return
        with suppress(RuntimeError):  # the loop is closed, and so is the channel
            self._loop.call_soon_threadsafe(self._connection.cancel, request, self._metadata)

    async def _next(self) -> pb.CompletionEvent | None:
        answer = self._answer
        if answer.error is not None:
            raise answer.error
        while answer.finished is None:
            try:
                event = await self._received()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    self.cancel()
                    raise
                raise answer.failed(_cancelled()) from error
            if event is not None:
                answer.take(event)
                return event
            self._call, self._responses = self._stream()
        if not self._drained:
            self._drained = True
            with suppress(grpc.RpcError):
                await anext(self._responses, None)  # so that the call ends by itself
        return None

    async def _received(self) -> pb.CompletionEvent | None:
        """The next event; None where the stream broke and it is time to call again."""
        try:
            return (await anext(self._responses)).event  # type: ignore[no-any-return]
        except StopAsyncIteration:
            failure = _cut_short()
        except grpc.RpcError as error:
            failure = error_from(error)
        if not self._has_left():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._answer.broke(failure)):
                    await self._cancelled.wait()
        return None

    def _stream(self) -> tuple[Any, AsyncIterator[Any]]:
        if self._has_left():
            raise self._answer.failed(_cancelled())
        answer = self._answer
        call = self._connection.stream(answer.next_call(), answer.seconds_left(), self._metadata)
        return call, aiter(call)

    def _has_left(self) -> bool:
        return self._cancelled.is_set() or self._connection.closed
