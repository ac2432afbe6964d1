"""The deletion of expired sessions, each of which is announced once."""

from ruvd.core.ports.clock import Clock
from ruvd.core.ports.events import Observer, SessionGone
from ruvd.core.ports.store import Gone, Store
from ruvd.core.sessions.turn_queue import TurnQueue, finish_despite_cancel


class Expiry:
    """Deletes expired sessions of a store, except for those in use."""

    def __init__(
        self, store: Store, clock: Clock, observer: Observer, turn_queue: TurnQueue
    ) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer
        self._turn_queue = turn_queue

    async def sweep(self) -> int:
        """Deletes all of them, and returns their number."""
        gone = 0
        while count := await finish_despite_cancel(self._some()):
            gone += count
        return gone

    async def remove(self, session_id: str) -> None:
        """Deletes an expired session whose turn the caller has.

        It leaves a tombstone, because the new session under its id may never be committed.
        """
        await finish_despite_cancel(self._remove(session_id))

    async def _some(self) -> int:
        ids = await self._store.expire(self._clock.now(), self._turn_queue.in_use())
        for session_id in ids:
            self._observer(SessionGone(session_id, "idle"))
        return len(ids)

    async def _remove(self, session_id: str) -> None:
        if await self._store.end(session_id, gone=Gone.EXPIRED, now=self._clock.now()):
            self._observer(SessionGone(session_id, "idle"))
