"""Sessions in this process's memory, gone with it: for tests, demos and throw-away daemons.

No method awaits anything, so each is atomic on its event loop. Messages are immutable, so a fork
shares them. The two orders (least recently used, soonest expired) are heaps whose stale entries
are skipped, because a heap keeps the order right even when the clock steps back.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from ruvd.core.errors import SessionExists, SessionNotFound
from ruvd.core.model import Exchange, IdempotencyRecord, Message, Session
from ruvd.core.ports.store import Commit, RemovedSession, StoreCounts, TurnSnapshot

_EXPIRE_AT_ONCE = 1_000
# Stale entries are dropped once they outnumber the live ones by this many.
_SLACK = 64


class _Schedule:
    """Keys in the order of a time each has, ties in the order of the keys."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._times: dict[int, float] = {}

    def put(self, key: int, time: float) -> None:
        """Give `key` this time, whether or not it had one. O(log n), amortised."""
        if self._times.get(key) == time:
            return
        self._times[key] = time
        heapq.heappush(self._heap, (time, key))
        if len(self._heap) > 2 * len(self._times) + _SLACK:
            self._heap = [(time, key) for key, time in self._times.items()]
            heapq.heapify(self._heap)

    def discard(self, key: int) -> None:
        """Forget `key`."""
        self._times.pop(key, None)

    def first(
        self, count: int, accept: Callable[[int], bool], until: float = float("inf")
    ) -> list[int]:
        """The earliest `count` keys that are accepted and whose time is at most `until`."""
        chosen: list[int] = []
        seen: list[tuple[float, int]] = []
        while len(chosen) < count and self._heap and self._heap[0][0] <= until:
            entry = heapq.heappop(self._heap)
            time, key = entry
            # A key that got an earlier time back has two equal entries, next to each other.
            if self._times.get(key) != time or (seen and seen[-1] == entry):
                continue
            seen.append(entry)
            if accept(key):
                chosen.append(key)
        for entry in seen:
            heapq.heappush(self._heap, entry)
        return chosen


@dataclass(slots=True)
class _Entry:
    """A session with what belongs to it; the three message lists run side by side."""

    key: int
    session: Session
    messages: list[Message] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    end_bytes: list[int] = field(default_factory=list)
    receipts: dict[str, IdempotencyRecord] = field(default_factory=dict)
    completion_ids: set[str] = field(default_factory=set)
    created_by: str = ""


class MemoryStore:
    """The `Store` that is gone with the process."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._ids: dict[int, str] = {}
        # Keys in the order of creation; keys of sessions that are gone are skipped.
        self._keys: list[int] = []
        self._last_key = 0
        self._by_use = _Schedule()
        self._by_expiry = _Schedule()
        self._completions: dict[str, tuple[str, IdempotencyRecord]] = {}
        self._created: dict[str, tuple[str, IdempotencyRecord]] = {}

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to let go."""

    async def get(self, session_id: str) -> Session | None:
        """See `Store.get`."""
        entry = self._entries.get(session_id)
        return entry.session if entry else None

    async def exchanges(self, session_id: str, first: int) -> Sequence[Exchange]:
        """See `Store.exchanges`."""
        entry = self._entries.get(session_id)
        if entry is None:
            return ()
        start = bisect_left(entry.numbers, first)
        rows = zip(entry.numbers[start:], entry.messages[start:], strict=True)
        return [
            tuple(message for _, message in group)
            for _, group in groupby(rows, key=lambda row: row[0])
        ]

    async def commit(self, commit: Commit) -> Sequence[RemovedSession]:
        """See `Store.commit`."""
        if commit.create:
            replaced = self._remove_expired(commit)
            return [*replaced, *self._apply(self._create(commit.session), commit)]
        entry = self._entries.get(commit.session.id)
        if entry is None:
            raise SessionNotFound(f"there is no session {commit.session.id!r}")
        return self._apply(entry, commit)

    async def fork(self, commit: Commit, parent_id: str) -> Sequence[RemovedSession]:
        """See `Store.fork`."""
        parent = self._entries.get(parent_id)
        if parent is None:
            raise SessionNotFound(f"there is no session {parent_id!r}")
        shared = commit.session.message_count - len(commit.appended)
        if not 0 <= shared <= len(parent.messages):
            raise ValueError(f"{parent_id!r} has no {shared} messages to share")
        replaced = self._remove_expired(commit)
        entry = self._create(commit.session)
        entry.messages = parent.messages[:shared]
        entry.numbers = parent.numbers[:shared]
        entry.end_bytes = parent.end_bytes[:shared]
        return [*replaced, *self._apply(entry, commit)]

    async def size_at(self, session_id: str, exchange_count: int) -> tuple[int, int]:
        """See `Store.size_at`."""
        entry = self._entries.get(session_id)
        if entry is None:
            return (0, 0)
        messages = bisect_left(entry.numbers, exchange_count)
        return (messages, entry.end_bytes[messages - 1] if messages else 0)

    async def begin_turn(self, session_id: str, request_id: str, now: float) -> TurnSnapshot:
        """See `Store.begin_turn`."""
        session = await self.get(session_id)
        if session is None or session.expire_time <= now:
            return TurnSnapshot(has_expired=session is not None)
        idempotency_record = (
            await self.idempotency_record(session_id, request_id) if request_id else None
        )
        if idempotency_record is not None:
            return TurnSnapshot(session, idempotency_record)
        if session.is_touch_due(now):
            await self.touch(session_id, now)
        exchanges = await self.exchanges(session_id, session.window_start)
        return TurnSnapshot(replace(session, last_used_time=now), exchanges=exchanges)

    async def touch(self, session_id: str, now: float) -> bool:
        """See `Store.touch`."""
        entry = self._entries.get(session_id)
        if entry is None:
            return False
        self._put(entry, replace(entry.session, last_used_time=now))
        return True

    async def end(self, session_id: str) -> bool:
        """See `Store.end`."""
        entry = self._entries.get(session_id)
        if entry is None:
            return False
        self._delete(entry)
        return True

    async def expire(self, now: float, protected: Collection[str]) -> Sequence[str]:
        """See `Store.expire`."""
        keys = self._by_expiry.first(
            _EXPIRE_AT_ONCE, lambda key: self._ids[key] not in protected, now
        )
        return self._delete_all(keys)

    async def list(
        self,
        *,
        after: int,
        limit: int,
        labels: Mapping[str, str],
        now: float,
        active_or_in_turn: Collection[str] = (),
    ) -> tuple[Sequence[Session], int]:
        """See `Store.list`."""
        page: list[_Entry] = []
        for index in range(bisect_right(self._keys, after), len(self._keys)):
            session_id = self._ids.get(self._keys[index])
            if session_id is None:
                continue
            entry = self._entries[session_id]
            if entry.session.expire_time <= now and session_id not in active_or_in_turn:
                continue
            if any(entry.session.labels.get(key) != value for key, value in labels.items()):
                continue
            if len(page) == limit:
                return [entry.session for entry in page], page[-1].key if page else after
            page.append(entry)
        return [entry.session for entry in page], 0

    async def idempotency_record(
        self, session_id: str, request_id: str
    ) -> IdempotencyRecord | None:
        """See `Store.idempotency_record`."""
        entry = self._entries.get(session_id)
        return entry.receipts.get(request_id) if entry else None

    async def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.completion`."""
        return self._completions.get(completion_id)

    async def created_by(self, request_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.created_by`."""
        return self._created.get(request_id)

    async def counts(self, now: float, active_or_in_turn: Collection[str] = ()) -> StoreCounts:
        """See `Store.counts`."""
        sessions = [entry.session for entry in self._entries.values()]
        return StoreCounts(
            sessions=len(sessions),
            active=sum(each.expire_time > now or each.id in active_or_in_turn for each in sessions),
            messages=sum(session.message_count for session in sessions),
        )

    def _remove_expired(self, commit: Commit) -> Sequence[RemovedSession]:
        """Makes room for a new session. Raises SessionExists if its id has not expired."""
        session_id = commit.session.id
        entry = self._entries.get(session_id)
        if entry is None:
            return ()
        if entry.session.expire_time > commit.now:
            raise SessionExists(f"there is a session {session_id!r} already")
        self._delete(entry)
        return [RemovedSession(session_id, expired=True)]

    def _create(self, session: Session) -> _Entry:
        self._last_key += 1
        entry = _Entry(self._last_key, session)
        self._entries[session.id] = entry
        self._ids[entry.key] = session.id
        self._keys.append(entry.key)
        return entry

    def _apply(self, entry: _Entry, commit: Commit) -> Sequence[RemovedSession]:
        for number, message in commit.appended:
            end = entry.end_bytes[-1] if entry.end_bytes else 0
            entry.messages.append(message)
            entry.numbers.append(number)
            entry.end_bytes.append(end + message.size_bytes)
        self._put(entry, commit.session)
        if commit.idempotency_record is not None:
            self._keep(entry, commit.idempotency_record, create=commit.create)
        return self._evict(commit)

    def _put(self, entry: _Entry, session: Session) -> None:
        entry.session = session
        self._by_use.put(entry.key, session.last_used_time)
        self._by_expiry.put(entry.key, session.expire_time)

    def _keep(self, entry: _Entry, idempotency_record: IdempotencyRecord, *, create: bool) -> None:
        session_id = entry.session.id
        if idempotency_record.request_id:
            old = entry.receipts.get(idempotency_record.request_id)
            if old is not None and old.completion_id:
                self._completions.pop(old.completion_id, None)
                entry.completion_ids.discard(old.completion_id)
            entry.receipts[idempotency_record.request_id] = idempotency_record
        if idempotency_record.completion_id:
            self._completions[idempotency_record.completion_id] = (session_id, idempotency_record)
            entry.completion_ids.add(idempotency_record.completion_id)
        elif create and idempotency_record.request_id:
            self._created[idempotency_record.request_id] = (session_id, idempotency_record)
            entry.created_by = idempotency_record.request_id

    def _evict(self, commit: Commit) -> Sequence[RemovedSession]:
        if commit.max_sessions is None or len(self._entries) <= commit.max_sessions:
            return ()

        def may_go(key: int) -> bool:
            session_id = self._ids[key]
            return session_id != commit.session.id and session_id not in commit.protected

        excess = len(self._entries) - commit.max_sessions
        expired = self._by_expiry.first(excess, may_go, commit.now)
        removed = [RemovedSession(gone, expired=True) for gone in self._delete_all(expired)]
        evicted = self._by_use.first(excess - len(expired), may_go)
        return removed + [RemovedSession(gone, expired=False) for gone in self._delete_all(evicted)]

    def _delete_all(self, keys: Sequence[int]) -> Sequence[str]:
        entries = [self._entries[self._ids[key]] for key in keys]
        for entry in entries:
            self._delete(entry)
        return [entry.session.id for entry in entries]

    def _delete(self, entry: _Entry) -> None:
        del self._entries[entry.session.id]
        del self._ids[entry.key]
        self._by_use.discard(entry.key)
        self._by_expiry.discard(entry.key)
        for completion_id in entry.completion_ids:
            self._completions.pop(completion_id, None)
        if entry.created_by:
            created = self._created.get(entry.created_by)
            if created is not None and created[0] == entry.session.id:
                del self._created[entry.created_by]
        if len(self._keys) > 2 * len(self._ids) + _SLACK:
            self._keys = sorted(self._ids)
