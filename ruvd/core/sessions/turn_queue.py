"""Turns in sessions: each session in use has one running turn and a queue of waiting ones.

The order is first in, first out, except that an interrupting request goes to the head. All of it
happens within one event loop and needs no lock: the only await is the wait for the turn.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from ruvd.core import tenants
from ruvd.core.errors import (
    CompletionInterrupted,
    Overloaded,
    QuotaExceeded,
    RuvdError,
    SessionBusy,
    SessionLimit,
)
from ruvd.core.model import IfBusy, Session
from ruvd.core.tenant_limits import LimitsOf, unlimited

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class TurnRequest:
    """A request for a session's turn, from the moment it joins the queue until it leaves.

    `cancel` stops its owner, for the reason given. `pending_session` is the session that the turn
    is about to create, as long as it is not stored. `began` is the time at which the turn began in
    a session that was alive: that session cannot expire until the turn ends. `ends` marks a
    request that deletes the session: no later request overtakes it.
    """

    completion_id: str = ""
    cancel: Callable[[RuvdError], None] | None = None
    pending_session: Session | None = None
    began: float | None = None
    ends: bool = False
    turn: asyncio.Future[None] | None = None


@dataclass(eq=False, slots=True)
class _SessionQueue:
    running: TurnRequest
    waiting: deque[TurnRequest] = field(default_factory=deque)


class TurnQueue:
    """The turn queues of all sessions in use.

    At most `max_in_use` sessions are in use, of each tenant at most its `max_sessions`, and at most
    `max_waiting` requests wait in each.
    """

    def __init__(self, max_in_use: int, max_waiting: int, limits_of: LimitsOf = unlimited) -> None:
        self._max_in_use = max_in_use
        self._max_waiting = max_waiting
        self._limits_of = limits_of
        # Is called with the id of a session that is no longer in use.
        self.on_unused: Callable[[str], None] | None = None
        self._queues: dict[str, _SessionQueue] = {}
        # The numbers of sessions in use of the tenants that have a limit.
        self._limited: Counter[str] = Counter()

    def in_use(self) -> Collection[str]:
        """Returns the ids of the sessions in use."""
        return tuple(self._queues)

    def begun(self) -> Collection[str]:
        """Returns the ids of the sessions in which a turn has begun, so that they do not expire."""
        return {each for each, queue in self._queues.items() if queue.running.began is not None}

    def pending(self, tenant: str) -> tuple[int, int, int]:
        """Returns the numbers of sessions that a tenant creates now, and that others create.

        The third one is that of the tenant's stored sessions in which a turn has begun.
        """
        own = others = begun = 0
        for session_id, queue in self._queues.items():
            is_own = tenants.tenant_of(session_id) == tenant
            if queue.running.pending_session is not None:
                own += is_own
                others += not is_own
            elif queue.running.began is not None:
                begun += is_own
        return own, others, begun

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a turn. Safe to read from another thread."""
        return sum(len(queue.waiting) for queue in list(self._queues.values()))

    def is_awaited(self, session_id: str) -> bool:
        """Whether requests wait for a turn in the session."""
        queue = self._queues.get(session_id)
        return queue is not None and bool(queue.waiting)

    def running(self, session_id: str) -> TurnRequest | None:
        """Returns the request that has the session's turn, or None if the session is not in use."""
        queue = self._queues.get(session_id)
        return queue.running if queue else None

    def cancel(self, session_id: str, error: RuvdError) -> None:
        """Cancels the session's running and waiting requests."""
        queue = self._queues.get(session_id)
        for request in (*queue.waiting, queue.running) if queue else ():
            if request.cancel:
                request.cancel(error)

    @asynccontextmanager
    async def turn(
        self, session_id: str, request: TurnRequest, if_busy: IfBusy = IfBusy.QUEUE
    ) -> AsyncGenerator[None, None]:
        """Waits for the session's turn and holds it while the context lasts.

        Raises SessionBusy with REJECT, SessionLimit or QuotaExceeded when all sessions allowed are
        in use, and Overloaded when the session's queue is full.
        """
        self.join(session_id, request, if_busy)
        try:
            await self.wait(request)
            yield
        finally:
            self.leave(session_id, request)

    def join(self, session_id: str, request: TurnRequest, if_busy: IfBusy = IfBusy.QUEUE) -> None:
        """Enters the session's queue. The caller must call `leave`, whatever happens.

        Raises as `turn` does; after an error there is nothing to leave.
        """
        queue = self._queues.get(session_id)
        if queue is None:
            self._take_place(session_id, request)
            return
        if if_busy is IfBusy.REJECT:
            raise SessionBusy(f"session {tenants.own(session_id)!r} has a completion running")
        if if_busy is IfBusy.INTERRUPT:
            ends = (at for at, each in enumerate(queue.waiting, start=1) if each.ends)
            queue.waiting.insert(max(ends, default=0), request)
            if queue.running.cancel:
                error = CompletionInterrupted(
                    f"another caller took session {tenants.own(session_id)!r} over"
                )
                queue.running.cancel(error)
        elif request.ends or len(queue.waiting) < self._max_waiting:
            queue.waiting.append(request)
        else:
            raise Overloaded(
                f"{self._max_waiting} callers wait for session {tenants.own(session_id)!r}"
                " (max_queue)"
            )
        request.turn = asyncio.get_running_loop().create_future()

    def _take_place(self, session_id: str, request: TurnRequest) -> None:
        """Begins to use a session. Raises QuotaExceeded and SessionLimit."""
        tenant = tenants.tenant_of(session_id)
        limit = self._limits_of(tenant).max_sessions
        if request.completion_id or request.pending_session:
            if limit is not None and self._limited[tenant] >= limit:
                raise QuotaExceeded(
                    f"all {limit} sessions of the tenant are in use"
                    " (max_sessions in tenant_limits); wait for one",
                    quota="max_sessions",
                )
            if len(self._queues) >= self._max_in_use:
                raise SessionLimit(
                    f"all {self._max_in_use} sessions are in use; "
                    "wait for one, or raise max_sessions"
                )
        self._queues[session_id] = _SessionQueue(request)
        if limit is not None:
            self._limited[tenant] += 1

    async def wait(self, request: TurnRequest) -> None:
        """Returns when the request has the turn."""
        if request.turn:
            await request.turn

    def leave(self, session_id: str, request: TurnRequest) -> None:
        """Gives up the turn, or the place in the queue."""
        queue = self._queues.get(session_id)
        if queue is None:  # a waiting request was cancelled just as the last turn was given up
            return
        if queue.running is not request:
            if request in queue.waiting:
                queue.waiting.remove(request)
            return
        while queue.waiting:
            queue.running = queue.waiting.popleft()
            if queue.running.turn and not queue.running.turn.done():
                queue.running.turn.set_result(None)
                return
        del self._queues[session_id]
        if self.on_unused:
            self.on_unused(session_id)
        if self._limited:
            self._give_up_place(tenants.tenant_of(session_id))

    def _give_up_place(self, tenant: str) -> None:
        if tenant in self._limited:
            self._limited[tenant] -= 1
            if not self._limited[tenant]:
                del self._limited[tenant]


async def finish_despite_cancel(write: Coroutine[None, None, T]) -> T:
    """Awaits a write to its end, even if the caller is cancelled meanwhile, and returns its result.

    The caller keeps the session's turn until then, because the next turn must see the write. A
    cancel is raised afterwards.
    """
    task = asyncio.create_task(write)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    failure = task.exception()
    if cancelled:
        raise cancelled
    if failure:
        raise failure
    return task.result()
