"""The connection of the client with blocking calls: its calls, metadata and cancel calls.

When a caller leaves a completion early, the client sends CancelCompletion, because the daemon would
otherwise wait for the disconnect grace to end. Leaving does not wait for the response; closing the
connection waits briefly for cancel calls that are still pending.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from ruvd_client.addresses import Address
from ruvd_client.answers import Request
from ruvd_client.channels import READINESS, Channel, Channels, connector
from ruvd_client.failover import Step, UnaryAttempts
from ruvd_client.metadata import CallMetadata, Metadata, session_of
from ruvd_client.protocol import RuvdError, error_from
from ruvd_client.security import Credential, Tls
from ruvd_client.v1 import session_service_pb2 as pb

if TYPE_CHECKING:
    from ruvd_client.v1.session_service_pb2_grpc import SessionServiceStub

Response = TypeVar("Response")

# The daemon acts on a cancel call when it arrives and responds once the engine has stopped. Closing
# waits for the arrival only, which the client cannot observe, and therefore only this long.
CLOSE_SECONDS = 0.25
HEALTH_SECONDS = 10.0


class Connection(CallMetadata):
    """The connection of a client with blocking calls, for threads."""

    def __init__(
        self,
        addresses: tuple[Address, ...],
        metadata: Sequence[tuple[str, str]] = (),
        credential: Credential | None = None,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(metadata)
        self._closed = threading.Event()
        self._credential = credential
        self.channels = Channels(addresses, connector(grpc, addresses, tls))
        self._pending_cancels: set[Any] = set()
        self._deferred: SimpleQueue[tuple[pb.CancelCompletionRequest, Metadata, str, Channel]]
        self._deferred = SimpleQueue()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def call(
        self,
        method: Callable[[SessionServiceStub], Callable[..., Response]],
        request: Any,
        timeout: float | None,
    ) -> Response:
        """Makes a unary call and returns its response. Raises RuvdError."""
        self._send_deferred_cancels()
        metadata = self.with_session(self.metadata(), session_of(request))
        channel = self.channels.current()
        if self.channels.attempts_per_round == 1:
            return self._call_once(channel, method(channel.stub), request, timeout, metadata)
        attempts = UnaryAttempts(request, timeout, self.channels.attempts_per_round)
        while True:
            left = attempts.seconds_left()
            try:
                return self._call_once(channel, method(channel.stub), request, left, metadata)
            except RuvdError as error:
                retry = attempts.handle_failure(error)
            self._closed.wait(retry.pause_seconds)
            channel = self.channel_after(channel, retry.step)

    def is_ready(self, timeout: float | None) -> bool:
        """Tells whether one of the daemons accepts turns; each is asked at most once."""
        timeout = HEALTH_SECONDS if timeout is None else timeout
        metadata = self.metadata()
        for channel in self.channels.from_current():
            try:
                if self._call_once(channel, channel.check_health, READINESS, timeout, metadata):
                    return True
            except RuvdError as error:
                if error.reason or error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
        return False

    def channel_after(self, failed: Channel, step: Step) -> Channel:
        """Returns the channel for the next attempt, and closes those that are not used any more."""
        if self.closed:  # gRPC's error says so, and a new channel would never be closed
            return failed
        channel = self.channels.after(failed, step)
        for each in self.channels.take_unused():
            each.grpc_channel.close()
        return channel

    def stream(
        self,
        channel: Channel,
        request: Request,
        timeout: float | None,
        metadata: Metadata,
        session_id: str,
    ) -> Any:
        """Starts or resumes a completion and returns the stream of its responses.

        Raises RuvdError if there is no token.
        """
        self._send_deferred_cancels()
        metadata = self._with_token(self.with_session(metadata, session_id))
        return self.channels.start_stream(channel, request, timeout, metadata)

    def cancel(
        self,
        request: pb.CancelCompletionRequest,
        metadata: Metadata,
        session_id: str,
        channel: Channel,
    ) -> None:
        """Sends a cancel request without waiting for the response.

        Without a token for it, the completion ends after its disconnect grace.
        """
        if self.closed or channel.is_closed:
            return
        try:
            metadata = self._with_token(self.with_session(metadata, session_id))
        except RuvdError:
            return
        call = channel.stub.CancelCompletion.future(request, metadata=metadata)
        self.channels.started(channel, call)
        self._pending_cancels.add(call)
        call.add_done_callback(self._pending_cancels.discard)

    def batch(
        self,
        metadata: Metadata,
        request: pb.BatchCompleteRequest,
        *,
        channel: Channel,
        timeout: float | None,
    ) -> Any:
        """Starts a call of a batch. Raises RuvdError if there is no token."""
        metadata = self._with_token(metadata)
        return self.channels.start_stream(channel, request, timeout, metadata)

    def cancel_later(
        self,
        request: pb.CancelCompletionRequest,
        metadata: Metadata,
        session_id: str,
        channel: Channel,
    ) -> None:
        """Sends a cancel request with the next call, or when the connection is closed.

        For destructors, which may run at any line, even while gRPC holds a lock: no call may start.
        """
        self._deferred.put((request, metadata, session_id, channel))

    def close(self) -> None:
        """Closes the channels."""
        if self.closed:
            return
        self._send_deferred_cancels()
        self._closed.set()
        deadline = time.monotonic() + CLOSE_SECONDS
        for call in list(self._pending_cancels):
            with suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
                call.result(timeout=max(0.0, deadline - time.monotonic()))
        for channel in self.channels.all():
            channel.grpc_channel.close()

    def _call_once(
        self,
        channel: Channel,
        method: Callable[..., Response],
        request: object,
        timeout: float | None,
        metadata: Metadata,
    ) -> Response:
        metadata = self._with_token(metadata)
        try:
            with self.channels.calling(channel):
                return method(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise error_from(error) from error

    def _with_token(self, metadata: Metadata) -> Metadata:
        """Returns the metadata with the token of a call that starts now. Raises RuvdError."""
        if self._credential is None:
            return metadata
        return (*metadata, self._credential.authorization())

    def _send_deferred_cancels(self) -> None:
        with suppress(Empty):
            while True:
                self.cancel(*self._deferred.get_nowait())
