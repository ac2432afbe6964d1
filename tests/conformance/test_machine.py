"""The core, compared with a simple model in any sequence of calls, crashes and waits.

After each step, the machine compares everything that a client can see with what `session_model`
predicts, on every store. The number of stored sessions is also compared with the events about
sessions. The engine never gives the same answer twice, so that a turn that was lost, committed
twice or generated twice is detected. Turns can be held open over many steps. Answers may have
reasoning and tool calls; results follow in later turns, and some of them match no call.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import pytest
from fakes import FrozenClock, ScriptedEngine, Step
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from session_model import (
    IDLE_SECONDS,
    MAX_SESSIONS,
    WINDOW,
    Addition,
    Answered,
    Ask,
    Creation,
    Failure,
    Fork,
    Messages,
    Model,
    Row,
    Spoken,
    Turn,
    open_calls,
)

from ruvd.core.completions.completion import (
    Completion,
    CompletionPolicy,
    CompletionRef,
    CompletionRequest,
)
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.errors import (
    CompletionCancelled,
    CompletionInterrupted,
    CompletionNotFound,
    ContextTooLong,
    EngineUnavailable,
    RequestIdReused,
    RuvdError,
    SessionBusy,
    SessionEnded,
    SessionNotFound,
)
from ruvd.core.model import (
    CompletionEvent,
    ContextWindow,
    Delta,
    Finished,
    FinishReason,
    IfBusy,
    Message,
    OnDisconnect,
    Role,
    Session,
    Started,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineText
from ruvd.core.ports.events import CompletionEnded, Event, SessionGone
from ruvd.core.ports.store import Store
from ruvd.core.sessions.commands import NewFork, SessionChanges, SessionCommands
from ruvd.core.sessions.model import NewSession, SessionPolicy, SessionState
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.statistics import Statistics
from ruvd.stores.memory import MemoryStore
from ruvd.stores.sqlite.store import SqliteStore

POOL = ("a", "b", "c", "d", "e")
DEADLINE_SECONDS = 30
Calls: TypeAlias = tuple[tuple[str, str, str], ...]
SESSION_POLICY = SessionPolicy(
    idle_timeout_seconds=IDLE_SECONDS,
    max_sessions=MAX_SESSIONS,
    context_window=ContextWindow(*WINDOW),
)
# Shorter than the idle timeouts, so that replays come both from kept events and from the store.
COMPLETION_POLICY = CompletionPolicy(retention_seconds=30)

# Flushing to a disk would be slow and is not tested here: a SIGKILL loses nothing of a file.
MEMORY_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108

# Steps that end all turns are rare, so that turns last for many steps.
SELDOM = st.sampled_from([False, False, False, True])
ROLES = {"u": Role.USER, "a": Role.ASSISTANT, "s": Role.SYSTEM}
PAUSES = st.sampled_from([0.0, 0.5, 1.0])
WHO = st.integers(0, 9)
REQUEST_IDS = st.sampled_from(["", "", "r1", "r2"])
LABELS = st.sampled_from([(), (("team", "x"),), (("team", "y"),), (("team", "x"), ("on", "1"))])
IDLES = st.sampled_from([IDLE_SECONDS, 10.0, 20.0])
WINDOWS = st.sampled_from([WINDOW, (2, 2), (1, 0), (2, 4), (0, 1)])
# The messages of a turn: "u" is from the user, "a" an answer, "c" an answer that calls tools, "t"
# the result of the last open call, "w" a result that matches no open call. "open" stands for what
# the history needs next.
PATTERNS = st.sampled_from(["u", "u", "uu", "open", "open", ""])
RESULTS = st.sampled_from(["open", "open", "t", "tu", "tw", "w"])
HISTORIES = st.sampled_from(
    [
        "",
        "ua",
        "uu",
        "uau",
        "auau",
        "ua" * 3,
        "ua" * 6,
        "ua" * 6 + "u",
        "uct",
        "uctt",
        "ua" * 4 + "uc",
    ]
)
ADDITIONS = st.sampled_from(["u", "u", "a", "ua", "uu", "uaua", "c", "t", "uct", "w"])
FATES = st.sampled_from(
    [*["answer"] * 2, *["calls"] * 3, "fails", "fails late", "overflow", "overflows"]
)


@dataclass(eq=False)
class Call:
    """One caller of Complete, with its request and the events that it has received."""

    ask: Ask
    completion: Completion
    events: list[CompletionEvent] = field(default_factory=list)
    error: RuvdError | None = None
    task: asyncio.Task[None] | None = None
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def listen(self) -> Call:
        self.task = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        try:
            async with aclosing(self.completion.events()) as events:
                async for event in events:
                    self.events.append(event)
                    self._more.set()
        except RuvdError as error:
            self.error = error

    async def reaches(self, count: int) -> None:
        while len(self.events) < count:
            self._more.clear()
            await self._more.wait()

    async def ended(self) -> None:
        assert self.task
        await self.task

    async def leave(self) -> None:
        assert self.task
        self.task.cancel()
        await asyncio.wait([self.task])

    @property
    def finished(self) -> CompletionEvent | None:
        last = self.events[-1] if self.events else None
        return last if last and isinstance(last.event, Finished) else None


@dataclass(eq=False)
class Held:
    """A turn that is held open until its gate is set."""

    turn: Turn
    call: Call
    gate: asyncio.Event
    text: str
    rest: str | None
    calls: Calls
    continues: bool
    others: list[Call] = field(default_factory=list)
    waiting: list[Call] = field(default_factory=list)
    left: bool = False


class SessionsMachine(RuleBasedStateMachine):
    """The state machine; subclasses choose the store."""

    durable: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="ruvd-", dir=MEMORY_DISK)
        self.runner = asyncio.Runner()
        self.clock = FrozenClock()
        self.engine = ScriptedEngine()
        self.model = Model(self.clock.now())
        self.held: dict[str, Held] = {}
        self.ids = list(POOL)
        self.prompts: list[tuple[str, list[Spoken]]] = []
        self.finished: dict[tuple[str, int, CompletionRef], CompletionEvent] = {}
        self.creations: dict[str, Creation] = {}
        self.forks: dict[str, Fork] = {}
        self.lives = 0
        self.words = 0
        self.go(self.open(Path(self.folder.name) / "0" / "ruvd.db"))

    def make_store(self, path: Path) -> Store:
        raise NotImplementedError

    def go(self, what: Coroutine[Any, Any, None]) -> None:
        async def soon() -> None:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await what

        self.runner.run(soon())

    async def open(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self.statistics = Statistics()
        self.store = self.make_store(path)
        await self.store.open()
        self.found = (await self.store.counts(0)).sessions
        self.ended_at: dict[str, float] = {}
        self.pruned_at = self.clock.now()
        self.sessions = SessionRegistry(self.store, self.clock, self.observe, SESSION_POLICY)
        self.commands = SessionCommands(
            self.sessions, self.store, self.clock, self.observe, SESSION_POLICY
        )
        self.completions = CompletionRegistry(
            self.sessions, self.engine, self.clock, self.observe, COMPLETION_POLICY
        )

    def observe(self, event: Event) -> None:
        self.events.append(event)
        self.statistics(event)
        if isinstance(event, CompletionEnded):
            self.ended_at[event.completion_id] = self.pruned_at = self.clock.now()

    @property
    def stored(self) -> int:
        """The number of sessions by the events: found at the start, plus created minus ended."""
        ended = sum(self.statistics.sessions_ended.values())
        return self.found + self.statistics.sessions_created - ended

    async def close(self) -> None:
        await self.completions.drain(0)
        await self.store.close()

    def teardown(self) -> None:
        self.go(self.close())
        self.runner.close()
        self.folder.cleanup()

    # --- words ------------------------------------------------------------------------------

    def word(self, prefix: str) -> str:
        self.words += 1
        return f"{prefix} {self.words}"

    def said(self, pattern: str, row: Row | None = None) -> Messages:
        history = row.messages if row else []
        said: list[Spoken] = []
        for letter in pattern:
            said.append(self.spoken(letter, [*history, *said]))
        return tuple(said)

    def spoken(self, letter: str, history: Sequence[Spoken]) -> Spoken:
        if letter == "c":
            return self.asking()
        if letter in "tw":
            waiting = open_calls(history) if letter == "t" else ()
            # Without an open call, the result is for a call that may have been answered.
            return Spoken("tool", self.word("result"), answers=[*"xy", *waiting][-1])
        return Spoken(ROLES[letter].value, self.word("said"))

    def asking(self) -> Spoken:
        """Returns an answer that calls tools. All use the same call ids, as some servers do."""
        text = self.word("asks") if self.words % 3 else ""
        return Spoken("assistant", text, self.calls(), thought=self.word("thought"))

    def calls(self) -> Calls:
        ids = ("x", "y") if self.words % 2 else ("x",)
        return tuple((call_id, self.word("name"), self.word('{"n": ')) for call_id in ids)

    def one(self, who: int) -> str:
        """Chooses a session id, mostly that of a session that exists."""
        there = [*self.model.rows, *self.held]
        return there[who % len(there)] if there and who < 6 else POOL[who % len(POOL)]

    def passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.model.now = self.clock.now()

    @initialize(patterns=st.lists(HISTORIES, min_size=2, max_size=4), apart=PAUSES)
    def begin(self, patterns: list[str], apart: float) -> None:
        """Creates some sessions, because most faults need a store that is nearly full."""
        for session_id, pattern in zip(POOL, patterns, strict=False):
            self.go(self.created(Creation(session_id, self.said(pattern), "", (), WINDOW, 50.0)))
            self.passes(apart)

    # --- completions ------------------------------------------------------------------------

    @rule(
        who=WHO,
        pattern=PATTERNS,
        request_id=REQUEST_IDS,
        again=st.booleans(),
        system=st.sampled_from(["", "", "", "Be brief.", "Be kind."]),
        require_existing=st.sampled_from([False, False, False, True]),
        recreate=st.booleans(),
        fate=FATES,
        before=PAUSES,
    )
    def complete(
        self, *, who: int, pattern: str, request_id: str, again: bool, system: str,
        require_existing: bool, recreate: bool, fate: str, before: float,
    ) -> None:  # fmt: skip
        self.passes(before)
        ask = self.request(self.one(who), pattern, request_id, again=again)
        if not ask.system and not again:
            ask = replace(ask, system=system, require_existing=require_existing, recreate=recreate)
        self.go(self.ask(ask, IfBusy.QUEUE, fate))

    @precondition(lambda self: self.asked())
    @rule(which=WHO, pattern=RESULTS, request_id=REQUEST_IDS, fate=FATES, slowly=st.booleans())
    def answer_calls(
        self, *, which: int, pattern: str, request_id: str, fate: str, slowly: bool
    ) -> None:
        """Sends results to a session with open calls: all of them, some, or wrong ones."""
        there = self.asked()
        ask = self.request(there[which % len(there)], pattern, request_id, again=False)
        self.go(self.ask(ask, IfBusy.QUEUE, "hold" if slowly else fate))

    @rule(who=WHO, request_id=REQUEST_IDS, rounds=st.integers(1, 3), last=FATES)
    def complete_with_tools(self, who: int, request_id: str, rounds: int, last: str) -> None:
        """Alternates tool calls and results, and ends with an answer."""
        session_id = self.one(who)
        for fate in (*["calls"] * rounds, last):
            ask = self.request(session_id, "open", request_id, again=False)
            self.go(self.ask(ask, IfBusy.QUEUE, fate))

    def asked(self) -> list[str]:
        """Returns the ids of the active sessions with open calls."""
        rows = [row for row in self.model.rows.values() if open_calls(row.messages)]
        return [row.id for row in rows if self.model.live(row.id)]

    @rule(who=WHO, pattern=PATTERNS, request_id=REQUEST_IDS, continues=st.booleans())
    def complete_slowly(self, who: int, pattern: str, request_id: str, *, continues: bool) -> None:
        """Begins a turn that is held open over the next steps."""
        ask = self.request(self.one(who), pattern, request_id, again=False)
        if ask.session_id not in self.held:
            self.go(self.ask(ask, IfBusy.QUEUE, "hold", continues=continues))

    @precondition(lambda self: self.held)
    @rule(
        which=WHO,
        pattern=PATTERNS | RESULTS,
        request_id=REQUEST_IDS,
        again=st.booleans(),
        if_busy=st.sampled_from(IfBusy),
        queue=st.integers(0, 2),
    )
    def complete_in_use(
        self, *, which: int, pattern: str, request_id: str, again: bool, if_busy: IfBusy, queue: int
    ) -> None:
        """Calls Complete while a turn is held open, perhaps behind others in the queue."""
        session_id = [*self.held][which % len(self.held)]
        for _ in range(queue):
            self.go(self.ask(self.request(session_id, "u", "", again=False), IfBusy.QUEUE))
        ask = self.request(session_id, pattern, request_id, again=again)
        self.go(self.ask(ask, if_busy))

    def request(self, session_id: str, pattern: str, request_id: str, *, again: bool) -> Ask:
        row = self.model.live(session_id)
        history = row.messages if row else []
        if pattern == "open":
            waits = bool(history) and history[-1].role in ("user", "tool")
            pattern = "" if waits else "t" * len(open_calls(history)) or "u"
        # Two in three calls take a new session for one that has gone.
        recreate = self.words % 3 > 0
        ask = Ask(session_id, self.said(pattern, row), request_id=request_id, recreate=recreate)
        return self.asked_before(ask) if again and request_id else ask

    def asked_before(self, ask: Ask) -> Ask:
        """Returns the earlier request with this request id in the session, if there is one."""
        for call in self.in_flight(ask.session_id):
            if call.ask.request_id == ask.request_id:
                return call.ask
        row = self.model.live(ask.session_id)
        match row.requests.get(ask.request_id) if row else None:
            case (Ask() as before, _):
                return before
        return ask

    def in_flight(self, session_id: str) -> Sequence[Call]:
        held = self.held.get(session_id)
        return (held.call, *held.waiting) if held else ()

    def start(self, ask: Ask, if_busy: IfBusy = IfBusy.QUEUE, *, continues: bool = False) -> Call:
        request = CompletionRequest(
            messages=messages(ask.said),
            session_id=ask.session_id,
            request_id=ask.request_id,
            system_prompt=ask.system,
            require_existing=ask.require_existing,
            recreate_if_gone=ask.recreate,
            if_busy=if_busy,
            on_disconnect=OnDisconnect.CONTINUE if continues else OnDisconnect.CANCEL,
        )
        self.pruned_at = self.clock.now()
        return Call(ask, self.completions.start(request)).listen()

    async def ask(
        self, ask: Ask, if_busy: IfBusy, fate: str = "answer", *, continues: bool = False
    ) -> None:
        held = self.held.get(ask.session_id)
        for other in self.in_flight(ask.session_id) if ask.request_id else ():
            if other.ask.request_id == ask.request_id:
                self.attach(ask, other)
                return
        if known := self.model.known(ask):
            call = self.start(ask, if_busy)
            await call.ended()
            self.compare(call, known)
        elif held and if_busy is IfBusy.REJECT:
            call = self.start(ask, if_busy)
            await call.ended()
            assert type(call.error) is SessionBusy
        elif held and if_busy is IfBusy.INTERRUPT:
            call = self.start(ask, if_busy)
            if refusal := self.model.refusal(ask):
                await call.ended()
                self.compare(call, refusal)
            else:
                held.waiting.insert(0, call)
                await self.ends(held, CompletionInterrupted)
        elif held:
            held.waiting.append(self.start(ask))
            await self.settled()
        elif fate == "hold":
            await self.hold(ask, if_busy, continues=continues)
        else:
            turn = self.model.begin(ask)
            outcome = self.foretell(turn, fate)
            call = self.start(ask, if_busy)
            await call.ended()
            self.compare(call, outcome, turn)

    def attach(self, ask: Ask, other: Call) -> None:
        """Repeats a request id while its completion runs or waits."""
        if not ask.repeats(other.ask):
            with pytest.raises(RequestIdReused):
                self.start(ask)
            return
        call = self.start(ask)
        assert call.completion is other.completion
        self.held[ask.session_id].others.append(call)

    def foretell(self, turn: Turn | Failure, fate: str = "answer") -> Answered | Failure:
        """Returns the outcome that the model predicts, and scripts the engine for it."""
        if not isinstance(turn, Turn):
            return turn
        overflow = ContextTooLong("too long")
        answer = Spoken("assistant", f"answer {len(self.prompts) + 1}")
        if fate == "calls":
            answer = self.asking()
        scripts: dict[str, list[Sequence[Step]]] = {
            "answer": [],
            "calls": [script(answer)],
            "fails": [[EngineUnavailable("gone")]],
            "fails late": [[EngineText("half"), EngineUnavailable("gone")]],
            "overflow": [[overflow]],
            "overflows": [[overflow], [overflow]],
        }
        self.engine.scripts = scripts[fate]
        self.generated(turn)
        if fate.startswith("overflow"):
            shorter = turn.shortened()
            if shorter:
                self.generated(shorter)
            if shorter is None or fate == "overflows":
                self.engine.scripts = self.engine.scripts[: 2 if shorter else 1]
                self.model.fail(turn)
                return ContextTooLong
            turn = shorter
            answer = Spoken("assistant", f"answer {len(self.prompts)}")
        if fate.startswith("fails"):
            self.model.fail(turn)
            return EngineUnavailable
        return self.model.finish(turn, answer)

    def generated(self, turn: Turn) -> None:
        self.prompts.append((turn.ask.session_id, turn.prompt))

    def compare(
        self, call: Call, outcome: Answered | Failure, turn: Turn | Failure | None = None
    ) -> None:
        """Compares what the caller has received with the predicted outcome."""
        if not isinstance(outcome, Answered):
            assert type(call.error) is outcome
            assert not call.finished
            return
        assert call.error is None
        last = call.finished
        assert last
        assert isinstance(last.event, Finished)
        received = Answered(
            spoken(last.event.message),
            last.event.exchange_count,
            last.event.finish_reason.value,
        )
        assert received == outcome
        first = call.events[0].event
        if isinstance(first, Started):
            assert [event.sequence for event in call.events] == [*range(1, last.sequence + 1)]
            streamed = joined([e.event for e in call.events if isinstance(e.event, Delta)])
            if outcome.reason == "cancelled":
                streamed = streamed._replace(calls=())  # an incomplete call is not kept
            assert streamed == outcome.answer
        else:
            assert len(call.events) == 1
        row = (
            self.model.rows[call.ask.session_id] if self.model.shown(call.ask.session_id) else None
        )
        if isinstance(turn, Turn):
            assert isinstance(first, Started)
            assert first.session_created == turn.created
            self.finished[turn.row.id, turn.row.made, CompletionRef(call.completion.id)] = last
            if call.ask.request_id:
                self.finished[turn.row.id, turn.row.made, named(call.ask)] = last
        elif row and call.ask.request_id:
            # If the first reader had left, this is the first time that it is seen.
            assert last == self.finished.setdefault((row.id, row.made, named(call.ask)), last)

    # --- turns that are held open -------------------------------------------------------------

    async def hold(self, ask: Ask, if_busy: IfBusy, *, continues: bool) -> None:
        turn = self.model.begin(ask)
        if not isinstance(turn, Turn):
            call = self.start(ask, if_busy)
            await call.ended()
            self.compare(call, turn)
            return
        gate = asyncio.Event()
        text = self.word("part") if self.words % 3 else ""
        rest = self.word("rest") if self.words % 2 else None
        calls = self.calls() if self.words % 5 < 2 else ()
        *begun, _ = script(Spoken("assistant", text, tuple((*call[:2], "") for call in calls)))
        end: list[Step] = [EngineUnavailable("gone")]
        if rest is not None:
            end = script(Spoken("assistant", rest, tuple(("", "", call[2]) for call in calls)))
        self.engine.scripts = [[*begun, gate, *end]]
        self.generated(turn)
        call = self.start(ask, if_busy, continues=continues)
        await call.reaches(1 + len(begun))
        self.model.running[ask.session_id] = turn
        self.held[ask.session_id] = Held(turn, call, gate, text, rest, calls, continues)

    async def ends(self, held: Held, outcome: Answered | Failure) -> None:
        """Ends a held turn, after which each waiting call has its turn."""
        session_id = held.turn.row.id
        del self.held[session_id]
        if not isinstance(outcome, Answered):
            self.model.fail(held.turn)
        await held.call.completion.ended()
        for call in (*([] if held.left else [held.call]), *held.others):
            if call.completion is held.call.completion:
                await call.ended()
                self.compare(call, outcome, held.turn)
        for call in held.waiting:
            await call.ended()
            del self.model.running[session_id]
            known = self.model.known(call.ask)
            turn = None if known else self.model.begin(call.ask, waited=True)
            if turn:
                self.model.running[session_id] = held.turn
                outcome = self.foretell(turn)
            else:
                assert known
                outcome = known
            self.model.running[session_id] = held.turn
            for each in (call, *held.others):
                if each.completion is call.completion:
                    await each.ended()
                    self.compare(each, outcome, turn)
        del self.model.running[session_id]

    @precondition(lambda self: self.held)
    @rule(which=WHO, before=PAUSES)
    def release(self, which: int, before: float) -> None:
        self.passes(before)
        held = [*self.held.values()][which % len(self.held)]
        if held.rest is None:
            outcome: Answered | Failure = EngineUnavailable
        else:
            answer = Spoken("assistant", held.text + held.rest, held.calls)
            outcome = self.model.finish(held.turn, answer)
        held.gate.set()
        self.go(self.ends(held, outcome))

    @precondition(lambda self: self.held)
    @rule(
        which=WHO,
        keep_partial=st.booleans(),
        by_id=st.booleans(),
        waiter=st.booleans(),
        before=PAUSES,
    )
    def cancel(
        self, *, which: int, keep_partial: bool, by_id: bool, waiter: bool, before: float
    ) -> None:
        self.passes(before)
        held = [*self.held.values()][which % len(self.held)]
        if waiter and held.waiting:
            call = held.waiting.pop(which % len(held.waiting))
            self.go(self.cancel_call(call, keep_partial=keep_partial, by_id=by_id))
            for each in (call, *held.others):
                if each.completion is call.completion:
                    self.go(each.ended())
                    self.compare(each, CompletionCancelled)
            return
        outcome: Answered | Failure = CompletionCancelled
        if keep_partial and held.text:
            outcome = self.model.finish(held.turn, Spoken("assistant", held.text), "cancelled")
        self.go(self.cancel_call(held.call, keep_partial=keep_partial, by_id=by_id))
        self.go(self.ends(held, outcome))

    async def cancel_call(self, call: Call, *, keep_partial: bool, by_id: bool) -> None:
        ref = CompletionRef(call.completion.id)
        if call.ask.request_id and not by_id:
            ref = CompletionRef("", call.ask.session_id, call.ask.request_id)
        await self.completions.cancel(ref, keep_partial=keep_partial)

    @precondition(lambda self: self.held)
    @rule(which=WHO)
    def leave(self, which: int) -> None:
        held = [*self.held.values()][which % len(self.held)]
        if held.left or any(c.completion is held.call.completion for c in held.others):
            return
        held.left = True
        self.go(held.call.leave())
        if not held.continues:
            self.go(self.ends(held, CompletionCancelled))

    @rule(who=WHO, request_id=REQUEST_IDS, systems=st.sampled_from(["", "Be brief."]))
    def complete_twice_at_once(self, who: int, request_id: str, systems: str) -> None:
        """Calls twice at once: with the same request id it is one turn, otherwise two."""
        session_id = self.one(who)
        first = Ask(session_id, self.said("u"), request_id=request_id, system=systems)
        second = first if request_id else Ask(session_id, self.said("u"))
        if session_id in self.held or self.model.known(first):
            return
        self.go(self.both(first, second))

    async def both(self, first: Ask, second: Ask) -> None:
        calls = [self.start(first), self.start(second)]
        turn = self.model.begin(first)
        outcome = self.foretell(turn)
        for call in calls:
            await call.ended()
        self.compare(calls[0], outcome, turn)
        if first is not second:
            turn = self.model.begin(second)
            outcome = self.foretell(turn)
        else:
            assert calls[0].completion is calls[1].completion
        self.compare(calls[1], outcome, turn)

    @rule(which=st.integers(0, 1000))
    def resume(self, which: int) -> None:
        """Resumes a committed completion, which must work for as long as its session exists."""
        if self.finished:
            key = [*self.finished][which % len(self.finished)]
            self.go(self.resumed(*key))

    async def resumed(self, session_id: str, made: int, ref: CompletionRef) -> None:
        expected = self.finished[session_id, made, ref]
        row = self.model.live(session_id)
        if row is None or row.made != made:
            if ref.completion_id and self.kept(ref.completion_id):
                assert (await self.events_of(ref))[-1] == expected
            elif ref.completion_id:
                with pytest.raises(CompletionNotFound):
                    await self.events_of(ref)
            return
        assert (await self.events_of(ref))[-1] == expected
        assert await self.events_of(ref, after=expected.sequence) == []

    def kept(self, completion_id: str) -> bool:
        """Returns whether the events of an ended completion are kept without its session.

        They are dropped after the retention, when the next completion begins or ends.
        """
        ended_at = self.ended_at.get(completion_id)
        limit = self.pruned_at - COMPLETION_POLICY.retention_seconds
        return ended_at is not None and ended_at > limit

    async def events_of(self, ref: CompletionRef, after: int = 0) -> list[CompletionEvent]:
        async with aclosing(self.completions.resume(ref, after)) as events:
            return [event async for event in events]

    # --- sessions ---------------------------------------------------------------------------

    @rule(
        who=st.none() | st.integers(3, 9),
        pattern=HISTORIES,
        system=st.sampled_from(["", "Be brief."]),
        labels=LABELS,
        window=WINDOWS,
        idle=IDLES,
        request_id=REQUEST_IDS,
        again=st.booleans(),
    )
    def create(
        self, *, who: int | None, pattern: str, system: str, labels: tuple[tuple[str, str], ...],
        window: tuple[int, int], idle: float, request_id: str, again: bool,
    ) -> None:  # fmt: skip
        session_id = "" if who is None else self.one(who)
        new = Creation(session_id, self.said(pattern), system, labels, window, idle, request_id)
        if again and request_id in self.creations:
            new = self.creations[request_id]
        elif request_id:
            self.creations[request_id] = new
        self.go(self.created(new))

    async def created(self, new: Creation) -> None:
        call = self.commands.create(
            NewSession(
                session_id=new.session_id,
                system_prompt=new.system,
                messages=messages(new.said),
                labels=dict(new.labels),
                context_window=ContextWindow(*new.window),
                idle_timeout_seconds=new.idle,
                request_id=new.request_id,
            )
        )
        await self.check_created(call, lambda made: self.model.create(new, made), new.session_id)

    async def check_created(
        self,
        call: Coroutine[Any, Any, SessionState],
        model: Callable[[str], Row | Failure],
        session_id: str,
    ) -> None:
        """Creates a session and compares it; without a `session_id` the core chooses one."""
        state, failure = None, None
        try:
            state = await call
        except RuvdError as error:
            failure = type(error)
        if state is None:
            assert failure is model(session_id or "none")
            return
        row = model(state.session.id)
        assert isinstance(row, Row)
        assert facts(state.session) == row_facts(row)
        if not session_id and row.id not in self.ids:
            assert re.fullmatch(r"[A-Za-z0-9._:-]{20,128}", row.id)
            self.ids = [*POOL, *self.ids[len(POOL) :][-2:], row.id]

    @rule(
        who=WHO,
        without=st.none() | st.integers(-1, 5),
        into=st.none() | st.integers(5, 9),
        request_id=REQUEST_IDS,
        again=st.booleans(),
    )
    def fork(
        self, *, who: int, without: int | None, into: int | None, request_id: str, again: bool
    ) -> None:
        parent_id, count = self.one(who), None
        row = self.model.shown(parent_id)
        if row and without is not None:
            count = max(0, len(row.exchanges) - without)  # one too many if negative
        new = Fork(parent_id, count, "" if into is None else self.one(into), request_id)
        if again and request_id in self.forks:
            new = self.forks[request_id]
        elif request_id:
            self.forks[request_id] = new
        call = self.commands.fork(
            NewFork(new.parent_id, new.exchange_count, new.session_id, new.request_id)
        )
        self.go(self.check_created(call, lambda made: self.model.fork(new, made), new.session_id))

    @rule(
        who=WHO,
        pattern=ADDITIONS,
        request_id=REQUEST_IDS,
        again=st.booleans(),
    )
    def append(self, *, who: int, pattern: str, request_id: str, again: bool) -> None:
        session_id = self.one(who)
        if session_id in self.held:
            return
        row = self.model.live(session_id)
        new = Addition(session_id, self.said(pattern, row), request_id)
        match row.requests.get(request_id) if again and row else None:
            case (Addition() as before, _):
                new = before
        call = self.commands.append(new.session_id, messages(new.said), request_id)
        self.go(self.changed(call, self.model.append(new)))

    @rule(who=WHO, labels=st.none() | LABELS, idle=st.none() | IDLES, window=st.none() | WINDOWS)
    def update(
        self, who: int, labels: tuple[tuple[str, str], ...] | None, idle: float | None,
        window: tuple[int, int] | None,
    ) -> None:  # fmt: skip
        session_id = self.one(who)
        if session_id in self.held:
            return
        row = self.model.live(session_id)
        if row:
            row.labels = row.labels if labels is None else dict(labels)
            row.idle = row.idle if idle is None else idle
            if window and window[1] != row.window[1]:
                all_of_it = len(row.exchanges) if not window[1] else window[1]
                row.start = min(row.start, max(0, len(row.exchanges) - all_of_it))
            row.window = window or row.window
        changes = SessionChanges(
            None if labels is None else dict(labels),
            idle,
            ContextWindow(*window) if window else None,
        )
        call = self.commands.update(session_id, changes)
        self.go(self.changed(call, row or self.model.absence(session_id)))

    async def changed(
        self, call: Coroutine[Any, Any, SessionState], expected: Row | Failure
    ) -> None:
        if isinstance(expected, Row):
            assert facts((await call).session) == row_facts(expected)
        else:
            with pytest.raises(RuvdError) as caught:
                await call
            assert caught.type is expected

    @rule(who=WHO, allow_missing=st.booleans())
    def end(self, *, who: int, allow_missing: bool) -> None:
        self.go(self.ended(self.one(who), allow_missing=allow_missing))

    async def ended(self, session_id: str, *, allow_missing: bool) -> None:
        held = self.held.pop(session_id, None)
        if self.model.end(session_id) or allow_missing:
            await self.commands.end(session_id, allow_missing=allow_missing)
        else:
            with pytest.raises(SessionNotFound):
                await self.commands.end(session_id)
        if held:
            calls = [*([] if held.left else [held.call]), *held.others, *held.waiting]
            for call in calls:
                await call.ended()
                self.compare(call, SessionEnded)

    @rule(seconds=st.sampled_from([5.0, 9.0, 10.0, 20.0, 50.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.passes(seconds)

    @rule()
    def sweep(self) -> None:
        async def sweep() -> None:
            assert await self.commands.sweep() == self.model.sweep()
            counts = await self.sessions.counts()
            assert counts.active == counts.sessions == self.stored

        self.go(sweep())

    # --- crashes ----------------------------------------------------------------------------

    def copied(self) -> Path:
        """Copies the store's files as a SIGKILL would leave them, and returns their path."""
        self.lives += 1
        path = Path(self.folder.name) / str(self.lives) / "ruvd.db"
        if self.durable:
            path.parent.mkdir()
            # No commit may happen meanwhile, because copying, unlike a crash, takes time.
            db = sqlite3.connect(self.path, timeout=DEADLINE_SECONDS, isolation_level=None)
            db.execute("BEGIN IMMEDIATE")
            for suffix in ("", "-wal"):
                shutil.copyfile(f"{self.path}{suffix}", f"{path}{suffix}")
            db.execute("ROLLBACK")
            db.close()
        return path

    async def restarted(self, path: Path) -> None:
        """Ends the process and opens the store at `path` in the next one."""
        await self.close()
        for held in self.held.values():
            for call in (held.call, *held.others, *held.waiting):
                if not (held.left and call is held.call):
                    await call.ended()
        self.held.clear()
        self.model.crash()
        if not self.durable:
            self.model.rows.clear()
            self.model.reasons.clear()
        self.engine.scripts = []
        await self.open(path)

    @rule(now=SELDOM)
    def crash(self, *, now: bool) -> None:
        if now:
            self.go(self.restarted(self.copied()))

    @precondition(lambda self: self.durable and len(self.held) < MAX_SESSIONS)
    @rule(who=WHO, hops=st.integers(0, 8), now=SELDOM)
    def crash_during_a_turn(self, *, who: int, hops: int, now: bool) -> None:
        """Crashes during a turn: repeating its request must give one turn, never two."""
        ask = Ask(self.one(who), self.said("u"), request_id=self.word("once"), recreate=True)
        if now and ask.session_id not in self.held:
            self.go(self.crashed(ask, hops))

    async def crashed(self, ask: Ask, hops: int) -> None:
        call = self.start(ask)
        for _ in range(hops):
            await self.store.get("")
        seen = call.finished
        path, in_use = self.copied(), tuple(self.model.running)
        await self.restarted(path)
        await call.ended()
        # The turn went on after the copy was made, so its generation counts in any case.
        turn = self.model.begin(ask)
        assert isinstance(turn, Turn)
        idempotency_record = await self.store.idempotency_record(ask.session_id, ask.request_id)
        assert idempotency_record or not seen
        if len(self.engine.requests) > len(self.prompts):
            self.generated(turn)
        if idempotency_record:
            answer = Spoken("assistant", f"answer {len(self.prompts)}")
            self.model.finish(turn, answer, in_use=in_use)  # committed before the crash
        if idempotency_record or await self.store.get(ask.session_id) is None:
            self.model.gone.clear()  # announced before the crash
        again = self.start(ask)
        await again.ended()
        if idempotency_record:
            outcome = self.model.known(ask)
            assert isinstance(outcome, Answered)
            assert idempotency_record.finished
            last = CompletionEvent(idempotency_record.last_sequence, idempotency_record.finished)
            assert seen in (None, last)
            self.finished[ask.session_id, turn.row.made, named(ask)] = last
            self.compare(again, outcome)
        else:
            self.compare(again, self.foretell(turn), turn)

    # --- what must hold after every step -------------------------------------------------------

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        self.go(self.everything())

    async def everything(self) -> None:
        assert self.engine.scripts == []
        asked = [
            (each.session_key, list(map(spoken, each.messages))) for each in self.engine.requests
        ]
        assert asked == self.prompts
        gone = [(e.session_id, e.reason) for e in self.events if isinstance(e, SessionGone)]
        assert gone == self.model.gone
        del self.events[:], self.model.gone[:]
        ids = dict.fromkeys([*self.ids, *self.model.rows])
        filters: list[dict[str, str]] = [{}, {"team": "x"}, {"team": "x", "on": "1"}]
        await asyncio.gather(*map(self.same, ids), *map(self.same_list, filters))
        counts = await self.sessions.counts()
        rows = self.model.rows.values()
        assert counts.sessions == len(rows) == self.stored
        assert counts.active == sum(self.model.live(row.id) is not None for row in rows)
        assert counts.messages == sum(len(row.messages) for row in rows)

    async def same(self, session_id: str) -> None:
        row = self.model.shown(session_id)
        if row is None:
            with pytest.raises(SessionNotFound):
                await self.sessions.get(session_id)
            assert type(await self.sessions.absence(session_id)) is self.model.absence(session_id)
            return
        state = await self.sessions.history(session_id)
        assert list(map(spoken, state.messages or ())) == row.messages
        assert facts(state.session) == row_facts(row)
        held = self.held.get(session_id)
        assert state.running_completion_id == (held.call.completion.id if held else "")
        assert state.in_use == bool(held)

    async def same_list(self, labels: dict[str, str]) -> None:
        listed, after = [], 0
        while True:
            page, after = await self.sessions.list(after=after, limit=2, labels=labels)
            listed += [state.session.id for state in page]
            if not after:
                break
        live = sorted((r for id_, r in self.model.rows.items() if self.model.live(id_)), key=made)
        assert listed == [row.id for row in live if labels.items() <= row.labels.items()]

    async def settled(self) -> None:
        """Returns when every call that is going to wait for a turn does so.

        The store answers in order, so all calls before these have continued by then.
        """
        for _ in range(4):
            await self.store.counts(0)
            await self.store.touch("", 0)
            await asyncio.sleep(0)


def named(ask: Ask) -> CompletionRef:
    return CompletionRef("", ask.session_id, ask.request_id)


def made(row: Row) -> int:
    return row.made


def messages(said: Messages) -> tuple[Message, ...]:
    return tuple(
        Message(Role(role), text, tuple(ToolCall(*call) for call in calls), answers, thought)
        for role, text, calls, answers, thought in said
    )


def spoken(message: Message) -> Spoken:
    calls = tuple((call.id, call.name, call.arguments) for call in message.tool_calls)
    said = message.role.value, message.content, calls, message.tool_call_id, message.reasoning
    return Spoken(*said)


def script(answer: Spoken) -> list[Step]:
    """Returns the engine's chunks for an answer, with the parts of its calls interleaved."""
    steps: list[Step] = []
    if answer.thought:
        steps.append(EngineReasoning(answer.thought))
    if answer.text:
        steps.append(EngineText(answer.text))
    for index, (call_id, name, arguments) in enumerate(answer.calls):
        steps.append(ToolCallDelta(index, call_id, name, arguments[:5]))
    for index, (_, _, arguments) in enumerate(answer.calls):
        if arguments[5:]:
            steps.append(ToolCallDelta(index, arguments=arguments[5:]))
    reason = FinishReason.TOOL_CALLS if answer.calls else FinishReason.STOP
    return [*steps, EngineDone(reason, Usage(10, 0, 1), 0.1)]


def joined(deltas: Sequence[Delta]) -> Spoken:
    """Returns the answer that these deltas add up to."""
    calls: dict[int, tuple[str, str, str]] = {}
    for each in deltas:
        if more := each.tool_call:
            call_id, name, arguments = calls.get(more.index, (more.id, more.name, ""))
            calls[more.index] = (call_id, name, arguments + more.arguments)
    return Spoken(
        "assistant",
        "".join(each.text for each in deltas),
        tuple(call for _, call in sorted(calls.items())),
        thought="".join(each.reasoning for each in deltas),
    )


def facts(session: Session) -> dict[str, object]:
    """Returns the properties of a session that are compared."""
    window = session.context_window
    return {
        "id": session.id,
        "create_time": session.create_time,
        "last_used_time": session.last_used_time,
        "idle": session.idle_timeout_seconds,
        "system": session.system_prompt,
        "labels": dict(session.labels),
        "window": (window.keep_exchanges, window.max_exchanges),
        "parent": session.parent_id,
        "messages": session.message_count,
        "exchanges": session.exchange_count,
        "bytes": session.size_bytes,
        "start": session.window_start,
        "tokens": (session.usage.prompt_tokens, session.usage.completion_tokens),
    }


def row_facts(row: Row) -> dict[str, object]:
    """Returns the same properties of a session of the model."""
    return {
        "id": row.id,
        "create_time": row.create_time,
        "last_used_time": row.last_used,
        "idle": row.idle,
        "system": row.system,
        "labels": row.labels,
        "window": row.window,
        "parent": row.parent_id,
        "messages": len(row.messages),
        "exchanges": len(row.exchanges),
        "bytes": sum(len(message.letters) for message in row.messages),
        "start": row.start,
        "tokens": (10 * row.turns, row.turns),
    }


class MemoryMachine(SessionsMachine):
    """The machine on the memory store, which loses everything in a crash."""

    durable = False

    def make_store(self, path: Path) -> Store:
        return MemoryStore()


class SqliteMachine(SessionsMachine):
    """The machine on the SQLite store, which loses nothing in a crash."""

    durable = True

    def make_store(self, path: Path) -> Store:
        return SqliteStore(path, clock=self.clock, observer=self.observe)


# A failing example takes minutes to shrink.
TestMemory = pytest.mark.timeout(600)(MemoryMachine.TestCase)
TestSqlite = pytest.mark.timeout(600)(SqliteMachine.TestCase)
# All runs use the same examples, so that a failure in CI can be reproduced.
_SETTINGS = settings(stateful_step_count=30, deadline=None, derandomize=True)
TestMemory.settings = settings(_SETTINGS, max_examples=300)
TestSqlite.settings = settings(_SETTINGS, max_examples=220)
