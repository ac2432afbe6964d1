"""Which messages go to the engine. Pure: no time, no I/O.

Exchanges are appended to the window until there would be more than `max_exchanges`; one trim then
drops down to `keep_exchanges`. Between two trims every prompt begins with the one before it, which
is what an engine's KV cache recognises. The history itself is never cut here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ruvd.core.errors import ContextTooLong
from ruvd.core.model import ContextWindow, Exchange, Message, Rendering, Role, Session
from ruvd.core.values import dataclass

# How much of the token limit a trim leaves to what is kept.
_KEPT_SHARE = 0.75
_SPEAKERS = {
    Role.USER: "User",
    Role.ASSISTANT: "Assistant",
    Role.TOOL: "Tool",
    Role.SYSTEM: "System",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A prompt: its messages, the first exchange in it, and how many exchanges it has."""

    messages: tuple[Message, ...]
    start: int
    exchange_count: int
    trimmed: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of content in the prompt."""
        return _size(self.messages)


def number(exchange_count: int, messages: Sequence[Message]) -> list[tuple[int, Message]]:
    """Give each new message of a history with `exchange_count` exchanges its exchange.

    A user message opens an exchange; everything else belongs to the one that is open.
    """
    numbered = []
    exchange = exchange_count - 1
    for message in messages:
        if message.role is Role.USER or exchange < 0:
            exchange += 1
        numbered.append((exchange, message))
    return numbered


def is_trim_due(session: Session, *, default_max_tokens: int | None) -> bool:
    """Whether the next turn's plan will be trimmed, as far as the history decides that."""
    window = session.context_window
    if (
        window.max_exchanges
        and session.exchange_count - session.window_start > window.max_exchanges
    ):
        return True
    limit = window.max_tokens or default_max_tokens
    return bool(limit and session.context_tokens and session.context_tokens > limit)


def plan(
    session: Session,
    exchanges: Sequence[Exchange],
    new: Sequence[Message],
    *,
    default_max_tokens: int | None,
) -> Plan:
    """The prompt for `new` after `exchanges`, those of the session from its `window_start` on.

    `default_max_tokens` holds where the session's window sets none. Tokens are the engine's own
    count of the last prompt and answer; without one the token limit cannot be applied.
    """
    window = session.context_window
    keep = len(exchanges)
    if window.max_exchanges and keep > window.max_exchanges:
        keep = window.keep_exchanges
    limit = window.max_tokens or default_max_tokens
    if limit and session.context_tokens and session.context_tokens > limit:
        rate = session.context_tokens / max(1, session.context_bytes)
        most = min(keep, window.keep_exchanges, len(exchanges))
        # What is new is not counted as long as it is small, so that it does not matter to what is
        # evaluated before it comes.
        most = _fitting(session, exchanges, (), most=most, budget_bytes=_KEPT_SHARE * limit / rate)
        keep = _fitting(session, exchanges, new, most=most, budget_bytes=limit / rate)
    return _plan(session, exchanges, new, keep)


def shorten(
    session: Session,
    exchanges: Sequence[Exchange],
    new: Sequence[Message],
    *,
    refused: Plan,
    overflow: ContextTooLong,
) -> Plan | None:
    """The one trim after the engine refused a prompt as too long; None if nothing is left to trim.

    Where the engine said how long the prompt was and what it takes, as many exchanges stay as
    fit; otherwise `keep_exchanges` or, if there were no more than those, half of them.
    """
    if not refused.exchange_count:
        return None
    keep = session.context_window.keep_exchanges
    most = keep if keep < refused.exchange_count else refused.exchange_count // 2
    if overflow.prompt_tokens and overflow.limit_tokens:
        rate = overflow.prompt_tokens / max(1, refused.size_bytes)
        # Half of the context stays free: for the answer, and so that the next turn fits as well.
        budget = overflow.limit_tokens / 2 / rate
        most = min(keep, refused.exchange_count - 1)
        most = _fitting(session, exchanges, new, most=most, budget_bytes=budget)
    return _plan(session, exchanges, new, most)


def _plan(
    session: Session, exchanges: Sequence[Exchange], new: Sequence[Message], keep: int
) -> Plan:
    kept = exchanges[len(exchanges) - keep :]
    return Plan(
        messages=_render(session.context_window, session.system_prompt, kept, new),
        start=session.window_start + len(exchanges) - keep,
        exchange_count=keep,
        trimmed=keep < len(exchanges),
    )


def _fitting(
    session: Session,
    exchanges: Sequence[Exchange],
    new: Sequence[Message],
    *,
    most: int,
    budget_bytes: float,
) -> int:
    """How many of the last exchanges fit, `most` at most, 0 at least."""
    size = len(session.system_prompt.encode()) + _size(new)
    for count in range(most):
        size += _size(exchanges[len(exchanges) - 1 - count])
        if size > budget_bytes:
            return count
    return most


def _size(messages: Sequence[Message]) -> int:
    size = 0
    for message in messages:  # a generator would take half as long again, at every turn
        size += message.size_bytes
    return size


def _render(
    window: ContextWindow,
    system_prompt: str,
    exchanges: Sequence[Exchange],
    new: Sequence[Message],
) -> tuple[Message, ...]:
    history = [_sent(message) for exchange in exchanges for message in exchange]
    if window.rendering is Rendering.TRANSCRIPT and history:
        lines = [f"{_SPEAKERS[message.role]}: {_spoken(message)}" for message in history]
        transcript = "\n".join(["Previous conversation context:", *lines])
        system_prompt = f"{system_prompt}\n\n{transcript}" if system_prompt else transcript
        history = []
    system = [Message(Role.SYSTEM, system_prompt)] if system_prompt else []
    return (*system, *history, *map(_sent, new))


def _sent(message: Message) -> Message:
    """A message as the engine gets it: reasoning is not said again."""
    return replace(message, reasoning="") if message.reasoning else message


def _spoken(message: Message) -> str:
    calls = [f"[calls {call.name}({call.arguments})]" for call in message.tool_calls]
    return " ".join([message.content, *calls] if message.content else calls)
