"""LlamaIndex: a language model with sessions.

    from ruvd_frameworks.llamaindex import RuvdLLM

    llm = RuvdLLM(session_id="alice")
    llm.chat([ChatMessage("My name is Alice.")])
    llm.chat([ChatMessage("What is my name?")])  # ruvd has the first turn

With a session, `messages` are either the new messages alone, or the whole conversation, as
LlamaIndex's memories send it; then only the new ones go to the daemon.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool
from ruvd_client import (
    AsyncClient,
    Client,
    Finished,
    Message,
    Role,
    Tool,
    ToolCall,
)

from ruvd_frameworks.history import ended, open_turn, open_turn_async

_ROLES = {
    MessageRole.SYSTEM: Role.ROLE_SYSTEM,
    MessageRole.USER: Role.ROLE_USER,
    MessageRole.ASSISTANT: Role.ROLE_ASSISTANT,
    MessageRole.TOOL: Role.ROLE_TOOL,
}


class RuvdLLM(FunctionCallingLLM):
    """A language model whose conversation ruvd keeps.

    `session_id` may also be given to a call; `complete` has no session. `address` is that of the
    client, by default RUVD_ADDRESS. `context_window` is told to LlamaIndex, which divides its work
    by it. Errors of the daemon are RuvdError; contradicted histories are HistoryMismatch.
    """

    address: str | None = None
    session_id: str = ""
    model: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    context_window: int = 2048

    @classmethod
    def class_name(cls) -> str:
        """Returns LlamaIndex's name of this class."""
        return "ruvd"

    @property
    def metadata(self) -> LLMMetadata:
        """The properties of the model by which LlamaIndex divides its work."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens or 256,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model or "ruvd",
        )

    @cached_property
    def _client(self) -> Client:
        return Client(self.address)

    @cached_property
    def _async_client(self) -> AsyncClient:
        return AsyncClient(self.address)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Runs one turn."""
        with self._client.complete(**self._request(messages, kwargs)) as completion:
            return _response(completion.message(), ended(completion))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Runs one turn and yields the answer so far with each part of it."""
        request = self._request(messages, kwargs)

        def stream() -> ChatResponseGen:
            text = ""
            with self._client.complete(**request) as completion:
                for delta in completion.deltas():
                    text += delta.text
                    yield _partial(text, delta.text)
                yield _response(completion.message(), ended(completion), delta="")

        return stream()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Runs one turn."""
        request = await self._request_async(messages, kwargs)
        async with self._async_client.complete(**request) as completion:
            return _response(await completion.message(), ended(completion))

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Runs one turn and yields the answer so far with each part of it."""
        request = await self._request_async(messages, kwargs)

        async def stream() -> ChatResponseAsyncGen:
            text = ""
            async with self._async_client.complete(**request) as completion:
                async for delta in completion.deltas():
                    text += delta.text
                    yield _partial(text, delta.text)
                yield _response(await completion.message(), ended(completion), delta="")

        return stream()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answers a prompt without a session."""
        return _completed(self.chat([ChatMessage(prompt)], **{**kwargs, "session_id": None}))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Answers a prompt without a session, part by part."""
        kwargs["session_id"] = None
        return (_completed(each) for each in self.stream_chat([ChatMessage(prompt)], **kwargs))

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Answers a prompt without a session."""
        return _completed(await self.achat([ChatMessage(prompt)], **{**kwargs, "session_id": None}))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Answers a prompt without a session, part by part."""
        kwargs["session_id"] = None
        parts = await self.astream_chat([ChatMessage(prompt)], **kwargs)

        async def stream() -> CompletionResponseAsyncGen:
            async for part in parts:
                yield _completed(part)

        return stream()

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Returns the tool calls of an answer."""
        calls = [each for each in response.message.blocks if isinstance(each, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError(f"the model called no tool: {response.message.content}")
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=_arguments(call.tool_kwargs),
            )
            for call in calls
        ]

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg)
        prepared = {**kwargs, "messages": messages, "tools": [_tool(each) for each in tools]}
        if tools and tool_required:
            prepared["tool_choice"] = "required"
        return prepared

    def _request(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> dict[str, Any]:
        request, all_messages = self._arguments_of(messages, kwargs)
        if not request["session_id"]:
            return {**request, "messages": all_messages}
        system_prompt, new = open_turn(self._client, request["session_id"], all_messages)
        return {**request, "messages": new, "system_prompt": system_prompt}

    async def _request_async(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        request, all_messages = self._arguments_of(messages, kwargs)
        if not request["session_id"]:
            return {**request, "messages": all_messages}
        opened = await open_turn_async(self._async_client, request["session_id"], all_messages)
        return {**request, "messages": opened[1], "system_prompt": opened[0]}

    def _arguments_of(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Message]]:
        session_id = kwargs.get("session_id", self.session_id) or ""
        request: dict[str, Any] = {"session_id": session_id}
        for name in ("model", "temperature", "max_tokens", "tools", "tool_choice", "stop", "seed"):
            value = kwargs.get(name, getattr(self, name, None))
            if value is not None:
                request[name] = value
        return request, [to_message(each) for each in messages]


def to_message(message: ChatMessage) -> Message:
    """Returns ruvd's form of a message. Raises ValueError for blocks that are no text."""
    role = _ROLES.get(message.role)
    if role is None:
        raise ValueError(f"ruvd has no role {message.role}")
    made = Message(role=role)
    for block in message.blocks:
        if isinstance(block, TextBlock):
            made.content += block.text
        elif isinstance(block, ToolCallBlock):
            arguments = block.tool_kwargs
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            made.tool_calls.append(
                ToolCall(id=block.tool_call_id or "", name=block.tool_name, arguments=text)
            )
        else:
            raise ValueError(f"ruvd sends text only, no {block.block_type}")
    if role == Role.ROLE_TOOL:
        made.tool_call_id = message.additional_kwargs.get("tool_call_id", "")
    return made


def _tool(tool: BaseTool) -> Tool:
    function = tool.metadata.to_openai_tool(skip_length_check=True)["function"]
    return Tool(
        name=function["name"],
        description=function.get("description") or "",
        parameters=json.dumps(function["parameters"]),
    )


def _arguments(arguments: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(arguments, str):
        found = json.loads(arguments or "{}")
        return found if isinstance(found, dict) else {}
    return arguments


def _response(message: Message, finished: Finished, delta: str | None = None) -> ChatResponse:
    blocks: list[TextBlock | ToolCallBlock] = [TextBlock(text=message.content)]
    blocks += [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
        for call in message.tool_calls
    ]
    usage = finished.usage
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks),
        delta=delta,
        additional_kwargs={
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    )


def _partial(text: str, delta: str) -> ChatResponse:
    return ChatResponse(message=ChatMessage(text, role=MessageRole.ASSISTANT), delta=delta)


def _completed(response: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        additional_kwargs=response.additional_kwargs,
    )
