"""The heartbeat of the engine's child, which finds one that hangs.

A child is asked at an interval whether it answers. A question that stays open too long is asked
again, because the daemon may have been the one that stood still (a paused container, a debugger).
A child that computes is given more time: one batch of a long prompt may take minutes on a slow
machine, and the server answers only between batches.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable

# The questions in the time after which a child counts as hung; see `wait_until_hung`.
_QUESTIONS = 6
# How much longer a child may be silent while it computes.
_COMPUTING_FACTOR = 10


class Pulse(enum.Enum):
    """The state of a child at one question."""

    ANSWERS = enum.auto()
    COMPUTES = enum.auto()
    """It does not answer, but uses a processor."""
    SILENT = enum.auto()
    """It neither answers nor computes."""


async def wait_until_hung(pulse: Callable[[float], Awaitable[Pulse]], hang_seconds: float) -> float:
    """Returns for how many seconds the child has been silent, once it counts as hung.

    `pulse` is asked with the seconds that it may take. Each question has a sixth of `hang_seconds`.
    The child hangs if its last answer is five questions old, so that it is found within
    `hang_seconds`, or if it has computed for ten times as long without an answer.
    """
    loop = asyncio.get_running_loop()
    interval = hang_seconds / _QUESTIONS
    silent = computing = 0
    while True:
        due = loop.time() + interval
        state = await pulse(interval)
        if state is Pulse.ANSWERS:
            silent = computing = 0
        elif state is Pulse.COMPUTES:
            silent, computing = 0, computing + 1
        else:
            silent += 1
        if silent >= _QUESTIONS - 2 or silent + computing >= _COMPUTING_FACTOR * _QUESTIONS:
            return (silent + computing + 1) * interval
        await asyncio.sleep(due - loop.time())
