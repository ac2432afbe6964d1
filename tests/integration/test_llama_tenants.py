"""The embedded engine reuses nothing of one tenant's prompts for another's."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import embedded
from embedded import NO_IDLE_WORK, SYSTEM

from ruvd.core.model import Message, Role
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineDone, EngineRequest
from ruvd.engines.llama.engine import LlamaEngine

OPTIONS = CompletionOptions(max_tokens=4, temperature=0.0)


def ask(tenant: str, session: str = "", text: str = "What lay at the east mole?") -> EngineRequest:
    messages = [Message(Role.SYSTEM, SYSTEM), Message(Role.USER, text)]
    key = session and f"{tenant}/{session}"
    return EngineRequest(messages, OPTIONS, key, tenant=tenant)


async def cached(engine: LlamaEngine, request: EngineRequest) -> int:
    """Generates an answer; returns how many tokens of the prompt were cached."""
    last: object = None
    async for chunk in engine.generate(request):
        last = chunk
    assert isinstance(last, EngineDone)
    assert last.usage is not None
    assert last.usage.cached_tokens is not None
    return last.usage.cached_tokens


async def test_a_slot_never_gives_its_prompt_to_the_next_tenant() -> None:
    async with embedded.running(slots=1, policy=NO_IDLE_WORK) as engine:
        assert await cached(engine, ask("a")) == 0
        assert await cached(engine, ask("a")) > 50
        assert await cached(engine, ask("b")) == 0
        assert await cached(engine, ask("b")) > 50
        assert await cached(engine, ask("a", "s")) == 0
        assert await cached(engine, ask("b", "s")) == 0
        async with aclosing(engine.generate(ask("c"))) as chunks:
            await anext(chunks)
        assert await cached(engine, ask("default")) == 0


async def test_a_saved_state_and_a_shared_beginning_stay_with_their_tenant(tmp_path: Path) -> None:
    states = tmp_path / "kv"
    async with embedded.running(slots=1, policy=NO_IDLE_WORK, states_path=states) as engine:
        for tenant in ("a", "b"):
            assert await cached(engine, ask(tenant, "s")) == 0
        for tenant in ("a", "b"):
            assert await cached(engine, ask(tenant, "s")) > 50, "restored from its own file"
        assert await cached(engine, ask("c", "s")) == 0
        assert await cached(engine, ask("c")) > 50
