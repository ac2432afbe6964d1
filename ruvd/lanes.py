"""Who has the turn in a session, and who waits for it: one lane per session in use.

First in, first out, but for an interrupter, who goes to the head. Within one event loop and
without a lock: nothing here awaits but a place in a lane.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ruvd.errors import (
    CompletionInterrupted,
    Overloaded,
    RuvdError,
    SessionBusy,
    SessionLimit,
)
from ruvd.model import IfBusy, Session


@dataclass(eq=False, slots=True)
class Holder:
    """Someone who has, or waits for, a session's turn. `cancel` is told why it must go.

    `newcomer` is the session that the holder is about to create, while it is not yet stored;
    `began` says that it has begun a turn in one that was alive, which cannot expire under it.
    `ends` says that it deletes the session: nobody goes before it who came after it.
    """

    completion_id: str = ""
    cancel: Callable[[RuvdError], None] | None = None
    newcomer: Session | None = None
    began: bool = False
    ends: bool = False
    turn: asyncio.Future[None] | None = None


@dataclass(eq=False, slots=True)
class _Lane:
    running: Holder
    waiting: deque[Holder] = field(default_factory=deque)


class Lanes:
    """The lanes of all sessions in use, `max_in_use` at most, each with `max_waiting` at most."""

    def __init__(self, max_in_use: int, max_waiting: int) -> None:
        self._max_in_use = max_in_use
        self._max_waiting = max_waiting
        self._lanes: dict[str, _Lane] = {}

    def in_use(self) -> Collection[str]:
        """The ids of the sessions in use, now."""
        return tuple(self._lanes)

    def holder(self, session_id: str) -> Holder | None:
        """Who has the session's turn."""
        lane = self._lanes.get(session_id)
        return lane.running if lane else None

    def cancel(self, session_id: str, error: RuvdError) -> None:
        """Tell everyone in the lane to go."""
        lane = self._lanes.get(session_id)
        for holder in (*lane.waiting, lane.running) if lane else ():
            if holder.cancel:
                holder.cancel(error)

    @asynccontextmanager
    async def turn(
        self, session_id: str, holder: Holder, if_busy: IfBusy = IfBusy.QUEUE
    ) -> AsyncGenerator[None, None]:
        """Have the session to oneself: first in, first out; see IfBusy for the other ways.

        Raises SessionBusy, SessionLimit when every place is in use, and Overloaded when the lane
        is full.
        """
        await self._enter(session_id, holder, if_busy)
        try:
            yield
        finally:
            self._leave(session_id)

    async def _enter(self, session_id: str, holder: Holder, if_busy: IfBusy) -> None:
        lane = self._lanes.get(session_id)
        if lane is None:
            takes_place = holder.completion_id or holder.newcomer
            if takes_place and len(self._lanes) >= self._max_in_use:
                raise SessionLimit(
                    f"all {self._max_in_use} sessions are in use; "
                    "wait for one, or raise max_sessions"
                )
            self._lanes[session_id] = _Lane(holder)
            return
        if if_busy is IfBusy.REJECT:
            raise SessionBusy(f"session {session_id!r} has a completion running")
        if holder.completion_id and len(lane.waiting) >= self._max_waiting:
            raise Overloaded(
                f"{self._max_waiting} callers wait for session {session_id!r} (max_queue)"
            )
        holder.turn = asyncio.get_running_loop().create_future()
        if if_busy is IfBusy.INTERRUPT:
            ends = (at for at, each in enumerate(lane.waiting, start=1) if each.ends)
            lane.waiting.insert(max(ends, default=0), holder)
            if lane.running.cancel:
                error = CompletionInterrupted(f"another caller took session {session_id!r} over")
                lane.running.cancel(error)
        else:
            lane.waiting.append(holder)
        try:
            await holder.turn
        except asyncio.CancelledError:
            if not holder.turn.cancelled():  # the turn came at the same moment; pass it on
                self._leave(session_id)
            elif holder in lane.waiting:
                lane.waiting.remove(holder)
            raise

    def _leave(self, session_id: str) -> None:
        lane = self._lanes[session_id]
        while lane.waiting:
            lane.running = lane.waiting.popleft()
            if lane.running.turn and not lane.running.turn.done():
                lane.running.turn.set_result(None)
                return
        del self._lanes[session_id]
