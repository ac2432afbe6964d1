"""Measures what a move of a session to another daemon costs with the embedded engine.

Two daemons share a PostgreSQL database. A session's first turn has a long prompt. Its second turn
is at the same daemon, the third one at the other, the fourth one there too, and the fifth one at
the first daemon again. Counted are the tokens that were evaluated (`prompt_tokens` without
`cached_tokens`), and the time to the first token. Only one daemon works at a time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from bench import postgres_server, runner
from bench import relay_servers as servers
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

PROMPT_WORDS = (300, 750, 1500)
_ANSWER_TOKENS = 8
_STEPS = (
    ("first turn", 0),
    ("same daemon", 0),
    ("moves to the other one", 1),
    ("stays there", 1),
    ("moves back", 0),
)
_WORDS = (
    "pump", "clock", "mixer", "chair", "lamp", "wheel", "latch", "vice", "winch", "rail", "handle",
    "scooter", "screw", "oil",
)  # fmt: skip


async def measure(folder: Path, prompts: Sequence[int]) -> dict[str, Any]:
    """Moves one session for each length of prompt, and returns the figures of its turns."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(postgres_server.database())
        store, stubs = database.new("moves"), []
        for name in ("one", "other"):
            place = folder / name
            place.mkdir()
            flags = ("--store", store, "--log-level", "error", "--llama-context-tokens", "8192")
            environment = {"XDG_STATE_HOME": str(place), "XDG_CACHE_HOME": str(place)}
            server, address = await stack.enter_async_context(
                servers.daemon(name, place, *flags, environment=environment)
            )
            await servers.until_serving(server, address, service="readiness")
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            stubs.append(pb_grpc.SessionServiceStub(channel))
        moves = []
        for number, words in enumerate(prompts):
            moves.append(await _session(stubs, number, words))
            runner.log_progress(f"moved session {number + 1} of {len(prompts)}")
    return {"sessions": moves}


async def _session(stubs: Sequence[Any], number: int, words: int) -> list[dict[str, Any]]:
    # Other words in another order for each session, so that none begins as another one does.
    choose = random.Random(number)
    text = f"Story {number}: " + " ".join(choose.choices(_WORDS, k=words))
    turns = []
    for step, at in _STEPS:
        evaluated, prompt, seconds = await _turn(stubs[at], f"move-{number}", text)
        turns.append({"step": step, "evaluated": evaluated, "prompt": prompt, "seconds": seconds})
        text = "And what comes next?"
    return turns


async def _turn(stub: Any, session: str, text: str) -> tuple[int, int, float]:
    """Makes a turn; returns the tokens evaluated, those of the prompt, seconds to the first one."""
    request = pb.CompleteRequest(
        session_id=session,
        messages=[pb.Message(role=pb.ROLE_USER, content=text)],
        options=pb.CompletionOptions(max_tokens=_ANSWER_TOKENS, temperature=0),
    )
    began, first, finished = time.perf_counter(), 0.0, pb.Finished()
    async for response in stub.Complete(request):
        first = first or (time.perf_counter() - began if response.event.HasField("delta") else 0.0)
        finished = response.event.finished
    usage = finished.usage
    return usage.prompt_tokens - usage.cached_tokens, usage.prompt_tokens, first


def show(figures: dict[str, Any]) -> None:
    """Prints the figures of moves as a Markdown table."""
    steps = [step for step, _ in _STEPS]
    print("\n| prompt |", " | ".join(steps), "|\n|---|" + "---|" * len(steps))
    for turns in figures["sessions"]:
        cells = [f"{each['evaluated']} tokens, {each['seconds']:.2f} s" for each in turns]
        print(f"| {turns[0]['prompt']} tokens |", " | ".join(cells), "|")
