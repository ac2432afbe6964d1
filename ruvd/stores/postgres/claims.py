"""Claims of sessions that do not exist yet: the turn that creates a session has it, too.

The row of a new session comes with its first commit, so a claim says until then at which replica
that turn runs. The fence of a creation is the session's row, and not its claim: a claim that is
lost, as in a crash of the server, costs a turn that is refused and no more.
"""

from ruvd.stores.postgres.reads import Connection, one

_LIVES = (
    "EXISTS (SELECT 1 FROM replicas r WHERE r.id = claims.owner AND r.until > clock_timestamp())"
)
_CLAIM = (
    "INSERT INTO claims (session_id, owner) VALUES (%(id)s, %(me)s) ON CONFLICT (session_id)"
    " DO UPDATE SET owner = excluded.owner"
    f" WHERE claims.owner = excluded.owner OR NOT {_LIVES} RETURNING owner"
)


async def claim(db: Connection, me: str, session_id: str) -> bool:
    """Claims a session that is to be created; False if another living replica has claimed it."""
    return await one(db, _CLAIM, {"id": session_id, "me": me}) is not None


async def give_up(db: Connection, me: str, session_id: str) -> None:
    """Ends a claim of this replica."""
    await db.execute("DELETE FROM claims WHERE session_id = %s AND owner = %s", (session_id, me))


async def forget(db: Connection) -> None:
    """Deletes the claims of replicas that are gone."""
    await db.execute(f"DELETE FROM claims WHERE NOT {_LIVES}".encode())
