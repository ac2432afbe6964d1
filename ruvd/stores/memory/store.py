"""A store in the memory of the process, for tests, demos and daemons that may forget.

No method awaits anything, so each is atomic on its event loop.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

from ruvd.core.errors import SessionExists, SessionNotFound
from ruvd.core.model import Exchange, IdempotencyRecord, Session
from ruvd.core.ports import room
from ruvd.core.ports.store import (
    DEFAULT_TOMBSTONES,
    MAX_PAGE_BYTES,
    Commit,
    Gone,
    HistoryPart,
    RemovedSession,
    StoreCounts,
    StoreUsage,
    TenantCounts,
    TombstoneLimits,
    TurnSnapshot,
)
from ruvd.core.ports.turns import StoredTurn
from ruvd.core.tenants import own, tenant_of
from ruvd.stores.memory.counts import count, count_by_tenant
from ruvd.stores.memory.records import Records
from ruvd.stores.memory.sessions import Entry, SessionTable
from ruvd.stores.memory.tombstones import Tombstones

# The limit that `Store.expire` promises.
_MAX_EXPIRED = 1_000


class MemoryStore:
    """The `Store` in memory."""

    def __init__(self, tombstones: TombstoneLimits = DEFAULT_TOMBSTONES) -> None:
        self._sessions = SessionTable()
        self._tombstones = Tombstones(tombstones)
        self._records = Records()

    async def open(self) -> None:
        """Does nothing: there is nothing to open."""

    async def close(self) -> None:
        """Does nothing: there is nothing to release."""

    async def get(self, session_id: str) -> Session | None:
        """See `Store.get`."""
        entry = self._sessions.get(session_id)
        return entry.session if entry else None

    async def exchanges(self, session_id: str, first: int) -> Sequence[Exchange]:
        """See `Store.exchanges`."""
        entry = self._sessions.get(session_id)
        if entry is None:
            return ()
        start = bisect_left(entry.exchange_numbers, first)
        rows = zip(entry.exchange_numbers[start:], entry.messages[start:], strict=True)
        return [
            tuple(message for _, message in group)
            for _, group in groupby(rows, key=lambda row: row[0])
        ]

    async def messages(
        self, session_id: str, first: int, max_messages: int, max_bytes: int
    ) -> HistoryPart | None:
        """See `Store.messages`."""
        entry = self._sessions.get(session_id)
        if entry is None:
            return None
        start_bytes = entry.end_bytes[first - 1] if 0 < first <= len(entry.messages) else 0
        end = bisect_right(entry.end_bytes, start_bytes + max_bytes, first)
        return HistoryPart(
            entry.session, entry.messages[first:][: min(max_messages, max(end - first, 1))]
        )

    async def commit(self, commit: Commit) -> Sequence[RemovedSession]:
        """See `Store.commit`."""
        if commit.create:
            removed = self._make_room(commit)
            self._apply(self._sessions.add(commit.session), commit)
            return removed
        entry = self._sessions.get(commit.session.id)
        if entry is None:
            raise SessionNotFound(f"there is no session {commit.session.id!r}")
        room.check_bytes(commit, self._sessions.usage(tenant_of(commit.session.id)))
        self._apply(entry, commit)
        return ()

    async def fork(self, commit: Commit, parent_id: str) -> Sequence[RemovedSession]:
        """See `Store.fork`."""
        parent = self._sessions.get(parent_id)
        if parent is None:
            raise SessionNotFound(f"there is no session {parent_id!r}")
        shared = commit.session.message_count - len(commit.appended)
        if not 0 <= shared <= len(parent.messages):
            raise ValueError(f"{parent_id!r} has no {shared} messages to share")
        removed = self._make_room(commit)
        entry = self._sessions.add(commit.session)
        entry.share(parent, shared)
        self._apply(entry, commit)
        return removed

    async def size_at(self, session_id: str, exchange_count: int) -> tuple[int, int]:
        """See `Store.size_at`."""
        entry = self._sessions.get(session_id)
        if entry is None:
            return (0, 0)
        messages = bisect_left(entry.exchange_numbers, exchange_count)
        return (messages, entry.end_bytes[messages - 1] if messages else 0)

    async def begin_turn(self, session_id: str, request_id: str, now: float) -> TurnSnapshot:
        """See `Store.begin_turn`."""
        session = await self.get(session_id)
        if session is None or session.expire_time <= now:
            return TurnSnapshot(
                has_expired=session is not None,
                gone=await self.gone(session_id, now),
                usage=self._sessions.usage(tenant_of(session_id)),
            )
        record = await self.idempotency_record(session_id, request_id) if request_id else None
        if record is not None:
            return TurnSnapshot(session, record)
        if session.is_touch_due(now):
            await self.touch(session_id, now)
        exchanges = await self.exchanges(session_id, session.window_start)
        return TurnSnapshot(replace(session, last_used_time=now), exchanges=exchanges)

    async def touch(self, session_id: str, now: float) -> bool:
        """See `Store.touch`."""
        entry = self._sessions.get(session_id)
        if entry is None:
            return False
        self._sessions.put(entry, replace(entry.session, last_used_time=now))
        return True

    async def end(self, session_id: str, *, gone: Gone | None = None, now: float = 0.0) -> bool:
        """See `Store.end`."""
        entry = self._sessions.get(session_id)
        if entry is None:
            if gone is None:
                self._tombstones.discard(session_id)
            return False
        self._delete(entry, gone, now)
        return True

    async def gone(self, session_id: str, now: float) -> Gone | None:
        """See `Store.gone`."""
        entry = self._sessions.get(session_id)
        if entry is None:
            return self._tombstones.find(session_id, now)
        has_expired = self._tombstones.are_kept and entry.session.expire_time <= now
        return Gone.EXPIRED if has_expired else None

    async def usage(self, tenant: str) -> StoreUsage:
        """See `Store.usage`."""
        return self._sessions.usage(tenant)

    async def expire(self, now: float, protected: Collection[str]) -> Sequence[str]:
        """See `Store.expire`."""
        self._tombstones.prune(now)
        found = self._sessions.expired(_MAX_EXPIRED, lambda each: each not in protected, now)
        for session_id in found:
            self._delete(self._sessions.existing(session_id), Gone.EXPIRED, now)
        return found

    async def list(
        self,
        *,
        after: int,
        limit: int,
        labels: Mapping[str, str],
        now: float,
        active_or_in_turn: Collection[str] = (),
        tenant: str | None = None,
    ) -> tuple[Sequence[Session], int]:
        """See `Store.list`."""
        page: list[Entry] = []
        size = 0
        for entry in self._sessions.after(after):
            session_id = entry.session.id
            if not _belongs(session_id, tenant):
                continue
            if entry.session.expire_time <= now and session_id not in active_or_in_turn:
                continue
            if any(entry.session.labels.get(key) != value for key, value in labels.items()):
                continue
            if len(page) == limit or size >= MAX_PAGE_BYTES:
                return [_listed(entry) for entry in page], page[-1].key if page else after
            page.append(entry)
            size += entry.session.labels_bytes
        return [_listed(entry) for entry in page], 0

    async def idempotency_record(
        self, session_id: str, request_id: str
    ) -> IdempotencyRecord | None:
        """See `Store.idempotency_record`."""
        entry = self._sessions.get(session_id)
        return entry.records.get(request_id) if entry else None

    async def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.completion`."""
        return self._records.completion(completion_id)

    async def created_by(self, request_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.created_by`."""
        return self._records.created_by(request_id)

    async def turns(self, session_id: str, first: int, end: int) -> Sequence[StoredTurn]:
        """See `Store.turns`."""
        entry = self._sessions.get(session_id)
        return self._records.turns(entry, first, end) if entry else ()

    async def counts(
        self, now: float, active_or_in_turn: Collection[str] = (), tenant: str | None = None
    ) -> StoreCounts:
        """See `Store.counts`."""
        sessions = (entry.session for entry in self._sessions.entries())
        own_sessions = (each for each in sessions if _belongs(each.id, tenant))
        return count(own_sessions, now, active_or_in_turn)

    async def tenants(
        self, now: float, after: str, limit: int, active_or_in_turn: Collection[str] = ()
    ) -> Sequence[TenantCounts]:
        """See `Store.tenants`."""
        sessions = (entry.session for entry in self._sessions.entries())
        return count_by_tenant(sessions, now, after, limit, active_or_in_turn)

    def _make_room(self, commit: Commit) -> Sequence[RemovedSession]:
        """Deletes what has to go for a new session. Raises what `Store.commit` does, first."""
        session_id = commit.session.id
        tenant = tenant_of(session_id)
        usage = self._sessions.usage(tenant)
        replaced = self._sessions.get(session_id)
        if replaced is not None:
            if replaced.session.expire_time > commit.now:
                raise SessionExists(f"there is a session {own(session_id)!r} already")
            usage = room.without(usage, room.stored_bytes(replaced.session))
        room.check_bytes(commit, usage)
        victims = room.victims(
            commit,
            usage,
            expired=lambda count, accept: self._sessions.expired(count, accept, commit.now),
            least_recently_used=partial(self._sessions.least_recently_used, tenant),
        )
        removed = []
        if replaced is not None:
            removed = [RemovedSession(session_id, expired=True)]
            self._delete(replaced)
        self._tombstones.discard(session_id)
        for each, reason in victims:
            self._delete(self._sessions.existing(each), reason, commit.now)
            removed.append(RemovedSession(each, expired=reason is Gone.EXPIRED))
        return removed

    def _apply(self, entry: Entry, commit: Commit) -> None:
        for number, message in commit.appended:
            end = entry.end_bytes[-1] if entry.end_bytes else 0
            entry.messages.append(message)
            entry.exchange_numbers.append(number)
            entry.end_bytes.append(end + message.size_bytes)
        self._sessions.put(entry, commit.session)
        if commit.idempotency_record is not None:
            self._records.put(entry, commit.idempotency_record, create=commit.create)

    def _delete(self, entry: Entry, gone: Gone | None = None, now: float = 0.0) -> None:
        self._sessions.remove(entry)
        self._records.forget(entry)
        if gone is not None:
            self._tombstones.put(entry.session.id, gone, now)


def _listed(entry: Entry) -> Session:
    session = entry.session
    has_long_texts = session.system_prompt or session.summary
    return replace(session, system_prompt="", summary=None) if has_long_texts else session


def _belongs(session_id: str, tenant: str | None) -> bool:
    return tenant is None or tenant_of(session_id) == tenant
