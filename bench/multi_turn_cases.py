"""The cases of `bench/multi_turn.py` in which no server is restarted; each returns its figures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path

from bench.conversation import talk
from bench.multi_turn_chats import Chat, HttpChat, RuvdChat, original, rolling, whole
from bench.multi_turn_plan import (
    Plan,
    check,
    daemon,
    direct,
    hearth,
    settle,
    tell,
    turn_of_all,
    workload,
)
from bench.multi_turn_report import Case
from bench.multi_turn_servers import Shape

_ANSWER_ROOM = 256


async def warm(plan: Plan, folder: Path) -> Case:
    """Nothing to gain: one conversation at a time, alternately, turn by turn."""
    shape = Shape(2048, _ANSWER_ROOM, 4)
    case = Case("warm", workload(plan, shape, conversations=plan.warm_talks, turns=plan.warm_turns))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(daemon(plan, folder, shape))
        server = await stack.enter_async_context(direct(folder, shape))
        talks: list[RuvdChat] = []
        for number in range(plan.warm_talks):
            mine = RuvdChat("ruvd", plan.answer_tokens, client, session=number)
            its = HttpChat("direct", plan.answer_tokens, server, whole, session=number)
            for turn, text in enumerate(talk(number, plan.warm_turns), 1):
                tell(f"warm: conversation {number + 1} of {plan.warm_talks}, turn {turn}")
                await turn_of_all([mine, its], text, turn)
            case.add(mine, its)
            talks.append(mine)
        sent = [each for chat in talks for each in chat.sent]
        await check(case, plan, client, lambda: nullcontext(server), sent)
    case.require("total time, of direct's", case.whole("ruvd"), case.whole("direct"), 1.05)
    case.notes.append("a warm server with one conversation already has what a session gives")
    return case


async def window(plan: Plan, folder: Path) -> Case:
    """A conversation that outgrows its window: the ways to cut it, alternately, turn by turn."""
    shape, tokens = plan.window, plan.answer_tokens
    case = Case(
        "window",
        workload(plan, shape, turns=plan.window_turns, pause_seconds=plan.pause_seconds),
    )
    limits = (
        "--keep-exchanges", str(plan.keep_exchanges), "--max-exchanges", str(plan.max_exchanges),
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(daemon(plan, folder, shape, *limits))
        server = await stack.enter_async_context(direct(folder, shape))
        mine = RuvdChat("ruvd", tokens, client)
        everything = HttpChat("direct", tokens, server, whole, slot=0)
        chats: list[Chat] = [
            mine,
            everything,
            HttpChat("rolling", tokens, server, rolling, slot=1),
            HttpChat("original", tokens, server, original, slot=2),
        ]
        cold = HttpChat("uncached", tokens, server, whole, slot=3, cached=False)
        for number, text in enumerate(talk(0, plan.window_turns), 1):
            tell(f"window: turn {number} of {plan.window_turns}")
            if number in plan.uncached_turns:
                cold.lines = list(everything.lines)
                await cold.say(text, number=number)
            await turn_of_all(chats, text, number)
        paused = RuvdChat("ruvd, paused", tokens, client, session=1)
        for number, text in enumerate(talk(1, plan.paused_turns), 1):
            tell(f"window, with pauses: turn {number} of {plan.paused_turns}")
            await asyncio.sleep(plan.pause_seconds)
            await paused.say(text)
        case.add(*chats, cold, paused)
        sent = [*mine.sent, *paused.sent]
        await check(case, plan, client, lambda: nullcontext(server), sent)
    first = case.first("ruvd")
    case.require("first token, of rolling's", first, case.first("rolling"), 1 / 3)
    case.require("first token, of the original design's", first, case.first("original"), 1 / 2)
    slowest = max((turn.first_ms for turn in case.counted("ruvd, paused")), default=None)
    case.require(
        "slowest turn with pauses from turn 2, of the median",
        slowest,
        case.first("ruvd, paused"),
        2,
    )
    return case


async def sessions(plan: Plan, folder: Path) -> Case:
    """More conversations than slots, by turns: the same turn of as many as there are slots, one
    right after the other, in one way, then in the next, and so on with the others."""
    shape, tokens = Shape(1024, _ANSWER_ROOM, plan.session_slots), plan.answer_tokens
    case = Case(
        "sessions",
        workload(plan, shape, sessions=plan.sessions, turns=plan.session_turns),
    )
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(daemon(plan, folder, shape))
        server = await stack.enter_async_context(direct(folder, shape))
        numbers = range(plan.sessions)
        some = [numbers[at : at + plan.session_slots] for at in numbers[:: plan.session_slots]]
        mine = [RuvdChat("ruvd", tokens, client, session=number) for number in numbers]
        ways: list[Sequence[Chat]] = [
            mine,
            [HttpChat("direct", tokens, server, whole, session=number) for number in numbers],
        ]
        if plan.hearth:
            proxy = await stack.enter_async_context(hearth(plan.hearth, folder, shape))
            ways.append(
                [HttpChat("hearth-llm", tokens, proxy, whole, session=each) for each in numbers]
            )
        texts = [talk(number, plan.session_turns, opened=True) for number in numbers]
        for turn in range(plan.session_turns):
            tell(f"sessions: turn {turn + 1} of {plan.session_turns}")
            for at, block in enumerate(some):
                for chats in ways if (turn + at) % 2 == 0 else ways[::-1]:
                    for number in block:
                        await chats[number].say(texts[number][turn])
                    await settle()
        for chats in ways:
            case.add(*chats)
        last = [chat.sent[-1] for chat in mine if chat.sent]
        await check(case, plan, client, lambda: nullcontext(server), last)
    first = case.first("ruvd")
    case.require("first token from turn 2, of direct's", first, case.first("direct"), 0.4)
    if plan.hearth:
        case.require(
            "first token from turn 2, of hearth-llm's", first, case.first("hearth-llm"), 0.4
        )
        case.note_unheld("hearth-llm")
    case.require("cached tokens from turn 2", case.cached("ruvd"), 1.0, 0.9, at_least=True)
    case.require("first turns, of direct's", case.opening("ruvd"), case.opening("direct"), 1.0)
    return case
