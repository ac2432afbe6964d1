"""The case of `bench/multi_turn.py` in which each turn is that of a new process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
from ruvd_client import ContextWindow, Message

from bench.conversation import SYSTEM_PROMPT, past, question
from bench.multi_turn_chats import ROLES, Chat, HandChat, HttpChat, Line, RuvdChat, whole
from bench.multi_turn_plan import Plan, check, daemon, direct, hearth, made, tell, workload
from bench.multi_turn_report import Case
from bench.multi_turn_servers import Shape


@dataclass
class _Lived:
    """A way over several lives of its server; `life` is one, and tells the chat whom to ask."""

    chat: Chat
    life: Callable[[], AbstractAsyncContextManager[None]]
    settle_seconds: float
    ready_seconds: list[float] = field(default_factory=list)
    stop_seconds: list[float] = field(default_factory=list)

    async def live(self, then: Callable[[], Awaitable[None]]) -> None:
        """Start, do it, wait a little, stop."""
        began = time.perf_counter()
        async with self.life():
            self.ready_seconds.append(round(time.perf_counter() - began, 2))
            await then()
            await asyncio.sleep(self.settle_seconds)
            began = time.perf_counter()
        self.stop_seconds.append(round(time.perf_counter() - began, 2))


async def restart(plan: Plan, folder: Path) -> Case:
    """A long history, and a new process for every turn; one way runs at a time."""
    shape = Shape(4096, 1024, 4)
    history = [
        line
        for asked, told in past(2, plan.past_exchanges)
        for line in (("user", asked), ("assistant", told))
    ]
    case = Case("restart", workload(plan, shape, restarts=plan.restarts), later_turns=False)
    ways = _lives(plan, folder, shape, history)
    text = question(2, plan.past_exchanges)
    before = {}
    for name, way in ways.items():
        if name == "direct":
            continue  # what it is told next it has never seen, restarted or not
        tell(f"restart: the turn before it, {name}")
        await way.live(partial(way.chat.say, text))
        before[name] = [round(turn.first_ms) for turn in way.chat.turns]
        way.chat.turns.clear()
    ways["direct"].chat.lines = list(ways["ruvd"].chat.lines)
    for number in range(1, plan.restarts + 1):
        text = question(2, plan.past_exchanges + number)
        for name in list(ways) if number % 2 else list(ways)[::-1]:
            tell(f"restart {number} of {plan.restarts}: {name}")
            await ways[name].live(partial(ways[name].chat.say, text))
    case.add(*(way.chat for way in ways.values()))
    case.extra["turn_before_ms"] = before
    case.extra["ready_seconds"] = {name: way.ready_seconds for name, way in ways.items()}
    case.extra["stop_seconds"] = {name: way.stop_seconds for name, way in ways.items()}
    mine = ways["ruvd"].chat
    assert isinstance(mine, RuvdChat)
    if case.name in plan.checked:
        async with daemon(plan, folder, shape) as client:
            await check(case, plan, client, partial(direct, folder, shape), mine.sent[-1:])
    case.require(
        "first token, of a cold server's", case.first("ruvd"), case.first("direct"), 1 / 15
    )
    if plan.hearth:
        case.require(
            "first token, of hearth-llm's", case.first("ruvd"), case.first("hearth-llm"), 1
        )
        case.note_unheld("hearth-llm")
    return case


def _lives(plan: Plan, folder: Path, shape: Shape, history: Sequence[Line]) -> dict[str, _Lived]:
    tokens = plan.answer_tokens
    mine = RuvdChat("ruvd", tokens)
    told = [Message(role=ROLES[role], content=text) for role, text in history]
    everything = HttpChat("direct", tokens, None, whole)
    by_hand = HandChat("by hand", tokens, None, whole, slot=0)
    proxied = HttpChat("hearth-llm", tokens, None, whole)
    by_hand.lines, proxied.lines = list(history), list(history)

    @asynccontextmanager
    async def of_mine() -> AsyncIterator[None]:
        async with daemon(plan, folder, shape) as mine.client:
            if not mine.lines:
                await mine.client.create_session(
                    session_id=mine.session_id,
                    system_prompt=SYSTEM_PROMPT,
                    messages=told,
                    context_window=ContextWindow(max_exchanges=0),
                )
                mine.lines = list(history)
            yield

    @asynccontextmanager
    async def of_http(
        chat: HttpChat, server: Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]]
    ) -> AsyncIterator[None]:
        async with server() as chat.client:
            yield

    slots_path = made(folder / "slots")
    servers_of = {everything: partial(direct, folder, shape)}
    if plan.by_hand:
        servers_of[by_hand] = partial(direct, folder, shape, slots_path=slots_path)
    if plan.hearth:
        servers_of[proxied] = partial(hearth, plan.hearth, folder, shape)
    ways = {"ruvd": _Lived(mine, of_mine, plan.settle_seconds)}
    for chat, server in servers_of.items():
        ways[chat.name] = _Lived(chat, partial(of_http, chat, server), plan.settle_seconds)
    return ways
