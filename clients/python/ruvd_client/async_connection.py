"""The connection of the client for asyncio: its calls, metadata and cancel calls.

`ruvd_client.connection` says when a call is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio

from ruvd_client.addresses import Address
from ruvd_client.answers import Request
from ruvd_client.channels import READINESS, Channel, Channels, connector
from ruvd_client.connection import CLOSE_SECONDS, HEALTH_SECONDS
from ruvd_client.failover import Step, UnaryAttempts
from ruvd_client.metadata import CallMetadata, Metadata, session_of
from ruvd_client.protocol import RuvdError, error_from
from ruvd_client.security import Credential, Tls
from ruvd_client.token_interceptors import token_interceptors
from ruvd_client.v1 import session_service_pb2 as pb

if TYPE_CHECKING:
    from ruvd_client.v1.session_service_pb2_grpc import SessionServiceAsyncStub

Response = TypeVar("Response")


class AsyncConnection(CallMetadata):
    """The connection of a client for asyncio."""

    def __init__(
        self,
        addresses: tuple[Address, ...],
        metadata: Sequence[tuple[str, str]] = (),
        credential: Credential | None = None,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(metadata)
        self.closed = False
        interceptors = token_interceptors(credential) if credential else ()
        self.channels = Channels(
            addresses, connector(grpc.aio, addresses, tls, interceptors=interceptors)
        )
        self._pending_cancels: set[Any] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def call(
        self,
        method: Callable[[SessionServiceAsyncStub], Callable[..., Awaitable[Response]]],
        request: Any,
        timeout: float | None,
    ) -> Response:
        """Makes a unary call and returns its response. Raises RuvdError."""
        metadata = self.with_session(self.metadata(), session_of(request))
        channel = self.channels.current()
        if self.channels.attempts_per_round == 1:
            return await self._call_once(
                channel,
                method(cast("SessionServiceAsyncStub", channel.stub)),
                request,
                timeout,
                metadata,
            )
        attempts = UnaryAttempts(request, timeout, self.channels.attempts_per_round)
        while True:
            left = attempts.seconds_left()
            try:
                return await self._call_once(
                    channel,
                    method(cast("SessionServiceAsyncStub", channel.stub)),
                    request,
                    left,
                    metadata,
                )
            except RuvdError as error:
                retry = attempts.handle_failure(error)
            await asyncio.sleep(retry.pause_seconds)
            channel = self.channel_after(channel, retry.step)

    async def is_ready(self, timeout: float | None) -> bool:
        """Tells whether one of the daemons accepts turns; each is asked at most once."""
        timeout = HEALTH_SECONDS if timeout is None else timeout
        metadata = self.metadata()
        for channel in self.channels.from_current():
            try:
                if await self._call_once(
                    channel, channel.check_health, READINESS, timeout, metadata
                ):
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
            closing = asyncio.get_running_loop().create_task(each.grpc_channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return channel

    def stream(
        self,
        channel: Channel,
        request: Request,
        timeout: float | None,
        metadata: Metadata,
        session_id: str,
    ) -> Any:
        """Starts or resumes a completion and returns the stream of its responses."""
        metadata = self.with_session(metadata, session_id)
        return self.channels.start_stream(channel, request, timeout, metadata)

    def cancel(
        self,
        request: pb.CancelCompletionRequest,
        metadata: Metadata,
        session_id: str,
        channel: Channel,
    ) -> None:
        """Sends a cancel request without waiting for the response."""
        if self.closed or channel.is_closed:
            return
        metadata = self.with_session(metadata, session_id)
        call: Any = channel.stub.CancelCompletion(request, metadata=metadata)
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
        """Starts a call of a batch."""
        return self.channels.start_stream(channel, request, timeout, metadata)

    async def close(self) -> None:
        """Closes the channels."""
        if self.closed:
            return
        self.closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                for call in list(self._pending_cancels):
                    await call.code()  # unlike awaiting the call, this does not raise
        for channel in self.channels.all():
            await channel.grpc_channel.close()
        await asyncio.gather(*self._closing)

    async def _call_once(
        self,
        channel: Channel,
        method: Callable[..., Awaitable[Response]],
        request: object,
        timeout: float | None,
        metadata: Metadata,
    ) -> Response:
        try:
            with self.channels.calling(channel):
                return await method(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise error_from(error) from error
