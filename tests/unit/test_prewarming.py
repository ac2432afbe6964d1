"""Prompts that are evaluated ahead: of which sessions, when, and that turns go first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from core import Core, settle
from fakes import done

from ruvd.core.completions.prewarming import Prewarmer
from ruvd.core.errors import EngineUnavailable
from ruvd.core.model import ContextWindow, Message, Role
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineDone, EngineRequest, EngineText
from ruvd.core.ports.events import (
    CompletionCommitted,
    Event,
    PromptEvaluated,
    PromptFoundEvaluated,
)
from ruvd.core.sessions.commands import NewFork
from ruvd.core.sessions.model import NewSession, SessionPolicy


@dataclass
class Steps:
    """A `Warm` that takes as many steps as it is told, each when it is let."""

    steps: int = 2
    fails: bool = False
    asked: list[EngineRequest] = field(default_factory=list)
    taken: int = 0
    closed: int = 0
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def prepare(self, request: EngineRequest) -> AsyncGenerator[PromptEvaluated, None]:
        self.asked.append(request)
        if self.fails:
            raise EngineUnavailable("down")
        try:
            for _ in range(self.steps):
                await self.may_go_on.wait()
                self.taken += 1
                yield PromptEvaluated(64, 0.5, request.session_key)
        finally:
            self.closed += 1

    def remembered(self) -> Collection[str]:
        return ()

    def adopt(self, session_key: str, prepared_key: str) -> None:
        pass

    def forget(self, session_key: str) -> None:
        pass

    async def save(self) -> None:
        pass


@asynccontextmanager
async def running(warm: Steps, window: ContextWindow = ContextWindow(1, 2)) -> AsyncIterator[Core]:
    core = Core(policy=SessionPolicy(context_window=window))

    prewarmer = Prewarmer(core.sessions, core.completions.engines, warm, core.clock, core.observe)
    core.observers.append(prewarmer)
    task = asyncio.create_task(prewarmer.run())
    try:
        yield core
    finally:
        task.cancel()


def texts(request: EngineRequest) -> list[str]:
    return [message.content for message in request.messages]


async def test_the_prompt_of_a_turn_that_is_going_to_trim_is_evaluated_before() -> None:
    warm = Steps()
    warm.may_go_on.set()
    async with running(warm) as core:
        for number in range(2):
            await core.say(f"q{number}")
            await settle()
        assert warm.asked == [], "two exchanges still fit"
        await core.say("q2", options=CompletionOptions(max_tokens=5))
        await settle()
        [asked] = warm.asked
        assert (texts(asked), asked.session_key) == (["q2", "answer 3"], "s")
        await core.say("q3")
        assert core.prompts()[-1] == [*texts(asked), "q3"]
        assert warm.closed == 1
    assert sum(isinstance(event, PromptEvaluated) for event in core.events) == 2


async def test_what_it_saved_is_what_the_turn_found_cached_of_it() -> None:
    warm = Steps()
    warm.may_go_on.set()
    async with running(warm) as core:
        for number in range(3):
            await core.say(f"q{number}")
        await settle()
        core.engine.scripts.append([EngineText("x"), done(prompt=200, cached=100)])
        await core.say("q3")
        await settle()
    found = [event for event in core.events if isinstance(event, PromptFoundEvaluated)]
    assert found == [PromptFoundEvaluated(100)]


async def test_what_the_engine_evaluated_by_itself_counts_as_well() -> None:
    async with running(Steps()) as core:
        await core.say("q0")
        core.observe(PromptEvaluated(6, 0.02, "s"))
        core.observe(PromptEvaluated(4, 0.02, "another"))
        core.engine.scripts.append([EngineText("x"), done(prompt=200, cached=100)])
        await core.say("q1")
        await settle()
    found = [event for event in core.events if isinstance(event, PromptFoundEvaluated)]
    assert found == [PromptFoundEvaluated(6)]


async def test_what_was_evaluated_before_the_commit_is_found_by_the_next_turn() -> None:
    answer: list[EngineText | EngineDone] = [EngineText("x"), done(prompt=200, cached=100)]
    async with running(Steps()) as core:

        def evaluate_ahead(event: Event) -> None:
            if isinstance(event, CompletionCommitted):  # and the completion has not ended yet
                core.clock.advance(1.0)
                core.observe(PromptEvaluated(6, 0.02, "s"))

        core.observers.append(evaluate_ahead)
        core.engine.scripts.append(answer)
        await core.say("q0")
        await settle()
        assert not any(isinstance(event, PromptFoundEvaluated) for event in core.events)
        core.observers.remove(evaluate_ahead)
        core.engine.scripts.append(answer)
        await core.say("q1")
        await settle()
    found = [event for event in core.events if isinstance(event, PromptFoundEvaluated)]
    assert found == [PromptFoundEvaluated(6)]


async def test_a_turn_goes_first_and_what_it_makes_useless_is_left() -> None:
    warm = Steps(steps=5)
    async with running(warm) as core:
        for number in range(3):
            await core.say(f"q{number}")
        await settle()
        assert (len(warm.asked), warm.taken) == (1, 0)
        turn = asyncio.create_task(core.say("q3"))
        await settle()
        warm.may_go_on.set()
        await turn
        await settle()
        assert (warm.taken, warm.closed) == (1, 1), "the step that ran, and no other"


async def test_nothing_is_evaluated_while_anybody_generates() -> None:
    warm = Steps()
    warm.may_go_on.set()
    async with running(warm) as core:
        for number in range(2):
            await core.say(f"q{number}")
        go_on = asyncio.Event()
        core.engine.scripts = [[go_on, EngineText("x"), done()]]
        other = core.start("long", "other")
        await settle()
        await core.say("q2")
        await settle()
        assert warm.asked == []
        go_on.set()
        await other.ended()
        await settle()
        assert len(warm.asked) == 1


async def test_a_session_that_ends_meanwhile_is_prepared_no_further() -> None:
    warm = Steps(steps=9)
    async with running(warm) as core:
        history = (Message(Role.USER, "old"), Message(Role.ASSISTANT, "known"))
        await core.commands.create(NewSession("imported", messages=history))
        await settle()
        await core.commands.end("imported")
        warm.may_go_on.set()
        await settle()
        assert (len(warm.asked), warm.taken, warm.closed) == (1, 1, 1)


async def test_an_import_and_a_fork_are_prepared_and_an_empty_session_is_not() -> None:
    warm = Steps()
    warm.may_go_on.set()
    async with running(warm) as core:
        history = (Message(Role.USER, "old"), Message(Role.ASSISTANT, "known"))
        await core.commands.create(NewSession("imported", messages=history))
        await core.commands.create(NewSession("empty"))
        await settle()
        assert [texts(asked) for asked in warm.asked] == [["old", "known"]]
        await core.commands.fork(NewFork("imported", session_id="child"))
        await settle()
        assert [asked.session_key for asked in warm.asked] == ["imported", "child"]


async def test_a_private_turn_is_not_prepared_and_a_failure_is_nobodys() -> None:
    warm = Steps(fails=True)
    async with running(warm) as core:
        for number in range(3):
            await core.say(f"q{number}", options=CompletionOptions(bypass_cache=True))
        await settle()
        assert warm.asked == []
        for number in range(3):
            await core.say(f"q{number}", "other")
        await settle()
        assert len(warm.asked) == 1
        assert await core.history("other")
