"""The start of a context window after a change of its session other than a turn. Pure."""

from ruvd.core.model import ContextWindow, Session


def after_update(session: Session, window: ContextWindow | None) -> int:
    """Returns where the session's window starts once it is `window`, which may be wider."""
    if window is None or window.max_exchanges == session.context_window.max_exchanges:
        return session.window_start
    if not window.max_exchanges:
        return 0
    return min(session.window_start, max(0, session.exchange_count - window.max_exchanges))


def in_fork(session: Session, exchange_count: int) -> int:
    """Returns where the window of a fork with the first `exchange_count` exchanges starts.

    That is where the parent's window starts, so that the fork's first prompt begins as the
    parent's did. If that would leave the fork's window empty, it is where the parent's window
    started when the parent was that long, as far as the number of exchanges decides it.
    """
    if session.window_start < exchange_count:
        return session.window_start
    window = session.context_window
    before = exchange_count - 1  # the length of the history when that exchange was planned
    if not window.max_exchanges or before <= window.max_exchanges:
        return 0
    cycle = window.max_exchanges + 1 - window.keep_exchanges
    return ((before - window.max_exchanges - 1) // cycle + 1) * cycle
