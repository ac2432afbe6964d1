"""Tool calls and reasoning in the core: gathered, committed, answered, never separated."""

from __future__ import annotations

import asyncio

import pytest
from core import Core, collect, failed, settle
from fakes import done

from ruvd.core.completions.event_log import EventLog
from ruvd.core.errors import CompletionCancelled, InvalidRequest
from ruvd.core.model import (
    CompletionEvent,
    ContextWindow,
    Delta,
    Finished,
    FinishReason,
    IfBusy,
    Message,
    Rendering,
    Role,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from ruvd.core.options import CompletionOptions, Tool, ToolChoiceMode
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineReasoning, EngineText
from ruvd.core.sessions.model import NewSession, SessionPolicy

CALLS: list[EngineChunk] = [
    EngineReasoning("I need "),
    EngineReasoning("the weather."),
    EngineText("One moment."),
    ToolCallDelta(0, "call_a", "weather", ""),
    ToolCallDelta(0, arguments='{"city": '),
    ToolCallDelta(0, arguments='"Bern"}'),
    ToolCallDelta(1, "call_b", "time", "{"),
    ToolCallDelta(1, arguments="}"),
    EngineDone(FinishReason.TOOL_CALLS, Usage(10, 0, 9)),
]
ANSWER = Message(
    Role.ASSISTANT,
    "One moment.",
    (ToolCall("call_a", "weather", '{"city": "Bern"}'), ToolCall("call_b", "time", "{}")),
    reasoning="I need the weather.",
)


def result(call_id: str, content: str = "12 degrees") -> Message:
    return Message(Role.TOOL, content, tool_call_id=call_id)


@pytest.fixture
def core() -> Core:
    core = Core()
    core.engine.scripts = [CALLS]
    return core


async def test_deltas_gather_by_what_they_are_of_and_a_tool_call_begins_one_of_its_own() -> None:
    log = EventLog(1 << 20)
    log.append_reasoning("a")
    log.append_reasoning("b")
    log.append_text("c")
    log.append_tool_call(ToolCallDelta(0, "i", "n"))
    log.append_tool_call(ToolCallDelta(0, arguments="x"))
    log.append_tool_call(ToolCallDelta(0, arguments="y"))
    log.append_tool_call(ToolCallDelta(1, "j", "n", "z"))
    log.append_text("d")
    log.close()
    deltas = [
        Delta(reasoning="ab"),
        Delta("c"),
        Delta(tool_call=ToolCallDelta(0, "i", "n", "xy")),
        Delta(tool_call=ToolCallDelta(1, "j", "n", "z")),
        Delta("d"),
    ]
    for number, delta in enumerate(deltas):
        assert await log.next(number) == CompletionEvent(number + 1, delta)
    assert await log.next(len(deltas)) is None


async def test_a_delta_that_a_reader_took_goes_on_in_the_next(core: Core) -> None:
    log = EventLog(1 << 20)
    log.append_tool_call(ToolCallDelta(0, "i", "n", "x"))
    first = Delta(tool_call=ToolCallDelta(0, "i", "n", "x"))
    assert await log.next(0) == CompletionEvent(1, first)
    log.append_tool_call(ToolCallDelta(0, arguments="y"))
    then = Delta(tool_call=ToolCallDelta(0, arguments="y"))
    assert await log.next(1) == CompletionEvent(2, then)


async def test_call_result_and_answer_are_one_exchange_and_the_engine_sees_all_of_it(
    core: Core,
) -> None:
    finished = await core.say("What is it like in Bern?")
    assert finished.message == ANSWER
    assert finished.finish_reason is FinishReason.TOOL_CALLS
    finished = await core.say(messages=(result("call_b", "noon"), result("call_a")))
    assert finished.exchange_count == 1
    said = core.engine.requests[-1].messages
    assert said == (
        Message(Role.USER, "What is it like in Bern?"),
        ANSWER,  # with its reasoning, which some servers need back with the results
        result("call_b", "noon"),
        result("call_a"),
    )
    state = await core.sessions.history("s")
    assert [m.role for m in state.messages or ()] == [
        Role.USER,
        Role.ASSISTANT,
        Role.TOOL,
        Role.TOOL,
        Role.ASSISTANT,
    ]


async def test_results_may_come_with_a_new_question(core: Core) -> None:
    await core.say()
    asked = Message(Role.USER, "And tomorrow?")
    finished = await core.say(messages=(result("call_a"), result("call_b"), asked))
    assert finished.exchange_count == 2


@pytest.mark.parametrize(
    "messages",
    [
        (result("call_c"),),
        (result("call_a"), result("call_a")),
        (Message(Role.USER, "never mind"), result("call_a")),
    ],
    ids=["unknown", "twice", "too late"],
)
@pytest.mark.parametrize("if_busy", [IfBusy.QUEUE, IfBusy.INTERRUPT])
async def test_a_result_that_answers_no_open_call_is_refused_and_changes_nothing(
    core: Core, messages: tuple[Message, ...], if_busy: IfBusy
) -> None:
    await core.say()
    before = await core.history()
    with pytest.raises(InvalidRequest) as refused:
        await core.say(messages=messages, if_busy=if_busy)
    (violation,) = refused.value.violations
    assert violation.field == f"messages[{len(messages) - 1}].tool_call_id"
    assert await core.history() == before
    assert len(core.engine.requests) == 1


async def test_results_are_checked_wherever_messages_come_in(core: Core) -> None:
    wrong = (result("call_a"),)
    for session_id in ("", "new"):
        await failed(core.start(session_id=session_id, messages=wrong), InvalidRequest)
    with pytest.raises(InvalidRequest):
        await core.commands.create(NewSession(session_id="x", messages=wrong))
    await core.say()
    with pytest.raises(InvalidRequest):
        await core.commands.append("s", (result("call_c"),))
    await core.commands.append("s", (result("call_a"),))
    await core.commands.append("s", (result("call_b"),))
    finished = await core.say(messages=())
    assert (finished.message.content, finished.exchange_count) == ("answer 2", 1)


async def test_a_stateless_call_may_bring_call_and_result(core: Core) -> None:
    await core.say(
        session_id="",
        messages=(Message(Role.USER, "?"), ANSWER, result("call_a"), result("call_b")),
    )
    assert len(core.engine.requests[0].messages) == 4


@pytest.mark.parametrize("rendering", list(Rendering))
async def test_a_trim_never_parts_a_result_from_its_call(rendering: Rendering) -> None:
    window = ContextWindow(keep_exchanges=0, max_exchanges=1, rendering=rendering)
    core = Core(policy=SessionPolicy(context_window=window))
    core.engine.scripts = [[EngineText("a"), done()], [EngineText("b"), done()], CALLS]
    for text in ("one", "two", "three"):
        await core.say(text)
    await core.say(messages=(result("call_a"), result("call_b")))
    sent = core.engine.requests[-1].messages
    assert [m.role for m in sent][-4:] == [Role.USER, Role.ASSISTANT, Role.TOOL, Role.TOOL]
    assert sent[-3].tool_calls == ANSWER.tool_calls
    assert sent[-4].content == "three"


async def test_a_transcript_names_the_calls(core: Core) -> None:
    core = Core(policy=SessionPolicy(context_window=ContextWindow(rendering=Rendering.TRANSCRIPT)))
    core.engine.scripts = [CALLS]
    await core.say("Bern?")
    await core.say(messages=(result("call_a"), result("call_b", "noon")))
    await core.say("Thanks")
    transcript = core.engine.requests[-1].messages[0].content
    assert 'Assistant: One moment. [calls weather({"city": "Bern"})] [calls time({})]' in transcript
    assert "Tool: noon" in transcript
    assert "I need the weather." not in transcript


async def test_of_half_a_tool_call_nothing_is_kept(core: Core) -> None:
    core.engine.scripts = [[ToolCallDelta(0, "i", "n", "{"), asyncio.Event()]]
    completion = core.start()
    await settle()
    completion.cancel(CompletionCancelled("stop"), keep_partial=True)
    await failed(completion, CompletionCancelled)
    core.engine.scripts = [[EngineText("Well"), ToolCallDelta(0, "i", "n", "{"), asyncio.Event()]]
    completion = core.start()
    await settle()
    completion.cancel(CompletionCancelled("stop"), keep_partial=True)
    finished = (await collect(completion))[-1].event
    assert isinstance(finished, Finished)
    assert finished.message == Message(Role.ASSISTANT, "Well")


async def test_reasoning_is_output_so_it_ends_the_wait_for_the_first_token(core: Core) -> None:
    gate = asyncio.Event()
    core.engine.scripts = [[EngineReasoning("hm"), gate, EngineText("yes"), done()]]
    completion = core.start()
    await settle()
    core.clock.advance(5)
    gate.set()
    finished = (await collect(completion))[-1].event
    assert isinstance(finished, Finished)
    assert finished.timings.time_to_first_token_seconds == 0
    assert finished.message.reasoning == "hm"


async def test_other_tools_make_another_request(core: Core) -> None:
    def digest(**options: object) -> bytes:
        asked = CompletionOptions(**options)  # type: ignore[arg-type]
        return core.start(session_id="", options=asked, request_id=str(options)).digest

    digests = [
        digest(),
        digest(tools=(Tool("a"),)),
        digest(tools=(Tool("a", parameters="{}"),)),
        digest(tools=(Tool("auto"),), tool_choice="auto"),
        digest(tools=(Tool("auto"),), tool_choice=ToolChoiceMode.AUTO),
        digest(parallel_tool_calls=False),
        digest(parallel_tool_calls=True),
        digest(extra_body={"a": {"b": 1, "c": 2}}),
        digest(logit_bias={1: 2.0}),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(extra_body={"a": {"c": 2, "b": 1}}) == digests[7]
    assert digest(temperature=None) == digests[0]
    await settle()
