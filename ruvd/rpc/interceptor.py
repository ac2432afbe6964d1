"""The interceptor of our services' RPCs: it parses, measures, and turns errors into statuses.

Health and reflection are not wrapped: that would break `Watch`, a stream that outlives the service,
and would measure nothing useful.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc.aio import ServicerContext

from ruvd.core.errors import Overloaded, QuotaExceeded, RuvdError, forget_frames
from ruvd.rpc import reservation, status, wire
from ruvd.rpc.identity import caller
from ruvd.rpc.quota_gate import QuotaGate

_log = logging.getLogger("ruvd.rpc")
_API = "/ruvd.v1."
_ADMIN = "/ruvd.admin.v1."
_OURS = (_API, _ADMIN)
_HEALTH = "/grpc.health.v1."  # probes have no identity
# These free memory, explain why there is none, or administer a daemon that has none.
_ALWAYS_ADMITTED = (
    f"{_API}SessionService/EndSession",
    f"{_API}SessionService/CancelCompletion",
    f"{_API}SessionService/GetSessionMetrics",
    _ADMIN,
)
_receiving: "ContextVar[Receiving | None]" = ContextVar("ruvd_receiving", default=None)
_metadata: ContextVar[Sequence[tuple[str, str | bytes]]] = ContextVar("ruvd_metadata", default=())

Context: TypeAlias = "ServicerContext[Any, Any]"
# The handler of a streaming RPC writes its messages to the context and returns None.
Handler: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


class Outcome(Protocol):
    """The outcome of one RPC: `code` is the name of its gRPC status."""

    code: str


class RpcMeasurements(Protocol):
    """Measures every RPC; `records` says whether it records spans, which have the peer."""

    @property
    def records(self) -> bool:
        """Whether spans are recorded."""

    def call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str
    ) -> AbstractContextManager[Outcome]:
        """Measure the RPC `method` (`/package.Service/Method`) while the context lasts."""


class Receiving(Protocol):
    """A request that is being received."""

    def end(self) -> None:
        """Says that the request has been received, or never will be."""


class Admission(Protocol):
    """Decides whether there is memory for a call."""

    async def receive(self, tenant: str = "") -> Receiving:
        """Waits until a request may be received; an empty `tenant` is anybody.

        Raises Overloaded if there is no memory, and QuotaExceeded if other requests of the tenant
        come too slowly.
        """

    def receiving(self, tenant: str) -> int:
        """Returns the number of requests of a tenant that are being received."""

    def reserve(self, request_bytes: int) -> AbstractContextManager[Callable[[], None]]:
        """Holds the memory of a large request, and gives what releases it earlier.

        Raises Overloaded if there is too little.
        """


class CallerCheck(Protocol):
    """Decides who calls and whether that caller may.

    `admit` is called before the request is received. `admit_call` follows, before the request is
    handled, if certificates say who calls, because gRPC gives them only then. Both raise RuvdError.
    """

    @property
    def certificates(self) -> object | None:
        """Whether certificates may say who calls: not None if so."""

    async def admit(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Checks a call by its metadata."""

    def admit_call(self, method: str, auth_context: Mapping[str, Iterable[bytes]]) -> None:
        """Checks a call by its connection's certificate, too."""


class CallAudit(Protocol):
    """Records who called what, and how each call ended."""

    def outcome(self, method: str, handle: "Handler") -> "Handler":
        """Wraps a handler that raises the call's error."""

    def messages(self, handle: "Handler") -> "Handler":
        """Wraps a handler of parsed requests."""


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Parses requests of up to `max_request_bytes` and turns errors into statuses with details.

    Bytes that are no request are refused as other errors are; grpcio would answer UNKNOWN and log
    a traceback each time. A call is refused if `callers`, `quotas` or `admission` says so, before
    its request is received. `rpcs` measures each call, and `audit` records it. Without `peers` the
    peer's address is not asked for to measure: on a Unix socket it tells nothing.
    """

    def __init__(
        self,
        max_request_bytes: int,
        admission: Admission,
        rpcs: RpcMeasurements | None = None,
        *,
        peers: bool = True,
        callers: CallerCheck | None = None,
        quotas: QuotaGate | None = None,
        audit: CallAudit | None = None,
    ) -> None:
        self._max_request_bytes = max_request_bytes
        self._callers = callers
        self._quotas = quotas
        self._audit = audit
        self._admission = admission
        self._rpcs = rpcs
        self._peers = peers and rpcs is not None and rpcs.records
        self._wrapped: dict[str, tuple[Any, Any]] = {}  # by method: the handler, and wrapped

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handlers of our services. Others are passed on, if the caller may call them."""
        method = handler_call_details.method
        if self._rpcs:
            # The handler runs in the same task. Its context could give the metadata as well, but
            # would convert it again.
            _metadata.set(handler_call_details.invocation_metadata or ())
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        callers = self._callers
        if callers and not method.startswith(_HEALTH):
            try:
                await callers.admit(method, handler_call_details.invocation_metadata or ())
            except Exception as error:  # noqa: BLE001  # the refusal logs a bug, and tells no detail
                return self._refusal(method, error)
            if not method.startswith(_OURS):
                return _wrap_stream(method, handler, callers) if callers.certificates else handler
        if not method.startswith(_OURS):
            return handler
        try:
            await self._receive(method)
        except (Overloaded, QuotaExceeded) as error:
            return self._refusal(method, error)
        known, wrapped = self._wrapped.get(method, (None, None))
        if known is not handler:
            wrapped = self._wrap(method, handler)
            self._wrapped[method] = (handler, wrapped)  # bounded by the number of our methods
        return wrapped

    async def _receive(self, method: str) -> None:
        """Returns when the request may be received. Raises Overloaded and QuotaExceeded."""
        if method.startswith(_ALWAYS_ADMITTED):
            return
        tenant = ""
        # A certificate says who calls only after the request has been received.
        if not (self._callers and self._callers.certificates):
            tenant = caller.tenant() if self._callers else ""
            if self._quotas:
                self._quotas.check(method, self._admission.receiving(tenant))
        _receiving.set(await self._admission.receive(tenant))

    def _refusal(self, method: str, error: Exception) -> Any:
        """Returns a handler that refuses the call without receiving its request."""

        async def refuse(requests: Any, call: Context) -> Any:
            raise error

        audited = self._audit.outcome(method, refuse) if self._audit else refuse
        handle = self._guarded(method, audited)
        if method.startswith(_OURS):
            handle = self._measured(method, handle)
        return grpc.stream_stream_rpc_method_handler(handle)

    def _wrap(self, method: str, handler: Any) -> Any:
        handle = handler.unary_stream if handler.response_streaming else handler.unary_unary
        audit = self._audit
        handle = self._parsed(method, audit.messages(handle) if audit else handle)
        if self._callers and self._callers.certificates:
            handle = _identified(method, handle, self._callers)
        if audit:
            handle = audit.outcome(method, handle)
        handle = self._measured(method, self._guarded(method, handle))
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(handle, None, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(handle, None, handler.response_serializer)

    def _parsed(self, method: str, handle: Handler) -> Handler:
        descriptor = descriptor_pool.Default().FindMethodByName(method[1:].replace("/", "."))
        kind = message_factory.GetMessageClass(descriptor.input_type)
        max_bytes, admission = self._max_request_bytes, self._admission

        async def wrapped(data: bytes, call: Context) -> Any:
            if receiving := _receiving.get():
                receiving.end()
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
            with rpcs.call(method, _metadata.get(), peer) as outcome:
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


def _identified(method: str, handle: Handler, callers: CallerCheck) -> Handler:
    async def wrapped(request: Any, call: Context) -> Any:
        callers.admit_call(method, call.auth_context())
        return await handle(request, call)

    return wrapped


def _wrap_stream(method: str, handler: Any, callers: CallerCheck) -> Any:
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
    if not isinstance(error, RuvdError):
        _log.error("%s failed", method, exc_info=error)
    forget_frames(error)  # the completion may keep the error
    code, rich = status.to_status(error)
    await call.abort(code, rich.message, (("grpc-status-details-bin", rich.SerializeToString()),))
