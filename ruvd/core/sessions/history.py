"""Reads of the parts of a history that are before the context window."""

from collections.abc import Sequence

from ruvd.core.model import Exchange, Message, Session
from ruvd.core.ports.store import Store
from ruvd.core.sessions import compaction, pins, window
from ruvd.core.sessions.absence import session_not_found
from ruvd.core.summaries import PinnedExchange
from ruvd.core.values import value

# More than any history has.
_ALL_BYTES = 1 << 40
_SOURCE_MESSAGES = 2000


@value(frozen=True, slots=True)
class HistorySource:
    """A session with the exchanges that its next summary is made from.

    `position` is that of their first message. `pinned` are the session's pinned exchanges.
    """

    session: Session
    position: int
    exchanges: Sequence[Exchange]
    pinned: Sequence[Exchange]


class HistoryReads:
    """Reads histories from the store. Every method raises SessionNotFound for a session that ended.

    What is read never changes, so a turn that is committed meanwhile makes no difference.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def pinned(self, session: Session) -> Sequence[Exchange]:
        """Returns the session's pinned exchanges, which are before its window."""
        return [
            tuple(await self._messages(session, each.position, each.message_count))
            for each in session.pinned
        ]

    async def source(self, session: Session) -> HistorySource:
        """Returns what the session's next summary is made from, or the first part of that."""
        while True:
            first = compaction.source_start(session)
            position = await self._position(session, first)
            part = await self._store.messages(
                session.id, position, _SOURCE_MESSAGES, compaction.MAX_SOURCE_BYTES
            )
            if part is None or part.session.create_time != session.create_time:
                raise session_not_found(session.id)
            if compaction.source_start(part.session) == first:
                break
            session = part.session  # another change came between
        found, session = part.messages, part.session
        exchanges = window.grouped(window.number(first, found))
        if position + len(found) < session.message_count and len(exchanges) > 1:
            exchanges.pop()  # it may be a part of one
        return HistorySource(session, position, exchanges, await self.pinned(session))

    async def pinned_after(self, session: Session, before: Session) -> tuple[PinnedExchange, ...]:
        """Returns the pinned exchanges of a session whose window was another one `before`."""
        context, start = session.context_window, session.window_start
        kept = {}
        for each, exchange in zip(before.pinned, await self.pinned(before), strict=True):
            if each.exchange < start and pins.is_kept(context, each.exchange, exchange):
                kept[each.exchange] = each
        for number in range(min(context.keep_first, start)):
            if number not in kept:
                position = await self._position(session, number)
                end = await self._position(session, number + 1)
                kept[number] = PinnedExchange(number, position, end - position)
        return tuple(kept[number] for number in sorted(kept))

    async def _messages(self, session: Session, position: int, count: int) -> Sequence[Message]:
        part = await self._store.messages(session.id, position, count, _ALL_BYTES)
        if part is None:
            raise session_not_found(session.id)
        return part.messages

    async def _position(self, session: Session, exchange: int) -> int:
        return (await self._store.size_at(session.id, exchange))[0]
