"""The steps around the handler of an RPC: it is identified, parsed, guarded, measured and audited.

Every step wraps the one before it, once for each method.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory

from ruvd.core.errors import QuotaExceeded, RuvdError, forget_frames
from ruvd.rpc import reservation, status, wire
from ruvd.rpc.ports import (
    Admission,
    CallAudit,
    CallerCheck,
    CallRouter,
    Context,
    Handler,
    Receiving,
    RpcMeasurements,
)
from ruvd.rpc.quota_gate import QuotaGate

_log = logging.getLogger("ruvd.rpc")

# The interceptor sets these, and the handler runs in the same task.
receiving: "ContextVar[Receiving | None]" = ContextVar("ruvd_receiving", default=None)
# The context of a call could give the metadata as well, but would convert it again.
metadata: ContextVar[Sequence[tuple[str, str | bytes]]] = ContextVar("ruvd_metadata", default=())


class HandlerChain:
    """Wraps the handlers of our services with the steps that every call goes through.

    The parameters are those of the interceptor.
    """

    def __init__(
        self,
        max_request_bytes: int,
        admission: Admission,
        rpcs: RpcMeasurements | None,
        *,
        peers: bool,
        callers: CallerCheck | None,
        quotas: QuotaGate | None,
        audit: CallAudit | None,
        router: CallRouter | None = None,
    ) -> None:
        self._router = router
        self._max_request_bytes = max_request_bytes
        self._callers = callers
        self._quotas = quotas
        self._audit = audit
        self._admission = admission
        self._rpcs = rpcs
        self._peers = peers and rpcs is not None and rpcs.records

    def refusal(self, method: str, error: Exception, *, measured: bool) -> Any:
        """Returns a handler that refuses the call without receiving its request."""

        async def refuse(requests: Any, call: Context) -> Any:
            raise error

        audited = self._audit.outcome(method, refuse) if self._audit else refuse
        handle = self._guarded(method, audited)
        if measured:
            handle = self._measured(method, handle)
        return grpc.stream_stream_rpc_method_handler(handle)

    def wrap(self, method: str, handler: Any) -> Any:
        """Returns a handler of bytes that does all steps around `handler`."""
        handle = handler.unary_stream if handler.response_streaming else handler.unary_unary
        audit = self._audit
        router = self._router if self._router and self._router.routes(method) else None
        if router:
            handle = router.located(method, handle)
        handle = self._parsed(method, audit.messages(handle) if audit else handle)
        if router:
            handle = router.routed(method, handle, streams=handler.response_streaming)
        if self._callers and self._callers.certificates:
            handle = _identified(method, handle, self._callers)
        if audit:
            handle = audit.outcome(method, handle)
        handle = self._measured(method, self._guarded(method, handle))
        serializer = handler.response_serializer
        if router:
            serializer = _unless_bytes(serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(handle, None, serializer)
        return grpc.unary_unary_rpc_method_handler(handle, None, serializer)

    def _parsed(self, method: str, handle: Handler) -> Handler:
        descriptor = descriptor_pool.Default().FindMethodByName(method[1:].replace("/", "."))
        kind = message_factory.GetMessageClass(descriptor.input_type)
        max_bytes, admission = self._max_request_bytes, self._admission

        async def wrapped(data: bytes, call: Context) -> Any:
            if arriving := receiving.get():
                arriving.end()
            if len(data) < wire.LARGE_BYTES:
                return await handle(wire.parse(kind, data, max_bytes), call)
            with admission.reserve(len(data)) as release:
                reservation.hold(release)
                request = await asyncio.to_thread(wire.parse, kind, data, max_bytes)
                return await handle(request, call)

        return wrapped

    def _guarded(self, method: str, handle: Handler) -> Handler:
        quotas = self._quotas

        async def wrapped(request: Any, call: Context) -> Any:
            handling = handle(request, call)
            is_large = isinstance(request, bytes) and len(request) >= wire.LARGE_BYTES
            # gRPC keeps an abort and its frames in a cycle, until all garbage is collected. A frame
            # with a refused request of 4 MB would stay with it.
            del request
            try:
                return await handling
            except Exception as error:  # noqa: BLE001  # the one place where errors leave
                if quotas and isinstance(error, QuotaExceeded):
                    forget_frames(error)  # they hold the request
                    # gRPC keeps the request until the call has ended.
                    await quotas.refuse(error, at_once=is_large)
                return await _abort(method, call, error)

        return wrapped

    def _measured(self, method: str, handle: Handler) -> Handler:
        rpcs = self._rpcs
        if rpcs is None:
            return handle

        async def wrapped(request: Any, call: Context) -> Any:
            peer = call.peer() if self._peers else ""
            handling = handle(request, call)
            del request  # see _guarded
            with rpcs.call(method, metadata.get(), peer) as outcome:
                outcome.code = "UNKNOWN"
                try:
                    response = await handling
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
    """Returns the name of a status code, which grpc.aio gives as a number."""
    return next((each.name for each in grpc.StatusCode if code in (each, each.value[0])), "UNKNOWN")


def _unless_bytes(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Returns a serializer that takes also messages which another replica has serialized."""
    return lambda message: message if isinstance(message, bytes) else serialize(message)


def _identified(method: str, handle: Handler, callers: CallerCheck) -> Handler:
    async def wrapped(request: Any, call: Context) -> Any:
        callers.admit_call(method, call.auth_context())
        return await handle(request, call)

    return wrapped


def identified_stream(method: str, handler: Any, callers: CallerCheck) -> Any:
    """Wraps reflection's handler, a generator of messages, with a check of the certificate."""

    async def wrapped(requests: Any, call: Context) -> AsyncIterator[Any]:
        try:
            callers.admit_call(method, call.auth_context())
        except Exception as error:  # noqa: BLE001  # as for our own handlers
            await _abort(method, call, error)
        async for response in handler.stream_stream(requests, call):
            yield response

    return grpc.stream_stream_rpc_method_handler(
        wrapped, handler.request_deserializer, handler.response_serializer
    )


async def _abort(method: str, call: Context, error: Exception) -> None:
    if status.is_of_lost_call(error):
        raise asyncio.CancelledError from error
    if not isinstance(error, (RuvdError, status.ForwardedStatus)):
        _log.error("%s failed", method, exc_info=error)
    forget_frames(error)  # the completion may keep the error
    code, rich = status.to_status(error)
    await call.abort(code, rich.message, status.trailing(error, rich))
