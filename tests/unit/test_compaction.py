"""Summaries and pinned exchanges: what the prompt has, what is stored, and that nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from core import Core, collect, settle
from fakes import Step, done
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvd.core.completions.compaction_calls import CompactionCalls
from ruvd.core.completions.compactor import CompactionPolicy, Compactor
from ruvd.core.errors import EngineUnavailable, InvalidRequest, SessionBusy, SessionNotFound
from ruvd.core.model import (
    Compaction,
    ContextWindow,
    Exchange,
    IfBusy,
    Message,
    Rendering,
    Role,
    Session,
    Started,
    ToolCallDelta,
)
from ruvd.core.options import CompletionOptions, Tool, ToolChoiceMode
from ruvd.core.ports.engine import EngineText
from ruvd.core.sessions import compaction, pins, window
from ruvd.core.sessions.commands import NewFork, SessionChanges
from ruvd.core.sessions.model import NewMessages, NewSession, SessionPolicy
from ruvd.core.summaries import Summary

SUMMARIES = ContextWindow(1, 4, compaction=Compaction.SUMMARY)


@dataclass
class Compacting(Core):
    """A core with summaries, which are made by calls."""

    policy: SessionPolicy = field(default=SessionPolicy(context_window=SUMMARIES))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.compactor = Compactor(
            self.sessions, self.engine, self.clock, self.observe, CompactionPolicy()
        )
        self.compactions = CompactionCalls(self.sessions, self.compactor, self.completions)
        self.observers.append(self.compactions)

    async def talk(self, *texts: str, session_id: str = "s") -> None:
        for text in texts:
            self.engine.scripts.append([EngineText(f"re {text}"), done()])
            await self.say(text, session_id)

    async def compact(self, text: str = "SUM", session_id: str = "s") -> int:
        self.engine.scripts.append([EngineText(text), done()])
        outcome = await self.compactions.compact(session_id, dry_run=False)
        if not outcome.summarized:
            self.engine.scripts.pop()
        return outcome.summarized

    async def session(self, session_id: str = "s") -> Session:
        session = await self.store.get(session_id)
        assert session is not None
        return session


def user(text: str, *, pinned: bool = False) -> Message:
    return Message(Role.USER, text, pinned=pinned)


def answer(text: str) -> Message:
    return Message(Role.ASSISTANT, text)


def talked(*texts: str) -> list[Exchange]:
    return [(user(text), answer(f"re {text}")) for text in texts]


def session_of(exchanges: Sequence[Exchange], context: ContextWindow, **fields: object) -> Session:
    made = Session("s", 0, 0, 9, system_prompt="be kind", context_window=context)
    return replace(
        made,
        message_count=sum(map(len, exchanges)),
        exchange_count=len(exchanges),
        **fields,  # type: ignore[arg-type]
    )


# --- off ------------------------------------------------------------------------------------------


@given(
    st.integers(0, 12),
    st.integers(0, 5),
    st.integers(0, 8),
    st.sampled_from(["", "be kind"]),
    st.sampled_from(list(Rendering)),
)
def test_without_compaction_and_pins_a_prompt_is_what_it_was(
    count: int, keep: int, most: int, system_prompt: str, rendering: Rendering
) -> None:
    exchanges = talked(*(f"text {number}" for number in range(count)))
    context = ContextWindow(min(keep, most or keep), most, rendering=rendering)
    session = replace(session_of(exchanges, context), system_prompt=system_prompt)
    planned = window.plan(session, exchanges, [user("new")], default_max_tokens=None)
    sent = exchanges
    if most and count > most:
        sent = exchanges[count - context.keep_exchanges :]
    system, history = session.system_prompt, [each for exchange in sent for each in exchange]
    if rendering is Rendering.TRANSCRIPT and history:
        names = {Role.USER: "User", Role.ASSISTANT: "Assistant"}
        lines = [f"{names[message.role]}: {message.content}" for message in history]
        text = "\n".join(["Previous conversation context:", *lines])
        system, history = f"{system}\n\n{text}" if system else text, []
    expected = [*([Message(Role.SYSTEM, system)] if system else []), *history, user("new")]
    assert list(planned.messages) == expected
    assert not planned.summarized
    assert planned.pinned == ()
    assert not compaction.is_due(session, default_max_tokens=1)


# --- the prompt -----------------------------------------------------------------------------------


async def test_the_summary_is_between_the_pinned_exchanges_and_those_kept() -> None:
    context = replace(SUMMARIES, keep_first=1)
    core = Compacting(policy=SessionPolicy(context_window=context))
    await core.commands.create(NewSession("s", "be kind"))
    await core.talk("a", "b", "c", "d")
    assert await core.compact() == 3
    await core.talk("e")
    *asked, last = core.prompts()[-2:]
    assert asked[0][:-1] == ["be kind", *(f"{r}{t}" for t in "abcd" for r in ("", "re "))]
    system, first, reply, summary, understood, *kept = last
    assert [system, first, reply, *kept] == ["be kind", "a", "re a", "d", "re d", "e"]
    assert summary.endswith("SUM")
    assert understood
    sent = core.engine.requests[-1].messages
    assert [message.role for message in sent[1:]] == [Role.USER, Role.ASSISTANT] * 3 + [Role.USER]
    events = await collect(core.start("f"))
    assert isinstance(events[0].event, Started)
    assert events[0].event.context_summarized


async def test_a_pinned_message_is_sent_after_every_trim_and_compaction() -> None:
    core = Compacting()
    await core.say(messages=(user("remember me", pinned=True),))
    for number in range(14):
        await core.talk(f"t{number}")
        if number % 5 == 4:
            await core.compact()
        assert core.prompts()[-1].count("remember me") <= 1
    await core.say("and now?")
    assert core.prompts()[-1][0] == "remember me"
    assert core.prompts()[-1].count("remember me") == 1


async def test_a_session_may_have_64_pinned_exchanges_and_no_more() -> None:
    core = Compacting()
    for number in range(pins.MAX_PINNED_EXCHANGES):
        await core.say(messages=(user(f"p{number}", pinned=True),))
    with pytest.raises(InvalidRequest, match="64 pinned"):
        await core.say(messages=(user("more", pinned=True),))
    with pytest.raises(InvalidRequest, match="64 pinned"):
        await core.commands.append("s", [user("more", pinned=True)])
    await core.say("not pinned")
    assert len(core.prompts()[-1]) == 2 * pins.MAX_PINNED_EXCHANGES + 1


async def test_a_tool_call_and_its_result_stay_together() -> None:
    core = Compacting()
    call: list[Step] = [ToolCallDelta(0, "c1", "f", "{}"), done()]
    await core.talk("a", "b", "c")
    core.engine.scripts.append(call)
    await core.say("use the tool")
    assert await core.compact() == 3  # the open call stays, and is not in the summary's source
    assert "use the tool" not in core.prompts()[-1]
    core.engine.scripts.append([EngineText("used"), done()])
    await core.say(messages=(Message(Role.TOOL, "result", tool_call_id="c1"),))
    assert core.prompts()[-1][2:] == ["use the tool", "", "result"]
    pinned = user("pinned call", pinned=True)
    core.engine.scripts.append(call)
    await core.say(messages=(pinned,))
    core.engine.scripts.append([EngineText("used"), done()])
    await core.say(messages=(Message(Role.TOOL, "result 2", tool_call_id="c1"),))
    await core.talk("d", "e")
    await core.compact()
    await core.say("last")
    assert core.prompts()[-1][:4] == ["pinned call", "", "result 2", "used"]


async def test_a_transcript_has_the_summary_as_one_of_its_entries() -> None:
    context = replace(SUMMARIES, rendering=Rendering.TRANSCRIPT)
    core = Compacting(policy=SessionPolicy(context_window=context))
    await core.talk("a", "b", "c")
    await core.compact("one\ntwo")
    await core.say("d")
    assert core.prompts()[-1] == [
        "Previous conversation context:\nSummary: one\n> two\nUser: c\nAssistant: re c",
        "d",
    ]


# --- making summaries -----------------------------------------------------------------------------


async def test_a_second_summary_is_made_from_the_first_and_the_exchanges_since() -> None:
    core = Compacting()
    await core.talk("a", "b", "c")
    await core.compact("first")
    await core.talk("d", "e")
    assert await core.compact("second") == 2
    summary, _, *since, _ask = core.prompts()[-1]
    assert summary.endswith("first")
    assert since == ["c", "re c", "d", "re d", "e", "re e"]
    session = await core.session()
    assert session.summary == Summary("second", 4)
    assert session.compactions == 2
    assert session.window_start == 4
    assert len(await core.history()) == 10


async def test_the_next_summary_covers_what_a_trim_left_out() -> None:
    core = Compacting()
    await core.talk("a", "b", "c", "d", "e", "f")  # the sixth one trims
    session = await core.session()
    assert session.window_start == 4
    assert session.summary is None
    assert core.compactor.is_due(session)
    await core.compact()
    assert core.prompts()[-1][:-1] == [f"{r}{t}" for t in "abcdef" for r in ("", "re ")]
    assert (await core.session()).summary == Summary("SUM", 5)


async def test_the_request_for_a_summary_has_the_tools_of_the_last_turn() -> None:
    core = Compacting()
    options = CompletionOptions(tools=(Tool("f"),), temperature=0.3, stop=("x",), max_tokens=9)
    await core.talk("a", "b")
    await core.say("c", options=options)
    await core.compactions.compact("s", dry_run=False)
    asked = core.engine.requests[-1]
    assert asked.session_key == "s"
    assert asked.options.tools == options.tools
    assert asked.options.tool_choice is ToolChoiceMode.NONE
    assert (asked.options.max_tokens, asked.options.stop) == (64, ())
    assert asked.options.temperature == 0.3


async def test_the_instruction_of_a_session_is_part_of_the_request() -> None:
    core = Compacting()
    await core.talk("a", "b", "c")
    await core.commands.update("s", SessionChanges(compaction_instruction="Keep order numbers."))
    await core.compact()
    assert core.prompts()[-1][-1].endswith("Keep order numbers.")


async def test_a_dry_run_asks_for_nothing_and_changes_nothing() -> None:
    core = Compacting()
    await core.talk("a", "b", "c")
    before = await core.session()
    outcome = await core.compactions.compact("s", dry_run=True)
    assert (outcome.summarized, outcome.kept, outcome.after_bytes) == (2, 1, None)
    assert await core.session() == before
    assert len(core.engine.requests) == 3


async def test_there_is_nothing_to_summarise_in_a_short_or_summarised_session() -> None:
    core = Compacting()
    await core.talk("a")
    assert await core.compact() == 0
    await core.talk("b", "c")
    assert await core.compact() == 2
    assert await core.compact() == 0
    with pytest.raises(SessionNotFound):
        await core.compact(session_id="unknown")


@pytest.mark.parametrize(
    "script", [[done()], [EngineUnavailable("down")], [EngineText(" "), done()]]
)
async def test_a_request_that_fails_leaves_the_session_as_it_was(script: list[Step]) -> None:
    core = Compacting()
    await core.talk("a", "b", "c")
    before = await core.session()
    core.engine.scripts.append(script)
    with pytest.raises(EngineUnavailable):
        await core.compactions.compact("s", dry_run=False)
    assert await core.session() == before
    assert not core.sessions.turn_queue.in_use()


async def test_a_turn_that_was_committed_meanwhile_is_kept() -> None:
    core = Compacting()
    await core.talk("a", "b", "c")
    may_end = asyncio.Event()
    core.engine.scripts.append([may_end, EngineText("SUM"), done()])
    compacting = asyncio.create_task(core.compactions.compact("s", dry_run=False))
    await settle()
    assert len(core.engine.requests) == 4
    await core.talk("d")  # nobody waits for the summary
    may_end.set()
    await compacting
    session = await core.session()
    assert (session.exchange_count, session.window_start) == (4, 2)
    assert session.summary == Summary("SUM", 2)
    await core.say("e")
    assert core.prompts()[-1][2:] == ["c", "re c", "d", "re d", "e"]


async def test_only_one_of_two_summaries_of_the_same_history_is_stored() -> None:
    core = Compacting()
    await core.talk("a", "b", "c")
    source = await core.compactor.read("s")
    plan = core.compactor.plan(source, is_asked_for=True)
    assert plan is not None
    options = CompletionOptions()
    written = await core.compactor.write(core.compactor.request(source.session, plan, options))
    await core.compactor.store(source.session, plan, written, options, IfBusy.QUEUE)
    stored = await core.session()
    with pytest.raises(SessionBusy):
        await core.compactor.store(source.session, plan, written, options, IfBusy.QUEUE)
    assert await core.session() == stored


async def test_a_summary_is_no_use_of_the_session() -> None:
    core = Compacting()
    await core.talk("a", "b", "c")
    used = (await core.session()).last_used_time
    core.clock.advance(600)
    await core.compact()
    assert (await core.session()).last_used_time == used


# --- the client's own summaries -------------------------------------------------------------------


async def test_a_client_may_give_a_summary_of_its_own() -> None:
    core = Compacting(policy=SessionPolicy(context_window=ContextWindow(1, 4)))
    await core.talk("a", "b", "c")
    await core.commands.add("s", NewMessages(summary="MINE", request_id="r"))
    await core.commands.add("s", NewMessages(summary="MINE", request_id="r"))
    session = await core.session()
    assert (session.summary, session.compactions) == (Summary("MINE", 2), 1)
    await core.say("d")
    assert core.prompts()[-1][2:] == ["c", "re c", "d"]
    assert core.prompts()[-1][0].endswith("MINE")
    with pytest.raises(InvalidRequest):
        await core.commands.add("s", NewMessages(summary="no", summary_exchange_count=9))


async def test_a_session_may_begin_with_a_summary_of_what_is_elsewhere() -> None:
    core = Compacting()
    await core.commands.create(NewSession("s", summary="EARLIER"))
    await core.say("hi")
    assert core.prompts()[-1][0].endswith("EARLIER")
    assert core.prompts()[-1][2:] == ["hi"]


# --- forks and changed windows --------------------------------------------------------------------


async def test_a_fork_inherits_the_summary_unless_that_tells_of_later_exchanges() -> None:
    core = Compacting()
    await core.say(messages=(user("p", pinned=True),))
    await core.talk("b", "c", "d")
    await core.compact()
    whole = (await core.commands.fork(NewFork("s", session_id="whole"))).session
    assert (whole.summary, whole.window_start, whole.compactions) == (Summary("SUM", 3), 3, 1)
    await core.say("x", "whole")
    await core.say("x", "s")
    assert core.prompts()[-1] == core.prompts()[-2]
    early = (await core.commands.fork(NewFork("s", 2, "early"))).session
    assert early.summary is None
    await core.say("x", "early")
    assert core.prompts()[-1] == ["p", "answer 1", "b", "re b", "x"]


async def test_a_wider_window_sends_the_history_again_and_no_pinned_exchange_twice() -> None:
    core = Compacting()
    await core.say(messages=(user("p", pinned=True),))
    await core.talk("b", "c", "d")
    await core.compact()
    await core.commands.update("s", SessionChanges(context_window=ContextWindow(3, 0)))
    await core.say("x")
    assert core.prompts()[-1] == ["p", "answer 1", "b", "re b", "c", "re c", "d", "re d", "x"]


async def test_first_exchanges_that_have_left_the_window_are_sent_once_they_are_asked_for() -> None:
    core = Compacting()
    await core.talk("a", "b", "c", "d")
    await core.compact()
    for first, sent in ((2, ["a", "re a", "b", "re b"]), (1, ["a", "re a"]), (0, [])):
        changed = replace(SUMMARIES, keep_first=first)
        await core.commands.update("s", SessionChanges(context_window=changed))
        state = await core.session()
        pinned = await core.sessions.reads.pinned(state)
        assert [each.content for exchange in pinned for each in exchange] == sent


# --- any sequence of steps ------------------------------------------------------------------------

STEP = st.sampled_from(
    ["turn", "turn", "turn", "pin", "tool", "compact", "late", "fork", "widen", "restart"]
)


class Checked(Compacting):
    """Keeps the source of each summary as the numbers of the exchanges in it."""

    covered: dict[str, set[int]]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.covered = {"s": set()}

    async def check(self, name: str) -> None:
        """A prompt has every pinned message and whole exchanges, and lost is what no trim left."""
        session = await self.session(name)
        history = await self.store.exchanges(name, 0)
        plan = window.plan(
            session,
            history[session.window_start :],
            [user("next")],
            default_max_tokens=None,
            pinned=await self.sessions.reads.pinned(session),
        )
        sent = [message.content for message in plan.messages]
        texts = [[message.content for message in exchange] for exchange in history]
        whole = {
            number
            for number, each in enumerate(texts)
            if any(sent[at : at + len(each)] == each for at in range(len(sent)))
        }
        for number, exchange in enumerate(history):
            if any(message.pinned for message in exchange):
                assert number in whole, "a pinned message is not sent"
            present = [text for text in texts[number] if text in sent]
            assert present in ([], texts[number]), "an exchange is cut"
        assert sent.count("next") == 1
        assert len(set(sent)) == len(sent), "a message is sent twice"
        lost = set(range(session.exchange_count)) - whole - self.covered[name]
        assert all(number >= compaction.source_start(session) for number in lost)
        if lost:
            assert self.compactor.is_due(replace(session, window_start=plan.start))


@settings(max_examples=120, deadline=None)
@given(st.lists(STEP, min_size=4, max_size=24), st.integers(0, 2), st.integers(0, 2))
def test_nothing_is_lost_whatever_turns_trims_compactions_forks_and_restarts_come(
    steps: list[str], keep: int, first: int
) -> None:
    async def run() -> None:
        context = ContextWindow(keep, 4, compaction=Compaction.SUMMARY, keep_first=first)
        core = Checked(policy=SessionPolicy(context_window=context))
        name = "s"
        for number, step in enumerate(["turn", *steps]):
            text = f"{name} {number}"
            script: list[Step] = [EngineText(f"re {text}"), done()]
            if step == "tool":
                calls: list[Step] = [
                    EngineText(f"calls {text}"),
                    ToolCallDelta(0, "c", "f", "{}"),
                    done(),
                ]
                core.engine.scripts += [calls, script]
                await core.say(text, name)
                await core.check(name)
                result = Message(Role.TOOL, f"result {text}", tool_call_id="c")
                await core.say(messages=(result,), session_id=name)
            elif step in ("turn", "pin"):
                core.engine.scripts.append(script)
                await core.say(messages=(user(text, pinned=step == "pin"),), session_id=name)
            elif step == "fork":
                kept = (await core.session(name)).exchange_count - number % 3
                child = f"f{number}"
                await core.commands.fork(NewFork(name, max(1, kept), child))
                forked = await core.session(child)
                core.covered[child] = core.covered[name] if forked.summary else set()
                name = child
            elif step == "restart":
                covered = core.covered
                core = Checked(core.engine, core.clock, core.policy, store=core.store)
                core.covered = covered
            elif step == "widen":
                wide = replace(context, max_exchanges=4 + number % 3)
                await core.commands.update(name, SessionChanges(context_window=wide))
            else:
                await summarise(core, name, late=step == "late", text=text)
            await core.check(name)

    asyncio.run(run())


async def summarise(core: Checked, name: str, *, late: bool, text: str) -> None:
    """Makes a summary; a `late` one is stored after one more turn."""
    source = await core.compactor.read(name)
    plan = core.compactor.plan(source, is_asked_for=True)
    if plan is None:
        return
    options = CompletionOptions()
    core.engine.scripts.append([EngineText(f"summary {text}"), done()])
    written = await core.compactor.write(core.compactor.request(source.session, plan, options))
    asked = {message.content for message in plan.messages}
    for number, exchange in enumerate(await core.store.exchanges(name, 0)):
        if all(message.content in asked for message in exchange):
            core.covered[name] = core.covered[name] | {number}
    if late:
        core.engine.scripts.append([EngineText(f"re late {text}"), done()])
        await core.say(f"late {text}", name)
    await core.compactor.store(source.session, plan, written, options, IfBusy.QUEUE)
