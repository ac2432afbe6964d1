"""The errors for sessions that are not there.

A session that was evicted or has expired is told apart from an unknown one, so that no caller takes
a conversation that begins again for the one before. See `ruvd.core.ports.store.Gone`.
"""

from ruvd.core import tenants
from ruvd.core.errors import RuvdError, SessionEvicted, SessionExpired, SessionNotFound
from ruvd.core.ports.store import Gone


def check_absent(
    session_id: str, gone: Gone | None, *, require_existing: bool, recreate_if_gone: bool
) -> None:
    """Raises the error for a session that is not there, unless the caller wants a new one."""
    if (gone is not None and not recreate_if_gone) or (gone is None and require_existing):
        raise absence(session_id, gone)


def absence(session_id: str, gone: Gone | None) -> RuvdError:
    """Returns the error for a session that has `gone`, or is unknown."""
    name = tenants.own(session_id)
    again = "start a new one, or repeat the call with recreate_if_gone"
    if gone is Gone.EVICTED:
        return SessionEvicted(f"session {name!r} was evicted to make room for another; {again}")
    if gone is Gone.EXPIRED:
        return SessionExpired(f"session {name!r} was idle for too long and has expired; {again}")
    return session_not_found(session_id)


def session_not_found(session_id: str) -> SessionNotFound:
    """Returns the error for a session that does not exist or has expired."""
    return SessionNotFound(f"there is no session {tenants.own(session_id)!r}, or it has expired")
