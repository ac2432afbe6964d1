"""What every RPC of `ruvd.v1` passes: errors leave by this one door, and each is measured.

Health and reflection are left alone: wrapping their handlers would break `Watch` (a stream that
outlives us) and tell nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias

import grpc
from grpc.aio import ServicerContext

from ruvd.core.errors import RuvdError, forget_frames
from ruvd.rpc import status

_log = logging.getLogger("ruvd.rpc")
_OURS = "/ruvd.v1."
_metadata: ContextVar[Sequence[tuple[str, str | bytes]]] = ContextVar("ruvd_metadata", default=())

Context: TypeAlias = "ServicerContext[Any, Any]"
# A stream's writes what it answers.
Handler: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


class Outcome(Protocol):
    """How one RPC ended: `code` is the name of its gRPC status."""

    code: str


class RpcMeasurements(Protocol):
    """What measures every RPC; `records` says whether it keeps spans, which name the peer."""

    @property
    def records(self) -> bool:
        """Whether spans are recorded."""

    def call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str
    ) -> AbstractContextManager[Outcome]:
        """Measure the RPC `method` (`/package.Service/Method`) while the context lasts."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what a handler raises into a status with details; `rpcs` measures each call. Without
    `peers` nobody is asked who calls, as on a Unix socket, where it is always the same."""

    def __init__(self, rpcs: RpcMeasurements | None = None, *, peers: bool = True) -> None:
        self._rpcs = rpcs
        self._peers = peers and rpcs is not None and rpcs.records
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handlers of `ruvd.v1`, pass every other on."""
        method = handler_call_details.method
        if self._rpcs:
            # The handler runs in the same task, and to ask the call for it makes it anew.
            _metadata.set(handler_call_details.invocation_metadata or ())
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            wrapped = self._wrap(method, await continuation(handler_call_details))
            if wrapped and method.startswith(_OURS):
                self._wrapped[method] = wrapped  # there are as many as we have methods
        return wrapped

    def _wrap(self, method: str, handler: Any) -> Any:
        if handler is None or not method.startswith(_OURS):
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._measured(method, _guarded(method, handler.unary_stream)),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._measured(method, _guarded(method, handler.unary_unary)),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _measured(self, method: str, handle: Handler) -> Handler:
        rpcs = self._rpcs
        if rpcs is None:
            return handle

        async def wrapped(request: Any, call: Context) -> Any:
            peer = call.peer() if self._peers else ""
            with rpcs.call(method, _metadata.get(), peer) as outcome:
                outcome.code = "UNKNOWN"
                try:
                    response = await handle(request, call)
                except asyncio.CancelledError:
                    outcome.code = "DEADLINE_EXCEEDED" if status.is_too_late(call) else "CANCELLED"
                    raise
                except grpc.aio.AbortError:
                    outcome.code = _name(call.code())
                    raise
                outcome.code = "OK"
                return response

        return wrapped


def _name(code: Any) -> str:
    """A status code's name; grpc.aio has it as its number."""
    return next((each.name for each in grpc.StatusCode if code in (each, each.value[0])), "UNKNOWN")


def _guarded(method: str, handle: Handler) -> Handler:
    async def wrapped(request: Any, call: Context) -> Any:
        try:
            return await handle(request, call)
        except Exception as error:  # noqa: BLE001  # the one door
            return await _abort(method, call, error)

    return wrapped


async def _abort(method: str, call: Context, error: Exception) -> None:
    if not isinstance(error, RuvdError):
        _log.error("%s failed", method, exc_info=error)
    forget_frames(error)  # it may be a completion's, which keeps it
    code, rich = status.to_status(error)
    await call.abort(code, rich.message, (("grpc-status-details-bin", rich.SerializeToString()),))
