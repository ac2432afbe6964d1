"""What the writer's thread remembers of the sessions that had a turn lately.

A turn begins with its session and its window, which the turn before it has just written; to read
them again takes a step of SQLite for each message, and each step gives the interpreter's lock
away and takes it again. All changes pass the writer's thread, which keeps this, and it is emptied
when a transaction is undone: so it is as true as the file. The event loop looks into it while that
thread has nothing to do (it may then empty it, and nothing else).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ruvd.core.model import Exchange, Message, Session
from ruvd.core.values import value

# An allowance for the objects of a message.
_MESSAGE_BYTES = 300


@value(frozen=True, slots=True)
class CachedSession:
    """A session as it is stored, and the exchanges of its window. `place`, where it is known, is
    its `pk` and `end_bytes`."""

    session: Session
    exchanges: tuple[Exchange, ...]
    place: tuple[int, int] | None = None

    @property
    def size_bytes(self) -> int:
        """What it holds in memory, about."""
        return sum(
            message.size_bytes + _MESSAGE_BYTES
            for exchange in self.exchanges
            for message in exchange
        )

    def after(
        self,
        session: Session,
        appended: Sequence[tuple[int, Message]],
        place: tuple[int, int] | None = None,
    ) -> CachedSession | None:
        """As it is after a commit; None if that needs what is not known here."""
        exchanges = list(self.exchanges)
        first = self.session.window_start
        for number, message in appended:
            if number - first == len(exchanges):
                exchanges.append((message,))
            elif exchanges and number - first == len(exchanges) - 1:
                exchanges[-1] = (*exchanges[-1], message)
            else:
                return None
        if session.window_start < first:
            return None
        return CachedSession(session, tuple(exchanges[session.window_start - first :]), place)


class SessionCache:
    """The latest, as many as fit into `max_bytes`; none larger than `max_session_bytes`."""

    def __init__(self, max_bytes: int, max_session_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_session_bytes = max_session_bytes
        self._sessions: OrderedDict[str, tuple[CachedSession, int]] = OrderedDict()
        self._bytes = 0

    def get(self, session_id: str) -> CachedSession | None:
        """What is remembered of a session."""
        try:
            self._sessions.move_to_end(session_id)
            return self._sessions[session_id][0]
        except KeyError:  # also of what the other thread has emptied in between
            return None

    def put(self, session_cache: CachedSession) -> None:
        """Remember a session as it is now."""
        self.drop(session_cache.session.id)
        size = session_cache.size_bytes
        if size > self._max_session_bytes:
            return
        self._sessions[session_cache.session.id] = (session_cache, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._sessions.popitem(last=False)[1][1]

    def drop(self, session_id: str) -> None:
        """Forget a session."""
        known = self._sessions.pop(session_id, None)
        if known is not None:
            self._bytes -= known[1]

    def clear(self) -> None:
        """Forget all."""
        self._sessions.clear()
        self._bytes = 0
