"""The echo engine's answers: a pure function of the request, documented in `.engine`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruvd.core.errors import EngineRejected
from ruvd.core.model import FinishReason, Message, Role, ToolCallDelta
from ruvd.core.options import CompletionOptions, ToolChoiceMode
from ruvd.core.ports.engine import EngineText

_WORDS = re.compile(r"\s*\S+(?:\s+\Z)?|\s+\Z")
# Enough for every schema that a person writes; one that refers to itself goes on for ever.
_MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """The pieces of an answer, a token each, and why it ends."""

    pieces: Sequence[EngineText | ToolCallDelta]
    finish_reason: FinishReason


def answer(messages: Sequence[Message], options: CompletionOptions, *, nonce: str = "") -> Answer:
    """The answer. `nonce` is said after a text. Raises EngineRejected for a schema that cannot
    be read, and for a tool that there is not."""
    said = next((m.content for m in reversed(messages) if m.role is Role.USER), "")
    is_result = bool(messages) and messages[-1].role is Role.TOOL
    if not is_result and (name := _tool(said, options)):
        pieces, reason = _cut(_call(name, said), options.max_tokens, FinishReason.TOOL_CALLS)
        return Answer(pieces, reason)
    text = messages[-1].content if is_result else said
    if options.response_format is not None:
        text = _structured(options.response_format.json_schema, text)
    elif nonce:
        text = f"{text} {nonce}"
    stops = [at for at in (text.find(stop) for stop in options.stop if stop) if at >= 0]
    words = _WORDS.findall(text[: min(stops, default=len(text))])
    pieces, reason = _cut([EngineText(word) for word in words], options.max_tokens)
    return Answer(pieces, reason)


def _cut(
    pieces: Sequence[EngineText | ToolCallDelta],
    most: int | None,
    reason: FinishReason = FinishReason.STOP,
) -> tuple[Sequence[EngineText | ToolCallDelta], FinishReason]:
    if most is not None and len(pieces) > most:
        return pieces[:most], FinishReason.LENGTH
    return pieces, reason


def _tool(said: str, options: CompletionOptions) -> str:
    """The name of the tool to call, or nothing."""
    names = [tool.name for tool in options.tools]
    choice = options.tool_choice
    if isinstance(choice, str):
        if choice not in names:
            raise EngineRejected(f"tool_choice names {choice!r}, the tools are {names}")
        return choice
    if choice is ToolChoiceMode.NONE or not names:
        return ""
    words = set(re.findall(r"[\w-]+", said))
    named = next((name for name in names if name in words), "")
    return named or (names[0] if choice is ToolChoiceMode.REQUIRED else "")


def _call(name: str, said: str) -> list[ToolCallDelta]:
    """A call whose id is a function of what was said, its arguments a fragment a word."""
    arguments = json.dumps({"text": said}, ensure_ascii=False)
    # The same in every process, and another for another question.
    call_id = f"call_{hashlib.sha256(f'{name} {said}'.encode()).hexdigest()[:16]}"
    first = ToolCallDelta(0, id=call_id, name=name)
    words = _WORDS.findall(arguments)
    return [first, *(ToolCallDelta(0, arguments=word) for word in words)]


def _structured(schema: str, text: str) -> str:
    try:
        root = json.loads(schema)
    except ValueError as error:
        raise EngineRejected(f"the JSON Schema cannot be read: {error}") from None
    return json.dumps(_instance(root, root, text), ensure_ascii=False)


def _instance(schema: Any, root: Any, text: str, depth: int = 0) -> Any:
    """The smallest thing that follows a schema, with `text` wherever a string may be anything."""
    if depth > _MAX_DEPTH:
        raise EngineRejected("the JSON Schema is too deep, or has no end")
    if not isinstance(schema, Mapping):
        return {}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if "$ref" in schema:
        return _instance(_referred(root, str(schema["$ref"])), root, text, depth + 1)
    if union := schema.get("anyOf") or schema.get("oneOf"):
        return _instance(union[0], root, text, depth + 1)
    if parts := schema.get("allOf"):
        instances = [_instance(part, root, text, depth + 1) for part in parts]
        return dict(pair for each in instances if isinstance(each, dict) for pair in each.items())
    return _of_type(schema, root, text, depth)


def _of_type(schema: Mapping[str, Any], root: Any, text: str, depth: int) -> Any:
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            wanted = schema.get("properties", {})
            return {name: _instance(each, root, text, depth + 1) for name, each in wanted.items()}
        case "array":
            item = _instance(schema.get("items", {}), root, text, depth + 1)
            return [item] * schema.get("minItems", 0)
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return text


def _referred(root: Any, reference: str) -> Any:
    """What `#/a/b` points at."""
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            raise EngineRejected(f"the JSON Schema has no {reference!r}")
        found = found[name]
    return found
