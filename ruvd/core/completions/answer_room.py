"""The room that an answer has: its limit in bytes, and memory for all but its beginning."""

from dataclasses import replace
from typing import TypeAlias

from ruvd.core.completions.answer import Answer
from ruvd.core.completions.event_log import EventLog
from ruvd.core.errors import EngineRejected, Overloaded
from ruvd.core.model import FinishReason, ToolCallDelta
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineText
from ruvd.core.ports.memory import Memory

AnswerChunk: TypeAlias = EngineText | EngineReasoning | ToolCallDelta

# An allowance for the objects of a tool call's delta, which may be empty.
_DELTA_BYTES = 64
# The part of an answer for which no memory is reserved, and the steps that reserve it for the rest.
_FREE_BYTES = 2 << 20
_STEP_BYTES = 1 << 20


class AnswerRoom:
    """Adds chunks to `answer`, up to `max_bytes` and as long as there is memory.

    `answer.reserved_bytes` is what it has reserved, which the answer's owner gives back.
    """

    def __init__(self, max_bytes: int, memory: Memory, answer: Answer) -> None:
        self._max_bytes = max_bytes
        self._memory = memory
        self._answer = answer
        self._room = min(_FREE_BYTES, max_bytes)
        self._unreserved = max_bytes - self._room

    def add(self, chunk: AnswerChunk, log: EventLog) -> EngineDone | None:
        """Adds a chunk to the answer and to the log, or as much of it as there is room for.

        Returns the early end of an answer for which there is no room. One with tool calls fails,
        because half a call is useless: with Overloaded if there is no memory, and with
        EngineRejected at its limit.
        """
        size = _size(chunk)
        if size <= self._room or self._grow(size):
            self._room -= size
            self._append(chunk, log)
            return None
        word = "max_memory_bytes" if self._unreserved else "max_answer_bytes"
        if self._answer.tool_calls or isinstance(chunk, ToolCallDelta):
            if self._unreserved:
                raise Overloaded(f"there is no memory for the rest of the answer ({word})")
            raise EngineRejected(
                f"the answer with its tool calls has more than {self._max_bytes} bytes ({word})"
            )
        if text := chunk.text.encode()[: self._room].decode(errors="ignore"):
            self._append(replace(chunk, text=text), log)
        return EngineDone(FinishReason.LENGTH, raw_finish_reason=word)

    def _grow(self, size: int) -> bool:
        """Reserves memory until there is room for so many bytes; returns whether there is."""
        while self._unreserved and size > self._room:
            step = min(self._unreserved, _STEP_BYTES)
            if not self._memory.try_reserve(step):
                return False
            self._answer.reserved_bytes += step
            self._room += step
            self._unreserved -= step
        return size <= self._room

    def _append(self, chunk: AnswerChunk, log: EventLog) -> None:
        match chunk:
            case EngineText(text):
                self._answer.text.append(text)
                log.append_text(text)
            case EngineReasoning(text):
                self._answer.reasoning.append(text)
                log.append_reasoning(text)
            case ToolCallDelta():
                self._answer.tool_calls.setdefault(chunk.index, []).append(chunk)
                log.append_tool_call(chunk)


def _size(chunk: AnswerChunk) -> int:
    if isinstance(chunk, ToolCallDelta):
        return _DELTA_BYTES + len(f"{chunk.id}{chunk.name}{chunk.arguments}".encode())
    return len(chunk.text.encode())
