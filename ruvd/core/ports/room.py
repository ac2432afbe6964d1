"""The rules by which a new session gets room in a store, the same for every store.

A daemon keeps `max_sessions`, and a tenant its `max_own_sessions` of them. A new session never
costs another tenant one that has not expired: beyond a limit its own tenant gives the least
recently used ones. A tenant gives one for the daemon's limit, and besides as many as it has beyond
its own limit, or alone beyond the daemon's. So many tenants do not empty the one that comes next
when an operator lowers `max_sessions`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ruvd.core.errors import QuotaExceeded, SessionLimit
from ruvd.core.model import Session
from ruvd.core.ports.store import Commit, Gone, StoreUsage
from ruvd.core.tenants import tenant_of

# The expired sessions that one commit deletes at most.
_MAX_EXPIRED = 1_000

Find: TypeAlias = Callable[[int, Callable[[str], bool]], Iterable[str]]
"""Finds the ids of up to so many sessions that are accepted."""


def victims(
    commit: Commit, usage: StoreUsage, *, expired: Find, least_recently_used: Find
) -> Sequence[tuple[str, Gone]]:
    """Returns the sessions that have to go for the commit's new one, with the reasons.

    `expired` finds expired sessions of all tenants, by expiry time, and `least_recently_used` those
    of the new one's tenant. `usage` is that before the commit. Raises QuotaExceeded or SessionLimit
    if a refusable commit would leave too many sessions.
    """
    tenant = tenant_of(commit.session.id)
    count = _Count(commit, usage.sessions + 1, usage.own_sessions + 1)
    found: dict[str, Gone] = {}

    def may_go(session_id: str) -> bool:
        is_free = session_id != commit.session.id and session_id not in commit.protected
        return is_free and session_id not in found

    if count.is_full():
        for session_id in expired(count.useful_expired, may_go):
            found[session_id] = Gone.EXPIRED
            count.sessions -= 1
            count.own_sessions -= tenant_of(session_id) == tenant
            if not count.is_full():
                break
        for session_id in least_recently_used(count.own_surplus, may_go):
            found[session_id] = Gone.EVICTED
            count.sessions -= 1
            count.own_sessions -= 1
    if commit.refusable:
        count.check()
    return list(found.items())


def wanted(commit: Commit, usage: StoreUsage) -> tuple[int, int]:
    """Returns how many expired sessions, and how many of its own tenant's, may have to go at most.

    It is for a store that has to find them before it calls `victims`.
    """
    count = _Count(commit, usage.sessions + 1, usage.own_sessions + 1)
    return (count.useful_expired, count.own_surplus) if count.is_full() else (0, 0)


@dataclass(slots=True)
class _Count:
    """The numbers of sessions with the commit's new one: of all, and of its tenant."""

    commit: Commit
    sessions: int
    own_sessions: int

    def is_full(self) -> bool:
        """Whether there are too many sessions, in all or of the tenant."""
        return self._surplus > 0 or self._beyond_own_limit > 0

    @property
    def useful_expired(self) -> int:
        """The number of expired sessions that may have to go.

        For the tenant's limit only its own help, so all that come before them go as well. They
        would go with the next sweep anyway.
        """
        return _MAX_EXPIRED if self._beyond_own_limit > 0 else self._surplus

    @property
    def own_surplus(self) -> int:
        """The number of its own sessions that the tenant has to give."""
        surplus = self._beyond_own_limit if self.commit.evicts_own else 0
        if self._surplus > 0 and self.commit.max_sessions is not None:
            surplus = max(surplus, 1, self.own_sessions - self.commit.max_sessions)
        return max(surplus, 0)

    def check(self) -> None:
        """Raises QuotaExceeded or SessionLimit if there are too many sessions."""
        if self._beyond_own_limit > 0:
            raise own_sessions_exceeded(self.commit.max_own_sessions)
        if self._surplus > 0:
            raise sessions_exceeded(self.commit.max_sessions)

    @property
    def _surplus(self) -> int:
        limit = self.commit.max_sessions
        return 0 if limit is None else self.sessions - limit

    @property
    def _beyond_own_limit(self) -> int:
        limit = self.commit.max_own_sessions
        return 0 if limit is None else self.own_sessions - limit


def check_bytes(commit: Commit, usage: StoreUsage) -> None:
    """Raises QuotaExceeded if a refusable commit would exceed its tenant's bytes.

    What the commit would evict counts still.
    """
    limit = commit.max_own_bytes
    if limit is None or not commit.refusable:
        return
    added = sum(message.size_bytes for _, message in commit.appended)
    if commit.create:
        added = stored_bytes(commit.session)
    if added and usage.own_bytes + added > limit:
        raise own_bytes_exceeded(usage.own_bytes + added, limit)


def without(usage: StoreUsage, replaced_bytes: int) -> StoreUsage:
    """Returns the usage without the expired session that the new one replaces."""
    return StoreUsage(usage.sessions - 1, usage.own_sessions - 1, usage.own_bytes - replaced_bytes)


def prompt_bytes(session: Session) -> int:
    """Returns the bytes of the session's system prompt."""
    prompt = session.system_prompt
    return len(prompt) if prompt.isascii() else len(prompt.encode())


def stored_bytes(session: Session) -> int:
    """Returns the bytes of a session, which count for its tenant."""
    size = session.size_bytes + prompt_bytes(session)
    return size + session.summary.size_bytes if session.summary else size


def own_sessions_exceeded(limit: int | None) -> QuotaExceeded:
    """Returns the error for a tenant that may have no more sessions."""
    return QuotaExceeded(
        f"the tenant has its {limit} sessions (max_sessions in tenant_limits); end one",
        quota="max_sessions",
    )


def own_bytes_exceeded(size: int, limit: int) -> QuotaExceeded:
    """Returns the error for a tenant whose sessions may take no more bytes."""
    return QuotaExceeded(
        f"the tenant's sessions would have {size} bytes, the limit is {limit} "
        "(max_stored_bytes in tenant_limits); end some",
        quota="max_stored_bytes",
    )


def sessions_exceeded(limit: int | None) -> SessionLimit:
    """Returns the error for a daemon that is full of sessions that must not be evicted."""
    return SessionLimit(
        f"the daemon keeps {limit} sessions, and none of yours can be evicted now; "
        "wait for one, or raise max_sessions"
    )
