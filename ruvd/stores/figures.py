"""The figures of a completion as JSON, which the stores keep in one column: all of a `Finished`.

The history mostly holds its message already. Otherwise the message is among the figures, in the
form that the store gives it.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from ruvd.core.model import Finished, FinishReason, Message, SentContext, Timings, Usage


def to_json(finished: Finished, message: Sequence[str | None] | None) -> str:
    """Returns the figures, with a message that the history does not hold."""
    usage, timings = finished.usage, finished.timings
    figures: dict[str, Any] = {
        "finish_reason": finished.finish_reason.value,
        "usage": usage and [usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens],
        "timings": [
            timings.queue_seconds,
            timings.time_to_first_token_seconds,
            timings.total_seconds,
            timings.prefill_seconds,
        ],
        "exchange_count": finished.exchange_count,
    }
    if sent := finished.sent:
        figures["sent"] = [sent.messages, sent.trimmed, sent.summarized]
    if finished.time is not None:
        figures["time"] = finished.time
    if finished.raw_finish_reason:
        figures["raw_finish_reason"] = finished.raw_finish_reason
    if message:
        figures["message"] = message
    return json.dumps(figures)


def to_finished(text: str, to_message: Callable[[Sequence[Any] | None], Message]) -> Finished:
    """Returns what `to_json` was given.

    `to_message` converts the message among the figures, and finds it in the history if it is None.
    """
    figures = json.loads(text)
    return Finished(
        finish_reason=FinishReason(figures["finish_reason"]),
        message=to_message(figures.get("message")),
        usage=Usage(*figures["usage"]) if figures["usage"] else None,
        timings=Timings(*figures["timings"]),
        exchange_count=figures["exchange_count"],
        raw_finish_reason=figures.get("raw_finish_reason", ""),
        sent=SentContext(*figures["sent"]) if "sent" in figures else None,
        time=figures.get("time"),
    )
