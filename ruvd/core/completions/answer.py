"""An answer while it is generated. After a cancel it holds what came so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ruvd.core.completions.growing_text import GrowingText
from ruvd.core.model import (
    Finished,
    Message,
    Role,
    SentContext,
    Timings,
    ToolCall,
    ToolCallDelta,
)
from ruvd.core.ports.engine import NO_DATA, EngineDone
from ruvd.core.sessions import window

_BYTES_PER_TOKEN = 4


@dataclass(eq=False, slots=True)
class Answer:
    """An answer while it is generated. Times are those of the monotonic clock."""

    arrived: float
    plan: window.Plan | None = None
    queue_seconds: float | None = None
    text: GrowingText = field(default_factory=GrowingText)
    reasoning: GrowingText = field(default_factory=GrowingText)
    tool_calls: dict[int, list[ToolCallDelta]] = field(default_factory=dict)
    reserved_bytes: int = 0
    first_output: float | None = None
    done: EngineDone | None = None
    model: str = ""
    engine: str = ""

    @property
    def message(self) -> Message:
        """The answer as far as it has come."""
        data = self.done.call_data if self.done else NO_DATA
        return Message(
            Role.ASSISTANT,
            self.text.joined(),
            tool_calls=tuple(
                _tool_call(deltas, data.get(number, ""))
                for number, deltas in sorted(self.tool_calls.items())
            ),
            reasoning=self.reasoning.joined(),
            engine_data=self.done.message_data if self.done else "",
        )

    @property
    def pieces(self) -> int:
        """The number of pieces that the engine has sent."""
        calls = sum(len(deltas) for deltas in self.tool_calls.values())
        return self.text.pieces + self.reasoning.pieces + calls

    def tokens(self, *, cancelled: bool) -> int:
        """Returns the tokens that count against a quota: those evaluated and generated.

        If the engine has not reported them, because it does not or because the answer has not
        ended, they are estimated by the bytes of the prompt and the answer. What the engine refused
        before it answered counts nothing.
        """
        usage = self.done.usage if self.done else None
        if usage:
            return usage.prompt_tokens - (usage.cached_tokens or 0) + usage.completion_tokens
        if self.plan is None or (self.first_output is None and not cancelled):
            return 0
        return -(-(self.plan.size_bytes + self.message.size_bytes) // _BYTES_PER_TOKEN)

    def timings(self, now: float) -> Timings:
        """Returns the durations until `now`."""
        first = self.first_output
        total = now - self.arrived
        return Timings(
            queue_seconds=total if self.queue_seconds is None else self.queue_seconds,
            time_to_first_token_seconds=None if first is None else first - self.arrived,
            total_seconds=total,
            prefill_seconds=self.done.prefill_seconds if self.done else None,
        )

    def finished(
        self, done: EngineDone, now: float, *, exchange_count: int, time: float | None = None
    ) -> Finished:
        """Returns the event that ends the completion. `time` is that of the core's clock."""
        plan = self.plan
        return Finished(
            done.finish_reason,
            self.message,
            done.usage,
            self.timings(now),
            exchange_count,
            done.raw_finish_reason,
            SentContext(len(plan.messages), plan.trimmed, plan.summarized) if plan else None,
            time,
        )


def _tool_call(deltas: Sequence[ToolCallDelta], data: str) -> ToolCall:
    arguments = "".join(delta.arguments for delta in deltas)
    return ToolCall(deltas[0].id, deltas[0].name, arguments, data)
