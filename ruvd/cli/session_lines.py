"""Conversion of sessions from and to lines of JSON in OpenAI's message format. Pure functions.

The system prompt is the first message. `metadata` has what `messages` cannot hold. Its times are
for readers; an imported session gets its own. A field that sessions do not have is refused, unless
it is empty. Usage and parent are not exported, because an imported session has generated nothing
and shares nothing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from ruvd_client import ContextWindow, Message, Session
from ruvd_client.protocol import CreateSessionArguments, to_seconds
from ruvd_client.v1.session_service_pb2 import Compaction, Rendering

from ruvd.cli.openai_conversation import read_conversation
from ruvd.cli.openai_messages import (
    LineRefused,
    Reader,
    Reading,
    escape_line,
    read_fields,
    read_object,
    read_text,
    refuse_rest,
    to_openai,
)

__all__ = ["Conversation", "LineRefused", "Reading", "from_line", "to_line"]

_RENDERING = "RENDERING_"
_COMPACTION = "COMPACTION_"
_LIMITS: Final = ("keep_exchanges", "max_exchanges", "max_tokens", "keep_first")
_TIMES = ("create_time", "last_used_time")
_MAX_INT32 = 2**31 - 1
_MAX_IDLE_SECONDS = 315_576_000_000  # the longest protobuf Duration


@dataclass(frozen=True, slots=True)
class Conversation:
    """The content of a line: arguments of a session, and messages without the system prompt."""

    arguments: CreateSessionArguments
    messages: tuple[Message, ...]


def to_line(session: Session) -> str:
    """Returns the line, without line break, of a session with its messages."""
    messages = [to_openai(message) for message in session.messages]
    if session.system_prompt:
        messages.insert(0, {"role": "system", "content": session.system_prompt})
    window = session.context_window
    limits = {name: getattr(window, name) for name in _LIMITS if window.HasField(name)}
    if not window.keep_first:
        limits.pop("keep_first", None)
    rendering = Rendering.Name(window.rendering).removeprefix(_RENDERING).lower()
    compaction = Compaction.Name(window.compaction).removeprefix(_COMPACTION).lower()
    shapes: dict[str, Any] = {"rendering": rendering}
    if window.compaction == Compaction.COMPACTION_SUMMARY:
        shapes |= {"compaction": compaction, "compact_at": window.compact_at}
    metadata: dict[str, Any] = {
        "session_id": session.id,
        "labels": dict(sorted(session.labels.items())),
        "model": session.model,
        "idle_timeout_seconds": to_seconds(session.idle_timeout),
        "context_window": {**limits, **shapes},
        "create_time": session.create_time.ToJsonString(),
        "last_used_time": session.last_used_time.ToJsonString(),
    }
    if session.compaction_instruction:
        metadata["compaction_instruction"] = session.compaction_instruction
    if session.summary:
        metadata["summary"] = session.summary
        metadata["summary_exchange_count"] = session.summary_exchange_count
    line = json.dumps({"messages": messages, "metadata": metadata}, ensure_ascii=False)
    return escape_line(line)


def from_line(line: bytes, reading: Reading | None = None) -> Conversation:
    """Reads a line, by the strict rule unless a `reading` has another. Raises LineRefused."""
    reading = reading or Reading()
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineRefused("", f"not valid JSON: {error}") from error
    fields = read_object(value, "the line")
    messages = fields.pop("messages", None)
    if not isinstance(messages, list):
        raise LineRefused("messages", "must be a list")
    arguments: CreateSessionArguments = {}
    with reading.part():
        metadata = read_object(fields.pop("metadata", None) or {}, "metadata")
        arguments = _arguments(metadata, reading)
    reading.refuse_rest(fields, "")
    conversation = read_conversation(messages, "messages", reading)
    if conversation.system_prompt:
        arguments["system_prompt"] = conversation.system_prompt
    return Conversation(arguments, tuple(conversation.messages))


def _arguments(metadata: dict[str, Any], reading: Reading) -> CreateSessionArguments:
    readers: Mapping[str, Reader[Any]] = {
        "session_id": read_text,
        "model": read_text,
        "labels": _labels,
        "idle_timeout_seconds": _idle_seconds,
        "context_window": _context_window,
        "compaction_instruction": read_text,
        "summary": read_text,
        "summary_exchange_count": _limit,
    }
    arguments: dict[str, Any] = {}
    for name, read in {**readers, **dict.fromkeys(_TIMES, _check_time)}.items():
        with reading.part():
            arguments |= read_fields(metadata, {name: read}, "metadata")
    for name in _TIMES:
        arguments.pop(name, None)
    reading.refuse_rest({key: metadata[key] for key in metadata if key not in readers}, "metadata.")
    return arguments  # type: ignore[return-value]


def _labels(value: Any, path: str) -> dict[str, str]:
    labels = read_object(value, path)
    return {
        read_text(key, path): read_text(label, f"{path}.{key}") for key, label in labels.items()
    }


def _idle_seconds(value: Any, path: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= _MAX_IDLE_SECONDS:
        raise LineRefused(path, f"must be a positive number of seconds, not {value!r}")
    return float(value)


def _context_window(value: Any, path: str) -> ContextWindow:
    fields = read_object(value, path)
    readers: dict[str, Reader[Any]] = {**dict.fromkeys(_LIMITS, _limit), "rendering": _rendering}
    readers |= {"compaction": _compaction, "compact_at": _share}
    window = ContextWindow(**read_fields(fields, readers, path))
    refuse_rest(fields, f"{path}.")
    return window


def _limit(value: Any, path: str) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 0 <= value <= _MAX_INT32:
        raise LineRefused(path, f"must be an integer from 0 to {_MAX_INT32}, not {value!r}")
    return int(value)


def _rendering(value: Any, path: str) -> Rendering.ValueType:
    renderings = {each.removeprefix(_RENDERING).lower(): each for each in Rendering.keys()[1:]}
    if not isinstance(value, str) or value not in renderings:
        raise LineRefused(path, f"must be {' or '.join(renderings)}, not {value!r}")
    return Rendering.Value(renderings[value])


def _compaction(value: Any, path: str) -> Compaction.ValueType:
    compactions = {each.removeprefix(_COMPACTION).lower(): each for each in Compaction.keys()[1:]}
    if not isinstance(value, str) or value not in compactions:
        raise LineRefused(path, f"must be {' or '.join(compactions)}, not {value!r}")
    return Compaction.Value(compactions[value])


def _share(value: Any, path: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        raise LineRefused(path, f"must be a number above 0 and at most 1, not {value!r}")
    return float(value)


def _check_time(value: Any, path: str) -> None:
    """Checks a time, which is not imported. Raises LineRefused."""
    try:
        Timestamp().FromJsonString(value)
    except (ValueError, TypeError) as error:
        raise LineRefused(path, f"must be an RFC 3339 time, not {value!r}") from error
