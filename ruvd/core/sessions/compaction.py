"""Compaction: a summary takes the place of exchanges that leave the context window. Pure.

The summary is asked for by one message after the very prompt of the last turn, so that an engine's
cache has everything but that message. It is due at a share of the window's limits, so that it is
ready before a turn would have to trim. If a turn comes first and trims, the next summary is made
from what the trim left out as well. A second summary is made from the first and the exchanges
since. An exchange is therefore in the prompt, in the source of the summary, or in that of the next.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from ruvd.core.errors import FieldViolation, InvalidRequest
from ruvd.core.model import Compaction, Exchange, Message, Role, Session
from ruvd.core.sessions import pins, window
from ruvd.core.summaries import PinnedExchange, Summary
from ruvd.core.values import value

MAX_INSTRUCTION_BYTES = 4096
MAX_SUMMARY_BYTES = 64 << 10
# The source of a summary whose engine has no known limit.
MAX_SOURCE_BYTES = 1 << 20
# The share of the token limit that a summary's source may take.
_SOURCE_SHARE = 0.9
# The share of the soft limit that the exchanges kept beside a summary may take, and the share of
# the prompt that has to leave it, if the number of tokens made the summary due.
_KEPT_SHARE = 0.5
_LEAVING_SHARE = 0.25
# The tokens of a byte, for a session whose last turn has not told them.
_TOKENS_PER_BYTE = 1 / 3
_WORDS_PER_TOKEN = 0.6
# Short, as it is the one part of the request that no cache has.
_ASK = (
    "Summarise our conversation so far in at most {words} words, to go on from the summary alone."
    " Keep names, numbers, decisions, open questions, and of changes what holds now. Write only the"
    " summary."
)


@value(frozen=True, slots=True)
class CompactionPlan:
    """A summary that is to be made, of the first `covers` exchanges.

    `messages` is the prompt that asks for it. The window then starts at `start`, and `pinned` are
    the exchanges before it that are still sent.
    """

    messages: tuple[Message, ...]
    covers: int
    start: int
    pinned: tuple[PinnedExchange, ...]


def covered(session: Session) -> int:
    """Returns the number of exchanges, from the first one on, that need no further summary."""
    made = session.summary.exchange_count if session.summary else 0
    return max(made, min(session.context_window.keep_first, session.window_start))


def source_start(session: Session) -> int:
    """Returns the first exchange that the next summary is made from, beside the former one."""
    return min(covered(session), session.window_start)


def is_due(session: Session, *, default_max_tokens: int | None) -> bool:
    """Whether a summary of the session is to be made before its next turn."""
    context = session.context_window
    if context.compaction is not Compaction.SUMMARY:
        return False
    if covered(session) < session.window_start:  # a turn came first and trimmed
        return True
    count = session.exchange_count - session.window_start
    if count <= 1:
        return False
    soft = context.compact_at * context.max_exchanges
    if context.max_exchanges and count >= soft and count > max(1, context.keep_exchanges):
        return True
    return _is_long(session, default_max_tokens)


def plan(
    session: Session,
    source: Sequence[Exchange],
    pinned: Sequence[Exchange],
    *,
    position: int,
    default_max_tokens: int | None,
    summary_tokens: int,
    is_asked_for: bool = False,
) -> CompactionPlan | None:
    """Plans a summary, or returns None if too little would leave the prompt for it.

    `source` are the exchanges from `source_start` on, or the first ones of them, and `position` is
    that of the first message among them. `pinned` are the session's pinned exchanges. Anything is
    enough for a caller who `is_asked_for` it.
    """
    first, began, end = source_start(session), session.window_start, session.exchange_count
    before = [each for at, each in zip(session.pinned, pinned, strict=True) if at.exchange < first]
    kept = _kept(session, source, before, default_max_tokens)
    if first + len(source) == end and source and not _is_closed(source[-1]):
        source = source[:-1]  # it has no answer yet, so it stays in the prompt
    source = source[: _fitting(session, source, before, default_max_tokens)]
    start = max(began, min(end - kept, first + len(source)))
    covers = min(first + len(source), start)
    if covers <= covered(session):
        return None
    leaving = source[began - first :][: start - began]
    if first == began:
        context = session.context_window
        if all(pins.is_kept(context, at, each) for at, each in enumerate(leaving, began)):
            return None
        if not is_asked_for and not _is_worth_it(session, leaving, default_max_tokens):
            return None
    at = position + sum(map(len, source[: began - first]))
    ask = Message(Role.USER, _request(session.compaction_instruction, summary_tokens))
    return CompactionPlan(
        messages=window.render(session, source, [ask], before, session.summary),
        covers=covers,
        start=start,
        pinned=pins.after_leaving(session, leaving, at),
    )


def apply(session: Session, made: CompactionPlan, text: str) -> Session:
    """Returns the session with a summary, which turns may have followed since it was planned."""
    pinned = {each.exchange: each for each in (*session.pinned, *made.pinned)}
    start = max(session.window_start, made.start)
    return replace(
        session,
        summary=Summary(text, made.covers),
        compactions=session.compactions + 1,
        window_start=start,
        pinned=tuple(pinned[number] for number in sorted(pinned) if number < start),
        context_tokens=None,
        context_bytes=0,
    )


def adopt(
    session: Session,
    exchanges: Sequence[Exchange],
    *,
    position: int,
    text: str,
    exchange_count: int | None,
) -> Session:
    """Returns the session with a summary of the client's own.

    `exchanges` are those from the window's start on, and `position` is that of their first message.
    Without an `exchange_count` the summary stands for all but the last `keep_exchanges`. Raises
    InvalidRequest if there are fewer exchanges.
    """
    last = max(0, session.exchange_count - 1)
    if exchange_count is None:
        exchange_count = max(0, session.exchange_count - session.context_window.keep_exchanges)
    if exchange_count > session.exchange_count:
        reason = f"the session has {session.exchange_count} exchanges"
        raise InvalidRequest([FieldViolation("summary_exchange_count", reason)])
    start = max(session.window_start, min(exchange_count, last))
    left = exchanges[: start - session.window_start]
    return replace(
        session,
        summary=Summary(text, exchange_count),
        compactions=session.compactions + 1,
        window_start=start,
        pinned=pins.after_leaving(session, left, position),
        context_tokens=None,
        context_bytes=0,
    )


def in_fork(session: Session, exchange_count: int, start: int) -> Session:
    """Returns the session of a fork with the first exchanges, whose window starts at `start`.

    A summary that tells of later exchanges is not inherited; the fork's next one is made anew.
    """
    summary = session.summary
    if summary and summary.exchange_count > exchange_count:
        summary = None
    pinned = tuple(each for each in session.pinned if each.exchange < start)
    return replace(session, summary=summary, pinned=pinned, window_start=start)


def _request(instruction: str, summary_tokens: int) -> str:
    words = max(10, int(summary_tokens * _WORDS_PER_TOKEN))
    ask = _ASK.format(words=words)
    return f"{ask}\n\n{instruction}" if instruction else ask


def _is_closed(exchange: Exchange) -> bool:
    """Whether the exchange has its answer, and no tool call that waits for its result."""
    return exchange[-1].role is Role.ASSISTANT and not exchange[-1].tool_calls


def _soft_tokens(session: Session, default_max_tokens: int | None) -> float | None:
    limit = session.context_window.max_tokens or default_max_tokens
    return session.context_window.compact_at * limit if limit else None


def _is_long(session: Session, default_max_tokens: int | None) -> bool:
    soft = _soft_tokens(session, default_max_tokens)
    return bool(soft and session.context_tokens and session.context_tokens >= soft)


def _is_worth_it(
    session: Session, leaving: Sequence[Exchange], default_max_tokens: int | None
) -> bool:
    """Whether enough leaves a long prompt. If not, every turn would be followed by a summary."""
    if not _is_long(session, default_max_tokens):
        return True
    gone = sum(map(window.size, leaving))
    return gone >= _LEAVING_SHARE * session.context_bytes


def _rate(session: Session) -> float:
    """Returns the tokens of a byte of the session's prompts."""
    if session.context_tokens and session.context_bytes:
        return session.context_tokens / session.context_bytes
    return _TOKENS_PER_BYTE


def _fitting(
    session: Session,
    source: Sequence[Exchange],
    before: Sequence[Exchange],
    default_max_tokens: int | None,
) -> int:
    """Returns how many of the first exchanges of a source fit into one prompt, at least one."""
    limit = default_max_tokens or session.context_window.max_tokens
    budget = _SOURCE_SHARE * limit / _rate(session) if limit else MAX_SOURCE_BYTES
    budget -= window.fixed_size(session, before)
    ends = accumulate(map(window.size, source))
    return max(min(1, len(source)), sum(end <= budget for end in ends))


def _kept(
    session: Session,
    source: Sequence[Exchange],
    before: Sequence[Exchange],
    default_max_tokens: int | None,
) -> int:
    """Returns how many of the last exchanges stay in the prompt, at least one."""
    most = min(session.context_window.keep_exchanges, len(source))
    if soft := _soft_tokens(session, default_max_tokens):
        budget = _KEPT_SHARE * soft / _rate(session) - window.fixed_size(session, before)
        most = window.fitting(source, most=most, budget_bytes=budget)
    return max(1, most)
