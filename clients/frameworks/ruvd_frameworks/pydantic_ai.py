"""Pydantic AI: a model with sessions.

    from ruvd_frameworks.pydantic_ai import RuvdModel

    agent = Agent(RuvdModel("alice"))
    agent.run_sync("My name is Alice.")
    agent.run_sync("What is my name?")  # ruvd has the first turn

The agent sends the messages of a run, or the whole conversation if you pass `message_history`; only
what ruvd does not have goes to the daemon.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import FinishReason as PydanticFinishReason
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    ModelResponseStreamEvent,
    RetryPromptPart,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage
from ruvd_client import (
    AsyncClient,
    AsyncCompletion,
    FinishReason,
    Message,
    Role,
    Tool,
    ToolCall,
    Usage,
)

from ruvd_frameworks.history import ended, open_turn_async

_SETTINGS = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "parallel_tool_calls": "parallel_tool_calls",
    "stop_sequences": "stop",
}
_FINISH_REASONS: dict[int, PydanticFinishReason] = {
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
    FinishReason.FINISH_REASON_TOOL_CALLS: "tool_call",
}


class RuvdModel(Model):
    """A model whose conversation ruvd keeps; without a `session_id` each request stands for itself.

    `client` is one for asyncio, by default that of RUVD_ADDRESS. Errors of the daemon are
    RuvdError; messages that contradict the history of the session are HistoryMismatch.
    """

    def __init__(
        self,
        session_id: str = "",
        *,
        model: str = "",
        client: AsyncClient | None = None,
        settings: ModelSettings | None = None,
    ) -> None:
        super().__init__(settings=settings, profile=ModelProfile(supports_tools=True))
        self.session_id = session_id
        self._model = model
        self._client = client or AsyncClient()

    @property
    def model_name(self) -> str:
        """The name of the model, or ruvd for the daemon's default."""
        return self._model or "ruvd"

    @property
    def system(self) -> str:
        """The provider's name."""
        return "ruvd"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Runs one turn."""
        request = await self._request(messages, model_settings, model_request_parameters)
        async with self._client.complete(**request) as completion:
            message, finished = await completion.message(), ended(completion)
            started = completion.started
            return ModelResponse(
                parts=list(_parts(message)),
                usage=_usage(finished.usage),
                model_name=self.model_name,
                provider_name=self.system,
                provider_response_id=started.completion_id if started else None,
                finish_reason=_FINISH_REASONS.get(finished.finish_reason),
            )

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Runs one turn, whose parts are streamed. Leaving the block early cancels it."""
        request = await self._request(messages, model_settings, model_request_parameters)
        async with self._client.complete(**request) as completion:
            yield RuvdStreamedResponse(
                model_request_parameters=model_request_parameters,
                _completion=completion,
                _model_name=self.model_name,
                _provider_name=self.system,
            )

    async def _request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> dict[str, Any]:
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        given = settings or {}
        request: dict[str, Any] = {
            name: given[setting]  # type: ignore[literal-required]
            for setting, name in _SETTINGS.items()
            if given.get(setting) is not None
        }
        request["session_id"] = self.session_id
        if self._model:
            request["model"] = self._model
        tools = [*parameters.function_tools, *parameters.output_tools]
        if tools:
            request["tools"] = [
                Tool(
                    name=tool.name,
                    description=tool.description or "",
                    parameters=json.dumps(tool.parameters_json_schema),
                )
                for tool in tools
            ]
            if not parameters.allow_text_output:
                request["tool_choice"] = "required"
        all_messages = to_messages(messages)
        if not self.session_id:
            return {**request, "messages": all_messages}
        opened = await open_turn_async(self._client, self.session_id, all_messages)
        return {**request, "messages": opened[1], "system_prompt": opened[0]}


@dataclass
class RuvdStreamedResponse(StreamedResponse):
    """The streamed answer of one turn."""

    _completion: AsyncCompletion = field(kw_only=True)
    _model_name: str = field(kw_only=True)
    _provider_name: str = field(kw_only=True)
    _timestamp: datetime = field(default_factory=lambda: datetime.now(UTC), kw_only=True)

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        # The base class names `_parts_manager` and `_usage` as what its subclasses use.
        async for delta in self._completion.deltas():
            if delta.HasField("tool_call"):
                call = delta.tool_call
                for event in self._parts_manager.handle_tool_call_delta_events(
                    vendor_part_id=call.index,
                    tool_name=call.name or None,
                    args=call.arguments,
                    tool_call_id=call.id or None,
                ):
                    yield event
            elif delta.HasField("reasoning"):
                for event in self._parts_manager.handle_thinking_delta(
                    vendor_part_id="reasoning", content=delta.reasoning
                ):
                    yield event
            else:
                for event in self._parts_manager.handle_text_delta(
                    vendor_part_id="content", content=delta.text
                ):
                    yield event
        finished, started = ended(self._completion), self._completion.started
        self._usage = _usage(finished.usage)
        self.finish_reason = _FINISH_REASONS.get(finished.finish_reason)
        self.provider_response_id = started.completion_id if started else None

    async def close_stream(self) -> None:
        """Cancels the completion, unless it has ended."""
        self._completion.cancel()

    @property
    def model_name(self) -> str:
        """The name of the model."""
        return self._model_name

    @property
    def provider_name(self) -> str:
        """The provider's name."""
        return self._provider_name

    @property
    def provider_url(self) -> None:
        """None: the daemon is no HTTP server here."""

    @property
    def timestamp(self) -> datetime:
        """The time at which the answer began."""
        return self._timestamp


def to_messages(messages: Sequence[ModelMessage]) -> list[Message]:
    """Returns ruvd's form of messages, the system prompts first. Raises UserError for files."""
    system: list[str] = []
    rest: list[Message] = []
    for message in messages:
        if isinstance(message, ModelRequest):
            if message.instructions and message.instructions not in system:
                system.append(message.instructions)
            for part in message.parts:
                if isinstance(part, SystemPromptPart):
                    system.append(part.content)
                else:
                    rest.append(_from_request(part))
        else:
            rest.append(_from_response(message.parts))
    first = [Message(role=Role.ROLE_SYSTEM, content="\n\n".join(system))] if system else []
    return [*first, *rest]


def _from_request(part: ModelRequestPart) -> Message:
    if isinstance(part, UserPromptPart):
        return Message(role=Role.ROLE_USER, content=_text(part.content))
    if isinstance(part, ToolReturnPart):
        content = part.model_response_str()
        return Message(role=Role.ROLE_TOOL, content=content, tool_call_id=part.tool_call_id)
    if isinstance(part, RetryPromptPart):
        content = part.model_response()
        if part.tool_name is None:
            return Message(role=Role.ROLE_USER, content=content)
        return Message(role=Role.ROLE_TOOL, content=content, tool_call_id=part.tool_call_id)
    raise UserError(f"ruvd has no {type(part).__name__}")


def _from_response(parts: Iterable[ModelResponsePart]) -> Message:
    made = Message(role=Role.ROLE_ASSISTANT)
    for part in parts:
        if isinstance(part, TextPart):
            made.content += part.content
        elif isinstance(part, ToolCallPart):
            made.tool_calls.append(
                ToolCall(
                    id=part.tool_call_id, name=part.tool_name, arguments=part.args_as_json_str()
                )
            )
        elif not isinstance(part, ThinkingPart):
            raise UserError(f"ruvd has no {type(part).__name__}")
    return made


def _text(content: str | Sequence[Any]) -> str:
    if isinstance(content, str):
        return content
    if all(isinstance(part, str) for part in content):
        return "\n\n".join(content)
    raise UserError("ruvd sends text only, no files")


def _parts(message: Message) -> Iterable[ModelResponsePart]:
    if message.reasoning:
        yield ThinkingPart(message.reasoning)
    if message.content:
        yield TextPart(message.content)
    for call in message.tool_calls:
        yield ToolCallPart(call.name, call.arguments, tool_call_id=call.id)


def _usage(usage: Usage) -> RequestUsage:
    return RequestUsage(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
    )
