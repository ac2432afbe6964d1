"""How much of everything `bench/multi_turn.py` does, and what its cases have in common."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
from ruvd_client import AsyncClient

from bench import multi_turn_servers as servers
from bench.answer_comparison import Prober, compare, spaced
from bench.multi_turn_chats import Chat, Sent
from bench.multi_turn_report import Case, Criterion
from bench.multi_turn_servers import Shape

_SETTLE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything; the defaults are the whole benchmark.

    `hearth` is the environment of `hearth-llm`; None leaves it out. `settle_seconds` are between an
    answer and the SIGTERM: `hearth-llm` saves after the answer, and loses what it is saving then.
    `checks` is how many answers of a `checked` case are asked again without the cache.
    """

    ruvd_flags: Sequence[str] = ()
    hearth: Path | None = None
    answer_tokens: int = 24
    warm_talks: int = 2
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
    past_exchanges: int = 9
    restarts: int = 2
    by_hand: bool = True
    settle_seconds: float = 2.0
    checks: int = 6
    checked: Sequence[str] = ("warm", "window", "sessions", "restart")


# A look whether all is well: no pauses, no `hearth-llm`, little without a cache.
QUICK = Plan(
    answer_tokens=12,
    warm_talks=1,
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
    past_exchanges=1,
    restarts=1,
    by_hand=False,
    settle_seconds=0.5,
    checks=1,
    checked=("sessions",),
)


def daemon(
    plan: Plan, folder: Path, shape: Shape, *flags: str
) -> AbstractAsyncContextManager[AsyncClient]:
    return servers.daemon(made(folder / "ruvd"), shape, *flags, *plan.ruvd_flags)


def direct(
    folder: Path, shape: Shape, *, slots_path: Path | None = None
) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    return servers.direct(made(folder / "direct"), shape, slots_path=slots_path)


def hearth(
    environment: Path, folder: Path, shape: Shape
) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    return servers.hearth(made(folder / "hearth"), shape, environment)


def made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


async def turn_of_all(chats: Sequence[Chat], text: str, number: int) -> None:
    """The same turn of all; every second one goes backwards through them."""
    for chat in chats if number % 2 else chats[::-1]:
        await chat.say(text)
        await settle()


async def settle() -> None:
    """What one way still does after its answer is not to slow the next way down."""
    await asyncio.sleep(_SETTLE_SECONDS)


async def check(
    case: Case, plan: Plan, client: AsyncClient, prober: Prober, sent: Sequence[Sent]
) -> None:
    if case.name not in plan.checked:
        return
    sent = spaced(sent, plan.checks)
    tell(f"{case.name}: {len(sent)} answers again, without any cache")
    case.sameness = await compare(client, prober, sent, plan.answer_tokens)
    case.criteria.append(Criterion("answers that differ by more", case.sameness.unexplained, 0))


def workload(plan: Plan, shape: Shape, **more: float) -> dict[str, float]:
    return {
        **more,
        "answer_tokens": plan.answer_tokens,
        "context_tokens": shape.context_tokens,
        "slots": shape.slots,
        "threads": servers.THREADS,
        "temperature": 0,
    }


def tell(what: str) -> None:
    """Progress; standard output is for the figures."""
    print(f"... {what}", file=sys.stderr, flush=True)
