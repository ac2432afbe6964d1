"""One request in its slot: its chunks say what the slot begins with and which figures it has."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from ruvd.core.model import Usage
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, EngineText
from ruvd.engines.llama.kv_cache import KvCache
from ruvd.engines.llama.prompt import prompt_of
from ruvd.engines.llama.slot_table import SlotTable
from ruvd.engines.llama.slots import AnsweredRequest, Slot


@dataclass(eq=False, slots=True)
class Generation:
    """A request in its slot, with the chunks of its answer, and the figures of the prompt in
    `evaluated` if it was evaluated by itself before."""

    kv_cache: KvCache
    table: SlotTable
    slot: Slot
    request: EngineRequest
    chunks: aclosing[AsyncGenerator[EngineChunk, None]]
    evaluated: EngineDone | None = None
    has_begun: bool = False
    # None if the answer has other parts than text, which templates write in ways of their own.
    answer: list[str] | None = field(default_factory=list)

    def record(self, chunk: EngineChunk) -> EngineChunk:
        """Records in the slot what a chunk says of its content; returns the chunk to pass on."""
        slot, is_private = self.slot, self.request.options.bypass_cache
        if not self.has_begun:
            self.has_begun = True
            slot.tenants = frozenset((self.request.tenant,))
            self.table.answer_began(slot)
            if not is_private:
                slot.set_content(prompt_of(self.request), slot.request_session)
        if isinstance(chunk, EngineText):
            if self.answer is not None:
                self.answer.append(chunk.text)
            return chunk
        if not isinstance(chunk, EngineDone):
            self.answer = None
            return chunk
        if is_private:
            return chunk
        if self.answer and slot.request_session == self.request.session_key:
            slot.set_content(
                prompt_of(self.request).with_answer("".join(self.answer)),
                slot.request_session,
                answered=_answered(self.request, chunk.usage),
            )
        self.kv_cache.check_restored(slot, chunk)
        return chunk if self.evaluated is None else _sum(self.evaluated, chunk)


def _answered(request: EngineRequest, usage: Usage | None) -> AnsweredRequest | None:
    if usage is None or not request.session_key or request.background:
        return None
    return AnsweredRequest(request, usage.prompt_tokens + usage.completion_tokens)


def _sum(evaluated: EngineDone, answered: EngineDone) -> EngineDone:
    """Returns the figures of a prompt that was evaluated first and then answered from the cache."""
    usage, seconds = answered.usage, answered.prefill_seconds
    if usage is not None:
        cached = None if evaluated.usage is None else evaluated.usage.cached_tokens
        usage = Usage(usage.prompt_tokens, cached, usage.completion_tokens)
    if seconds is not None:
        seconds += evaluated.prefill_seconds or 0.0
    return replace(answered, usage=usage, prefill_seconds=seconds)
