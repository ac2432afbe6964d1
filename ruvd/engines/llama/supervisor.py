"""The supervision of a child process: start, wait until it is up, restart when it dies or hangs.

The supervisor knows nothing of what the child does. It starts the child on the event loop's own
thread, because the kernel kills the child together with the thread that forked it. The child leads
a session of its own, so that a terminal's Ctrl-C reaches only the daemon, and is killed as a group.
"""

import asyncio
import contextlib
import logging
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ruvd.core.errors import EngineUnavailable
from ruvd.core.ports.background import StartTask, start_unsupervised
from ruvd.core.sessions.turn_queue import finish_despite_cancel
from ruvd.engines.llama.heartbeat import Pulse, wait_until_hung

_MIN_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0
_STABLE_SECONDS = 60.0
_TERM_SECONDS = 2.0
_POLL_SECONDS = 0.05
_MAX_FAILED_STARTS = 3
_SETTLE_SECONDS = 0.5
_KEPT_LINES = 8
_MAX_LINE_BYTES = 4096

_log = logging.getLogger("ruvd.engine")


@dataclass(frozen=True, slots=True)
class Launch:
    """The command line of a child, and what it reads from stdin first.

    Stdin then stays open until the child is to end.
    """

    argv: Sequence[str]
    stdin: bytes


class Child(Protocol):
    """The kind of child, as the supervisor has to know it."""

    async def prepare(self) -> Launch:
        """Prepares a start. Raises EngineUnavailable if another try would not help."""

    async def is_up(self, pid: int) -> bool:
        """Returns whether the child that was started last is up. Raises nothing."""

    async def pulse(self, pid: int, seconds: float) -> Pulse:
        """Asks the child that is up whether it answers, for so many seconds. Raises nothing."""

    def may_explain_exit(self, line: str) -> bool:
        """Returns whether a line of the child's output may say why it died."""

    def explain_exit(self, lines: Iterable[str]) -> str:
        """Returns the reason of an exit that these lines of output tell, "" if none."""

    def went_up(self, seconds: float) -> None:
        """Is called when the child is up, `seconds` after its start."""

    def went_down(self, reason: str) -> None:
        """Is called when a child that was up is down."""


class Supervisor:
    """Runs one child until it is closed.

    A child that dies is restarted after 0.5 s, doubling to 30 s; a minute up resets that. A start
    that takes longer than `start_seconds` is killed and counts as failed. A child that hangs is
    killed within `hang_seconds`; see `heartbeat`.
    """

    def __init__(
        self,
        child: Child,
        *,
        start_seconds: float,
        hang_seconds: float,
        start_task: StartTask = start_unsupervised,
    ) -> None:
        self._child = child
        self._start_task = start_task
        self._start_seconds = start_seconds
        self._hang_seconds = hang_seconds
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.is_up = False
        self._closed = False
        self._failed_starts = 0
        self._backoff_seconds = _MIN_BACKOFF_SECONDS
        self._reason = "the engine has not been started"
        self.pid: int | None = None

    def start(self) -> None:
        """Starts the child and returns at once."""
        if self._task is None and not self._closed:
            self._reason = "the engine is starting"
            self._task = self._start_task("supervision of the engine", self._run)

    async def ready(self) -> None:
        """Returns when the child is up.

        Raises EngineUnavailable with the last reason when that takes longer than `start_seconds`,
        and at once when three starts in a row have failed.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._start_seconds):
                while not self.is_up and self._may_come_up():
                    await self._changed.wait()
        if not self.is_up:
            retry_seconds = max(1.0, self._backoff_seconds)
            raise EngineUnavailable(self._reason, retry_after_seconds=retry_seconds)

    async def settle(self, pid: int | None) -> None:
        """Returns when the child `pid` is known to have exited, or after half a second. A broken
        stream is often the first sign of an exit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                while self.is_up and self.pid == pid:
                    await self._changed.wait()

    async def close(self) -> None:
        """Ends the child and returns when it has exited. Idempotent."""
        self._closed = True
        self._change(up=False, reason="the engine is closed")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _may_come_up(self) -> bool:
        started = self._task is not None and not self._closed
        return started and self._failed_starts < _MAX_FAILED_STARTS

    def _change(self, *, up: bool, reason: str) -> None:
        went_down = self.is_up and not up
        self.is_up, self._reason = up, reason
        self._changed.set()
        self._changed = asyncio.Event()
        if went_down:
            self._child.went_down(reason)

    async def _run(self) -> None:
        while True:
            reason = await self._attempt()
            self._change(up=False, reason=reason)
            _log.warning("%s; next start in %.1f s", reason, self._backoff_seconds)
            await asyncio.sleep(self._backoff_seconds)
            self._backoff_seconds = min(self._backoff_seconds * 2, _MAX_BACKOFF_SECONDS)

    async def _attempt(self) -> str:
        """Starts the child and waits for its exit. Returns the reason of the exit."""
        try:
            launch = await self._child.prepare()
            return await self._run_child(launch)
        except EngineUnavailable as error:
            self._failed_starts = _MAX_FAILED_STARTS
            return str(error)
        except OSError as error:  # for example, there is no memory for another process
            self._failed_starts += 1
            return f"the engine could not be started: {error}"
        except Exception as error:  # a bug: whoever runs this task logs it and calls `_run` again
            self._failed_starts += 1
            self._change(up=False, reason=f"the engine could not be started: {error}")
            raise

    async def _run_child(self, launch: Launch) -> str:
        loop = asyncio.get_running_loop()
        began = loop.time()
        process = await asyncio.create_subprocess_exec(
            *launch.argv, stdin=PIPE, stdout=PIPE, stderr=STDOUT, start_new_session=True
        )
        self.pid = process.pid
        lines: deque[str] = deque(maxlen=_KEPT_LINES)
        output = asyncio.create_task(self._read_output(process, lines))
        exited = asyncio.create_task(process.wait())
        try:
            if process.stdin is not None:
                process.stdin.write(launch.stdin)
            if not await self._is_up_in_time(process.pid, exited):
                self._failed_starts += 1
                if not exited.done():
                    return f"the engine did not come up within {self._start_seconds:g} s"
                return await self._exit_reason("while starting", exited, output, lines)
            self._failed_starts = 0
            self._change(up=True, reason="")
            self._child.went_up(loop.time() - began)
            came_up = loop.time()
            hang_reason = await self._exit_or_hang(process, exited, output)
            # Processes that it started go too, and with them the pipe's other end.
            _signal_group(process.pid, signal.SIGKILL)
            if loop.time() - came_up >= _STABLE_SECONDS:
                self._backoff_seconds = _MIN_BACKOFF_SECONDS
            return hang_reason or await self._exit_reason("while running", exited, output, lines)
        finally:
            try:
                await finish_despite_cancel(_end(process, exited))
            finally:
                output.cancel()
                self.pid = None

    async def _exit_or_hang(
        self, process: Process, exited: asyncio.Task[int], output: asyncio.Task[None]
    ) -> str:
        """Returns "" when the child has exited, or the reason for which it has to be killed."""
        pulse = partial(self._child.pulse, process.pid)
        hung = asyncio.create_task(wait_until_hung(pulse, self._hang_seconds))
        try:
            await asyncio.wait([exited, hung, output], return_when=asyncio.FIRST_COMPLETED)
            if output.done():
                output.result()  # an error, as the child would soon block if nobody read its output
                await asyncio.wait([exited, hung], return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return ""
            reason = f"the engine was killed because it did not answer for {hung.result():.0f} s"
        finally:
            hung.cancel()
        # Before the kill, which ends the running completions, whose callers may ask at once.
        self._change(up=False, reason=reason)
        return reason

    async def _exit_reason(
        self, when: str, exited: asyncio.Task[int], output: asyncio.Task[None], lines: deque[str]
    ) -> str:
        """Returns a text with the child's exit status and its last lines of output."""
        # A process that left the group may hold the pipe open, so the wait for its end is bounded.
        await asyncio.wait([output], timeout=1.0)
        code = exited.result()
        how = f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
        parts = [f"the engine {how} {when}", self._child.explain_exit(lines), "; ".join(lines)]
        return ": ".join(part for part in parts if part)

    async def _read_output(self, process: Process, lines: deque[str]) -> None:
        """Logs output at DEBUG, as it may contain messages; keeps what may explain an exit."""
        rest = b""
        while process.stdout is not None and (part := await process.stdout.read(_MAX_LINE_BYTES)):
            *whole, rest = (rest + part).split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                whole, rest = [*whole, rest], b""
            for line in whole:
                self._log_line(line, lines)
        self._log_line(rest, lines)

    def _log_line(self, line: bytes, lines: deque[str]) -> None:
        text = line.decode(errors="replace").strip()
        if text:
            _log.debug("%s", text)
            if self._child.may_explain_exit(text):
                lines.append(text)

    async def _is_up_in_time(self, pid: int, exited: asyncio.Task[int]) -> bool:
        try:
            async with asyncio.timeout(self._start_seconds):
                while not await _unless(exited, self._child.is_up(pid)):
                    if exited.done():
                        return False
                    await asyncio.wait([exited], timeout=_POLL_SECONDS)
        except TimeoutError:
            return False
        return True


async def _unless(exited: asyncio.Task[int], question: Awaitable[bool]) -> bool:
    """Returns the answer, or False as soon as the child has exited."""
    asked = asyncio.ensure_future(question)
    try:
        await asyncio.wait([exited, asked], return_when=asyncio.FIRST_COMPLETED)
        return asked.done() and asked.result()
    finally:
        asked.cancel()


async def _end(process: Process, exited: asyncio.Task[int]) -> None:
    if not exited.done():
        _signal_group(process.pid, signal.SIGTERM)
        await asyncio.wait([exited], timeout=_TERM_SECONDS)
    # Also if the leader has exited: processes that it started may still run.
    _signal_group(process.pid, signal.SIGKILL)
    await asyncio.wait([exited])
    if process.stdin is not None:
        process.stdin.close()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
