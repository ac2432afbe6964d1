"""Pydantic AI runs its turns in a session of the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic_ai import Agent
from ruvd_client import AsyncClient

from ruvd_frameworks import HistoryMismatch
from ruvd_frameworks.pydantic_ai import RuvdModel


@pytest.fixture
async def calls(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address) as client:
        yield client


async def test_a_run_has_the_ones_before_it(calls: AsyncClient, session_id: str) -> None:
    agent = Agent(RuvdModel(session_id, client=calls), instructions="Be brief.")
    first = await agent.run("hello there")
    assert first.output == "hello there"
    second = await agent.run("again", message_history=first.all_messages())
    third = await agent.run("and again")
    assert (second.output, third.output) == ("again", "and again")
    session = await calls.get_session(session_id)
    assert (session.exchange_count, session.system_prompt) == (3, "Be brief.")
    assert second.usage.cache_read_tokens > 0


async def test_a_stream_has_the_text_and_the_usage(calls: AsyncClient, session_id: str) -> None:
    agent = Agent(RuvdModel(session_id, client=calls))
    async with agent.run_stream("one two three") as run:
        parts = [part async for part in run.stream_text(delta=True, debounce_by=None)]
        assert "".join(parts) == "one two three"
    assert run.usage.output_tokens == 3
    assert (await calls.get_session(session_id)).exchange_count == 1


async def test_a_tool_is_called_and_its_result_answers(calls: AsyncClient, session_id: str) -> None:
    agent = Agent(RuvdModel(session_id, client=calls))
    seen: list[str] = []

    @agent.tool_plain
    def lookup(text: str) -> str:
        """Looks something up."""
        seen.append(text)
        return "found"

    await agent.run("please lookup this")
    assert seen == ["please lookup this"]
    assert (await calls.get_session(session_id)).message_count == 4


async def test_a_changed_history_is_refused(calls: AsyncClient, session_id: str) -> None:
    agent = Agent(RuvdModel(session_id, client=calls))
    other = Agent(RuvdModel(client=calls))
    await agent.run("one")
    history = (await other.run("two")).all_messages()
    with pytest.raises(HistoryMismatch, match="message 1 differs"):
        await agent.run("three", message_history=history)
