"""A store in the memory of the process, for tests, demos and daemons that may forget.

No method awaits anything, so each is atomic on its event loop. Messages are immutable, so a fork
shares them with its parent.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from ruvd.core.errors import SessionExists, SessionNotFound
from ruvd.core.model import Exchange, IdempotencyRecord, Message, Session
from ruvd.core.ports.store import (
    MAX_PAGE_BYTES,
    Commit,
    HistoryPart,
    RemovedSession,
    StoreCounts,
    TenantCounts,
    TurnSnapshot,
)
from ruvd.core.tenants import own, tenant_of
from ruvd.stores.memory.schedule import Schedule

# The limit that `Store.expire` promises.
_MAX_EXPIRED = 1_000
# Keys of deleted sessions are dropped once they outnumber the others by this many.
_MAX_SURPLUS = 64


@dataclass(slots=True)
class _Entry:
    """A session with its data. The three lists have one item for each message."""

    key: int
    session: Session
    messages: list[Message] = field(default_factory=list)
    exchange_numbers: list[int] = field(default_factory=list)
    end_bytes: list[int] = field(default_factory=list)
    records: dict[str, IdempotencyRecord] = field(default_factory=dict)
    completion_ids: set[str] = field(default_factory=set)
    created_by: str = ""


class MemoryStore:
    """The `Store` in memory."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._ids: dict[int, str] = {}
        # In ascending order, which is that of creation. Keys of deleted sessions are skipped.
        self._keys: list[int] = []
        self._last_key = 0
        self._by_use = Schedule()
        self._by_expiry = Schedule()
        self._completions: dict[str, tuple[str, IdempotencyRecord]] = {}
        self._creations: dict[str, tuple[str, IdempotencyRecord]] = {}

    async def open(self) -> None:
        """Does nothing: there is nothing to open."""

    async def close(self) -> None:
        """Does nothing: there is nothing to release."""

    async def get(self, session_id: str) -> Session | None:
        """See `Store.get`."""
        entry = self._entries.get(session_id)
        return entry.session if entry else None

    async def exchanges(self, session_id: str, first: int) -> Sequence[Exchange]:
        """See `Store.exchanges`."""
        entry = self._entries.get(session_id)
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
        entry = self._entries.get(session_id)
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
        entry.exchange_numbers = parent.exchange_numbers[:shared]
        entry.end_bytes = parent.end_bytes[:shared]
        return [*replaced, *self._apply(entry, commit)]

    async def size_at(self, session_id: str, exchange_count: int) -> tuple[int, int]:
        """See `Store.size_at`."""
        entry = self._entries.get(session_id)
        if entry is None:
            return (0, 0)
        messages = bisect_left(entry.exchange_numbers, exchange_count)
        return (messages, entry.end_bytes[messages - 1] if messages else 0)

    async def begin_turn(self, session_id: str, request_id: str, now: float) -> TurnSnapshot:
        """See `Store.begin_turn`."""
        session = await self.get(session_id)
        if session is None or session.expire_time <= now:
            return TurnSnapshot(has_expired=session is not None)
        record = await self.idempotency_record(session_id, request_id) if request_id else None
        if record is not None:
            return TurnSnapshot(session, record)
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
        return self._delete_all(
            self._by_expiry.first(_MAX_EXPIRED, lambda key: self._ids[key] not in protected, now)
        )

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
        page: list[_Entry] = []
        size = 0
        for index in range(bisect_right(self._keys, after), len(self._keys)):
            session_id = self._ids.get(self._keys[index])
            if session_id is None or not _belongs(session_id, tenant):
                continue
            entry = self._entries[session_id]
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
        entry = self._entries.get(session_id)
        return entry.records.get(request_id) if entry else None

    async def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.completion`."""
        return self._completions.get(completion_id)

    async def created_by(self, request_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.created_by`."""
        return self._creations.get(request_id)

    async def counts(
        self, now: float, active_or_in_turn: Collection[str] = (), tenant: str | None = None
    ) -> StoreCounts:
        """See `Store.counts`."""
        entries = self._entries.items()
        sessions = [entry.session for key, entry in entries if _belongs(key, tenant)]
        return StoreCounts(
            sessions=len(sessions),
            active=sum(
                session.expire_time > now or session.id in active_or_in_turn for session in sessions
            ),
            messages=sum(session.message_count for session in sessions),
        )

    async def tenants(
        self, now: float, after: str, limit: int, active_or_in_turn: Collection[str] = ()
    ) -> Sequence[TenantCounts]:
        """See `Store.tenants`."""
        by_tenant: dict[str, list[Session]] = {}
        for session_id, entry in self._entries.items():
            if (tenant := tenant_of(session_id)) > after:
                by_tenant.setdefault(tenant, []).append(entry.session)
        return [
            TenantCounts(
                tenant,
                sessions=len(sessions),
                active=sum(
                    each.expire_time > now or each.id in active_or_in_turn for each in sessions
                ),
                messages=sum(each.message_count for each in sessions),
                history_bytes=sum(each.size_bytes for each in sessions),
            )
            for tenant, sessions in sorted(by_tenant.items())[:limit]
        ]

    def _remove_expired(self, commit: Commit) -> Sequence[RemovedSession]:
        """Deletes a session of the new one's id. Raises SessionExists if it has not expired."""
        session_id = commit.session.id
        entry = self._entries.get(session_id)
        if entry is None:
            return ()
        if entry.session.expire_time > commit.now:
            raise SessionExists(f"there is a session {own(session_id)!r} already")
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
            entry.exchange_numbers.append(number)
            entry.end_bytes.append(end + message.size_bytes)
        self._put(entry, commit.session)
        if commit.idempotency_record is not None:
            self._store_record(entry, commit.idempotency_record, create=commit.create)
        return self._evict(commit)

    def _put(self, entry: _Entry, session: Session) -> None:
        entry.session = session
        self._by_use.put(entry.key, session.last_used_time)
        self._by_expiry.put(entry.key, session.expire_time)

    def _store_record(self, entry: _Entry, record: IdempotencyRecord, *, create: bool) -> None:
        session_id = entry.session.id
        if record.request_id:
            replaced = entry.records.get(record.request_id)
            if replaced is not None and replaced.completion_id:
                self._completions.pop(replaced.completion_id, None)
                entry.completion_ids.discard(replaced.completion_id)
            entry.records[record.request_id] = record
        if record.completion_id:
            self._completions[record.completion_id] = (session_id, record)
            entry.completion_ids.add(record.completion_id)
        elif create and record.request_id:
            self._creations[record.request_id] = (session_id, record)
            entry.created_by = record.request_id

    def _evict(self, commit: Commit) -> Sequence[RemovedSession]:
        if commit.max_sessions is None or len(self._entries) <= commit.max_sessions:
            return ()

        def may_delete(key: int) -> bool:
            session_id = self._ids[key]
            return session_id != commit.session.id and session_id not in commit.protected

        surplus = len(self._entries) - commit.max_sessions
        expired = self._delete_all(self._by_expiry.first(surplus, may_delete, commit.now))
        evicted = self._delete_all(self._by_use.first(surplus - len(expired), may_delete))
        return [
            *(RemovedSession(session_id, expired=True) for session_id in expired),
            *(RemovedSession(session_id, expired=False) for session_id in evicted),
        ]

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
            created = self._creations.get(entry.created_by)
            if created is not None and created[0] == entry.session.id:
                del self._creations[entry.created_by]
        if len(self._keys) > 2 * len(self._ids) + _MAX_SURPLUS:
            self._keys = sorted(self._ids)


def _listed(entry: _Entry) -> Session:
    return (
        replace(entry.session, system_prompt="") if entry.session.system_prompt else entry.session
    )


def _belongs(session_id: str, tenant: str | None) -> bool:
    return tenant is None or tenant_of(session_id) == tenant
