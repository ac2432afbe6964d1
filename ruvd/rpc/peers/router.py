"""The router: each call is handled by the replica that has its session or completion.

A call is tried here first. If the store says that another living replica has the session, the call
is forwarded there as it is, once: a forwarded call is marked, and whoever receives it either
handles it or answers that it is stale, upon which the router begins again.

An owner that cannot be called is waited for (IF_BUSY_QUEUE), or the call is refused with
SESSION_BUSY (IF_BUSY_REJECT), or the session is taken from it (IF_BUSY_INTERRUPT, EndSession): the
store refuses what the former owner still writes.
"""

import asyncio
from typing import Any

import grpc

from ruvd.core.errors import Overloaded, forget_frames
from ruvd.core.ports.replicas import Replica, Replicas, SessionElsewhere
from ruvd.rpc.peers import batch_items, callers, marks, routing
from ruvd.rpc.peers.batch_items import BatchItems
from ruvd.rpc.peers.channels import PeerUnreachable
from ruvd.rpc.peers.forwarding import Forwarding, PeerBroken, PeerLeaving, PeerStale
from ruvd.rpc.peers.location import SERVICE, Location
from ruvd.rpc.peers.routing import Call, Routing
from ruvd.rpc.ports import Context, Handler
from ruvd.rpc.status import ForwardedStatus

# Its items are routed, and not the call.
_BATCH = f"{SERVICE}BatchComplete"
_METHODS = frozenset(
    SERVICE + name
    for name in (
        "AppendMessages",
        "CancelCompletion",
        "CompactSession",
        "Complete",
        "EndSession",
        "GetSession",
        "ResumeCompletion",
        "UpdateSession",
    )
)
# These have the same effect if they are made twice; others need a request id.
_REPEATABLE = _METHODS - {f"{SERVICE}AppendMessages", f"{SERVICE}Complete"}
# A session whose owner changes so often between two looks is waited for in the store.
_MAX_ROUNDS = 8
_FIRST_PAUSE_SECONDS = 0.02
_MAX_PAUSE_SECONDS = 0.5


class Router:
    """Forwards calls, at most `max_calls` at a time. A CallRouter."""

    def __init__(
        self, replicas: Replicas, location: Location, forwarding: Forwarding, max_calls: int
    ) -> None:
        self._replicas = replicas
        self._location = location
        self._forwarding = forwarding
        self._max_calls = max_calls
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_idle(self) -> None:
        """Returns when no call is being forwarded."""
        await self._idle.wait()

    def routes(self, method: str) -> bool:
        """See `CallRouter.routes`."""
        return method in _METHODS or method == _BATCH

    def located(self, method: str, handle: Handler) -> Handler:
        """See `CallRouter.located`."""
        if method == _BATCH:
            return self._with_items(handle)
        can_repeat = method in _REPEATABLE

        async def wrapped(request: Any, call: Context) -> Any:
            if can_repeat or request.request_id:
                routing.allow_repeats()
            if routing.may_move() and not callers.target.get():
                replica = await self._location.find(method, request)
                if replica and replica.address:
                    raise SessionElsewhere(getattr(request, "session_id", ""), replica)
            return await handle(request, call)

        return wrapped

    def routed(self, method: str, handle: Handler, *, streams: bool) -> Handler:
        """See `CallRouter.routed`."""
        if method == _BATCH:
            return handle

        async def wrapped(data: bytes, call: Context) -> Any:
            if target := callers.target.get():
                return await self._handle_forwarded(target, handle, data, call)
            return await self._route(Call(method, handle, data, call, streams), Routing())

        return wrapped

    def _with_items(self, handle: Handler) -> Handler:
        """Wraps the handler of batches, whose items are routed."""

        async def wrapped(request: Any, call: Context) -> Any:
            if not callers.target.get():
                batch_items.current.set(BatchItems(self._route, request, call))
            return await handle(request, call)

        return wrapped

    async def _route(self, call: Call, state: Routing) -> Any:
        """Handles a caller's call here or at the replica that it is for."""
        routing.begin(state)
        pause = _FIRST_PAUSE_SECONDS
        for _ in range(_MAX_ROUNDS):
            try:
                return await call.handle(call.request, call.receiver)
            except SessionElsewhere as error:
                forget_frames(error)  # they hold the request
                elsewhere = error
            try:
                return await self._forward(call, elsewhere, state)
            except PeerStale:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            except PeerUnreachable:
                break
        state.may_move = False
        return await call.handle(call.request, call.receiver)

    async def _handle_forwarded(
        self, target: str, handle: Handler, data: bytes, call: Context
    ) -> Any:
        """Handles a call that another replica has forwarded; it is not forwarded again."""
        if target != self._replicas.me:  # a former process had this address
            raise _stale()
        routing.begin(Routing())
        try:
            return await handle(data, call)
        except SessionElsewhere:
            raise _stale() from None

    async def _forward(self, call: Call, elsewhere: SessionElsewhere, state: Routing) -> Any:
        """Makes the call at the replica that it is for.

        Raises PeerStale if the router has to begin again, and PeerUnreachable if the call has to be
        handled here.
        """
        replica = elsewhere.owner
        if elsewhere.completion_id:
            replica = await self._location.of_completion(elsewhere.completion_id)
            if replica is None:
                raise PeerUnreachable
        if replica is None:
            raise PeerStale
        if not replica.address:
            raise PeerUnreachable
        try:
            return await self._forward_to(replica, call)
        except (PeerUnreachable, PeerLeaving):
            if elsewhere.interrupts:
                await self._replicas.release(elsewhere.session_id, replica.id)
            raise PeerUnreachable from None
        except PeerBroken as error:
            delivered = error.delivered and not call.is_batch_item
            if delivered or not state.may_repeat:
                raise _lost() from None
            raise PeerStale from None

    async def _forward_to(self, replica: Replica, call: Call) -> Any:
        if self._calls >= self._max_calls:
            raise Overloaded(
                f"{self._max_calls} calls are being forwarded to other replicas (max_inflight);"
                " try again"
            )
        self._calls += 1
        self._idle.clear()
        try:
            return await self._forwarding.forward(call, replica)
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()


def _stale() -> ForwardedStatus:
    return ForwardedStatus(
        grpc.StatusCode.ABORTED, "the session is not at this replica", marks.STALE
    )


def _lost() -> ForwardedStatus:
    """Returns the status of a broken connection, upon which clients resume or repeat the call."""
    return ForwardedStatus(
        grpc.StatusCode.UNAVAILABLE, "the replica that had the session does not answer any more"
    )
