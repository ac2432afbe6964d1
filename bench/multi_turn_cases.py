"""The cases of `bench/multi_turn.py` without restarts; each returns its figures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path

from bench.conversation import user_messages
from bench.multi_turn_chats import (
    Chat,
    HttpChat,
    RuvdChat,
    full_history,
    history_in_system_prompt,
    rolling_window,
)
from bench.multi_turn_plan import Plan, compare_with_uncached, say_to_all, settle, workload
from bench.multi_turn_report import Case
from bench.multi_turn_servers import Shape, daemon, direct, hearth
from bench.runner import log_progress

_ANSWER_TOKENS = 256


async def warm(plan: Plan, folder: Path) -> Case:
    """Runs one conversation at a time on warm servers, alternating after each turn."""
    shape = Shape(2048, _ANSWER_TOKENS, 4)
    count, tokens = plan.warm_conversations, plan.answer_tokens
    case = Case("warm", workload(plan, shape, conversations=count, turns=plan.warm_turns))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(daemon(folder / "ruvd", shape, *plan.ruvd_flags))
        server = await stack.enter_async_context(direct(folder / "direct", shape))
        ruvd_chats: list[RuvdChat] = []
        for number in range(count):
            ruvd_chat = RuvdChat("ruvd", tokens, client, session=number)
            direct_chat = HttpChat("direct", tokens, server, full_history, session=number)
            for turn, text in enumerate(user_messages(number, plan.warm_turns), 1):
                log_progress(f"warm: conversation {number + 1} of {count}, turn {turn}")
                await say_to_all([ruvd_chat, direct_chat], text, turn)
            case.add(ruvd_chat, direct_chat)
            ruvd_chats.append(ruvd_chat)
        sent = [prompt for chat in ruvd_chats for prompt in chat.sent]
        await compare_with_uncached(case, plan, client, lambda: nullcontext(server), sent)
    own, other = case.total_ms("ruvd"), case.total_ms("direct")
    case.require("total time, as a multiple of direct's", own, other, 1.05)
    case.notes.append("a warm server with one conversation already has its prompt in the cache")
    return case


async def window(plan: Plan, folder: Path) -> Case:
    """Runs a conversation that outgrows the context, alternating after each turn."""
    shape, tokens = plan.window, plan.answer_tokens
    turns, pause = plan.window_turns, plan.pause_seconds
    case = Case("window", workload(plan, shape, turns=turns, pause_seconds=pause))
    flags = (
        "--keep-exchanges", str(plan.keep_exchanges), "--max-exchanges", str(plan.max_exchanges),
        *plan.ruvd_flags,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(daemon(folder / "ruvd", shape, *flags))
        server = await stack.enter_async_context(direct(folder / "direct", shape))
        ruvd_chat = RuvdChat("ruvd", tokens, client)
        direct_chat = HttpChat("direct", tokens, server, full_history, slot=0)
        chats: list[Chat] = [
            ruvd_chat,
            direct_chat,
            HttpChat("rolling", tokens, server, rolling_window, slot=1),
            HttpChat("original", tokens, server, history_in_system_prompt, slot=2),
        ]
        uncached = HttpChat("uncached", tokens, server, full_history, slot=3, cached=False)
        for number, text in enumerate(user_messages(0, turns), 1):
            log_progress(f"window: turn {number} of {turns}")
            if number in plan.uncached_turns:
                uncached.lines = list(direct_chat.lines)
                await uncached.say(text, number=number)
            await say_to_all(chats, text, number)
        paused = RuvdChat("ruvd, paused", tokens, client, session=1)
        for number, text in enumerate(user_messages(1, plan.paused_turns), 1):
            log_progress(f"window, with pauses: turn {number} of {plan.paused_turns}")
            await asyncio.sleep(pause)
            await paused.say(text)
        case.add(*chats, uncached, paused)
        sent = [*ruvd_chat.sent, *paused.sent]
        await compare_with_uncached(case, plan, client, lambda: nullcontext(server), sent)
    first = case.first_ms("ruvd")
    for name, limit in (("rolling", 1 / 3), ("original", 1 / 2)):
        what = f"time to first token, as a multiple of {name}'s"
        case.require(what, first, case.first_ms(name), limit)
    slowest = max((turn.first_ms for turn in case.counted("ruvd, paused")), default=None)
    what = "slowest first token with pauses from turn 2, as a multiple of the median"
    case.require(what, slowest, case.first_ms("ruvd, paused"), 2)
    return case


async def sessions(plan: Plan, folder: Path) -> Case:
    """Runs more conversations than there are slots.

    They are divided into blocks of as many conversations as there are slots. In each turn one
    approach runs a block, one conversation right after the other, then the next approach runs it.
    """
    shape, tokens = Shape(1024, _ANSWER_TOKENS, plan.session_slots), plan.answer_tokens
    turns = plan.session_turns
    case = Case("sessions", workload(plan, shape, sessions=plan.sessions, turns=turns))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(daemon(folder / "ruvd", shape, *plan.ruvd_flags))
        server = await stack.enter_async_context(direct(folder / "direct", shape))
        numbers = range(plan.sessions)
        blocks = [numbers[at : at + plan.session_slots] for at in numbers[:: plan.session_slots]]
        ruvd_chats = [RuvdChat("ruvd", tokens, client, session=number) for number in numbers]
        cached = direct(folder / "cached", shape, module="bench.llama_default_cache")
        http_servers = {
            "direct": server,
            "direct-8-GiB": await stack.enter_async_context(cached),
        }
        if plan.hearth:
            http_servers["hearth-llm"] = await stack.enter_async_context(
                hearth(folder / "hearth", shape, plan.hearth)
            )
        approaches: list[Sequence[Chat]] = [ruvd_chats]
        approaches += (
            [HttpChat(name, tokens, http, full_history, session=number) for number in numbers]
            for name, http in http_servers.items()
        )
        texts = [user_messages(number, turns, long_opening=True) for number in numbers]
        for turn in range(turns):
            log_progress(f"sessions: turn {turn + 1} of {turns}")
            for at, block in enumerate(blocks):
                for chats in approaches if (turn + at) % 2 == 0 else approaches[::-1]:
                    for number in block:
                        await chats[number].say(texts[number][turn])
                    await settle()
        for chats in approaches:
            case.add(*chats)
        last = [chat.sent[-1] for chat in ruvd_chats if chat.sent]
        await compare_with_uncached(case, plan, client, lambda: nullcontext(server), last)
    first = case.first_ms("ruvd")
    for name in http_servers:
        what = f"time to first token from turn 2, as a multiple of {name}'s"
        case.require(what, first, case.first_ms(name), 0.4)
    if plan.hearth:
        case.note_unbuffered("hearth-llm")
    case.require("share of cached tokens from turn 2", case.cached("ruvd"), 1.0, 0.9, at_least=True)
    what = "time to first token of first turns, as a multiple of direct's"
    case.require(what, case.first_turn_ms("ruvd"), case.first_turn_ms("direct"), 1.0)
    return case
