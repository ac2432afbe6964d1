"""Summaries between turns: when they are made, that callers go first, and what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from core import Core, settle
from fakes import FrozenClock, Step, done

from ruvd.core.completions.ahead_compaction import AheadCompaction
from ruvd.core.completions.compaction_budget import CompactionBudget
from ruvd.core.completions.compaction_calls import CompactionCalls
from ruvd.core.completions.compactor import CompactionPolicy, Compactor
from ruvd.core.completions.prewarming import Prewarmer
from ruvd.core.completions.summary_writer import SummaryWriter
from ruvd.core.errors import EngineUnavailable, QuotaExceeded
from ruvd.core.model import Compaction, ContextWindow, Message, Role, Session
from ruvd.core.ports.engine import EngineRequest, EngineText
from ruvd.core.ports.events import (
    CompactionGivenUp,
    PromptEvaluated,
    SessionCompacted,
    SummaryRequested,
)
from ruvd.core.sessions.model import NewSession, SessionPolicy
from ruvd.core.sessions.turn_queue import TurnRequest
from ruvd.core.summaries import Summary
from ruvd.core.tenant_limits import TenantLimits

WINDOW = ContextWindow(1, 5, compaction=Compaction.SUMMARY)  # due from 3 exchanges on


@dataclass
class Cache:
    """A prefix cache that takes a step for each prompt, when it is let."""

    prepared: list[EngineRequest] = field(default_factory=list)
    adopted: list[tuple[str, str]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    may_step: asyncio.Event = field(default_factory=asyncio.Event)

    async def prepare(self, request: EngineRequest) -> AsyncGenerator[PromptEvaluated, None]:
        self.prepared.append(request)
        await self.may_step.wait()
        yield PromptEvaluated(64, 0.1, request.session_key)

    def adopt(self, session_key: str, prepared_key: str) -> None:
        self.adopted.append((session_key, prepared_key))

    def forget(self, session_key: str) -> None:
        self.forgotten.append(session_key)

    def remembered(self) -> Collection[str]:
        return ()

    async def save(self) -> None:
        pass


@asynccontextmanager
async def running(
    cache: Cache | None = None,
    window: ContextWindow = WINDOW,
    limits: TenantLimits | None = None,
    budget: CompactionBudget | None = None,
    *,
    is_local: bool = True,
    continues: bool = False,
) -> AsyncIterator[Core]:
    core = Core(policy=SessionPolicy(context_window=window))
    if limits:
        core = Core(policy=core.policy, limits_of=lambda _tenant: limits)
    compactor = Compactor(core.sessions, core.engine, core.clock, core.observe, CompactionPolicy())
    calls = CompactionCalls(core.sessions, compactor, core.completions)
    ahead = AheadCompaction(
        core.sessions,
        compactor,
        core.completions,
        cache,
        calls.last_options,
        core.observe,
        budget or CompactionBudget(core.clock),
        SummaryWriter(
            compactor,
            waits_for_idle=is_local,
            continues_answers=continues,
        ),
    )
    core.observers += [calls, ahead]
    tasks = [asyncio.create_task(ahead.run())]
    if cache:
        prewarmer = Prewarmer(
            core.sessions,
            core.completions.engines,
            cache,
            core.clock,
            core.observe,
            ahead.takes,
        )
        core.observers.append(prewarmer)
        tasks.append(asyncio.create_task(prewarmer.run()))
    try:
        yield core
        assert not any(task.done() for task in tasks), "a background task has failed"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def stored(core: Core, session_id: str = "s") -> Session:
    session = await core.store.get(session_id)
    assert session is not None
    return session


def outcomes(core: Core) -> list[str]:
    return [each.outcome for each in core.events if isinstance(each, SummaryRequested)]


async def talk(core: Core, *texts: str, then: list[Step] | None = None) -> None:
    """Says the texts; `then` is the script of the summary after the last one."""
    for text in texts:
        core.engine.scripts.append([EngineText(f"re {text}"), done()])
        if text == texts[-1] and then:
            core.engine.scripts.append(then)
        await core.say(text)
    await settle()


SUM: list[Step] = [EngineText("SUM"), done()]


async def test_a_summary_is_made_at_the_soft_limit_and_no_turn_ever_trims() -> None:
    async with running() as core:
        await talk(core, "a", "b")
        assert not outcomes(core)
        await talk(core, "c", then=SUM)
        session = await stored(core)
        assert (session.summary, session.window_start) == (Summary("SUM", 2), 2)
        assert core.prompts()[-1][:-1] == ["a", "re a", "b", "re b", "c", "re c"]
        assert core.engine.requests[-1].background
        for number in range(12):
            await talk(core, f"t{number}")
        assert (await stored(core)).compactions > 4
        ended = [event for event in core.events if hasattr(event, "context_trimmed")]
        assert not any(event.context_trimmed for event in ended)


async def test_the_new_prompt_is_evaluated_under_another_key_before_it_is_stored() -> None:
    cache = Cache()
    async with running(cache) as core:
        await talk(core, "a", "b", "c", then=SUM)
        assert (await stored(core)).summary is None
        (asked,) = cache.prepared
        assert asked.session_key == "s+compacted"
        assert [message.content for message in asked.messages][2:] == ["c", "re c"]
        cache.may_step.set()
        await settle()
        assert (await stored(core)).summary == Summary("SUM", 2)
        assert cache.adopted == [("s", "s+compacted")]
        await core.commands.end("s")
        assert "s+compacted" in cache.forgotten


async def test_a_turn_that_comes_meanwhile_has_the_old_window_and_its_exchange_is_kept() -> None:
    cache = Cache()
    async with running(cache) as core:
        await talk(core, "a", "b", "c", then=SUM)
        await talk(core, "d")
        assert core.prompts()[-1] == ["a", "re a", "b", "re b", "c", "re c", "d"]
        cache.may_step.set()
        await settle()
        assert [message.content for message in cache.prepared[-1].messages][2:] == [
            "c", "re c", "d", "re d"
        ]  # fmt: skip
        assert (await stored(core)).summary == Summary("SUM", 2)
        assert outcomes(core) == ["written"], "what was written is kept"


async def test_a_caller_stops_the_summary_at_once_and_it_is_made_again() -> None:
    async with running() as core:
        never = asyncio.Event()
        await talk(core, "a", "b", "c", then=[EngineText("half"), never])
        assert core.engine.running == 1
        core.engine.scripts.append([EngineText("other"), done()])
        core.engine.scripts.append(SUM)
        await core.say("hello", "another")
        await settle()
        assert outcomes(core) == ["interrupted", "written"]
        assert (await stored(core)).summary == Summary("SUM", 2)
        assert core.engine.stopped == 1


async def test_an_engine_that_can_goes_on_with_the_summary_where_it_was_stopped() -> None:
    async with running(continues=True) as core:
        never = asyncio.Event()
        await talk(core, "a", "b", "c", then=[EngineText("half "), EngineText("of "), never])
        core.engine.scripts += [[EngineText("other"), done()], [EngineText("it"), done()]]
        await core.say("hello", "another")
        await settle()
        assert (await stored(core)).summary == Summary("half of it", 2)
        asked = core.engine.requests[-1]
        assert asked.messages[-1] == Message(Role.ASSISTANT, "half of ")
        assert asked.options.max_tokens == 62
        assert asked.messages[:-1] == core.engine.requests[3].messages


async def test_a_summary_that_cannot_be_gone_on_with_is_begun_again() -> None:
    async with running(continues=True) as core:
        never = asyncio.Event()
        await talk(core, "a", "b", "c", then=[EngineText("half "), never])
        core.engine.scripts += [[EngineText("other"), done()], [EngineUnavailable("no")], SUM]
        await core.say("hello", "another")
        await settle()
        assert (await stored(core)).summary == Summary("SUM", 2)
        assert outcomes(core) == ["interrupted", "failed", "written"]


async def test_a_summary_that_meets_a_turn_is_stored_after_it() -> None:
    async with running() as core:
        may_end = asyncio.Event()
        await talk(core, "a", "b")
        core.engine.scripts += [[EngineText("re c"), done()], [may_end, *SUM]]
        await core.say("c")
        await settle()
        # A change that has the session's turn, and needs no engine.
        async with core.sessions.turn_queue.turn("s", TurnRequest()):
            may_end.set()
            await settle()
            assert (await stored(core)).summary is None
        await talk(core, "d")
        assert (await stored(core)).summary == Summary("SUM", 2)
        assert outcomes(core) == ["written"]


async def test_where_a_turn_comes_first_it_trims_and_the_next_summary_covers_that() -> None:
    cache = Cache()  # whose steps never end, so that the summary is not stored before the limit
    async with running(cache, replace(WINDOW, max_exchanges=3, compact_at=1.0)) as core:
        never = asyncio.Event()
        await talk(core, "a", "b", "c", then=[never])
        core.engine.scripts[:0] = [[EngineText("re d"), done()], [never]]
        await core.say("d")
        core.engine.scripts[:0] = [[EngineText("re e"), done()], SUM]
        await core.say("e")
        await settle()
        session = await stored(core)
        assert session.window_start == 3
        assert core.prompts()[-1][:-1] == [f"{r}{t}" for t in "abcde" for r in ("", "re ")]
        cache.may_step.set()
        await settle()
        assert (await stored(core)).summary == Summary("SUM", 4)


async def test_a_failure_leaves_the_trim_and_is_tried_again_later() -> None:
    async with running() as core:
        await talk(core, "a", "b", "c", then=[EngineUnavailable("down")])
        assert CompactionGivenUp("s", "ENGINE_UNAVAILABLE") in core.events
        await talk(core, "d")
        assert outcomes(core) == ["failed"], "it waits for two more exchanges"
        await talk(core, "e", then=SUM)
        assert (await stored(core)).summary is not None


async def test_a_tenant_that_has_used_up_its_tokens_gets_no_summary() -> None:
    async with running(limits=TenantLimits(tokens_per_minute=10)) as core:
        await core.say("uses eleven tokens", "other")
        await settle()
        messages = [Message(role, "x") for _ in range(8) for role in (Role.USER, Role.ASSISTANT)]
        await core.commands.create(NewSession("s", messages=messages))
        await settle()
        assert CompactionGivenUp("s", "QUOTA_EXCEEDED") in core.events
        assert len(core.engine.requests) == 1


async def test_the_budgets_of_a_session_and_of_a_day_end_summaries_until_the_next_day() -> None:
    clock = FrozenClock()
    budget = CompactionBudget(clock, session_tokens=11, day_tokens=30)
    for name, tokens in (("s", 11), ("other", 10)):
        budget.check(name)
        budget.spend(name, tokens)
    budget.check("other")
    with pytest.raises(QuotaExceeded, match="compaction_session_tokens"):
        budget.check("s")
    budget.spend("other", 9)
    with pytest.raises(QuotaExceeded, match="compaction_day_tokens"):
        budget.check("new")
    clock.advance(86_400)
    budget.check("s")
    async with running(budget=CompactionBudget(clock, day_tokens=0), is_local=False) as core:
        await talk(core, "a", "b", "c")
        assert CompactionGivenUp("s", "QUOTA_EXCEEDED") in core.events
        assert (await stored(core)).summary is None


async def test_a_server_elsewhere_is_asked_while_it_works_for_others() -> None:
    async with running(is_local=False) as core:
        never = asyncio.Event()
        core.engine.scripts.append([never])
        core.start("long", "busy")
        await settle()
        await talk(core, "a", "b", "c", then=SUM)
        assert (await stored(core)).summary == Summary("SUM", 2)


async def test_an_imported_history_is_summarised_before_its_first_turn() -> None:
    async with running() as core:
        core.engine.scripts.append(SUM)
        texts = [(Message(Role.USER, t), Message(Role.ASSISTANT, f"re {t}")) for t in "abcdefgh"]
        messages = [message for exchange in texts for message in exchange]
        await core.commands.create(NewSession("s", messages=messages))
        await settle()
        assert (await stored(core)).summary == Summary("SUM", 7)
        await core.say("i")
        assert core.prompts()[-1][2:] == ["h", "re h", "i"]


async def test_without_compaction_nothing_is_asked_for() -> None:
    async with running(window=ContextWindow(1, 5)) as core:
        await talk(core, *"abcdefgh")
        assert len(core.engine.requests) == 8
        assert not [event for event in core.events if isinstance(event, SessionCompacted)]
