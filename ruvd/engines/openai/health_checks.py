"""The health checks of an `openai` engine's servers, and the state of the engine as a whole."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from ruvd.core.errors import EngineUnavailable
from ruvd.core.ports.background import StartTask
from ruvd.core.ports.events import EngineStateChanged, Observer
from ruvd.engines.openai.upstream import Upstream

# The interval of health checks while all servers are down.
_DOWN_CHECK_SECONDS = 1.0
# The shortest interval, also if many failing calls request a check.
_MIN_CHECK_SECONDS = 0.2


class HealthChecks:
    """Checks all servers every `interval_seconds`, and tells the observer of changes.

    `open_servers` gives the servers, or raises EngineUnavailable. One check of a server takes up to
    `check_seconds`. `model` is named to the observer.
    """

    def __init__(
        self,
        open_servers: Callable[[], Awaitable[Sequence[Upstream]]],
        observer: Observer,
        *,
        model: str,
        interval_seconds: float,
        check_seconds: float,
    ) -> None:
        self._open_servers = open_servers
        self._observer = observer
        self._model = model
        self._interval_seconds = interval_seconds
        self._check_seconds = check_seconds
        self._upstreams: Sequence[Upstream] = ()
        self._task: asyncio.Task[None] | None = None
        self._first_done = asyncio.Event()
        self._requested = asyncio.Event()
        self._reported_up: bool | None = None
        self._open_problem = "the engine has not been started"

    def start(self, start_task: StartTask) -> None:
        """Starts the checks. Idempotent."""
        if self._task is None:
            self._task = start_task("health checks of servers", self._run)

    async def wait_first(self) -> None:
        """Waits for the first check, if the checks have been started."""
        if self._task is not None:
            await self._first_done.wait()

    def request(self) -> None:
        """Makes the next check follow soon."""
        self._requested.set()

    async def close(self) -> None:
        """Ends the checks, and the waiting for the first one. Idempotent."""
        self._first_done.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def is_out_of_reach(self) -> bool:
        """Whether no server can be reached. One that answers may serve completions."""
        return self._reported_up is False and not any(u.answers for u in self._upstreams)

    def down_reason(self) -> str:
        """Returns a sentence that says why no server works."""
        if not self._upstreams:
            return self._open_problem
        reasons = [f"{server.url}: {server.problem or 'failing'}" for server in self._upstreams]
        return f"no server of the engine is up: {'; '.join(reasons)}"

    def watch(self, upstreams: Sequence[Upstream]) -> None:
        """Takes the servers, of whose state the engine's is made."""
        self._upstreams = upstreams

    def report_state(self) -> None:
        """Tells the observer if the engine as a whole has come up or gone down."""
        states = [upstream.up for upstream in self._upstreams]
        is_up = any(states)
        if is_up == self._reported_up or (None in states and not is_up):
            return
        self._reported_up = is_up
        first = next((upstream for upstream in self._upstreams if upstream.up), None)
        detail = f"{self._model} at {first.url}" if first else self.down_reason()
        if first and first.problem:
            detail = f"{detail}, but {first.problem}"
        self._observer(EngineStateChanged(up=is_up, detail=detail))

    async def _run(self) -> None:
        while True:
            self._requested.clear()
            try:
                await self._check()
            finally:  # also after a bug in a check, because callers wait for the first one
                self._first_done.set()
            pause = self._interval_seconds if self._reported_up else _DOWN_CHECK_SECONDS
            # A failed call requests a check, but many of them do not cause many checks.
            await asyncio.sleep(min(_MIN_CHECK_SECONDS, pause))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._requested.wait()

    async def _check(self) -> None:
        try:
            upstreams = await self._open_servers()
        except EngineUnavailable as error:
            self._open_problem = str(error)
            self.report_state()
        else:
            await asyncio.gather(*(each.check(self._check_seconds) for each in upstreams))
