"""The meaning of a finish reason, in the words of any server.

Servers have words of their own, and gateways pass on those of others: `MAX_TOKENS`, `end_turn`,
`content_filter: SAFETY`. Words that mean a failure are errors, because the answer is not the
model's whole answer. A word without a known meaning is taken for STOP, and is kept in
`EngineDone.raw_finish_reason`, as every server's word is.
"""

import re
from typing import Any

from ruvd.core.errors import EngineRejected, EngineUnavailable, RuvdError
from ruvd.core.model import FinishReason
from ruvd.engines.chat.chunks import valid_text

# Words that a reason consists of. The first group that shares a word with it decides.
_BROKEN_CALL = {"malformed", "unexpected", "invalid"}
_FILTERED = {
    "filter", "filtered", "safety", "unsafe", "sensitive", "recitation", "blocklist", "blocked",
    "block", "prohibited", "spii", "toxic", "moderation", "moderated", "guardrail", "guardrails",
    "policy", "violation", "censored", "refusal", "refused", "harm", "harmful", "flagged", "risk",
    "copyright", "inappropriate", "nsfw", "denied", "armor",
}  # fmt: skip
_FAILED = {
    "error", "abort", "aborted", "insufficient", "network", "timeout", "timedout", "time",
    "deadline", "failed", "failure", "fail", "cancelled", "canceled", "cancel", "interrupted",
    "overloaded", "unavailable", "exception", "crash", "crashed", "disconnect", "disconnected",
    "killed", "preempted", "evicted", "oom", "exhausted", "rate", "quota", "internal", "connection",
    "lost", "shutdown", "language",
}  # fmt: skip
_CUT = {
    "length", "max", "maximum", "limit", "truncated", "exceeded", "budget", "incomplete",
}  # fmt: skip
_CALLS = {"tool", "tools", "function", "functions"}
_WHOLE = {"stop", "eos", "end", "complete", "completed", "finished", "done", "success"}
# Cohere's word for an answer that has filled the context.
_EXACT = {"error_limit": FinishReason.LENGTH, "": FinishReason.STOP}
# DashScope sends "null" until the last chunk.
_NOT_FINISHED = {"", "null", "none", "unspecified", "finish_reason_unspecified"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_MAX_LENGTH = 200


def finish_word(value: Any) -> str:
    """Returns the server's word, empty for a value that does not say that the answer has ended."""
    if isinstance(value, dict):
        value = value.get("type") or value.get("reason")
    if value is None or isinstance(value, (bool, list, dict)):
        return ""
    word = valid_text(str(value)).strip()[:_MAX_LENGTH]
    return "" if word.lower() in _NOT_FINISHED else word


def finish_reason(word: str) -> FinishReason:
    """Returns the meaning of a server's word. Raises the error that it stands for, if any."""
    known = _EXACT.get(word.lower())
    if known is not None:
        return known
    words = {part.lower() for part in _WORD.findall(word)} - {"finish", "reason"}
    if words & _BROKEN_CALL:
        raise _failure(word)
    if words & _FILTERED:
        raise EngineRejected(f"the engine's content filter has ended the answer: {word!r}")
    if words & _FAILED:
        raise _failure(word)
    if words & _CUT:
        return FinishReason.LENGTH
    if words & _CALLS:
        return FinishReason.TOOL_CALLS
    return FinishReason.STOP


def outweighs(word: str, before: str) -> bool:
    """Returns whether a word replaces the one `before` it: a plain end does not undo a failure,
    a cut or a call."""
    return not before or not _is_whole(word) or _is_whole(before)


def _is_whole(word: str) -> bool:
    return bool({part.lower() for part in _WORD.findall(word)} & _WHOLE)


def _failure(word: str) -> RuvdError:
    return EngineUnavailable(f"the engine ended the answer with {word!r}")
