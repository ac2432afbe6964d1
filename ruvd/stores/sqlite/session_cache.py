"""A cache of the sessions that had a turn lately, each with the exchanges of its context window.

A turn begins with its session and its window, which the turn before has just written. To read them
again would take SQLite a step for each message, each of which releases the interpreter's lock. All
writes pass the writer's thread, which keeps the cache and clears it when a transaction is undone,
so the cache is as current as the file. The event loop reads it only while that thread has no jobs;
all that the thread may do meanwhile is clear it.
"""

from collections import OrderedDict
from collections.abc import Sequence

from ruvd.core.model import Exchange, Message, Session
from ruvd.core.values import value

# The sizes of a store's cache, in all and of one session.
CACHE_BYTES = 8 << 20
CACHED_SESSION_BYTES = 1 << 18
# An estimate of what the objects of a message take, besides its text.
_MESSAGE_BYTES = 300


@value(frozen=True, slots=True)
class CachedSession:
    """A stored session and its window. `branch_end` is its `pk` and `end_bytes`, if known."""

    session: Session
    exchanges: tuple[Exchange, ...]
    branch_end: tuple[int, int] | None = None

    @property
    def size_bytes(self) -> int:
        """The memory that the exchanges take, as an estimate."""
        return sum(
            message.size_bytes + _MESSAGE_BYTES
            for exchange in self.exchanges
            for message in exchange
        )

    def after(
        self,
        session: Session,
        appended: Sequence[tuple[int, Message]],
        branch_end: tuple[int, int] | None = None,
    ) -> "CachedSession | None":
        """Returns the entry after a commit, or None if that needs exchanges that are not here."""
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
        return CachedSession(session, tuple(exchanges[session.window_start - first :]), branch_end)


class SessionCache:
    """The most recently used sessions, `max_bytes` in all and `max_session_bytes` each at most."""

    def __init__(self, max_bytes: int, max_session_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_session_bytes = max_session_bytes
        self._entries: OrderedDict[str, tuple[CachedSession, int]] = OrderedDict()
        self._bytes = 0

    def get(self, session_id: str) -> CachedSession | None:
        """Returns the cached session, or None."""
        try:
            self._entries.move_to_end(session_id)
            return self._entries[session_id][0]
        except KeyError:  # the other thread may clear the cache between the two lines
            return None

    def put(self, cached: CachedSession) -> None:
        """Caches a session, unless it is too large, in place of what was cached of it before."""
        self.drop(cached.session.id)
        size = cached.size_bytes
        if size > self._max_session_bytes:
            return
        self._entries[cached.session.id] = (cached, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._entries.popitem(last=False)[1][1]

    def drop(self, session_id: str) -> None:
        """Removes a session if it is cached."""
        entry = self._entries.pop(session_id, None)
        if entry is not None:
            self._bytes -= entry[1]

    def clear(self) -> None:
        """Removes all sessions."""
        self._entries.clear()
        self._bytes = 0
