"""Reading of a request for a response."""

import re
from dataclasses import dataclass, field
from typing import Any

from ruvd.http.openai.fields import Fields, shown
from ruvd.http.openai.items import ItemReader
from ruvd.http.openai.messages import Conversation
from ruvd.http.openai.options import (
    Only,
    OptionReader,
    read_function,
    read_mode,
    read_schema,
    refuse_unsupported,
)
from ruvd.v1 import session_service_pb2 as pb

_ONLY: Only = {
    "service_tier": (("auto", "default"), "must be auto or default"),
    "top_logprobs": ((0,), "must be 0: log probabilities are not supported"),
    "truncation": (("auto",), "must be auto: the session's context window decides"),
    "include": (([],), "is not supported; reasoning and outputs are always included"),
    "prompt": ((), "is not supported; send instructions and input"),
    "user": (("",), "is not supported; the caller's credential says who calls"),
    "safety_identifier": (("",), "is not supported; the caller's credential says who calls"),
    "prompt_cache_key": (("",), "is not supported; a session has its own cache key"),
    "prompt_cache_retention": ((), "is not supported; the engine's settings decide"),
    "max_tool_calls": ((), "is not supported: the client calls the tools"),
    "context_management": (([],), "is not supported; the session's context window decides"),
}
_ECHOED = ("instructions", "tools", "tool_choice", "temperature", "top_p", "max_output_tokens",
           "parallel_tool_calls", "text", "reasoning", "truncation")  # fmt: skip
# A new conversation for an id that got lost would have none of the history.
_EMPTY = "must not be empty; leave it out for a new conversation"
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_MESSAGE = re.compile(r"messages\[(\d+)\]")
_PATHS = (
    (re.compile(r"^options\.tool_choice\.function"), "tool_choice.name"),
    (re.compile(r"^options\.tool_choice\.mode"), "tool_choice"),
    (re.compile(r"^options\.response_format\.json_schema"), "text.format.schema"),
    (re.compile(r"^options\.response_format\.json_object"), "text.format.type"),
    (re.compile(r"^options\.response_format\."), "text.format."),
    (re.compile(r"^options\.max_tokens$"), "max_output_tokens"),
    (re.compile(r"^options\.extra_body\."), ""),
    (re.compile(r"^options\."), ""),
    (re.compile(r"\.tool_call_id$"), ".call_id"),
    (re.compile(r"^messages$"), "input"),
    (re.compile(r"^session_id$"), "conversation"),
    (re.compile(r"^system_prompt$"), "instructions"),
    (re.compile(r"^request_id$"), "Idempotency-Key"),
    (re.compile(r"^request$"), "body"),
)


@dataclass(slots=True)
class ResponseRequest:
    """A request for a response: what the core is asked for, and what concerns the API alone."""

    input: Conversation
    options: pb.CompletionOptions
    system_prompt: str = ""
    conversation: str = ""
    previous: str = ""
    store: bool = True
    stream: bool = False
    background: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    echo: dict[str, Any] = field(default_factory=dict)

    def rename(self, path: str) -> str:
        """Returns the path in the request of a field in the core's words."""
        for pattern, replacement in _PATHS:
            path = pattern.sub(replacement, path)
        positions = self.input.positions
        return _MESSAGE.sub(lambda found: f"input[{_at(positions, int(found[1]))}]", path)


def _at(positions: list[int], index: int) -> int:
    return positions[index] if index < len(positions) else index


def read_response(fields: Fields, body: dict[str, Any]) -> ResponseRequest:
    """Reads the body of a request."""
    echo = {name: body[name] for name in _ECHOED if body.get(name) is not None}
    refuse_unsupported(fields, body, _ONLY)
    given = body.pop("input", None)
    conversation = ItemReader(fields).read([] if given is None else given, "input")
    reader = OptionReader(fields, body)
    asked = ResponseRequest(conversation, reader.options, echo=echo)
    instructions = fields.optional(body, "instructions", "", fields.text) or ""
    prompts = [each for each in (instructions, conversation.system_prompt) if each]
    asked.system_prompt = "\n\n".join(prompts)
    asked.conversation = _read_conversation(fields, body.pop("conversation", None))
    previous = fields.optional(body, "previous_response_id", "", fields.text)
    if previous == "":
        fields.refuse("previous_response_id", _EMPTY)
    asked.previous = previous or ""
    store = fields.optional(body, "store", "", fields.flag)
    asked.store = store is not False
    asked.stream = bool(fields.optional(body, "stream", "", fields.flag))
    asked.background = bool(fields.optional(body, "background", "", fields.flag))
    asked.metadata = read_bounded_metadata(fields, body.pop("metadata", None))
    _check_place(fields, asked)
    _read_stream_options(fields, body.pop("stream_options", None))
    reader.read_common()
    reader.read("max_output_tokens", fields.integer, "max_tokens")
    _read_tools(fields, body, reader.options)
    _read_text(fields, body, reader.options)
    _read_reasoning(fields, body)
    reader.read_rest()
    return asked


def read_metadata(fields: Fields, value: Any) -> dict[str, str]:
    """Reads metadata, which are a session's labels."""
    if value is None:
        return {}
    metadata = fields.object(value, "metadata")
    return {key: fields.text(each, f"metadata.{key[:100]}") for key, each in metadata.items()
            if fields.text(key, "metadata") == key}  # fmt: skip


def read_bounded_metadata(fields: Fields, value: Any) -> dict[str, str]:
    """Reads metadata that stay in memory. They have the limits of OpenAI's API."""
    metadata = read_metadata(fields, value)
    if len(metadata) > _MAX_PAIRS:
        fields.refuse("metadata", f"may have at most {_MAX_PAIRS} pairs")
    for key, each in metadata.items():
        if len(key) > _MAX_KEY or len(each) > _MAX_VALUE:
            text = f"may have at most {_MAX_KEY} characters, and its value {_MAX_VALUE}"
            fields.refuse(f"metadata.{key[:100]}", text)
    return metadata


def _read_conversation(fields: Fields, value: Any) -> str:
    if value is None:
        return ""
    path = "conversation"
    if isinstance(value, dict):
        given = fields.object(value, path)
        path, value = "conversation.id", given.pop("id", None)
        fields.refuse_rest(given, "conversation")
    if value == "":
        fields.refuse(path, _EMPTY)
    return fields.text(value, path)


def _check_place(fields: Fields, asked: ResponseRequest) -> None:
    if asked.conversation and asked.previous:
        text = "must not come with conversation, which has its own last response"
        fields.refuse("previous_response_id", text)
    if not asked.store and (asked.conversation or asked.previous or asked.background):
        text = "must be true with conversation, previous_response_id or background"
        fields.refuse("store", text)


def _read_stream_options(fields: Fields, value: Any) -> None:
    if value is not None:
        options = fields.object(value, "stream_options")
        options.pop("include_obfuscation", None)  # padding, which is never sent here
        fields.refuse_rest(options, "stream_options")


def _read_tools(fields: Fields, body: dict[str, Any], options: pb.CompletionOptions) -> None:
    tools = body.pop("tools", None)
    for at, each in fields.items([] if tools is None else tools, "tools"):
        tool = fields.object(each, at)
        if (kind := tool.pop("type", None)) != "function":
            text = f"must be function, not {shown(kind)}: the client calls the tools"
            fields.refuse(f"{at}.type", text)
            continue
        options.tools.append(read_function(fields, tool, at))
    choice = body.pop("tool_choice", None)
    if isinstance(choice, str):
        options.tool_choice.CopyFrom(read_mode(fields, choice, "tool_choice"))
    elif choice is not None:
        given = fields.object(choice, "tool_choice")
        fields.choice(given.pop("type", None), "tool_choice.type", ("function",))
        options.tool_choice.function = fields.text(given.pop("name", None), "tool_choice.name")
        fields.refuse_rest(given, "tool_choice")


def _read_text(fields: Fields, body: dict[str, Any], options: pb.CompletionOptions) -> None:
    value = body.pop("text", None)
    if value is None:
        return
    text = fields.object(value, "text")
    if (verbosity := fields.optional(text, "verbosity", "text", fields.text)) is not None:
        body["verbosity"] = verbosity  # only the engine's server knows it
    given = text.pop("format", None)
    fields.refuse_rest(text, "text")
    if given is None:
        return
    form, path = fields.object(given, "text.format"), "text.format"
    kinds = ("text", "json_object", "json_schema")
    kind = fields.choice(form.pop("type", None), f"{path}.type", kinds)
    if kind == "json_object":
        options.response_format.json_object = True
    elif kind == "json_schema":
        options.response_format.CopyFrom(read_schema(fields, form, path))
        return
    fields.refuse_rest(form, path)


def _read_reasoning(fields: Fields, body: dict[str, Any]) -> None:
    value = body.pop("reasoning", None)
    if value is not None:
        reasoning = fields.object(value, "reasoning")
        if (effort := fields.optional(reasoning, "effort", "reasoning", fields.text)) is not None:
            body["reasoning_effort"] = effort  # only the engine's server knows it
        fields.refuse_rest(reasoning, "reasoning")
