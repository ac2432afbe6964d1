"""The sizes of `bench/multi_turn.py`, and functions that its cases share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ruvd_client import AsyncClient

from bench.answer_comparison import StartServer, compare, evenly_spaced
from bench.multi_turn_chats import Chat, SentPrompt
from bench.multi_turn_report import Case
from bench.multi_turn_servers import THREADS, Shape
from bench.report import Criterion
from bench.runner import log_progress

_SETTLE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of all cases; the defaults are those of the complete benchmark.

    `hearth` is the environment of `hearth-llm`; None leaves it out. `settle_seconds` is the time
    between an answer and SIGTERM: `hearth-llm` saves its snapshot after the answer and would lose
    it. `checks` is the number of answers of a case in `checked` that are repeated without a cache.
    """

    ruvd_flags: Sequence[str] = ()
    hearth: Path | None = None
    answer_tokens: int = 24
    warm_conversations: int = 2
    warm_turns: int = 8
    window: Shape = Shape(1152, 200, 4)
    window_turns: int = 20
    keep_exchanges: int = 3
    max_exchanges: int = 10
    uncached_turns: Sequence[int] = (5, 10, 15)
    paused_turns: int = 20
    pause_seconds: float = 3.0
    sessions: int = 12
    session_slots: int = 4
    session_turns: int = 3
    earlier_exchanges: int = 9
    restarts: int = 2
    with_saved_slot: bool = True
    settle_seconds: float = 2.0
    checks: int = 6
    checked: Sequence[str] = ("warm", "window", "sessions", "restart")


# A short check: no pauses, no `hearth-llm`, few uncached answers.
QUICK = Plan(
    answer_tokens=12,
    warm_conversations=1,
    warm_turns=4,
    window=Shape(768, 128, 4),
    window_turns=4,
    keep_exchanges=1,
    max_exchanges=2,
    uncached_turns=(),
    paused_turns=0,
    sessions=3,
    session_slots=2,
    session_turns=2,
    earlier_exchanges=1,
    restarts=1,
    with_saved_slot=False,
    settle_seconds=0.5,
    checks=1,
    checked=("sessions",),
)


async def say_to_all(chats: Sequence[Chat], text: str, number: int) -> None:
    """Holds the same turn in all conversations, every second turn in reverse order."""
    for chat in chats if number % 2 else chats[::-1]:
        await chat.say(text)
        await settle()


async def settle() -> None:
    """Waits, so that work after an answer does not slow down the next approach."""
    await asyncio.sleep(_SETTLE_SECONDS)


async def compare_with_uncached(
    case: Case,
    plan: Plan,
    client: AsyncClient,
    start_server: StartServer,
    sent: Sequence[SentPrompt],
) -> None:
    """Repeats some prompts without a cache and adds the comparison to the case."""
    if case.name not in plan.checked:
        return
    sent = evenly_spaced(sent, plan.checks)
    log_progress(f"{case.name}: {len(sent)} prompts again, without a cache")
    case.comparison = await compare(client, start_server, sent, plan.answer_tokens)
    what = "answers that differ by more than a near-tie"
    case.criteria.append(Criterion(what, case.comparison.unexplained, 0))


def workload(plan: Plan, shape: Shape, **more: float) -> dict[str, float]:
    """Returns the parameters of a case, for its report."""
    return {
        **more,
        "answer_tokens": plan.answer_tokens,
        "context_tokens": shape.context_tokens,
        "slots": shape.slots,
        "threads": THREADS,
        "temperature": 0,
    }
