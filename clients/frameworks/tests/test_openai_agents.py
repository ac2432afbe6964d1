"""The OpenAI Agents SDK keeps its items in a session of the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from agents import Agent, Model, ModelProvider, RunConfig, Runner, function_tool
from agents.items import ModelResponse, TResponseInputItem
from agents.usage import Usage
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)
from ruvd_client import AsyncClient

from ruvd_frameworks.openai_agents import RuvdSession


class ScriptedModel(Model):
    """Calls the tool for the first input, and says how many items each later input has."""

    def __init__(self) -> None:
        self.inputs: list[list[TResponseInputItem]] = []

    async def get_response(self, *args: object, **kwargs: object) -> ModelResponse:
        given = kwargs.get("input", args[1] if len(args) > 1 else [])
        assert isinstance(given, list)
        self.inputs.append(list(given))
        if len(self.inputs) == 1:
            call = ResponseFunctionToolCall(
                arguments='{"text": "x"}', call_id="call_1", name="lookup", type="function_call"
            )
            return ModelResponse(output=[call], usage=Usage(), response_id=None)
        text = ResponseOutputText(annotations=[], text=f"{len(given)} items", type="output_text")
        message = ResponseOutputMessage(
            id="m", content=[text], role="assistant", status="completed", type="message"
        )
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *args: object, **kwargs: object) -> AsyncIterator[object]:  # type: ignore[override]
        raise NotImplementedError


class Provider(ModelProvider):
    def __init__(self, model: Model) -> None:
        self.model = model

    def get_model(self, model_name: str | None) -> Model:
        return self.model


@function_tool
def lookup(text: str) -> str:
    """Looks something up."""
    return f"found {text}"


@pytest.fixture
async def session(address: str, session_id: str) -> AsyncIterator[RuvdSession]:
    async with AsyncClient(address) as client:
        yield RuvdSession(session_id, client=client)


async def test_a_later_run_has_the_items_of_the_earlier_ones(session: RuvdSession) -> None:
    model = ScriptedModel()
    agent = Agent(name="a", instructions="Be brief.", tools=[lookup])
    config = RunConfig(model_provider=Provider(model), tracing_disabled=True)
    await Runner.run(agent, "please look", session=session, run_config=config)
    result = await Runner.run(agent, "again", session=session, run_config=config)
    # The question, the call, its result, the answer, and the new question.
    assert result.final_output == "5 items"
    kinds = [item.get("type", "message") for item in await session.get_items()]
    assert kinds == [
        "message", "function_call", "function_call_output", "message", "message", "message",
    ]  # fmt: skip


async def test_items_are_limited_removed_and_cleared(session: RuvdSession) -> None:
    assert await session.get_items() == []
    assert await session.pop_item() is None
    texts = ["one", "two", "three", "four"]
    items = [
        {"role": "user" if number % 2 == 0 else "assistant", "content": text}
        for number, text in enumerate(texts)
    ]
    await session.add_items(items[:2])  # type: ignore[arg-type]
    await session.add_items(items[2:])  # type: ignore[arg-type]
    assert await session.get_items(2) == items[2:]
    assert await session.pop_item() == items[3]
    assert await session.get_items() == items[:3]
    await session.clear_session()
    assert await session.get_items() == []


async def test_what_is_no_text_is_refused(session: RuvdSession) -> None:
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}
    with pytest.raises(ValueError, match="input_image"):
        await session.add_items([image])  # type: ignore[list-item]
