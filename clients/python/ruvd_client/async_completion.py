"""A running completion of the client for asyncio. A broken stream is resumed.

grpc.aio raises CancelledError for a call that this client cancelled, as if the task had been
cancelled. `AsyncCompletion` distinguishes the two: its own `cancel` ends the iteration with
RuvdError, as in the blocking client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc

from ruvd_client.answers import Answer
from ruvd_client.async_connection import AsyncConnection
from ruvd_client.completion import CompletionState, cancelled_error, incomplete_error
from ruvd_client.protocol import error_from
from ruvd_client.v1 import session_service_pb2 as pb


class AsyncCompletion(CompletionState, AsyncIterator[str]):
    """A running completion: an iterator over its text. Leaving the `async with` block cancels it.

    A broken stream is resumed automatically. Iterating raises RuvdError when the completion fails
    or is cancelled. Cancelling a task that waits for the next event cancels the completion, too.
    """

    def __init__(self, connection: AsyncConnection, answer: Answer) -> None:
        self._answer = answer
        self._connection = connection
        self._cancelled = asyncio.Event()
        self._metadata = connection.metadata()
        self._channel = connection.channels.current()
        self._drained = False
        self._loop = asyncio.get_running_loop()
        self._call, self._responses = self._open_stream()

    async def events(self) -> AsyncGenerator[pb.CompletionEvent, None]:
        """Yields the events that have not been read yet.

        After a restart of the daemon, Finished, with the whole answer, may come without deltas.
        """
        while (event := await self._next_event()) is not None:
            yield event

    async def deltas(self) -> AsyncGenerator[pb.Delta, None]:
        """Yields the deltas that have not been read yet: text, reasoning and tool calls."""
        while (event := await self._next_event()) is not None:
            for delta in self._answer.deltas(event):
                yield delta

    async def text(self) -> str:
        """Waits for the end and returns the answer's whole text."""
        return (await self.message()).content

    async def message(self) -> pb.Message:
        """Waits for the end and returns the whole answer with its tool calls and reasoning."""
        while await self._receive_event() is not None:
            pass
        return self.finished.message if self.finished else pb.Message()

    def cancel(self) -> None:
        """Stops the completion without waiting for its end. Has no effect after the end.

        With ON_DISCONNECT_CONTINUE the completion continues without this reader.
        """
        if self._cancelled.is_set() or self._answer.ended:
            return
        self._cancelled.set()
        self._call.cancel()
        if request := self._answer.cancel_request():
            self._connection.cancel(request, self._metadata, self._answer.session_id, self._channel)

    async def __anext__(self) -> str:
        while (event := await self._next_event()) is not None:
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
        # Breaking out of a loop over the completion cancels it, too; gRPC then ends the stream.
        if self._cancelled.is_set() or not (request := self._answer.cancel_request()):
            return
        with suppress(RuntimeError):  # the loop is closed, and the channel with it
            self._loop.call_soon_threadsafe(
                self._connection.cancel,
                request,
                self._metadata,
                self._answer.session_id,
                self._channel,
            )

    async def _next_event(self) -> pb.CompletionEvent | None:
        """Returns the next event for the caller, or None after the last one."""
        event = await self._receive_event()
        if event is not None and event.HasField("delta"):
            self._answer.delivered = True
        return event

    async def _receive_event(self) -> pb.CompletionEvent | None:
        answer = self._answer
        if answer.error is not None:
            raise answer.error
        while answer.finished is None:
            try:
                event = await self._read_stream()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    self.cancel()
                    raise
                raise answer.fail(cancelled_error()) from error
            if event is not None:
                if answer.handle_event(event):
                    return event
                continue
            self._call, self._responses = self._open_stream()
        if not self._drained:
            self._drained = True
            with suppress(grpc.RpcError):
                await anext(self._responses, None)  # lets the call end normally
        return None

    async def _read_stream(self) -> pb.CompletionEvent | None:
        """Returns the next event, or None if the stream broke and the next call is due."""
        try:
            return (await anext(self._responses)).event  # type: ignore[no-any-return]
        except StopAsyncIteration:
            failure = incomplete_error()
        except grpc.RpcError as error:
            failure = error_from(error)
        if not self._is_cancelled():
            retry = self._answer.handle_failure(failure)
            with suppress(TimeoutError):
                async with asyncio.timeout(retry.pause_seconds):
                    await self._cancelled.wait()
            self._channel = self._connection.channel_after(self._channel, retry.step)
        return None

    def _open_stream(self) -> tuple[Any, AsyncIterator[Any]]:
        if self._is_cancelled():
            raise self._answer.fail(cancelled_error())
        answer = self._answer
        request = answer.next_call()
        call = self._connection.stream(
            self._channel, request, answer.seconds_left(), self._metadata, answer.session_id
        )
        return call, aiter(call)

    def _is_cancelled(self) -> bool:
        return self._cancelled.is_set() or self._connection.closed
