"""The room that sessions have: for one more session, and for more bytes.

The store has the last word on what is committed without an answer: it refuses a change in the
transaction that would exceed a limit. A turn is asked for its room before it begins, because its
answer must not be lost. Until it is committed, its messages and its new session count as if they
were stored. Before anything is refused, expired sessions are deleted, but not more than once a
second, so that a flood of refused calls costs the store little.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

from ruvd.core import tenants
from ruvd.core.errors import QuotaExceeded, SessionTooLarge
from ruvd.core.model import Message, Session
from ruvd.core.ports import room
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.store import Commit, RemovedSession, Store, StoreUsage
from ruvd.core.sessions.expiry import Expiry
from ruvd.core.sessions.model import SessionPolicy
from ruvd.core.sessions.turn_queue import TurnQueue

_NO_RESERVATION = nullcontext()
# Refused callers are asked to wait for so long.
_SWEEP_SECONDS = 1.0


class SessionQuotas:
    """The limits of sessions and of their bytes, of the daemon and of each tenant."""

    def __init__(
        self,
        store: Store,
        turn_queue: TurnQueue,
        policy: SessionPolicy,
        expiry: Expiry,
        clock: Clock,
    ) -> None:
        self._store = store
        self._turn_queue = turn_queue
        self._policy = policy
        self._expiry = expiry
        self._clock = clock
        self._swept_at = -math.inf
        # The bytes of each tenant's running turns, which are not stored yet.
        self._reserved: Counter[str] = Counter()

    def check_size(self, session: Session, messages: Sequence[Message]) -> None:
        """Raises SessionTooLarge if the session's history has no room for the messages."""
        size = session.size_bytes + _size(messages)
        if size > self._policy.max_session_bytes:
            raise SessionTooLarge(
                f"the history would have {size} bytes, the limit is "
                f"{self._policy.max_session_bytes} (max_session_bytes); start a new session"
            )

    async def check_place(self, session_id: str, usage: StoreUsage) -> None:
        """Raises QuotaExceeded or SessionLimit if a new session could not be stored.

        The turn that creates it is in the turn queue, with its pending session. `usage` is that of
        the moment at which the turn began.
        """
        tenant = tenants.tenant_of(session_id)
        if self._has_place(tenant, usage):
            return
        if await self._sweep():
            usage = await self._store.usage(tenant)
            if self._has_place(tenant, usage):
                return
        if self._is_refused(tenant, usage):
            raise room.own_sessions_exceeded(self._policy.limits_of(tenant).max_sessions)
        raise room.sessions_exceeded(self._policy.max_sessions)

    async def check_place_without_turn(self, session_id: str) -> None:
        """Does the same for a session that is created without a turn.

        The store checks it against what is stored, so only sessions count that turns create now.
        """
        own, others, _ = self._turn_queue.pending(tenants.tenant_of(session_id))
        if own + others > 1:
            usage = await self._store.usage(tenants.tenant_of(session_id))
            await self.check_place(session_id, usage)

    async def reserve(
        self, session: Session, messages: Sequence[Message], *, creates: bool
    ) -> AbstractContextManager[None]:
        """Returns a context in which a turn's messages count for its tenant's bytes.

        Raises QuotaExceeded if they have no room.
        """
        tenant = tenants.tenant_of(session.id)
        limit = self._policy.limits_of(tenant).max_stored_bytes
        if limit is None:
            return _NO_RESERVATION
        added = _size(messages) + (room.prompt_bytes(session) if creates else 0)
        while True:
            # A turn that is committed meanwhile counts, though the read may not see it.
            before = self._reserved[tenant]
            usage = await self._store.usage(tenant)
            size = usage.own_bytes + max(before, self._reserved[tenant]) + added
            if size <= limit:
                return self._reservation(tenant, added)
            if not await self._sweep():
                raise room.own_bytes_exceeded(size, limit)

    def limited(self, commit: Commit, parent_id: str, now: float) -> Commit:
        """Returns the commit, which happens `now`, with the limits that the store has to keep."""
        tenant = tenants.tenant_of(commit.session.id)
        limits = self._policy.limits_of(tenant)
        most = limits.max_stored_bytes
        if most is not None and commit.refusable:
            commit = replace(commit, max_own_bytes=most - self._reserved[tenant])
        if not commit.create:
            return commit
        return replace(
            commit,
            max_sessions=self._policy.max_sessions,
            max_own_sessions=limits.max_sessions,
            evicts_own=self._policy.evicts_at_tenant_limit,
            protected=(*self._turn_queue.in_use(), parent_id),
            now=now,
        )

    async def retried(
        self, write: Callable[[], Awaitable[Sequence[RemovedSession]]]
    ) -> Sequence[RemovedSession]:
        """Returns the result of a write, which is tried again if that helps it to get room."""
        try:
            return await write()
        except QuotaExceeded:
            if not await self._sweep():
                raise
        return await write()

    async def _sweep(self) -> int:
        """Deletes all expired sessions, unless that was done just now; returns their number."""
        now = self._clock.monotonic()
        if now - self._swept_at < _SWEEP_SECONDS:
            return 0
        self._swept_at = now
        return await self._expiry.sweep()

    def _has_place(self, tenant: str, usage: StoreUsage) -> bool:
        """Whether the tenant's pending sessions can be stored, each beside or for another one."""
        if self._is_refused(tenant, usage):
            return False
        most = self._policy.max_sessions
        in_use = len(self._turn_queue.in_use())
        # If one tenant has all sessions, enough of them are idle: at most `most` are in use.
        if usage.sessions + in_use <= most or usage.own_sessions == usage.sessions:
            return True
        own, others, own_begun = self._turn_queue.pending(tenant)
        free = max(0, most - usage.sessions - others)
        return own - free <= usage.own_sessions - own_begun

    def _is_refused(self, tenant: str, usage: StoreUsage) -> bool:
        limit = self._policy.limits_of(tenant).max_sessions
        if limit is None or self._policy.evicts_at_tenant_limit:
            return False  # the turn queue sees to it that enough sessions are idle
        return usage.own_sessions + self._turn_queue.pending(tenant)[0] > limit

    @contextmanager
    def _reservation(self, tenant: str, added: int) -> Iterator[None]:
        self._reserved[tenant] += added
        try:
            yield
        finally:
            self._reserved[tenant] -= added
            if not self._reserved[tenant]:
                del self._reserved[tenant]


def _size(messages: Sequence[Message]) -> int:
    return sum(message.size_bytes for message in messages)
