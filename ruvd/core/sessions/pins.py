"""The exchanges that are sent in every turn, also when they have left the context window. Pure.

They are the first `keep_first` ones of the history, and those with a pinned message. An exchange is
sent as a whole, so that tool calls keep their results, and the user and the model take turns.
"""

from collections.abc import Sequence

from ruvd.core.errors import FieldViolation, InvalidRequest
from ruvd.core.model import ContextWindow, Exchange, Message, Session
from ruvd.core.summaries import PinnedExchange

MAX_PINNED_EXCHANGES = 64
MAX_FIRST_EXCHANGES = 32


def is_kept(window: ContextWindow, number: int, exchange: Exchange) -> bool:
    """Whether the exchange with this number is sent in every turn."""
    return number < window.keep_first or any(message.pinned for message in exchange)


def kept(session: Session, leaving: Sequence[Exchange]) -> list[Exchange]:
    """Returns those of the first exchanges of the window that are sent also when they leave it."""
    first, window = session.window_start, session.context_window
    return [each for number, each in enumerate(leaving, first) if is_kept(window, number, each)]


def after_leaving(
    session: Session, leaving: Sequence[Exchange], position: int
) -> tuple[PinnedExchange, ...]:
    """Returns the session's pinned exchanges once the first ones of its window have left it.

    `position` is that of the window's first message.
    """
    pinned = list(session.pinned)
    for number, exchange in enumerate(leaving, session.window_start):
        if is_kept(session.context_window, number, exchange):
            pinned.append(PinnedExchange(number, position, len(exchange)))
        position += len(exchange)
    return tuple(pinned)


def check_pinned(
    session: Session, history: Sequence[Exchange], messages: Sequence[Message]
) -> None:
    """Raises InvalidRequest for more new pinned messages than the session may have.

    `history` is its window. The first exchanges, which are kept anyway, do not count.
    """
    new = [index for index, message in enumerate(messages) if message.pinned]
    if not new:
        return
    first = session.context_window.keep_first
    before = sum(each.exchange >= first for each in session.pinned)
    before += sum(any(message.pinned for message in exchange) for exchange in history)
    if before + len(new) > MAX_PINNED_EXCHANGES:
        text = f"a session may have {MAX_PINNED_EXCHANGES} pinned messages"
        raise InvalidRequest([FieldViolation(f"messages[{new[-1]}].pinned", text)])
