"""LangChain and LangGraph: a chat model with sessions, and a chat message history.

    from ruvd_frameworks.langchain import ChatRuvd

    model = ChatRuvd(session_id="alice")
    model.invoke([HumanMessage("My name is Alice.")])
    model.invoke([HumanMessage("What is my name?")])  # ruvd has the first turn

With a session, `messages` are either the new messages alone, or the whole conversation, as
LangGraph sends it; then only the new ones go to the daemon. Without one, each request stands for
itself.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from ruvd_client import (
    AsyncClient,
    Client,
    CompletionEvent,
    ErrorReason,
    Finished,
    FinishReason,
    Message,
    Role,
    RuvdError,
    SessionView,
    Tool,
    ToolCall,
    Usage,
)

from ruvd_frameworks.history import ended, open_turn, open_turn_async

_PARAMETERS = (
    "model", "temperature", "top_p", "max_tokens", "seed", "frequency_penalty", "presence_penalty",
    "response_format", "parallel_tool_calls", "extra_body",
)  # fmt: skip
_ROLES: dict[type[BaseMessage], Role.ValueType] = {
    SystemMessage: Role.ROLE_SYSTEM,
    HumanMessage: Role.ROLE_USER,
    AIMessage: Role.ROLE_ASSISTANT,
    AIMessageChunk: Role.ROLE_ASSISTANT,
    ToolMessage: Role.ROLE_TOOL,
}


class ChatRuvd(BaseChatModel):
    """A chat model whose conversation ruvd keeps.

    `session_id` may also be given to a call (`model.invoke(..., session_id="bob")`) or bound
    (`model.bind(session_id="bob")`). `address` is that of the client, by default RUVD_ADDRESS.
    Errors of the daemon are RuvdError; messages that contradict the history are HistoryMismatch.
    """

    address: str | None = None
    session_id: str = ""
    model: str = ""
    temperature: float | None = None
    max_tokens: int | None = None

    @cached_property
    def _client(self) -> Client:
        return Client(self.address)

    @cached_property
    def _async_client(self) -> AsyncClient:
        return AsyncClient(self.address)

    @property
    def _llm_type(self) -> str:
        return "ruvd"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, "session_id": self.session_id}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Returns the model with tools. `tool_choice` is auto, none, required or a tool's name."""
        choice = "required" if tool_choice == "any" else tool_choice
        return self.bind(tools=[_tool(each) for each in tools], tool_choice=choice, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._client.complete(**self._request(messages, stop, kwargs)) as completion:
            return _result(completion.message(), ended(completion))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = await self._request_async(messages, stop, kwargs)
        async with self._async_client.complete(**request) as completion:
            return _result(await completion.message(), ended(completion))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with self._client.complete(**self._request(messages, stop, kwargs)) as completion:
            for event in completion.events():
                chunk = _chunk(event)
                if chunk is not None:
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = await self._request_async(messages, stop, kwargs)
        async with self._async_client.complete(**request) as completion:
            async for event in completion.events():
                chunk = _chunk(event)
                if chunk is not None:
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        request, all_messages = self._arguments(messages, stop, kwargs)
        if not request["session_id"]:
            return {**request, "messages": all_messages}
        opened = open_turn(self._client, request["session_id"], all_messages)
        return _with_turn(request, opened)

    async def _request_async(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        request, all_messages = self._arguments(messages, stop, kwargs)
        if not request["session_id"]:
            return {**request, "messages": all_messages}
        opened = await open_turn_async(self._async_client, request["session_id"], all_messages)
        return _with_turn(request, opened)

    def _arguments(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Message]]:
        given = {name: getattr(self, name, None) for name in _PARAMETERS} | kwargs
        request = {name: given[name] for name in _PARAMETERS if given.get(name) is not None}
        request["session_id"] = kwargs.get("session_id") or self.session_id
        if stop:
            request["stop"] = stop
        if kwargs.get("tools"):
            request["tools"] = kwargs["tools"]
            if kwargs.get("tool_choice"):
                request["tool_choice"] = kwargs["tool_choice"]
        return request, [to_message(each) for each in messages]


class RuvdChatMessageHistory(BaseChatMessageHistory):
    """The history of a session. Use it with another model, as `ChatRuvd` keeps its own turns."""

    def __init__(self, session_id: str, *, client: Client | None = None) -> None:
        self.session_id = session_id
        self._client = client or Client()

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]  # a field of the base class
        """The messages of the session, none if it is missing."""
        try:
            session = self._client.get_session(self.session_id, SessionView.SESSION_VIEW_FULL)
        except RuvdError as error:
            if error.reason == ErrorReason.SESSION_NOT_FOUND:
                return []
            raise
        system = [SystemMessage(session.system_prompt)] if session.system_prompt else []
        return [*system, *map(from_message, session.messages)]

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Commits messages; the session is created if it is missing."""
        added = [to_message(each) for each in messages]
        try:
            self._client.append_messages(self.session_id, added)
        except RuvdError as error:
            if error.reason != ErrorReason.SESSION_NOT_FOUND:
                raise
            self._client.create_session(session_id=self.session_id, messages=added)

    def clear(self) -> None:
        """Deletes the session."""
        self._client.end_session(self.session_id, allow_missing=True)


def to_message(message: BaseMessage) -> Message:
    """Returns ruvd's form of a message. Raises ValueError for content that is no text."""
    role = _ROLES.get(type(message))
    if role is None:
        raise ValueError(f"ruvd has no {type(message).__name__}")
    made = Message(role=role, content=_text(message.content))
    if isinstance(message, AIMessage):
        for call in message.tool_calls:
            arguments = json.dumps(call["args"])
            made.tool_calls.append(
                ToolCall(id=call["id"] or "", name=call["name"], arguments=arguments)
            )
    if isinstance(message, ToolMessage):
        made.tool_call_id = message.tool_call_id
    return made


def from_message(message: Message) -> BaseMessage:
    """Returns LangChain's form of a message."""
    if message.role == Role.ROLE_TOOL:
        return ToolMessage(message.content, tool_call_id=message.tool_call_id)
    if message.role == Role.ROLE_ASSISTANT:
        return _answer(message)
    kind = SystemMessage if message.role == Role.ROLE_SYSTEM else HumanMessage
    return kind(message.content)


def _with_turn(request: dict[str, Any], opened: tuple[str, Sequence[Message]]) -> dict[str, Any]:
    system_prompt, new = opened
    return {**request, "messages": new, "system_prompt": system_prompt}


def _text(content: str | Sequence[str | dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") != "text":
            raise ValueError(f"ruvd sends text only, no {part.get('type')}")
        parts.append(part["text"] if isinstance(part, dict) else part)
    return "".join(parts)


def _tool(tool: dict[str, Any] | type | Callable[..., Any] | BaseTool) -> Tool:
    function = convert_to_openai_tool(tool)["function"]
    return Tool(
        name=function["name"],
        description=function.get("description", ""),
        parameters=json.dumps(function["parameters"]) if function.get("parameters") else "",
    )


def _answer(message: Message, finished: Finished | None = None) -> AIMessage:
    calls, invalid = [], []
    for call in message.tool_calls:
        try:
            arguments = json.loads(call.arguments or "{}")
        except ValueError as error:
            invalid.append(
                {"id": call.id, "name": call.name, "args": call.arguments, "error": str(error)}
            )
        else:
            calls.append({"id": call.id, "name": call.name, "args": arguments})
    return AIMessage(
        message.content,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        additional_kwargs={"reasoning_content": message.reasoning} if message.reasoning else {},
        response_metadata=_metadata(finished) if finished else {},
        usage_metadata=_usage(finished.usage) if finished else None,
    )


def _result(message: Message, finished: Finished) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=_answer(message, finished))])


def _chunk(event: CompletionEvent) -> ChatGenerationChunk | None:
    if event.HasField("finished"):
        message = AIMessageChunk(
            content="",
            response_metadata=_metadata(event.finished),
            usage_metadata=_usage(event.finished.usage),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)
    if not event.HasField("delta"):
        return None
    delta = event.delta
    if delta.HasField("tool_call"):
        call = delta.tool_call
        chunk = tool_call_chunk(
            name=call.name or None, args=call.arguments, id=call.id or None, index=call.index
        )
        return ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[chunk]))
    if delta.HasField("reasoning"):
        thought = {"reasoning_content": delta.reasoning}
        return ChatGenerationChunk(message=AIMessageChunk(content="", additional_kwargs=thought))
    return ChatGenerationChunk(message=AIMessageChunk(content=delta.text))


def _metadata(finished: Finished) -> dict[str, Any]:
    reason = FinishReason.Name(finished.finish_reason).removeprefix("FINISH_REASON_").lower()
    return {"finish_reason": reason, "model_provider": "ruvd"}


def _usage(usage: Usage) -> UsageMetadata:
    made = UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
    if usage.HasField("cached_tokens"):
        made["input_token_details"] = InputTokenDetails(cache_read=usage.cached_tokens)
    return made
