"""Who has the turn in a session, and who waits for it: one lane per session in use.

First in, first out, but for an interrupter, who goes to the head. Within one event loop and
without a lock: nothing here awaits but a place in a lane.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from ruvd.core.errors import (
    CompletionInterrupted,
    Overloaded,
    RuvdError,
    SessionBusy,
    SessionLimit,
)
from ruvd.core.model import IfBusy, Session

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class TurnRequest:
    """Someone who has, or waits for, a session's turn. `cancel` is told why it must go.

    `newcomer` is the session that the holder is about to create, while it is not yet stored;
    `began` is when it has begun a turn in one that was alive, which cannot expire under it.
    `ends` says that it deletes the session: nobody goes before it who came after it.
    """

    completion_id: str = ""
    cancel: Callable[[RuvdError], None] | None = None
    pending_session: Session | None = None
    began: float | None = None
    ends: bool = False
    turn: asyncio.Future[None] | None = None


@dataclass(eq=False, slots=True)
class _Lane:
    running: TurnRequest
    waiting: deque[TurnRequest] = field(default_factory=deque)


class TurnQueue:
    """The lanes of all sessions in use, `max_in_use` at most, each with `max_waiting` at most."""

    def __init__(self, max_in_use: int, max_waiting: int) -> None:
        self._max_in_use = max_in_use
        self._max_waiting = max_waiting
        self._lanes: dict[str, _Lane] = {}

    def in_use(self) -> Collection[str]:
        """The ids of the sessions in use, now."""
        return tuple(self._lanes)

    def begun(self) -> Collection[str]:
        """The ids of those in which a turn has begun, which so do not expire."""
        return {each for each, lane in self._lanes.items() if lane.running.began is not None}

    @property
    def waiting(self) -> int:
        """How many wait for a turn, in all lanes. Safe to ask from another thread."""
        return sum(len(lane.waiting) for lane in list(self._lanes.values()))

    def turn_request(self, session_id: str) -> TurnRequest | None:
        """Who has the session's turn."""
        lane = self._lanes.get(session_id)
        return lane.running if lane else None

    def cancel(self, session_id: str, error: RuvdError) -> None:
        """Tell everyone in the lane to go."""
        lane = self._lanes.get(session_id)
        for turn_request in (*lane.waiting, lane.running) if lane else ():
            if turn_request.cancel:
                turn_request.cancel(error)

    @asynccontextmanager
    async def turn(
        self, session_id: str, turn_request: TurnRequest, if_busy: IfBusy = IfBusy.QUEUE
    ) -> AsyncGenerator[None, None]:
        """Have the session to oneself: first in, first out; see IfBusy for the other ways.

        Raises SessionBusy, SessionLimit when every place is in use, and Overloaded when the lane
        is full.
        """
        self.join(session_id, turn_request, if_busy)
        try:
            await self.wait(turn_request)
            yield
        finally:
            self.leave(session_id, turn_request)

    def join(
        self, session_id: str, turn_request: TurnRequest, if_busy: IfBusy = IfBusy.QUEUE
    ) -> None:
        """Take a place in the lane, to be left in any case; raises as `turn` does."""
        lane = self._lanes.get(session_id)
        if lane is None:
            takes_place = turn_request.completion_id or turn_request.pending_session
            if takes_place and len(self._lanes) >= self._max_in_use:
                raise SessionLimit(
                    f"all {self._max_in_use} sessions are in use; "
                    "wait for one, or raise max_sessions"
                )
            self._lanes[session_id] = _Lane(turn_request)
            return
        if if_busy is IfBusy.REJECT:
            raise SessionBusy(f"session {session_id!r} has a completion running")
        if if_busy is IfBusy.INTERRUPT:
            ends = (at for at, each in enumerate(lane.waiting, start=1) if each.ends)
            lane.waiting.insert(max(ends, default=0), turn_request)
            if lane.running.cancel:
                error = CompletionInterrupted(f"another caller took session {session_id!r} over")
                lane.running.cancel(error)
        elif turn_request.ends or len(lane.waiting) < self._max_waiting:
            lane.waiting.append(turn_request)
        else:
            raise Overloaded(
                f"{self._max_waiting} callers wait for session {session_id!r} (max_queue)"
            )
        turn_request.turn = asyncio.get_running_loop().create_future()

    async def wait(self, turn_request: TurnRequest) -> None:
        """Return when the holder has the turn."""
        if turn_request.turn:
            await turn_request.turn

    def leave(self, session_id: str, turn_request: TurnRequest) -> None:
        """Give the turn, or the place in the lane, up."""
        lane = self._lanes[session_id]
        if lane.running is not turn_request:
            if turn_request in lane.waiting:
                lane.waiting.remove(turn_request)
            return
        while lane.waiting:
            lane.running = lane.waiting.popleft()
            if lane.running.turn and not lane.running.turn.done():
                lane.running.turn.set_result(None)
                return
        del self._lanes[session_id]


async def to_its_end(write: Coroutine[None, None, T]) -> T:
    """The outcome of a write, awaited to its end also when the caller is cancelled meanwhile:
    it keeps the lane until then, because whoever is next must see the write."""
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
