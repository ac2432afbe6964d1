"""What both clients stand on: the channel, its metadata, and the calls that nobody waits for.

A completion that its caller leaves is cancelled by a call of its own, because the daemon would
otherwise wait its grace out. Leaving must not take that long, so the call is only sent, and
closing the connection waits a moment for those that are on their way.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from ruvd_client.answers import Request
from ruvd_client.protocol import CHANNEL_OPTIONS, error_from
from ruvd_client.v1 import session_service_pb2 as pb
from ruvd_client.v1 import session_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from ruvd_client.v1.session_service_pb2_grpc import SessionServiceAsyncStub

Response = TypeVar("Response")
Metadata: TypeAlias = tuple[tuple[str, str], ...]

# The daemon acts on a cancel when it has come, and answers once the engine has stopped: closing
# waits for the first, which nothing tells, and so not for long.
_CLOSE_SECONDS = 0.25
# Time-outs and retries of the calls that may be repeated: a copy of proto/service_config.json.
_SERVICE_CONFIG = Path(__file__).with_name("service_config.json").read_text(encoding="utf-8")
_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.service_config", _SERVICE_CONFIG))


class _Metadata:
    """What goes out with every call: the caller's own metadata, and the trace it is part of."""

    def __init__(self, own: Sequence[tuple[str, str]]) -> None:
        self._own = tuple(own)

    def metadata(self) -> Metadata:
        """The metadata of a call that begins now.

        OpenTelemetry is not a dependency. A process that has not imported its API has no trace to
        go on with, so that is what is looked at; without it a call costs one look into a dict.
        """
        if "opentelemetry.context" not in sys.modules:
            return self._own
        from opentelemetry.propagate import inject  # noqa: PLC0415  # only where it is installed

        carrier: dict[str, str] = {}
        inject(carrier)
        # gRPC takes keys in lower case only.
        return (*self._own, *((key.lower(), value) for key, value in carrier.items()))


class Connection(_Metadata):
    """A channel for threads."""

    def __init__(self, address: str, metadata: Sequence[tuple[str, str]]) -> None:
        super().__init__(metadata)
        self.closed = False
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self.stub = pb_grpc.SessionServiceStub(self._channel)
        self._cancels: set[Any] = set()
        self._dropped: SimpleQueue[tuple[pb.CancelCompletionRequest, Metadata]] = SimpleQueue()

    def call(
        self, method: Callable[..., Response], request: object, timeout: float | None
    ) -> Response:
        """One call and its response. Raises RuvdError."""
        self._send_dropped()
        try:
            return method(request, timeout=timeout, metadata=self.metadata())
        except grpc.RpcError as error:
            raise error_from(error) from error

    def stream(self, request: Request, timeout: float | None, metadata: Metadata) -> Any:
        """Begin or resume a completion: its responses."""
        self._send_dropped()
        if isinstance(request, pb.CompleteRequest):
            return self.stub.Complete(request, timeout=timeout, metadata=metadata)
        return self.stub.ResumeCompletion(request, timeout=timeout, metadata=metadata)

    def cancel(self, request: pb.CancelCompletionRequest, metadata: Metadata) -> None:
        """Send it, and do not wait."""
        if self.closed:
            return
        call = self.stub.CancelCompletion.future(request, metadata=metadata)
        self._cancels.add(call)
        call.add_done_callback(self._cancels.discard)

    def drop(self, request: pb.CancelCompletionRequest, metadata: Metadata) -> None:
        """Send it with the next call, or when the connection is closed.

        A destructor may run in any line, also of gRPC's with a lock held: no call begins there.
        """
        self._dropped.put((request, metadata))

    def close(self) -> None:
        """Close the channel."""
        if self.closed:
            return
        self._send_dropped()
        self.closed = True
        until = time.monotonic() + _CLOSE_SECONDS
        for call in list(self._cancels):
            with suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
                call.result(timeout=max(0.0, until - time.monotonic()))
        self._channel.close()

    def _send_dropped(self) -> None:
        with suppress(Empty):
            while True:
                self.cancel(*self._dropped.get_nowait())


class AsyncConnection(_Metadata):
    """A channel for asyncio."""

    def __init__(self, address: str, metadata: Sequence[tuple[str, str]]) -> None:
        super().__init__(metadata)
        self.closed = False
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.stub: SessionServiceAsyncStub = pb_grpc.SessionServiceStub(self._channel)
        self._cancels: set[Any] = set()

    async def call(
        self, method: Callable[..., Awaitable[Response]], request: object, timeout: float | None
    ) -> Response:
        """One call and its response. Raises RuvdError."""
        try:
            return await method(request, timeout=timeout, metadata=self.metadata())
        except grpc.RpcError as error:
            raise error_from(error) from error

    def stream(self, request: Request, timeout: float | None, metadata: Metadata) -> Any:
        """Begin or resume a completion: its responses."""
        if isinstance(request, pb.CompleteRequest):
            return self.stub.Complete(request, timeout=timeout, metadata=metadata)
        return self.stub.ResumeCompletion(request, timeout=timeout, metadata=metadata)

    def cancel(self, request: pb.CancelCompletionRequest, metadata: Metadata) -> None:
        """Send it, and do not wait."""
        if self.closed:
            return
        call: Any = self.stub.CancelCompletion(request, metadata=metadata)
        self._cancels.add(call)
        call.add_done_callback(self._cancels.discard)

    async def close(self) -> None:
        """Close the channel."""
        if self.closed:
            return
        self.closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                for call in list(self._cancels):
                    await call.code()  # unlike the call itself, it does not raise
        await self._channel.close()
