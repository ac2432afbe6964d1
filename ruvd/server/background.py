"""The daemon's background tasks, supervised in one place.

A task that fails is logged with its traceback, counted, and started again after a growing delay. A
task that keeps failing turns liveness off, so that whoever runs the daemon (a kubelet, systemd)
restarts it. So every failure can be seen.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from ruvd.core.ports.background import Run
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.events import BackgroundTaskFailed, Observer

Sleep: TypeAlias = Callable[[float], Awaitable[None]]

_FIRST_DELAY_SECONDS = 1.0
_MAX_DELAY_SECONDS = 60.0
# A task that ran this long before it failed is not one that keeps failing.
_STEADY_SECONDS = 300.0
_MAX_FAILURES = 5

_log = logging.getLogger("ruvd.daemon")


class BackgroundTasks:
    """Runs tasks until `close`; `give_up` is called with the name of one that keeps failing."""

    def __init__(
        self,
        clock: Clock,
        observer: Observer,
        give_up: Callable[[str], None],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._observer = observer
        self._give_up = give_up
        self._sleep = sleep
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, run: Run) -> asyncio.Task[None]:
        """Runs a task. One that returns has finished and is not started again. A StartTask."""
        task = asyncio.create_task(self._supervise(name, run), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancels the tasks and waits for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _supervise(self, name: str, run: Run) -> None:
        failures, delay = 0, _FIRST_DELAY_SECONDS
        while True:
            began = self._clock.monotonic()
            try:
                await run()
            except BaseException as error:  # whatever it was, the task must come back
                if _ends_task(error):
                    raise
                if self._clock.monotonic() - began >= _STEADY_SECONDS:
                    failures, delay = 0, _FIRST_DELAY_SECONDS
                failures += 1
                _log.exception("the background task %s failed; next start in %g s", name, delay)
                self._observer(BackgroundTaskFailed(name))
                if failures == _MAX_FAILURES:
                    _log.critical("the background task %s keeps failing", name)
                    self._give_up(name)
            else:
                return
            await self._sleep(delay)
            delay = min(2 * delay, _MAX_DELAY_SECONDS)


def _ends_task(error: BaseException) -> bool:
    """Whether the error is meant to end a task: a cancellation of it, but not of another task that
    it awaits."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return not isinstance(error, Exception)
