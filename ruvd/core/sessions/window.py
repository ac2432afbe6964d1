"""The context window: the messages that go to the engine. Pure: no time, no I/O.

Exchanges are appended to the window until there would be more than `max_exchanges`; one trim then
drops down to `keep_exchanges`. Between two trims every prompt begins with the one before it, which
is what an engine's KV cache recognises. The history itself is never changed here.
"""

from collections.abc import Sequence
from dataclasses import replace

from ruvd.core.errors import ContextTooLong
from ruvd.core.model import ContextWindow, Exchange, Message, Rendering, Role, Session
from ruvd.core.values import value

# The share of the token limit that the exchanges kept by a trim may take.
_KEPT_SHARE = 0.75
# Begins the further lines of a message in a transcript.
_QUOTE = "> "
_SPEAKERS = {
    Role.USER: "User",
    Role.ASSISTANT: "Assistant",
    Role.TOOL: "Tool",
    Role.SYSTEM: "System",
}


@value(frozen=True, slots=True)
class Plan:
    """A prompt: its messages, its first exchange and its number of exchanges."""

    messages: tuple[Message, ...]
    start: int
    exchange_count: int
    trimmed: bool

    @property
    def size_bytes(self) -> int:
        """The bytes of content in the prompt."""
        return _size(self.messages)


def number(exchange_count: int, messages: Sequence[Message]) -> list[tuple[int, Message]]:
    """Pairs each new message of a history with `exchange_count` exchanges with its exchange.

    A user message opens an exchange; every other message belongs to the open one.
    """
    numbered = []
    exchange = exchange_count - 1
    for message in messages:
        if message.role is Role.USER or exchange < 0:
            exchange += 1
        numbered.append((exchange, message))
    return numbered


def is_trim_due(session: Session, *, default_max_tokens: int | None) -> bool:
    """Whether the next turn trims its prompt, as far as the history decides that."""
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
    """Plans the prompt: the session's `exchanges` from its `window_start` on, then `new`.

    `default_max_tokens` applies where the session's window sets no limit. Tokens are the engine's
    own count of the last prompt and answer; without that count no token limit can be applied.
    """
    window = session.context_window
    keep = len(exchanges)
    if window.max_exchanges and keep > window.max_exchanges:
        keep = window.keep_exchanges
    limit = window.max_tokens or default_max_tokens
    if limit and session.context_tokens and session.context_tokens > limit:
        rate = session.context_tokens / max(1, session.context_bytes)
        most = min(keep, window.keep_exchanges, len(exchanges))
        # A small new message is not counted. So the outcome is known before the message comes,
        # and the trimmed prompt can be evaluated ahead of it.
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
    """Plans the one retry after the engine refused a prompt as too long.

    Returns None if there is nothing left to trim. If the engine reported the length of the prompt
    and its own limit, as many exchanges stay as fit. Otherwise `keep_exchanges` stay or, if the
    refused prompt had no more than that, half of its exchanges.
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
    """Returns how many of the last exchanges fit into the budget, from 0 to `most`."""
    size = len(session.system_prompt.encode()) + _size(new)
    for count in range(most):
        size += _size(exchanges[len(exchanges) - 1 - count])
        if size > budget_bytes:
            return count
    return most


def _size(messages: Sequence[Message]) -> int:
    size = 0
    for message in messages:  # 1.5 times as fast as sum() over a generator, and in every turn
        size += message.size_bytes
    return size


def _render(
    window: ContextWindow,
    system_prompt: str,
    exchanges: Sequence[Exchange],
    new: Sequence[Message],
) -> tuple[Message, ...]:
    history = [_without_reasoning(message) for exchange in exchanges for message in exchange]
    if window.rendering is Rendering.TRANSCRIPT and history:
        entries = [f"{_SPEAKERS[message.role]}: {_quoted(_spoken(message))}" for message in history]
        transcript = "\n".join(["Previous conversation context:", *entries])
        system_prompt = f"{system_prompt}\n\n{transcript}" if system_prompt else transcript
        history = []
    system = [Message(Role.SYSTEM, system_prompt)] if system_prompt else []
    return (*system, *history, *map(_without_reasoning, new))


def _without_reasoning(message: Message) -> Message:
    """Leaves the reasoning only where an engine may need it: with tool calls."""
    if message.reasoning and not message.tool_calls:
        return replace(message, reasoning="")
    return message


def _spoken(message: Message) -> str:
    calls = [f"[calls {call.name}({call.arguments})]" for call in message.tool_calls]
    return " ".join([message.content, *calls] if message.content else calls)


def _quoted(text: str) -> str:
    """Marks all lines but the first, so that no line of a text can be read as another message.

    Each message is quoted by itself, so that its lines are the same in the prompts of later turns.
    """
    first, *others = text.splitlines(keepends=True) or [""]
    return first + "".join(f"{_QUOTE}{line}" for line in others)
