"""Request ids, readers who leave, and the way back: on the memory store with a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from core import Core, collect, failed, settle
from fakes import Step, done

from ruvd.core.completions.completion import (
    Completion,
    CompletionPolicy,
    CompletionRef,
    CompletionRequest,
)
from ruvd.core.errors import (
    CompletionCancelled,
    CompletionNotFound,
    EngineUnavailable,
    RequestIdReused,
    RuvdError,
    SessionEnded,
    SessionExpired,
    SessionNotFound,
)
from ruvd.core.model import (
    CompletionEvent,
    Delta,
    Finished,
    FinishReason,
    IfBusy,
    Message,
    OnDisconnect,
    Role,
    Started,
)
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineText
from ruvd.core.sessions.commands import NewFork
from ruvd.core.sessions.model import NewSession

DEADLINE_SECONDS = 30


@pytest.fixture
async def core() -> AsyncIterator[Core]:
    core = Core()
    async with asyncio.timeout(DEADLINE_SECONDS):
        yield core
    await core.completions.drain(0)


def gated(core: Core, *before: Step) -> asyncio.Event:
    """Let the next generation say `before` and then wait until the gate is set."""
    gate = asyncio.Event()
    core.engine.scripts.append([*before, gate, EngineText("end"), done()])
    return gate


async def resume(core: Core, ref: CompletionRef, after: int = 0) -> list[CompletionEvent]:
    async with aclosing(core.completions.resume(ref, after)) as events:
        return [event async for event in events]


async def leave(completion: Completion, after: int = 2) -> None:
    """Read as far as event `after`, and go."""
    async with aclosing(completion.events()) as events:
        async for event in events:
            if event.sequence == after:
                return


def text_of(events: list[CompletionEvent]) -> str:
    return "".join(event.event.text for event in events if isinstance(event.event, Delta))


def kinds(events: list[CompletionEvent]) -> list[type]:
    return [type(event.event) for event in events]


# --- the same request id -----------------------------------------------------------------------


async def test_a_request_that_comes_again_while_it_runs_is_one_generation_for_both(
    core: Core,
) -> None:
    gate = gated(core, EngineText("part "))
    first = core.start("one", request_id="r")
    await settle()
    second = core.start("one", request_id="r")
    reading = [asyncio.create_task(collect(each)) for each in (first, second)]
    gate.set()
    one, two = await asyncio.gather(*reading)
    assert one == two
    assert text_of(one) == "part end"
    assert len(core.engine.requests) == 1
    assert await core.history() == ["one", "part end"]


async def test_a_request_that_comes_again_while_it_is_queued_waits_once(core: Core) -> None:
    gate = gated(core)
    core.start("one")
    await settle()
    queued = [core.start("two", request_id="r") for _ in range(3)]
    assert len({each.id for each in queued}) == 1
    gate.set()
    await asyncio.gather(*(collect(each) for each in queued))
    assert await core.history() == ["one", "end", "two", "answer 2"]


async def test_a_committed_request_that_comes_again_is_replayed_event_by_event(
    core: Core,
) -> None:
    first = await collect(core.start("one", request_id="r"))
    again = await collect(core.start("one", request_id="r"))
    assert again == first
    assert kinds(again) == [Started, Delta, Finished]
    assert len(core.engine.requests) == 1
    assert await core.history() == ["one", "answer 1"]


async def test_past_the_retention_a_committed_request_gives_its_finished_under_its_number(
    core: Core,
) -> None:
    first = await collect(core.start("one", request_id="r"))
    core.clock.advance(600)
    assert await collect(core.start("one", request_id="r")) == first[-1:]
    assert len(core.engine.requests) == 1


async def test_a_replay_does_not_move_last_used_time(core: Core) -> None:
    await core.say("one", request_id="r")
    used = (await core.sessions.get("s")).session.last_used_time
    core.clock.advance(5)
    await core.say("one", request_id="r")
    assert (await core.sessions.get("s")).session.last_used_time == used


@pytest.mark.parametrize("how", ["failed", "cancelled", "failed late"])
async def test_a_request_id_whose_completion_ended_without_a_commit_is_free_for_anything(
    core: Core, how: str
) -> None:
    late = [EngineText("half")] if how == "failed late" else []
    core.engine.scripts = [[*late, EngineUnavailable("gone")]]
    if how == "cancelled":
        core.engine.scripts = [[EngineText("half"), asyncio.Event()]]
    completion = core.start("one", request_id="r")
    if how == "cancelled":
        await settle()
        await core.completions.cancel(CompletionRef(completion.id), keep_partial=False)
        await failed(completion, CompletionCancelled)
    else:
        await failed(completion, EngineUnavailable)
    await core.say("something else", request_id="r")
    assert await core.history() == ["something else", "answer 2"]


@pytest.mark.parametrize("if_busy", [IfBusy.REJECT, IfBusy.INTERRUPT, IfBusy.QUEUE])
async def test_a_request_id_is_looked_up_before_if_busy(core: Core, if_busy: IfBusy) -> None:
    await core.say("one", request_id="committed")
    gate = gated(core)
    running = core.start("two", request_id="running")
    await settle()
    attached = core.start("two", request_id="running", if_busy=if_busy)
    assert attached is running
    replayed = await core.say("one", request_id="committed", if_busy=if_busy)
    assert replayed.message.content == "answer 1"
    gate.set()
    assert text_of(await collect(running)) == "end"
    assert await core.history() == ["one", "answer 1", "two", "end"]


async def test_a_request_id_belongs_to_its_session(core: Core) -> None:
    await core.say("one", "s", request_id="r")
    await core.say("two", "t", request_id="r")
    await core.say("three", "", request_id="r")
    assert len(core.engine.requests) == 3
    await core.commands.fork(NewFork("s", session_id="f"))
    await core.say("four", "f", request_id="r")
    assert await core.history("f") == ["one", "answer 1", "four", "answer 4"]


@pytest.mark.parametrize("how", ["ended", "expired"])
async def test_a_request_id_goes_with_its_session(core: Core, how: str) -> None:
    await core.say("one", request_id="r")
    if how == "ended":
        await core.commands.end("s")
    else:
        core.clock.advance(1800)
        await failed(core.start("one", request_id="r"), SessionExpired)
    await core.say("other", request_id="r", recreate_if_gone=how == "expired")
    assert await core.history() == ["other", "answer 2"]


async def test_a_request_id_of_an_expired_session_is_free_while_a_newcomer_runs_and_after(
    core: Core,
) -> None:
    await core.say("old", request_id="r")
    core.clock.advance(1800)
    core.engine.scripts = [[asyncio.Event()]]
    newcomer = core.start("lost", recreate_if_gone=True)
    await settle()
    again = core.start("old", request_id="r", recreate_if_gone=True)
    await settle()
    newcomer.cancel(CompletionCancelled("left"))
    await asyncio.gather(failed(newcomer, CompletionCancelled), collect(again))
    assert await core.history() == ["old", "answer 3"]


async def test_a_completion_of_an_expired_session_is_not_found_while_a_newcomer_runs(
    core: Core,
) -> None:
    completion = core.start("old", request_id="r")
    await collect(completion)
    core.clock.advance(1800)
    core.engine.scripts = [[asyncio.Event()]]
    core.start("new", recreate_if_gone=True)
    await settle()
    for ref in (CompletionRef(completion.id), CompletionRef("", "s", "r")):
        with pytest.raises(CompletionNotFound):
            await resume(core, ref)


async def test_ending_the_session_frees_the_request_id_of_a_running_completion(
    core: Core,
) -> None:
    gated(core, EngineText("part"))
    running = core.start("one", request_id="r")
    await settle()
    await core.commands.end("s")
    await failed(running, SessionEnded)
    with pytest.raises(SessionNotFound):
        await core.sessions.get("s")
    await core.say("one", request_id="r")
    assert await core.history() == ["one", "answer 2"]


# --- the same id, another request ----------------------------------------------------------------

OTHERS: list[dict[str, object]] = [
    {"text": "two"},
    {"messages": (Message(Role.USER, "one"), Message(Role.USER, "one"))},
    {"messages": (Message(Role.ASSISTANT, "one"),)},
    {"options": CompletionOptions(max_tokens=5)},
    {"options": CompletionOptions(temperature=0.0)},
    {"system_prompt": "Be brief."},
]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("session_id", ["s", ""])
async def test_the_same_request_id_with_another_request_is_refused_running_and_committed(
    core: Core, session_id: str, other: dict[str, object]
) -> None:
    changed = {"text": "one", "request_id": "r", "session_id": session_id, **other}
    gate = gated(core)
    running = core.start("one", session_id, request_id="r")
    with pytest.raises(RequestIdReused):
        core.start(**changed)  # type: ignore[arg-type]
    gate.set()
    await collect(running)
    if session_id:
        await failed(core.start(**changed), RequestIdReused)  # type: ignore[arg-type]
    else:
        with pytest.raises(RequestIdReused):
            core.start(**changed)  # type: ignore[arg-type]
    assert len(core.engine.requests) == 1


async def test_how_to_wait_and_to_leave_are_no_part_of_a_request(core: Core) -> None:
    await core.say("one", request_id="r")
    repeated = await core.say(
        "one",
        request_id="r",
        require_existing=True,
        if_busy=IfBusy.REJECT,
        on_disconnect=OnDisconnect.CONTINUE,
        grace_seconds=10.0,
    )
    assert repeated.message.content == "answer 1"


async def test_a_request_id_of_an_append_is_no_completions(core: Core) -> None:
    await core.commands.create(NewSession("s"))
    messages = (Message(Role.USER, "one"),)
    await core.commands.append("s", messages, "r")
    await failed(core.start(messages=messages, request_id="r"), RequestIdReused)
    await core.say("two", request_id="q")
    with pytest.raises(RequestIdReused):
        await core.commands.append("s", (Message(Role.USER, "two"),), "q")


def test_a_digest_stays_the_same_over_versions() -> None:
    """Stores hold digests: if one changes, repeats are refused after an update."""
    request = CompletionRequest(
        messages=(Message(Role.USER, "Grüße"), Message(Role.ASSISTANT, "hello")),
        session_id="s",
        options=CompletionOptions(model="tiny", temperature=0.5, stop=("END",), seed=7),
        request_id="r",
        system_prompt="Be brief.",
        if_busy=IfBusy.INTERRUPT,
    )
    assert request.digest().hex() == (
        "8221abf5ea020c2e011916db35b36f6e2ab59f7bc57d5c6e2daa0ab41399f9b3"
    )
    plain = CompletionRequest((Message(Role.USER, "hi"),), options=CompletionOptions(seed=0))
    assert plain.digest().hex() == (
        "8fd78fd5ac0373883722fda396c15cf3b0a4ba476e2c8e4a3a0e9e735b9c75f0"
    )


# --- stateless ------------------------------------------------------------------------------------


async def test_a_stateless_request_is_one_generation_within_the_retention(core: Core) -> None:
    first = await collect(core.start("one", "", request_id="r"))
    core.clock.advance(599)
    assert await collect(core.start("one", "", request_id="r")) == first
    core.clock.advance(1)
    again = await collect(core.start("one", "", request_id="r"))
    assert text_of(again) == "answer 2"
    assert len(core.engine.requests) == 2


async def test_a_stateless_request_that_failed_is_free(core: Core) -> None:
    core.engine.scripts = [[EngineUnavailable("gone")]]
    await failed(core.start("one", "", request_id="r"), EngineUnavailable)
    assert (await core.say("two", "", request_id="r")).message.content == "answer 2"


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(5))
async def test_resume_gives_exactly_the_events_after_the_number(core: Core, after: int) -> None:
    gate = gated(core, EngineText("part "))
    completion = core.start("one", request_id="r")
    live = asyncio.create_task(collect(completion))
    await settle()
    gate.set()
    events = await live
    assert kinds(events) == [Started, Delta, Delta, Finished]
    for ref in (CompletionRef(completion.id), CompletionRef("", "s", "r")):
        assert await resume(core, ref, after) == events[after:]


async def test_resume_goes_on_live(core: Core) -> None:
    gate = gated(core, EngineText("part "))
    completion = core.start("one", request_id="r", on_disconnect=OnDisconnect.CONTINUE)
    await leave(completion)
    resumed = asyncio.create_task(resume(core, CompletionRef("", "s", "r"), 2))
    await settle()
    assert not resumed.done()
    gate.set()
    events = await resumed
    assert [event.sequence for event in events] == [3, 4]
    assert text_of(events) == "end"


async def test_resume_of_a_failed_completion_gives_its_events_and_then_its_error(
    core: Core,
) -> None:
    core.engine.scripts = [[EngineText("half"), EngineUnavailable("gone")]]
    completion = core.start("one")
    events = await failed(completion, EngineUnavailable)
    assert kinds(events) == [Started, Delta]
    for after in (0, 2):
        again: list[CompletionEvent] = []
        with pytest.raises(EngineUnavailable):
            async with aclosing(
                core.completions.resume(CompletionRef(completion.id), after)
            ) as stream:
                async for event in stream:
                    again.append(event)  # noqa: PERF401  # what came before the error counts
        assert again == events[after:]


async def test_a_failed_completion_is_forgotten_when_the_retention_is_over(core: Core) -> None:
    core.engine.scripts = [[EngineUnavailable("gone")]]
    completion = core.start("one")
    await failed(completion, EngineUnavailable)
    core.clock.advance(600)
    await core.say("two", "other")
    with pytest.raises(CompletionNotFound):
        await resume(core, CompletionRef(completion.id))


async def test_a_committed_completion_past_the_retention_gives_its_finished_if_it_is_new(
    core: Core,
) -> None:
    completion = core.start("one")
    events = await collect(completion)
    core.clock.advance(600)
    await core.say("two", "other")
    ref = CompletionRef(completion.id)
    assert await resume(core, ref, 0) == events[-1:]
    assert await resume(core, ref, 2) == events[-1:]
    assert await resume(core, ref, 3) == []
    await core.commands.end("s")
    with pytest.raises(CompletionNotFound):
        await resume(core, ref)


async def test_what_never_was_is_not_found(core: Core) -> None:
    await core.commands.create(NewSession("s"))
    await core.commands.append("s", (Message(Role.USER, "one"),), "a")
    for ref in (
        CompletionRef("cmpl-none"),
        CompletionRef("", "s", "none"),
        CompletionRef("", "none", "none"),
        CompletionRef("", "s", "a"),
    ):
        with pytest.raises(CompletionNotFound):
            await resume(core, ref)
        with pytest.raises(CompletionNotFound):
            await core.completions.cancel(ref, keep_partial=False)


# --- readers who leave ----------------------------------------------------------------------------


async def test_without_a_grace_the_engine_stops_when_the_reader_leaves(core: Core) -> None:
    gated(core, EngineText("part"))
    completion = core.start("one")
    await leave(completion)
    await completion.ended()
    assert isinstance(completion.error, CompletionCancelled)
    assert core.engine.stopped == 1


async def test_within_the_grace_a_reader_may_come_back_and_the_turn_is_committed(
    core: Core,
) -> None:
    gate = gated(core, EngineText("part "))
    completion = core.start("one", grace_seconds=3600.0)
    await leave(completion)
    await settle()
    assert core.engine.running == 1
    assert (await core.sessions.get("s")).running_completion_id == completion.id
    resumed = asyncio.create_task(resume(core, CompletionRef(completion.id), 2))
    gate.set()
    assert text_of(await resumed) == "end"
    assert await core.history() == ["one", "part end"]


async def test_a_turn_that_comes_to_its_end_within_the_grace_is_committed(core: Core) -> None:
    gate = gated(core, EngineText("part "))
    completion = core.start("one", grace_seconds=3600.0)
    await leave(completion)
    gate.set()
    await completion.ended()
    assert await core.history() == ["one", "part end"]


async def test_who_comes_back_and_leaves_again_begins_a_new_grace(core: Core) -> None:
    gated(core, EngineText("part"))
    completion = core.start("one", grace_seconds=10)
    staying = completion.events()
    await anext(staying)
    await leave(completion)
    core.clock.advance(11)  # longer than the grace, which must not have begun
    await settle()
    assert core.engine.running == 1
    await staying.aclose()
    core.clock.advance(9)
    await settle()
    assert core.engine.running == 1
    core.clock.advance(1)
    await completion.ended()
    assert isinstance(completion.error, CompletionCancelled)


async def test_when_the_grace_is_over_the_turn_is_cancelled_and_leaves_nothing(
    core: Core,
) -> None:
    gated(core, EngineText("part"))
    completion = core.start("one", grace_seconds=10)
    await leave(completion)
    core.clock.advance(10)
    await completion.ended()
    assert isinstance(completion.error, CompletionCancelled)
    assert core.engine.stopped == 1
    with pytest.raises(SessionNotFound):
        await core.sessions.get("s")


async def test_a_queued_caller_has_no_grace(core: Core) -> None:
    gated(core)
    core.start("one")
    await settle()
    queued = core.start("two", grace_seconds=3600.0)
    reading = asyncio.create_task(collect(queued))
    await settle()
    reading.cancel()
    await asyncio.wait([reading])
    await queued.ended()
    assert isinstance(queued.error, CompletionCancelled)
    assert core.completions.running == 1


@pytest.mark.parametrize("phase", ["queued", "running"])
async def test_continue_commits_after_its_reader_has_gone(core: Core, phase: str) -> None:
    gate = gated(core, EngineText("part "))
    before = core.start("zero") if phase == "queued" else None
    await settle()
    completion = core.start("one", on_disconnect=OnDisconnect.CONTINUE)
    reading = asyncio.create_task(collect(completion))
    await settle()
    reading.cancel()
    await asyncio.wait([reading])
    gate.set()
    await completion.ended()
    assert completion.error is None
    answers = ["zero", "part end", "one", "answer 2"] if before else ["one", "part end"]
    assert await core.history() == answers


async def test_the_first_calls_way_to_leave_holds(core: Core) -> None:
    gate = gated(core, EngineText("part "))
    completion = core.start("one", request_id="r", on_disconnect=OnDisconnect.CONTINUE)
    await leave(completion)
    await leave(core.start("one", request_id="r", on_disconnect=OnDisconnect.CANCEL))
    gate.set()
    await completion.ended()
    assert await core.history() == ["one", "part end"]


# --- keep_partial ---------------------------------------------------------------------------------


async def test_a_partial_answer_that_is_kept_is_committed_and_finished_says_so(
    core: Core,
) -> None:
    gated(core, EngineText("part"))
    completion = core.start("one", request_id="r")
    reading = asyncio.create_task(collect(completion))
    await settle()
    await core.completions.cancel(CompletionRef("", "s", "r"), keep_partial=True)
    finished = (await reading)[-1].event
    assert isinstance(finished, Finished)
    assert finished.finish_reason is FinishReason.CANCELLED
    assert finished.message.content == "part"
    assert finished.usage is None
    assert await core.history() == ["one", "part"]
    again = await core.say("one", request_id="r")
    assert again == finished
    await core.say("two")
    assert core.prompts()[-1] == ["one", "part", "two"]


@pytest.mark.parametrize("session_id", ["s", ""])
async def test_without_a_text_or_a_session_there_is_nothing_to_keep(
    core: Core, session_id: str
) -> None:
    gated(core, *([] if session_id else [EngineText("part")]))
    completion = core.start("one", session_id)
    await settle()
    await core.completions.cancel(CompletionRef(completion.id), keep_partial=True)
    await failed(completion, CompletionCancelled)
    if session_id:
        with pytest.raises(SessionNotFound):
            await core.sessions.get("s")


async def test_a_cancel_returns_when_the_turn_has_ended_and_comes_too_late_after_it(
    core: Core,
) -> None:
    gated(core, EngineText("part"))
    completion = core.start("one", request_id="r")
    await settle()
    await core.completions.cancel(CompletionRef(completion.id), keep_partial=False)
    assert core.completions.running == core.engine.running == 0
    await core.say("two", request_id="q")
    await core.completions.cancel(CompletionRef("", "s", "q"), keep_partial=False)
    assert await core.history() == ["two", "answer 2"]


# --- what is kept is bounded ----------------------------------------------------------------------


async def test_an_answer_too_large_for_its_log_leaves_finished_which_has_it_whole() -> None:
    core = Core(completion_policy=CompletionPolicy(max_log_bytes=2000))
    core.engine.scripts = [[EngineText("x" * 5000), done()]]
    completion = core.start("one")
    events = await collect(completion)
    finished = events[-1].event
    assert isinstance(finished, Finished)
    assert finished.message.content == "x" * 5000
    assert await resume(core, CompletionRef(completion.id)) == events[-1:]
    assert events[-1].sequence == 3


async def test_a_reader_whose_next_events_are_gone_waits_for_finished() -> None:
    core = Core(completion_policy=CompletionPolicy(max_log_bytes=700))
    gate = asyncio.Event()
    steps: list[Step] = []
    pauses = [asyncio.Event() for _ in range(10)]
    for pause in pauses:
        steps += [EngineText("x" * 100), pause]
    core.engine.scripts = [[*steps, gate, done()]]
    completion = core.start("one")
    reading = asyncio.create_task(collect(completion))
    for pause in pauses:
        await settle()
        pause.set()
    await settle()
    late = asyncio.create_task(resume(core, CompletionRef(completion.id)))
    await settle()
    assert not late.done()
    gate.set()
    events = await reading
    assert await late == events[-1:]
    assert [event.sequence for event in events] == [*range(1, 13)]
    assert await resume(core, CompletionRef(completion.id)) == events[-1:]
    await core.completions.drain(0)


async def test_all_logs_together_are_bounded_and_the_oldest_goes_first() -> None:
    """The floor for one ended completion is about 3,000 bytes beside its text."""
    core = Core(completion_policy=CompletionPolicy(max_logs_bytes=200_000))
    core.engine.scripts = [
        [EngineText(str(index) * 30_000), EngineUnavailable("gone")] for index in range(5)
    ]
    completions = []
    for index in range(5):
        completion = core.start(str(index), f"s{index}")
        await failed(completion, EngineUnavailable)
        completions.append(completion)
    kept = []
    for completion in completions:
        try:
            await resume(core, CompletionRef(completion.id))
        except RuvdError as error:
            kept.append(isinstance(error, EngineUnavailable))
    assert kept == sorted(kept)
    assert kept[-1]
    assert sum(
        each.log.size_bytes for each, held in zip(completions, kept, strict=True) if held
    ) <= (200_000)
