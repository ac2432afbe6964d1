"""The steps of every call: the caller is identified, the body admitted and parsed, errors answered.

They are those of a call over gRPC: the same identities and permissions, the same room in the
memory for requests, the same refusals beyond a quota, and a record in the same audit log.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ruvd.core.errors import (
    FieldViolation,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    RuvdError,
    forget_frames,
)
from ruvd.http import bodies, identity, measurement
from ruvd.http.openai.calls import Call, Rename
from ruvd.http.openai.errors import respond_to
from ruvd.http.refusals import ClientGone, Refused
from ruvd.http.scopes import Receive, Scope, Send
from ruvd.rpc import reservation
from ruvd.rpc.identity import caller
from ruvd.rpc.identity.authenticator import Authenticator
from ruvd.rpc.ports import Admission, CallAudit
from ruvd.rpc.quota_gate import QuotaGate
from ruvd.rpc.wire import LARGE_BYTES

_log = logging.getLogger("ruvd.http")
_SERVICE = "/ruvd.v1.SessionService/"
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Gate:
    """The parts of the daemon that each call has to pass, as an RPC does."""

    callers: Authenticator | None
    admission: Admission
    quotas: QuotaGate | None
    audit: CallAudit | None
    max_request_bytes: int


class Endpoint:
    """An ASGI application for one operation of the API.

    `name` is its method and path. `rpc` is the RPC whose permissions it needs. `takes` is the kind
    of its body, empty for none.
    """

    def __init__(
        self,
        gate: Gate,
        name: str,
        rpc: str,
        handle: Callable[[Call], Awaitable[None]],
        *,
        takes: str = "",
    ) -> None:
        self._gate = gate
        self._name = name
        self._rpc = f"{_SERVICE}{rpc}"
        self._handle = handle
        self._takes = takes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one call. A client that has gone gets no response."""
        measurement.note_route(scope, self._name.partition(" ")[2])
        call = Call(scope, receive, send)
        try:
            await self._audited(call)
        except ClientGone:
            return
        except Exception as error:  # noqa: BLE001  # the one place where errors leave
            await self._refuse(call, error)
        finally:
            call.end()

    async def _audited(self, call: Call) -> None:
        audit, watched = self._gate.audit, _WatchedCall(call)
        async with watched.cancelled_when_gone():
            if audit is None:
                await self._admitted(call, watched)
                return

            async def handle(_: Any, __: Any) -> None:
                await self._admitted(call, watched)

            # It asks the call for the peer and the deadline, as it asks gRPC's.
            context: Any = call
            await audit.outcome(f"/HTTP {self._name}", handle)(None, context)

    async def _admitted(self, call: Call, watched: "_WatchedCall") -> None:
        gate = self._gate
        await identity.admit(gate.callers, self._rpc, call.scope)
        tenant = caller.tenant() if gate.callers else ""
        if not self._takes:
            watched.start()
            await self._answered(call)
            return
        if gate.quotas:
            gate.quotas.check(self._rpc, gate.admission.receiving(tenant))
        with ExitStack() as held:

            def hold(size_bytes: int) -> None:
                held.enter_context(gate.admission.reserve(size_bytes))
                reservation.hold(held.close)

            receiving = await gate.admission.receive(tenant)
            try:
                self._check_kind(call)
                call.raw = await bodies.read(call.scope, call.receive, gate.max_request_bytes, hold)
            finally:
                receiving.end()
            watched.start()
            await self._answered(call)

    async def _answered(self, call: Call) -> None:
        if self._takes == "application/json":
            call.body = await bodies.parse(call.raw)
            call.raw = b""
        await self._handle(call)

    def _check_kind(self, call: Call) -> None:
        kind = call.header("content-type").partition(";")[0].strip().lower()
        if kind != self._takes:
            text = f"the content-type must be {self._takes}"
            raise Refused(415, "unsupported_media_type", text)
        encoding = call.header("content-encoding").strip().lower()
        if encoding not in ("", "identity"):
            text = "the body must not be compressed (content-encoding)"
            raise Refused(415, "unsupported_media_type", text)

    async def _refuse(self, call: Call, error: Exception) -> None:
        if not isinstance(error, RuvdError):
            _log.error("%s failed", self._name, exc_info=error)
        gate = self._gate
        forget_frames(error)  # the completion may keep the error
        if gate.quotas and isinstance(error, QuotaExceeded):
            await gate.quotas.refuse(error, at_once=len(call.raw) >= LARGE_BYTES)
        response = respond_to(renamed(error, call))
        if response.status >= _SERVER_ERROR:
            measurement.note_error(call.scope, response.headers.get("x-ruvd-reason", "INTERNAL"))
        if not call.has_begun:
            await call.send_body(
                response.body, response.status, "application/json", response.headers
            )
        elif not call.has_ended:
            await call.end_stream()


def renamed(error: Exception, call: Call) -> Exception:
    """Returns the error with the fields by their paths in the call's own request."""
    return with_names(error, call.rename)


def with_names(error: Exception, rename: Rename) -> Exception:
    """Returns the error with the fields by other paths."""
    if isinstance(error, Refused) or not isinstance(error, InvalidRequest | PermissionDenied):
        return error
    if not error.violations:
        return error
    violations = [FieldViolation(rename(each.field), each.description) for each in error.violations]
    return type(error)(violations)


class _WatchedCall:
    """A call whose task is cancelled when its client has gone."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._has_gone = False

    def start(self) -> None:
        """Watches the connection from now on; the whole body must have been read."""
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._call.receive())["type"] != "http.disconnect":
            pass
        if not self._call.has_ended and self._task:
            self._has_gone = True
            self._task.cancel()

    @asynccontextmanager
    async def cancelled_when_gone(self) -> AsyncIterator[None]:
        """Raises ClientGone if the client goes inside the block."""
        try:
            yield
        except asyncio.CancelledError:
            if self._has_gone and self._task and self._task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            if self._watcher:
                await self._stop(self._watcher)

    async def _stop(self, watcher: asyncio.Task[None]) -> None:
        watcher.cancel()
        await asyncio.wait([watcher])
        if not watcher.cancelled() and (failure := watcher.exception()):
            _log.error("the watch of a connection failed", exc_info=failure)
