"""The echo engine's answers and faults: pure functions of the request.

The rules of the answers are in `.engine`. Faults let a client test its handling of each error on a
real daemon. With `echo_faults`, a user message of the form `!fault REASON TEXT` is answered with
TEXT, which may be empty, and then with the error of that reason, as if the engine had raised it.
REASON is one of the API's error reasons, such as `ENGINE_TIMEOUT`. An unknown reason raises
INVALID_REQUEST, and so does `INVALID_REQUEST` itself.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruvd.core.errors import EngineRejected, FieldViolation, InvalidRequest, RuvdError
from ruvd.core.model import FinishReason, Message, Role, ToolCallDelta
from ruvd.core.options import CompletionOptions, ResponseFormat, ToolChoiceMode
from ruvd.core.ports.engine import EngineText

_WORDS = re.compile(r"\s*\S+(?:\s+\Z)?|\s+\Z")
# Enough for every schema that a person writes. A schema that refers to itself has no end.
_MAX_DEPTH = 16
_FAULT_PREFIX = "!fault "
_ERRORS = {error.reason(): error for error in RuvdError.__subclasses__()}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's pieces, one a token, and the reason why it ends."""

    pieces: Sequence[EngineText | ToolCallDelta]
    finish_reason: FinishReason


def answer(messages: Sequence[Message], options: CompletionOptions, *, nonce: str = "") -> Answer:
    """Returns the answer. A `nonce` is appended to a text. Raises EngineRejected for an unreadable
    schema, and for a tool choice that names no tool."""
    question = next((m.content for m in reversed(messages) if m.role is Role.USER), "")
    is_result = bool(messages) and messages[-1].role is Role.TOOL
    if not is_result and (name := _chosen_tool(question, options)):
        call = _tool_call(name, question)
        return _limited(call, options.max_tokens, FinishReason.TOOL_CALLS)
    text = messages[-1].content if is_result else question
    if options.response_format is not None:
        text = _structured(options.response_format, text)
    elif nonce:
        text = f"{text} {nonce}"
    stops = [at for at in (text.find(stop) for stop in options.stop if stop) if at >= 0]
    words = _WORDS.findall(text[: min(stops, default=len(text))])
    return _limited([EngineText(word) for word in words], options.max_tokens, FinishReason.STOP)


def split_fault(text: str) -> tuple[str, Exception | None]:
    """Returns the text to answer and the error to raise after it, None if no fault is requested."""
    if not text.startswith(_FAULT_PREFIX):
        return text, None
    reason, _, text = text.removeprefix(_FAULT_PREFIX).partition(" ")
    if reason == "INTERNAL":
        return text, RuntimeError("a fault that was asked for")
    kind = _ERRORS.get(reason)
    if kind is None or kind is InvalidRequest:
        violation = FieldViolation("messages[0].content", f"asks for the fault {reason}")
        return text, InvalidRequest([violation])
    return text, kind("a fault that was asked for")


def _limited(
    pieces: Sequence[EngineText | ToolCallDelta], max_tokens: int | None, reason: FinishReason
) -> Answer:
    if max_tokens is not None and len(pieces) > max_tokens:
        return Answer(pieces[:max_tokens], FinishReason.LENGTH)
    return Answer(pieces, reason)


def _chosen_tool(question: str, options: CompletionOptions) -> str:
    """Returns the name of the tool to call, empty for none."""
    names = [tool.name for tool in options.tools]
    choice = options.tool_choice
    if isinstance(choice, str):
        if choice not in names:
            raise EngineRejected(f"tool_choice names {choice!r}, the tools are {names}")
        return choice
    if choice is ToolChoiceMode.NONE or not names:
        return ""
    words = set(re.findall(r"[\w-]+", question))
    named = next((name for name in names if name in words), "")
    return named or (names[0] if choice is ToolChoiceMode.REQUIRED else "")


def _tool_call(name: str, question: str) -> list[ToolCallDelta]:
    """Returns the deltas: the id and the name first, then a fragment of arguments for each word."""
    arguments = json.dumps({"text": question}, ensure_ascii=False)
    # A hash makes the id equal in every process, and different for another question.
    call_id = f"call_{hashlib.sha256(f'{name} {question}'.encode()).hexdigest()[:16]}"
    first = ToolCallDelta(0, id=call_id, name=name)
    words = _WORDS.findall(arguments)
    return [first, *(ToolCallDelta(0, arguments=word) for word in words)]


def _structured(wanted: ResponseFormat, text: str) -> str:
    if wanted.json_object:
        return json.dumps({"text": text}, ensure_ascii=False)
    try:
        root = json.loads(wanted.json_schema)
    except ValueError as error:
        raise EngineRejected(f"the JSON Schema cannot be read: {error}") from None
    return json.dumps(_instance(root, root, text), ensure_ascii=False)


def _instance(schema: Any, root: Any, text: str, depth: int = 0) -> Any:
    """Returns the smallest instance of a schema, with `text` for every unrestricted string."""
    if depth > _MAX_DEPTH:
        raise EngineRejected("the JSON Schema is too deep, or has no end")
    if not isinstance(schema, Mapping):
        return {}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if "$ref" in schema:
        return _instance(_resolve(root, str(schema["$ref"])), root, text, depth + 1)
    if union := schema.get("anyOf") or schema.get("oneOf"):
        return _instance(union[0], root, text, depth + 1)
    if parts := schema.get("allOf"):
        instances = [_instance(part, root, text, depth + 1) for part in parts]
        return dict(pair for part in instances if isinstance(part, dict) for pair in part.items())
    return _instance_of_type(schema, root, text, depth)


def _instance_of_type(schema: Mapping[str, Any], root: Any, text: str, depth: int) -> Any:
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            return {
                name: _instance(part, root, text, depth + 1) for name, part in properties.items()
            }
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


def _resolve(root: Any, reference: str) -> Any:
    """Returns the part of the schema that a reference such as `#/a/b` points at."""
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            raise EngineRejected(f"the JSON Schema has no {reference!r}")
        found = found[name]
    return found
