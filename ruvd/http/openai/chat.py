"""`/v1/chat/completions`: stateless, or a turn of the session in the header X-Ruvd-Session-Id."""

import re
from typing import Any

from ruvd.core.completions.completion import CompletionRequest
from ruvd.core.model import Finished, Usage
from ruvd.http.openai import session_history
from ruvd.http.openai.calls import Call, Rename
from ruvd.http.openai.chat_stream import ChatAnswer
from ruvd.http.openai.completion_call import SESSION_HEADER, answered, convert, read_headers
from ruvd.http.openai.fields import Fields
from ruvd.http.openai.messages import Conversation, read_conversation
from ruvd.http.openai.options import (
    ONLY,
    OptionReader,
    read_function,
    read_mode,
    read_schema,
    refuse_unsupported,
)
from ruvd.http.openai.parts import Parts
from ruvd.http.openai.streams import failed
from ruvd.v1 import session_service_pb2 as pb

_MESSAGE = re.compile(r"messages\[(\d+)\]")
_PATHS = (
    (re.compile(r"^options\.tools\[(\d+)\]"), r"tools[\1].function"),
    (re.compile(r"^options\.tool_choice\.function"), "tool_choice.function.name"),
    (re.compile(r"^options\.tool_choice\.mode"), "tool_choice"),
    (re.compile(r"^options\.response_format\.json_schema"), "response_format.json_schema.schema"),
    (re.compile(r"^options\.response_format\.json_object"), "response_format.type"),
    (re.compile(r"^options\.response_format\."), "response_format.json_schema."),
    (re.compile(r"^options\.extra_body\."), ""),
    (re.compile(r"^options\."), ""),
    (re.compile(r"(tool_calls\[\d+\])\.(name|arguments)"), r"\1.function.\2"),
    (re.compile(r"\.reasoning$"), ".reasoning_content"),
    (re.compile(r"^session_id$"), "X-Ruvd-Session-Id"),
    (re.compile(r"^request_id$"), "Idempotency-Key"),
    (re.compile(r"^request$"), "body"),
)


class ChatCompletions:
    """The operations of chat completions."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def create(self, call: Call) -> None:
        """Answers a conversation, or the new messages of a session."""
        fields, body = Fields(), call.body
        stream = fields.optional(body, "stream", "", fields.flag) or False
        wants_usage = _read_stream_options(fields, body.pop("stream_options", None), stream=stream)
        request, history, rename = read_chat(fields, body, call.header(SESSION_HEADER))
        read_headers(fields, call, request)
        asked = convert(fields, call, request, self._parts.limits, rename)
        if request.session_id:
            await session_history.agree(self._parts, request, history)
        await self._answer(call, asked, stream=stream, wants_usage=wants_usage)

    async def _answer(
        self, call: Call, asked: CompletionRequest, *, stream: bool, wants_usage: bool
    ) -> None:
        async with answered(self._parts.completions, asked) as answer:
            model = answer.started.model if answer.started else asked.options.model
            chat = ChatAnswer(answer.id, model or self._parts.engine.model, counts=wants_usage)
            headers = {}
            if asked.session_id:
                headers[SESSION_HEADER] = call.header(SESSION_HEADER)
            if not stream:
                await call.respond(chat.whole(await answer.finished()), headers=headers)
                return
            await call.begin_stream(headers)
            await call.write(chat.first())
            counted: Usage | None = None
            try:
                async for event in answer.rest():
                    for chunk in chat.chunks(event):
                        await call.write(chunk)
                    if isinstance(event.event, Finished):
                        counted = event.event.usage
            except Exception as error:
                await failed(call, error)
                raise
            if wants_usage:
                await call.write(chat.last(counted))
            await call.write_done()
            await call.end_stream()


def _read_stream_options(fields: Fields, value: Any, *, stream: bool) -> bool:
    if value is None:
        return False
    options = fields.object(value, "stream_options")
    wants = fields.optional(options, "include_usage", "stream_options", fields.flag) or False
    options.pop("include_obfuscation", None)  # padding of chunks, which is never sent here
    fields.refuse_rest(options, "stream_options")
    if not stream:
        fields.refuse("stream_options", "needs stream to be true")
    return wants


def read_chat(
    fields: Fields, body: dict[str, Any], session_id: str = ""
) -> tuple[pb.CompleteRequest, Conversation, Rename]:
    """Returns the request, the conversation as it was sent, and the names of its fields."""
    conversation = read_conversation(fields, body.pop("messages", None), "messages")
    request = pb.CompleteRequest(session_id=session_id, system_prompt=conversation.system_prompt)
    first = conversation.new if request.session_id else 0
    request.messages.extend(conversation.messages[first:])
    limit = _read_options(fields, body, request.options)
    positions = conversation.positions[first:]

    def rename(path: str) -> str:
        for pattern, replacement in _PATHS:
            path = pattern.sub(replacement, path)
        if path == "max_tokens":
            return limit
        if path == "system_prompt":
            return "messages[0]"
        return _MESSAGE.sub(lambda found: f"messages[{_at(positions, int(found[1]))}]", path)

    return request, conversation, rename


def _at(positions: list[int], index: int) -> int:
    return positions[index] if index < len(positions) else index


def _read_options(fields: Fields, body: dict[str, Any], options: pb.CompletionOptions) -> str:
    """Reads the options; returns the name under which the limit of tokens came."""
    refuse_unsupported(fields, body, ONLY)
    reader = OptionReader(fields, body)
    reader.read_common()
    limit, given = "max_tokens", []
    for name in ("max_tokens", "max_completion_tokens"):
        if (tokens := reader.read(name, fields.integer, "max_tokens")) is not None:
            limit = name
            given.append(tokens)
    if len(set(given)) > 1:
        fields.refuse("max_tokens", "differs from max_completion_tokens")
    tools = body.pop("tools", None)
    for at, each in fields.items([] if tools is None else tools, "tools"):
        tool = fields.object(each, at)
        _check_kind(fields, tool, at)
        reader.options.tools.append(
            read_function(fields, tool.pop("function", None), f"{at}.function")
        )
        fields.refuse_rest(tool, at)
    if (choice := body.pop("tool_choice", None)) is not None:
        reader.options.tool_choice.CopyFrom(_read_tool_choice(fields, choice))
    if (form := body.pop("response_format", None)) is not None:
        _read_format(fields, form, reader.options)
    reader.read_rest()
    options.CopyFrom(reader.options)
    return limit


def _check_kind(fields: Fields, tool: dict[str, Any], path: str) -> None:
    if (kind := tool.pop("type", None)) != "function":
        text = "must be function: other kinds of tools are not supported"
        fields.refuse(f"{path}.type", text)
        if isinstance(kind, str):
            tool.pop(kind, None)
            tool["function"] = {"name": "unsupported"}


def _read_tool_choice(fields: Fields, value: Any) -> pb.ToolChoice:
    if isinstance(value, str):
        return read_mode(fields, value, "tool_choice")
    choice = fields.object(value, "tool_choice")
    if choice.pop("type", None) != "function":
        text = "must be function; give only the tools that are allowed in tools"
        fields.refuse("tool_choice.type", text)
        return pb.ToolChoice()
    function = fields.object(choice.pop("function", None), "tool_choice.function")
    name = fields.text(function.pop("name", None), "tool_choice.function.name")
    fields.refuse_rest(function, "tool_choice.function")
    fields.refuse_rest(choice, "tool_choice")
    return pb.ToolChoice(function=name)


def _read_format(fields: Fields, value: Any, options: pb.CompletionOptions) -> None:
    path = "response_format"
    given = fields.object(value, path)
    kind = fields.choice(
        given.pop("type", None), f"{path}.type", ("text", "json_object", "json_schema")
    )
    if kind == "json_object":
        options.response_format.json_object = True
    elif kind == "json_schema":
        inner = fields.object(given.pop("json_schema", None), f"{path}.json_schema")
        options.response_format.CopyFrom(read_schema(fields, inner, f"{path}.json_schema"))
    fields.refuse_rest(given, path)
