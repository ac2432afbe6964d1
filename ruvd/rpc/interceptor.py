"""The interceptor of our services' RPCs: it refuses calls before their requests are received.

The steps of the calls that it lets through are in `ruvd.rpc.handler_chain`.

Health and reflection are not wrapped: that would break `Watch`, a stream that outlives the service,
and would measure nothing useful.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from ruvd.core.errors import Overloaded, QuotaExceeded
from ruvd.rpc import handler_chain
from ruvd.rpc.handler_chain import HandlerChain, identified_stream
from ruvd.rpc.identity import caller
from ruvd.rpc.ports import Admission, CallAudit, CallerCheck, CallRouter, RpcMeasurements
from ruvd.rpc.quota_gate import QuotaGate

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


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Parses requests of up to `max_request_bytes` and turns errors into statuses with details.

    Bytes that are no request are refused as other errors are; grpcio would answer UNKNOWN and log
    a traceback each time. A call is refused if `callers`, `quotas` or `admission` says so, before
    its request is received. `rpcs` measures each call, and `audit` records it. Without `peers` the
    peer's address is not asked for to measure: on a Unix socket it tells nothing. `router` forwards
    calls to other replicas; None for a daemon that has none.
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
        router: CallRouter | None = None,
    ) -> None:
        self._admission = admission
        self._measures = rpcs is not None
        self._callers = callers
        self._quotas = quotas
        self._chain = HandlerChain(
            max_request_bytes,
            admission,
            rpcs,
            peers=peers,
            callers=callers,
            quotas=quotas,
            audit=audit,
            router=router,
        )
        self._wrapped: dict[str, tuple[Any, Any]] = {}  # by method: the handler, and wrapped

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handlers of our services. Others are passed on, if the caller may call them."""
        method = handler_call_details.method
        if self._measures:
            handler_chain.metadata.set(handler_call_details.invocation_metadata or ())
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        callers = self._callers
        if callers and not method.startswith(_HEALTH):
            try:
                await callers.admit(method, handler_call_details.invocation_metadata or ())
            except Exception as error:  # noqa: BLE001  # the refusal logs a bug, and tells no detail
                return self._chain.refusal(method, error, measured=method.startswith(_OURS))
            if not method.startswith(_OURS):
                if callers.certificates:
                    return identified_stream(method, handler, callers)
                return handler
        if not method.startswith(_OURS):
            return handler
        try:
            await self._receive(method)
        except (Overloaded, QuotaExceeded) as error:
            return self._chain.refusal(method, error, measured=True)
        known, wrapped = self._wrapped.get(method, (None, None))
        if known is not handler:
            wrapped = self._chain.wrap(method, handler)
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
        handler_chain.receiving.set(await self._admission.receive(tenant))
