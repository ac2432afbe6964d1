"""The case of `bench/multi_turn.py` in which servers are restarted between turns."""

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

from bench.conversation import SYSTEM_PROMPT, earlier_exchanges, question
from bench.multi_turn_chats import (
    ROLES,
    Chat,
    HttpChat,
    Line,
    RuvdChat,
    SavedSlotChat,
    full_history,
)
from bench.multi_turn_plan import Plan, compare_with_uncached, workload
from bench.multi_turn_report import Case
from bench.multi_turn_servers import Shape, daemon, direct, hearth
from bench.runner import log_progress


@dataclass
class _RestartedChat:
    """A conversation whose server is restarted; `run_server` connects the chat to a new one."""

    chat: Chat
    run_server: Callable[[], AbstractAsyncContextManager[None]]
    settle_seconds: float
    ready_seconds: list[float] = field(default_factory=list)
    stop_seconds: list[float] = field(default_factory=list)

    async def with_new_server(self, action: Callable[[], Awaitable[None]]) -> None:
        """Starts the server, runs the action, waits until work after it has ended, and stops."""
        began = time.perf_counter()
        async with self.run_server():
            self.ready_seconds.append(round(time.perf_counter() - began, 2))
            await action()
            await asyncio.sleep(self.settle_seconds)
            began = time.perf_counter()
        self.stop_seconds.append(round(time.perf_counter() - began, 2))


async def restart(plan: Plan, folder: Path) -> Case:
    """Continues a long history with a new process for each turn; one approach runs at a time."""
    shape = Shape(4096, 1024, 4)
    history = [
        line
        for user, assistant in earlier_exchanges(2, plan.earlier_exchanges)
        for line in (("user", user), ("assistant", assistant))
    ]
    case = Case("restart", workload(plan, shape, restarts=plan.restarts), later_turns=False)
    approaches = _approaches(plan, folder, shape, history)
    text = question(2, plan.earlier_exchanges)
    before = {}
    for name, approach in approaches.items():
        if name == "direct":
            continue  # it keeps nothing over a restart, so an earlier turn makes no difference
        log_progress(f"restart: the turn before the restart, {name}")
        await approach.with_new_server(partial(approach.chat.say, text))
        before[name] = [round(turn.first_ms) for turn in approach.chat.turns]
        approach.chat.turns.clear()
    approaches["direct"].chat.lines = list(approaches["ruvd"].chat.lines)
    for number in range(1, plan.restarts + 1):
        text = question(2, plan.earlier_exchanges + number)
        for name in list(approaches) if number % 2 else list(approaches)[::-1]:
            log_progress(f"restart {number} of {plan.restarts}: {name}")
            approach = approaches[name]
            await approach.with_new_server(partial(approach.chat.say, text))
    case.add(*(approach.chat for approach in approaches.values()))
    case.extra["turn_before_ms"] = before
    case.extra["ready_seconds"] = {name: each.ready_seconds for name, each in approaches.items()}
    case.extra["stop_seconds"] = {name: each.stop_seconds for name, each in approaches.items()}
    ruvd_chat = approaches["ruvd"].chat
    assert isinstance(ruvd_chat, RuvdChat)
    if case.name in plan.checked:
        async with daemon(folder / "ruvd", shape, *plan.ruvd_flags) as client:
            start_server = partial(direct, folder / "direct", shape)
            await compare_with_uncached(case, plan, client, start_server, ruvd_chat.sent[-1:])
    first, what = case.first_ms("ruvd"), "time to first token, as a multiple of"
    case.require(f"{what} a cold server's", first, case.first_ms("direct"), 1 / 15)
    if plan.hearth:
        case.require(f"{what} hearth-llm's", first, case.first_ms("hearth-llm"), 1)
        case.note_unbuffered("hearth-llm")
    return case


def _approaches(
    plan: Plan, folder: Path, shape: Shape, history: Sequence[Line]
) -> dict[str, _RestartedChat]:
    """Returns the conversation of each approach, with a function that runs its server."""
    tokens = plan.answer_tokens
    ruvd_chat = RuvdChat("ruvd", tokens)
    messages = [Message(role=ROLES[role], content=text) for role, text in history]
    direct_chat = HttpChat("direct", tokens, None, full_history)
    saved_slot = SavedSlotChat("saved slot", tokens, None, full_history, slot=0)
    proxied = HttpChat("hearth-llm", tokens, None, full_history)
    saved_slot.lines, proxied.lines = list(history), list(history)

    @asynccontextmanager
    async def run_daemon() -> AsyncIterator[None]:
        async with daemon(folder / "ruvd", shape, *plan.ruvd_flags) as ruvd_chat.client:
            if not ruvd_chat.lines:
                await ruvd_chat.client.create_session(
                    session_id=ruvd_chat.session_id,
                    system_prompt=SYSTEM_PROMPT,
                    messages=messages,
                    context_window=ContextWindow(max_exchanges=0),
                )
                ruvd_chat.lines = list(history)
            yield

    @asynccontextmanager
    async def run_http_server(
        chat: HttpChat, server: Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]]
    ) -> AsyncIterator[None]:
        async with server() as chat.client:
            yield

    servers = {direct_chat: partial(direct, folder / "direct", shape)}
    if plan.with_saved_slot:
        servers[saved_slot] = partial(direct, folder / "direct", shape, slots_path=folder / "slots")
    if plan.hearth:
        servers[proxied] = partial(hearth, folder / "hearth", shape, plan.hearth)
    approaches = {"ruvd": _RestartedChat(ruvd_chat, run_daemon, plan.settle_seconds)}
    for chat, server in servers.items():
        run_server = partial(run_http_server, chat, server)
        approaches[chat.name] = _RestartedChat(chat, run_server, plan.settle_seconds)
    return approaches
