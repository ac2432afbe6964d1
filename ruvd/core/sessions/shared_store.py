"""Turns in a store that several daemons share: one waits while another daemon has the session."""

import asyncio

from ruvd.core import tenants
from ruvd.core.errors import SessionBusy
from ruvd.core.model import IfBusy
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.store import SessionElsewhere, Store, TurnSnapshot

# The pauses between two questions for a session that another daemon has.
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
