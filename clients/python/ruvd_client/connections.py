"""The connections of both clients: the channel, its metadata, and the cancel calls.

When a caller leaves a completion early, the client sends CancelCompletion, because the daemon would
otherwise wait for the disconnect grace to end. Leaving does not wait for the response; closing the
connection waits briefly for cancel calls that are still pending.
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
from ruvd_client.protocol import CHANNEL_OPTIONS, RuvdError, error_from
from ruvd_client.security import Credential, Tls
from ruvd_client.token_interceptors import token_interceptors
from ruvd_client.v1 import session_service_pb2 as pb
from ruvd_client.v1 import session_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from ruvd_client.v1.session_service_pb2_grpc import SessionServiceAsyncStub

Response = TypeVar("Response")
Metadata: TypeAlias = tuple[tuple[str, str], ...]

# The daemon acts on a cancel call when it arrives and responds once the engine has stopped. Closing
# waits for the arrival only, which the client cannot observe, and therefore only this long.
_CLOSE_SECONDS = 0.25
# Timeouts and retries of the calls that may be repeated: a copy of proto/service_config.json.
_SERVICE_CONFIG = Path(__file__).with_name("service_config.json").read_text(encoding="utf-8")
_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.service_config", _SERVICE_CONFIG))


class _Metadata:
    """The metadata of every call but its token: the caller's own and the current trace context."""

    def __init__(self, custom: Sequence[tuple[str, str]]) -> None:
        self._custom = tuple(custom)

    def metadata(self) -> Metadata:
        """Returns the metadata of a call that starts now.

        OpenTelemetry is not a dependency. A process that has not imported its API has no current
        trace, so the import is what is checked; without it, a call costs one dict lookup.
        """
        custom = self._custom
        if "opentelemetry.context" not in sys.modules:
            return custom
        from opentelemetry.propagate import inject  # noqa: PLC0415  # only where it is installed

        carrier: dict[str, str] = {}
        inject(carrier)
        # gRPC accepts only lower-case keys.
        return (*custom, *((key.lower(), value) for key, value in carrier.items()))


class Connection(_Metadata):
    """A connection with blocking calls, for threads."""

    def __init__(
        self,
        address: str,
        metadata: Sequence[tuple[str, str]] = (),
        credential: Credential | None = None,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(metadata)
        self.closed = False
        self._credential = credential
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        else:
            options = (*_OPTIONS, *tls.options())
            self._channel = grpc.secure_channel(address, tls.credentials(), options=options)
        self.stub = pb_grpc.SessionServiceStub(self._channel)
        self._pending_cancels: set[Any] = set()
        self._deferred: SimpleQueue[tuple[pb.CancelCompletionRequest, Metadata]] = SimpleQueue()

    def call(
        self, method: Callable[..., Response], request: object, timeout: float | None
    ) -> Response:
        """Makes a unary call and returns its response. Raises RuvdError."""
        self._send_deferred_cancels()
        try:
            return method(request, timeout=timeout, metadata=self._with_token(self.metadata()))
        except grpc.RpcError as error:
            raise error_from(error) from error

    def stream(self, request: Request, timeout: float | None, metadata: Metadata) -> Any:
        """Starts or resumes a completion and returns the stream of its responses.

        Raises RuvdError if there is no token.
        """
        self._send_deferred_cancels()
        metadata = self._with_token(metadata)
        if isinstance(request, pb.CompleteRequest):
            return self.stub.Complete(request, timeout=timeout, metadata=metadata)
        return self.stub.ResumeCompletion(request, timeout=timeout, metadata=metadata)

    def cancel(self, request: pb.CancelCompletionRequest, metadata: Metadata) -> None:
        """Sends a cancel request without waiting for the response.

        Without a token for it, the completion ends after its disconnect grace.
        """
        if self.closed:
            return
        try:
            metadata = self._with_token(metadata)
        except RuvdError:
            return
        call = self.stub.CancelCompletion.future(request, metadata=metadata)
        self._pending_cancels.add(call)
        call.add_done_callback(self._pending_cancels.discard)

    def batch(
        self, metadata: Metadata, request: pb.BatchCompleteRequest, *, timeout: float | None
    ) -> Any:
        """Starts a call of a batch. Raises RuvdError if there is no token."""
        metadata = self._with_token(metadata)
        return self.stub.BatchComplete(request, timeout=timeout, metadata=metadata)

    def cancel_later(self, request: pb.CancelCompletionRequest, metadata: Metadata) -> None:
        """Sends a cancel request with the next call, or when the connection is closed.

        For destructors, which may run at any line, even while gRPC holds a lock: no call may start.
        """
        self._deferred.put((request, metadata))

    def close(self) -> None:
        """Closes the channel."""
        if self.closed:
            return
        self._send_deferred_cancels()
        self.closed = True
        deadline = time.monotonic() + _CLOSE_SECONDS
        for call in list(self._pending_cancels):
            with suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
                call.result(timeout=max(0.0, deadline - time.monotonic()))
        self._channel.close()

    def _with_token(self, metadata: Metadata) -> Metadata:
        """Returns the metadata with the token of a call that starts now. Raises RuvdError."""
        if self._credential is None:
            return metadata
        return (*metadata, self._credential.authorization())

    def _send_deferred_cancels(self) -> None:
        with suppress(Empty):
            while True:
                self.cancel(*self._deferred.get_nowait())


class AsyncConnection(_Metadata):
    """A connection for asyncio."""

    def __init__(
        self,
        address: str,
        metadata: Sequence[tuple[str, str]] = (),
        credential: Credential | None = None,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(metadata)
        self.closed = False
        interceptors = token_interceptors(credential) if credential else ()
        if tls is None:
            self._channel = grpc.aio.insecure_channel(
                address, options=_OPTIONS, interceptors=interceptors
            )
        else:
            options = (*_OPTIONS, *tls.options())
            self._channel = grpc.aio.secure_channel(
                address, tls.credentials(), options=options, interceptors=interceptors
            )
        self.stub: SessionServiceAsyncStub = pb_grpc.SessionServiceStub(self._channel)
        self._pending_cancels: set[Any] = set()

    async def call(
        self, method: Callable[..., Awaitable[Response]], request: object, timeout: float | None
    ) -> Response:
        """Makes a unary call and returns its response. Raises RuvdError."""
        try:
            return await method(request, timeout=timeout, metadata=self.metadata())
        except grpc.RpcError as error:
            raise error_from(error) from error

    def stream(self, request: Request, timeout: float | None, metadata: Metadata) -> Any:
        """Starts or resumes a completion and returns the stream of its responses."""
        if isinstance(request, pb.CompleteRequest):
            return self.stub.Complete(request, timeout=timeout, metadata=metadata)
        return self.stub.ResumeCompletion(request, timeout=timeout, metadata=metadata)

    def cancel(self, request: pb.CancelCompletionRequest, metadata: Metadata) -> None:
        """Sends a cancel request without waiting for the response."""
        if self.closed:
            return
        call: Any = self.stub.CancelCompletion(request, metadata=metadata)
        self._pending_cancels.add(call)
        call.add_done_callback(self._pending_cancels.discard)

    def batch(
        self, metadata: Metadata, request: pb.BatchCompleteRequest, *, timeout: float | None
    ) -> Any:
        """Starts a call of a batch."""
        return self.stub.BatchComplete(request, timeout=timeout, metadata=metadata)

    async def close(self) -> None:
        """Closes the channel."""
        if self.closed:
            return
        self.closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                for call in list(self._pending_cancels):
                    await call.code()  # unlike awaiting the call, this does not raise
        await self._channel.close()
