"""Background work is supervised, or has a caller that awaits it."""

from __future__ import annotations

import ast
import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fakes import FrozenClock

from ruvd.core.errors import EngineUnavailable
from ruvd.core.ports.background import Run
from ruvd.core.ports.events import BackgroundTaskFailed, Event
from ruvd.engines.http.transport import Transport
from ruvd.engines.llama.heartbeat import Pulse
from ruvd.engines.llama.kv_cache import KvCache
from ruvd.engines.llama.state import State
from ruvd.engines.llama.state_files import StateFiles
from ruvd.engines.llama.supervisor import Launch, Supervisor
from ruvd.engines.openai.engine import OpenAIEngine
from ruvd.server.background import BackgroundTasks

PACKAGE = Path(__file__).parents[2] / "ruvd"
BEGINNINGS = {
    "create_task",
    "ensure_future",
    "run_coroutine_threadsafe",
    "run_in_executor",
    "Thread",
    "Timer",
    "start_new_thread",
    "ThreadPoolExecutor",
    "Process",
}
# The functions that begin something by themselves, and why nothing can die unseen there.
PLACES = {
    ("server/background.py", "start"): "the supervision itself",
    ("core/ports/background.py", "start_unsupervised"): "for engines outside a daemon",
    ("core/completions/registry.py", "start"): "readers get the error of a completion",
    ("core/completions/registry.py", "drain"): "awaited there",
    ("core/completions/batch.py", "run"): "an error is an outcome, which fails the call",
    ("core/completions/summary_writer.py", "_unless_wanted"): "awaited there",
    ("core/sessions/turn_queue.py", "finish_despite_cancel"): "awaited there",
    ("engines/llama/slots.py", "run_to_end"): "an error is logged, and raised to the slot's holder",
    ("engines/llama/supervisor.py", "_run_child"): "awaited there, by a supervised task",
    ("engines/llama/supervisor.py", "_exit_or_hang"): "awaited there, by a supervised task",
    ("engines/llama/supervisor.py", "_unless"): "awaited there, by a supervised task",
    ("engines/llama/child.py", "main"): "in the engine's own process",
    ("stores/sqlite/worker.py", "__init__"): "the thread reports its end, however it ends",
    ("server/backups.py", "make"): "its end is logged, and the caller gets its error",
    ("http/openai/endpoint.py", "start"): "awaited when its call ends, and logged if it failed",
    ("telemetry/setup.py", "active"): "awaited there",
    ("telemetry/exporters.py", "close"): "at the stop, after the last export has failed",
    ("telemetry/exporters.py", "_within"): "awaited there",
}


def beginnings(path: Path) -> set[tuple[str, str]]:
    """Returns the file with each function in it that begins a task, a thread or a process."""
    found: set[tuple[str, str]] = set()

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.Call):
            called = node.func
            name = getattr(called, "attr", getattr(called, "id", ""))
            if name in BEGINNINGS:
                found.add((str(path.relative_to(PACKAGE)), function))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(path.read_text()), "")
    return found


def test_tasks_and_threads_begin_only_where_none_can_die_unseen() -> None:
    """A new one goes through `BackgroundTasks.start`, or has a reason in the list above."""
    paths = [path for path in PACKAGE.rglob("*.py") if "v1" not in path.parts]
    assert len(paths) > 100
    assert set.union(*map(beginnings, paths)) == set(PLACES)


@dataclass
class Supervised:
    """Background tasks on a frozen clock, which goes on by every delay."""

    events: list[Event] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = FrozenClock()
        self.tasks = BackgroundTasks(
            self.clock, self.events.append, self.given_up.append, self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    async def failures(self, name: str, count: int) -> None:
        """Waits until the task has failed so often."""
        async with asyncio.timeout(60):
            while self.events.count(BackgroundTaskFailed(name)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def supervised() -> AsyncIterator[Supervised]:
    made = Supervised()
    try:
        yield made
    finally:
        await made.tasks.close()


async def test_a_bug_in_a_health_check_is_counted_and_leaves_nobody_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def transport(url: str) -> Transport:
        raise KeyError("a bug")

    async with supervised() as made:
        engine = OpenAIEngine(
            observer=made.events.append,
            base_urls=["http://engine/v1"],
            model="m",
            transport=transport,
            start_task=made.tasks.start,
        )
        with caplog.at_level(logging.ERROR, "ruvd.daemon"):
            await engine.start()
            async with asyncio.timeout(60):
                await engine.ready()
            await made.failures("health checks of servers", 5)
        assert made.given_up == ["health checks of servers"]
        assert caplog.records[0].exc_info
        await engine.close()


SOURCE = "import sys; print('up', flush=True); sys.stdin.read()"
STUBBORN_SOURCE = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SOURCE}"


class Child:
    """A child whose parts have bugs, as its `bugs` name them."""

    def __init__(self, *bugs: str, source: str = SOURCE) -> None:
        self.bugs = bugs
        self._source = source
        self.starts = 0
        self.is_running = False
        self.was_up = asyncio.Event()

    def _fail(self, name: str) -> None:
        if name in self.bugs:
            raise KeyError(name)

    async def prepare(self) -> Launch:
        self.starts += 1
        self._fail("prepare")
        self.is_running = False
        return Launch([sys.executable, "-c", self._source], b"")

    async def is_up(self, pid: int) -> bool:
        return self.is_running

    async def pulse(self, pid: int, seconds: float) -> Pulse:
        self._fail("pulse")
        return Pulse.ANSWERS

    def may_explain_exit(self, line: str) -> bool:
        self.is_running = True
        self._fail("output")
        return False

    def explain_exit(self, lines: Iterable[str]) -> str:
        return ""

    def went_up(self, seconds: float) -> None:
        self.was_up.set()
        self._fail("went_up")

    def went_down(self, reason: str) -> None:
        self._fail("went_down")


async def test_a_stop_while_the_engines_process_is_being_ended_leaves_no_process() -> None:
    child = Child("went_up", source=STUBBORN_SOURCE)
    async with supervised() as made:
        supervisor = Supervisor(
            child, start_seconds=60.0, hang_seconds=30.0, start_task=made.tasks.start
        )
        supervisor.start()
        async with asyncio.timeout(60):
            await child.was_up.wait()
        pid = supervisor.pid
        assert pid is not None
        await asyncio.sleep(0.01)  # the end of the process has begun, and takes two seconds
        await supervisor.close()
        assert supervisor.pid is None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("bug", ["prepare", "pulse", "output", "went_up"])
async def test_a_bug_in_the_supervision_of_the_engine_is_counted_and_the_engine_started_again(
    bug: str,
) -> None:
    child = Child(bug)
    async with supervised() as made:
        supervisor = Supervisor(
            child, start_seconds=60.0, hang_seconds=30.0, start_task=made.tasks.start
        )
        supervisor.start()
        await made.failures("supervision of the engine", 2)
        assert child.starts >= 2
        child.bugs = ()
        async with asyncio.timeout(60):
            while not supervisor.is_up:  # noqa: ASYNC110  # the bug's last effects may come first
                await asyncio.sleep(0.01)
        await supervisor.close()
        assert supervisor.pid is None


async def test_an_engine_that_cannot_be_supervised_has_a_reason_and_ends_liveness() -> None:
    child = Child("prepare")
    async with supervised() as made:
        supervisor = Supervisor(
            child, start_seconds=60.0, hang_seconds=30.0, start_task=made.tasks.start
        )
        supervisor.start()
        await made.failures("supervision of the engine", 5)
        assert made.given_up == ["supervision of the engine"]
        with pytest.raises(EngineUnavailable, match="could not be started"):
            await supervisor.ready()
        await supervisor.close()


def test_the_deletion_of_a_state_is_a_supervised_task(tmp_path: Path) -> None:
    kept = StateFiles(tmp_path / "kv", 1 << 20, "model")
    kept.open()
    name = asyncio.run(kept.create())
    asyncio.run(kept.add(State(name, None, "session", 0)))
    asyncio.run(kept.seal())
    kept.close()
    names: list[str] = []

    async def forget() -> None:
        async with supervised() as made:

            def start_task(name: str, run: Run) -> asyncio.Task[None]:
                names.append(name)
                return made.tasks.start(name, run)

            cache = KvCache(
                lambda: None,
                slots=1,
                model="m",
                path=tmp_path / "kv",
                max_bytes=1 << 20,
                observer=made.events.append,
                start_task=start_task,
            )
            await asyncio.to_thread(cache.open, tmp_path, "model")
            assert cache.remembered() == {"session"}
            cache.forget("session")
            await cache.close()
            assert made.events == []

    asyncio.run(forget())
    assert names == ["deletion of KV states"]
    assert [path.name for path in (tmp_path / "kv").iterdir()] == ["lock"]
