"""Turns and changes in a store that several daemons share: they wait for those of other daemons."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ruvd.core.model import IfBusy
from ruvd.core.ports.replicas import SessionChanged, SessionElsewhere
from ruvd.core.ports.store import TurnSnapshot

_T = TypeVar("_T")

# The pauses between two questions for a session that another daemon has or changes.
_FIRST_PAUSE_SECONDS = 0.02
_MAX_PAUSE_SECONDS = 0.5


async def when_free(
    begin: Callable[[], Awaitable[TurnSnapshot]], if_busy: IfBusy, *, may_move: bool
) -> TurnSnapshot:
    """Returns what `begin` does, which raises SessionElsewhere while another daemon has a turn.

    The call waits for the end of that turn. It raises SessionElsewhere instead unless `if_busy` is
    QUEUE, and with `may_move` if the other daemon can be called.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await begin()
        except SessionElsewhere as error:
            error.interrupts = if_busy is IfBusy.INTERRUPT
            owner = error.owner
            if owner and (if_busy is not IfBusy.QUEUE or (may_move and owner.address)):
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)


async def repeated(change: Callable[[], Awaitable[_T]], *, may_move: bool = False) -> _T:
    """Returns the result of a change, which reads its session and commits.

    It begins again as long as another daemon has a turn in the session, or has changed it
    meanwhile. So it waits for the turns and changes of other daemons as it does for its own. With
    `may_move` it raises SessionElsewhere instead if the other daemon can be called.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await change()
        except SessionElsewhere as error:
            if may_move and error.owner and error.owner.address:
                raise
        except SessionChanged:
            pass
        await asyncio.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)
