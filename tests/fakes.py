"""Fakes of what a test must control: the clock, and an engine that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from ruvd.core.model import FinishReason, Usage
from ruvd.core.ports.clock import ClockReading
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, EngineText, PrefixCache
from ruvd.server.system_clock import SystemClock


@dataclass
class FrozenTimer:
    """A call that a frozen clock makes once its time has come."""

    time: float
    callback: Callable[[], None]
    is_pending: bool = True

    def cancel(self) -> None:
        self.is_pending = False


@dataclass
class FrozenClock:
    """A clock that moves only when a test advances it, and then makes the calls that are due."""

    time: float = 1_000_000.0
    shift: float = 0.0
    timers: list[FrozenTimer] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def wall_shift(self) -> float:
        return self.shift

    def monotonic(self) -> float:
        return self.time

    def reading(self) -> ClockReading:
        return ClockReading("", 0.0, self.time, self.shift)

    def resume(self, stored: ClockReading | None, newest_time: float) -> None:
        """Does nothing, as the test sets the time."""

    def follow(self, now: float) -> None:
        """Does nothing, as the test sets the time."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> FrozenTimer:
        self.timers.append(FrozenTimer(self.time + seconds, callback))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        self.time += seconds
        due = [timer for timer in self.timers if timer.time <= self.time]
        self.timers = [timer for timer in self.timers if timer.time > self.time]
        for timer in due:
            if timer.is_pending:
                timer.is_pending = False
                timer.callback()


@dataclass
class Machine:
    """A machine with a wall clock and an uptime, and the clocks of the daemons on it."""

    wall: float = 1_000_000.0
    uptime: float = 500.0
    boot_id: str = "first"

    def clock(self) -> SystemClock:
        """Returns the clock of another process."""
        return SystemClock(self.boot_id, wall=lambda: self.wall, boottime=lambda: self.uptime)

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds

    def restart(self, seconds_off: float = 0.0) -> None:
        """Boots again, after so many seconds by the wall clock."""
        self.wall += seconds_off
        self.uptime = 1.0
        self.boot_id += "+"


def done(prompt: int = 10, cached: int | None = 0, completion: int = 1) -> EngineDone:
    """Returns the end of an answer with this usage."""
    return EngineDone(FinishReason.STOP, Usage(prompt, cached, completion), 0.1)


Step = EngineChunk | Exception | asyncio.Event


@dataclass(eq=False)
class ScriptedEngine:
    """An engine that follows one script for each generation.

    Of each script, it yields the chunks, raises the exceptions and waits for the events. Without a
    script left, the answer to the Nth request is `answer N`. `requests` holds what it was asked;
    `stopped` counts the generations that were closed before their end.
    """

    scripts: list[Sequence[Step]] = field(default_factory=list)
    model: str = "scripted"
    slots: int | None = None
    window_tokens: int | None = None
    prefix_cache: PrefixCache | None = None
    requests: list[EngineRequest] = field(default_factory=list)
    stopped: int = 0
    running: int = 0
    most_running: int = 0

    name: str = ""

    def for_model(self, model: str) -> ScriptedEngine:
        return self

    async def start(self) -> None:
        pass

    @property
    def is_ready(self) -> bool:
        return True

    async def ready(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def models(self) -> Sequence[str]:
        return [self.model]

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self.requests.append(request)
        default: list[Step] = [EngineText(f"answer {len(self.requests)}"), done()]
        script = self.scripts.pop(0) if self.scripts else default
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        ended = False
        try:
            for step in script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    ended = True
                    raise step
                else:
                    yield step
            ended = True
        finally:
            self.running -= 1
            self.stopped += not ended
