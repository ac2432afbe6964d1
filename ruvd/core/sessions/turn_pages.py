"""A session exchange by exchange, with the figures of its turns, for people who look at it."""

from collections.abc import Sequence

from ruvd.core.model import Message
from ruvd.core.ports.store import Store
from ruvd.core.ports.turns import StoredTurn
from ruvd.core.sessions import window
from ruvd.core.sessions.model import HistoryPage, SessionState
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.values import value

_MAX_MESSAGES = 500
_MAX_BYTES = 1 << 20


@value(frozen=True, slots=True)
class ShownMessage:
    """A message, and the figures of the turn that it is the answer of, if they are stored."""

    message: Message
    turn: StoredTurn | None


@value(frozen=True, slots=True)
class ShownExchange:
    """An exchange. Its number is counted from 0."""

    number: int
    messages: Sequence[ShownMessage]


@value(frozen=True, slots=True)
class TurnPage:
    """Some exchanges of a session, from number `first` on.

    `is_cut` says that they are too large for a page, and the last ones of them are missing.
    """

    state: SessionState
    first: int
    exchanges: Sequence[ShownExchange]
    is_cut: bool = False


class TurnPages:
    """Reads sessions exchange by exchange."""

    def __init__(self, sessions: SessionRegistry, store: Store) -> None:
        self._sessions = sessions
        self._store = store

    async def page(self, session_id: str, first: int | None, count: int) -> TurnPage:
        """Returns up to `count` exchanges from number `first` on, by default the last ones.

        Raises SessionNotFound, SessionsDisabled, StoreUnavailable and DataCorrupted.
        """
        state = await self._sessions.get(session_id)
        total = state.session.exchange_count
        first = max(0, total - count) if first is None else min(first, total)
        start, _ = await self._store.size_at(session_id, first)
        end, _ = await self._store.size_at(session_id, first + count)
        if start >= end:
            return TurnPage(state, first, ())
        wanted = end - start
        page = HistoryPage(start, state.created, min(wanted, _MAX_MESSAGES), _MAX_BYTES)
        state = await self._sessions.history(session_id, page)
        messages = state.messages or ()
        figures = await self._store.turns(session_id, start, start + len(messages))
        exchanges = _exchanges(first, start, messages, figures)
        return TurnPage(state, first, exchanges, is_cut=len(messages) < wanted)


def _exchanges(
    first: int, start: int, messages: Sequence[Message], figures: Sequence[StoredTurn]
) -> list[ShownExchange]:
    by_position = {turn.position: turn for turn in figures}
    exchanges: dict[int, list[ShownMessage]] = {}
    for position, (number, message) in enumerate(window.number(first, messages), start=start):
        shown = ShownMessage(message, by_position.get(position))
        exchanges.setdefault(number, []).append(shown)
    return [ShownExchange(number, each) for number, each in exchanges.items()]
