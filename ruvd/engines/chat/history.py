"""The messages of a conversation in a form that every server accepts. Pure.

Some servers refuse a conversation with one of these messages, and then every later turn of it:

- an answer without a text and without calls (Mistral; Anthropic also for a text of spaces),
- a call that has no result before the next message of another role (OpenAI, Mistral),
- a call whose arguments are empty, cut or no JSON object (vLLM and many templates parse them),
- a call of a function whose name no function can have, as the model made it up (OpenAI).

They are mended in what is sent, never in the history. A message is mended in the same way in every
turn, so the prompt of a turn still begins with the prompt of the turn before it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import msgspec

from ruvd.core.model import Message, Role, ToolCall

# Left out, the answer would leave two messages of the user side by side, which the templates of
# Mistral and Gemma refuse.
NO_ANSWER = "(no answer)"
# The name under which text that is no JSON object is sent.
_ARGUMENTS = "arguments"
# The names that tools may have.
_MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")


def sendable(messages: Sequence[Message]) -> Sequence[Message]:
    """Returns the messages with those mended that some servers refuse."""
    if not any(message.role is Role.ASSISTANT and _is_odd(message) for message in messages):
        return messages
    mended = list(messages)
    for index, message in enumerate(messages):
        if message.role is Role.ASSISTANT and _is_odd(message):
            calls = _answered(messages, index)
            content = message.content
            if not calls and _is_blank(content):
                content = NO_ANSWER
            mended[index] = replace(message, content=content, tool_calls=calls)
    return mended


def _is_odd(message: Message) -> bool:
    """Whether an assistant's message may have to be mended."""
    return bool(message.tool_calls) or _is_blank(message.content)


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _answered(messages: Sequence[Message], index: int) -> tuple[ToolCall, ...]:
    """Returns the calls of a message that have their results, with valid arguments.

    The calls of the last message are still open, so all of them stay.
    """
    calls = messages[index].tool_calls
    if not calls:
        return ()
    results = set()
    for following in range(index + 1, len(messages)):
        if messages[following].role is not Role.TOOL:
            break
        results.add(messages[following].tool_call_id)
    is_last = index + 1 == len(messages)
    return tuple(_valid(call) for call in calls if is_last or call.id in results)


def _valid(call: ToolCall) -> ToolCall:
    arguments, name = valid_arguments(call.arguments), call.name
    if not _NAME.fullmatch(name):
        name = _NOT_IN_NAMES.sub("_", name)[:_MAX_NAME] or "_"
    if arguments is call.arguments and name is call.name:
        return call
    return replace(call, name=name, arguments=arguments)


def valid_arguments(text: str) -> str:
    """Returns the text of a JSON object: the text itself if it is one, or one that holds it."""
    if _is_blank(text):
        return "{}"
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        value = _decode_leniently(text)
    else:
        if isinstance(value, dict):
            return text
    if isinstance(value, str) and value is not text:
        value = _object_in(value)
    if value is None:
        return "{}"
    value = value if isinstance(value, dict) else {_ARGUMENTS: value}
    return msgspec.json.encode(value).decode()


def _object_in(text: str) -> Any:
    """Returns the JSON object that a string holds, as some models encode arguments twice."""
    try:
        inner = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return text
    return inner if isinstance(inner, dict) else text


def _decode_leniently(text: str) -> Any:
    """Decodes JSON with line breaks in its strings, which models write; else returns the text."""
    try:
        value = json.loads(text, strict=False, parse_constant=_no_number)
        msgspec.json.encode(value)
    except (ValueError, RecursionError):
        return text
    return value


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")
