"""Kills a process at every step of a summary, and looks at the store that it leaves.

The steps are the core's events, the engine's requests and parts, the evaluation of the new prompt,
and every SQL statement. Each kill is in a process of its own, forked from this one, on a copy of
the same database. The next process must find the old window or the new one, and go on with it.

Prints one JSON object for each kill. Run it with `python tests/compaction_kills.py FOLDER`; it must
be the only thing in its process, because it forks.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import Core
from fakes import FrozenClock, ScriptedEngine, done

from ruvd.core.completions.ahead_compaction import AheadCompaction
from ruvd.core.completions.compaction_budget import CompactionBudget
from ruvd.core.completions.compaction_calls import CompactionCalls
from ruvd.core.completions.compactor import CompactionPolicy, Compactor
from ruvd.core.completions.summary_writer import SummaryWriter
from ruvd.core.model import Compaction, ContextWindow, Session
from ruvd.core.ports.engine import EngineChunk, EngineRequest, EngineText
from ruvd.core.ports.events import Event, PromptEvaluated, SessionCompacted
from ruvd.core.sessions.model import SessionPolicy
from ruvd.stores.sqlite.store import SqliteStore

WINDOW = ContextWindow(1, 6, compaction=Compaction.SUMMARY, compact_at=0.6)
EXCHANGES = 3
SUMMARY = ("The ship ", "carries ", "salt.")
_MOST_STEPS = 500
_SECONDS = 30.0


@dataclass
class Steps:
    """Counts the steps of this process, and ends it before the one with a number."""

    last: int
    report: Callable[[str], None]
    count: int = 0

    def __call__(self, name: str) -> None:
        self.count += 1
        if self.count == self.last:
            self.report(name)
            os.kill(os.getpid(), signal.SIGKILL)


def ignore(_name: str) -> None:
    """Takes a step in a process that is not killed."""


class SteppingEngine(ScriptedEngine):
    """An engine whose answers name their question, and whose summaries have three parts."""

    step: Callable[[str], None] = staticmethod(ignore)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        question = request.messages[-1].content
        is_summary = question.startswith("Summarise")
        parts = SUMMARY if is_summary else (f"answer to {question}",)
        self.scripts.append([*map(EngineText, parts), done()])
        self.step(f"request: {question[:9]}")
        async for chunk in super().generate(request):
            self.step(f"part of an answer: {type(chunk).__name__}")
            yield chunk


@dataclass
class SteppingCache:
    """A prefix cache that evaluates every prompt in two steps."""

    step: Callable[[str], None]

    async def prepare(self, request: EngineRequest) -> AsyncGenerator[PromptEvaluated, None]:
        for _ in range(2):
            self.step("evaluation")
            yield PromptEvaluated(64, 0.1, request.session_key)

    def adopt(self, session_key: str, prepared_key: str) -> None:
        self.step(f"{prepared_key} becomes {session_key}")

    def forget(self, session_key: str) -> None:
        """Does nothing, as nothing is kept."""

    def remembered(self) -> Collection[str]:
        return ()

    async def save(self) -> None:
        """Does nothing, as nothing is kept."""


@asynccontextmanager
async def running(path: Path, step: Callable[[str], None] = ignore) -> AsyncIterator[Core]:
    """Runs the core on the database, with summaries between turns."""
    clock = FrozenClock()
    connect = sqlite3.connect

    def connect_and_trace(*args: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **options)
        db.set_trace_callback(lambda statement: step(f"SQL: {statement[:60]}"))
        return db

    sqlite3.connect = connect_and_trace  # type: ignore[assignment]
    store = SqliteStore(path, clock=clock, observer=lambda _: None)
    engine = SteppingEngine()
    engine.step = step
    core = Core(engine, clock, SessionPolicy(context_window=WINDOW), store=store)
    compactor = Compactor(core.sessions, engine, clock, core.observe, CompactionPolicy())
    calls = CompactionCalls(core.sessions, compactor, core.completions)
    ahead = AheadCompaction(
        core.sessions,
        compactor,
        core.completions,
        SteppingCache(step),
        calls.last_options,
        core.observe,
        CompactionBudget(clock),
        SummaryWriter(compactor, waits_for_idle=True, continues_answers=True),
    )
    core.observers += [lambda event: step(type(event).__name__), calls, ahead]
    await store.open()
    task = asyncio.create_task(ahead.run())
    try:
        yield core
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()
        sqlite3.connect = connect


async def prepare(path: Path) -> None:
    """Makes a session whose next turn makes a summary due."""
    async with running(path) as core:
        for number in range(EXCHANGES):
            await core.say(f"question {number}")


async def attempt(path: Path, step: Callable[[str], None]) -> None:
    """Makes a turn and the summary that is due after it."""
    async with running(path, step) as core:
        is_done = asyncio.Event()

        def observe(event: Event) -> None:
            if isinstance(event, SessionCompacted):
                is_done.set()

        core.observers.append(observe)
        await core.say(f"question {EXCHANGES}")
        async with asyncio.timeout(_SECONDS):
            await is_done.wait()


async def look(path: Path) -> dict[str, Any]:
    """Checks the session, then goes on with it until it has a new summary."""
    async with running(path) as core:
        session = await core.store.get("s")
        assert session is not None, "the session is lost"
        exchanges = session.exchange_count
        assert await core.history() == messages_from(0, exchanges), "the history is wrong"
        await core.say("and now")
        prompt = [message.content for message in core.engine.requests[0].messages]
        check_prompt(session, prompt)
        for number in range(WINDOW.max_exchanges):
            after = await core.store.get("s")
            assert after is not None
            if after.compactions > session.compactions:
                break
            await core.say(f"later {number}")
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("no summary is made any more")
        return {"exchanges": exchanges, "compactions": session.compactions}


def check_prompt(session: Session, prompt: list[str]) -> None:
    """Checks the prompt of the next turn, which has the old window or the new one."""
    start, summary = 0, session.summary
    if session.compactions:
        assert session.compactions == 1
        assert summary is not None
        assert summary.text == "".join(SUMMARY)
        assert summary.text in prompt.pop(0) + prompt.pop(0)
        start = summary.exchange_count
    else:
        assert summary is None
    assert session.window_start == start
    expected = [*messages_from(start, session.exchange_count), "and now"]
    assert prompt == expected, f"the prompt is {prompt} instead of {expected}"


def messages_from(start: int, end: int) -> list[str]:
    """Returns the texts of these exchanges."""
    return [
        text
        for number in range(start, end)
        for text in (f"question {number}", f"answer to question {number}")
    ]


def killed_at(path: Path, number: int) -> str | None:
    """Returns the step before which a new process was killed, None if it came to its end."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(read)
            asyncio.run(attempt(path, Steps(number, lambda name: _write(write, name))))
            code = 0
        except BaseException:  # noqa: BLE001  # nothing may return into the parent's code
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        name = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in {0, -signal.SIGKILL}:
        raise SystemExit(f"the process of step {number} failed")
    return name if code else None


def _write(descriptor: int, text: str) -> None:
    os.write(descriptor, text.encode())


def main() -> None:
    folder = Path(sys.argv[1])
    first = folder / "first" / "s.db"
    asyncio.run(prepare(first))
    for number in range(1, _MOST_STEPS):
        path = folder / str(number) / "s.db"
        shutil.copytree(first.parent, path.parent)
        name = killed_at(path, number)
        if name is None:
            return
        found = asyncio.run(look(path))
        print(json.dumps({"step": name, **found}), flush=True)
        shutil.rmtree(path.parent)
    raise SystemExit(f"there are more than {_MOST_STEPS} steps")


if __name__ == "__main__":
    main()
