"""Turns and changes in a store that several daemons share: they wait for those of other daemons."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ruvd.core import tenants
from ruvd.core.errors import SessionBusy
from ruvd.core.model import IfBusy
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.store import SessionChanged, SessionElsewhere, Store, TurnSnapshot

_T = TypeVar("_T")

# The pauses between two questions for a session that another daemon has or changes.
_FIRST_PAUSE_SECONDS = 0.02
_MAX_PAUSE_SECONDS = 0.5


async def begin_turn(
    store: Store, clock: Clock, session_id: str, request_id: str, if_busy: IfBusy
) -> tuple[TurnSnapshot, float]:
    """Begins a turn in the store, and returns also the time at which it began.

    While another daemon has a turn in the session, the call waits. It raises SessionBusy instead
    unless `if_busy` is QUEUE.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        now = clock.now()
        try:
            return await store.begin_turn(session_id, request_id, now), now
        except SessionElsewhere:
            if if_busy is not IfBusy.QUEUE:
                raise SessionBusy(
                    f"session {tenants.own(session_id)!r} has a completion running at another"
                    " replica"
                ) from None
        await asyncio.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)


async def repeated(change: Callable[[], Awaitable[_T]]) -> _T:
    """Returns the result of a change, which reads its session and commits.

    It begins again as long as another daemon has a turn in the session, or has changed it
    meanwhile. So it waits for the turns and changes of other daemons as it does for its own.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await change()
        except (SessionElsewhere, SessionChanged):
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
