"""The sessions of the store in memory, in the orders in which they are looked for.

Messages are immutable, so a fork shares them with its parent.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ruvd.core.model import IdempotencyRecord, Message, Session
from ruvd.core.ports.room import stored_bytes
from ruvd.core.ports.store import StoreUsage
from ruvd.core.tenants import tenant_of
from ruvd.stores.memory.schedule import Schedule

# Keys of deleted sessions are dropped once they outnumber the others by this many.
_MAX_SURPLUS = 64


@dataclass(slots=True)
class Entry:
    """A session with its data. The three lists have one item for each message.

    `answers` are the positions of the messages of its turns, by the completion's id.
    """

    key: int
    session: Session
    messages: list[Message] = field(default_factory=list)
    exchange_numbers: list[int] = field(default_factory=list)
    end_bytes: list[int] = field(default_factory=list)
    records: dict[str, IdempotencyRecord] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    created_by: str = ""

    def share(self, parent: "Entry", count: int) -> None:
        """Begins with the first messages of a parent, in place of its own."""
        self.messages = parent.messages[:count]
        self.exchange_numbers = parent.exchange_numbers[:count]
        self.end_bytes = parent.end_bytes[:count]


@dataclass(slots=True)
class _Tenant:
    """The sessions of a tenant: their number, their bytes, and their order of use."""

    sessions: int = 0
    bytes: int = 0
    by_use: Schedule = field(default_factory=Schedule)


class SessionTable:
    """All sessions by their ids, in the order of creation, of expiry, and each tenant's of use."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._ids: dict[int, str] = {}
        # In ascending order, which is that of creation. Keys of deleted sessions are skipped.
        self._keys: list[int] = []
        self._last_key = 0
        self._by_expiry = Schedule()
        self._tenants: dict[str, _Tenant] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, session_id: str) -> Entry | None:
        """Returns the session's entry, or None."""
        return self._entries.get(session_id)

    def existing(self, session_id: str) -> Entry:
        """Returns the entry of a session that exists."""
        return self._entries[session_id]

    def entries(self) -> Iterator[Entry]:
        """Returns all entries, in no particular order."""
        return iter(self._entries.values())

    def after(self, key: int) -> Iterator[Entry]:
        """Returns the entries with greater keys, in order."""
        for index in range(bisect_right(self._keys, key), len(self._keys)):
            session_id = self._ids.get(self._keys[index])
            if session_id is not None:
                yield self._entries[session_id]

    def usage(self, tenant: str) -> StoreUsage:
        """See `Store.usage`."""
        own = self._tenants.get(tenant) or _Tenant()
        return StoreUsage(len(self._entries), own.sessions, own.bytes)

    def add(self, session: Session) -> Entry:
        """Adds a session, which must not exist."""
        self._last_key += 1
        entry = Entry(self._last_key, session)
        self._entries[session.id] = entry
        self._ids[entry.key] = session.id
        self._keys.append(entry.key)
        tenant = self._tenants.setdefault(tenant_of(session.id), _Tenant())
        tenant.sessions += 1
        tenant.bytes += stored_bytes(session)
        self._order(entry, tenant)
        return entry

    def put(self, entry: Entry, session: Session) -> None:
        """Replaces the session of an entry by a later state of it."""
        tenant = self._tenants[tenant_of(session.id)]
        tenant.bytes += stored_bytes(session) - stored_bytes(entry.session)
        entry.session = session
        self._order(entry, tenant)

    def remove(self, entry: Entry) -> None:
        """Removes an entry."""
        session = entry.session
        del self._entries[session.id]
        del self._ids[entry.key]
        self._by_expiry.discard(entry.key)
        tenant_id = tenant_of(session.id)
        tenant = self._tenants[tenant_id]
        tenant.sessions -= 1
        tenant.bytes -= stored_bytes(session)
        tenant.by_use.discard(entry.key)
        if not tenant.sessions:
            del self._tenants[tenant_id]
        if len(self._keys) > 2 * len(self._ids) + _MAX_SURPLUS:
            self._keys = sorted(self._ids)

    def expired(self, count: int, accept: Callable[[str], bool], now: float) -> Sequence[str]:
        """Returns the first accepted sessions that have expired, in the order of their expiry."""
        return self._found(self._by_expiry.first(count, self._accepts(accept), now))

    def least_recently_used(
        self, tenant: str, count: int, accept: Callable[[str], bool]
    ) -> Sequence[str]:
        """Returns the accepted sessions of a tenant whose last use is the longest ago."""
        own = self._tenants.get(tenant)
        return self._found(own.by_use.first(count, self._accepts(accept))) if own else ()

    def _order(self, entry: Entry, tenant: _Tenant) -> None:
        tenant.by_use.put(entry.key, entry.session.last_used_time)
        self._by_expiry.put(entry.key, entry.session.expire_time)

    def _accepts(self, accept: Callable[[str], bool]) -> Callable[[int], bool]:
        return lambda key: accept(self._ids[key])

    def _found(self, keys: Sequence[int]) -> Sequence[str]:
        return [self._ids[key] for key in keys]
