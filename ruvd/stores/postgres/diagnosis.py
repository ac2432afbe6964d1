"""The settings of a PostgreSQL server that decide what a stored turn survives."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.diagnosis import Finding
from ruvd.stores.postgres.reads import Connection, every, one

_CONNECT_SECONDS = 5
_MIN_VERSION = 120_000
_SETTINGS = (
    "server_version",
    "server_version_num",
    "server_encoding",
    "synchronous_commit",
    "synchronous_standby_names",
    "fsync",
    "full_page_writes",
    "data_checksums",
)
_COMMITS = {
    "on": "a Finished survives a crash of the server",
    "remote_apply": "a Finished survives a crash of the server",
    "remote_write": "a Finished survives a crash of the server; a standby has it in memory only",
    "local": "commits do not wait for a standby",
}


async def diagnose(
    conninfo: str, *, password: Callable[[], str], timeout_seconds: float, prepare: bool
) -> list[Finding]:
    """Returns the findings about the server that daemons with these settings use.

    Raises StoreUnavailable if it cannot be asked.
    """
    given = conninfo_to_dict(conninfo)

    async def ask(kind: str) -> list[Finding]:
        values: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS, "target_session_attrs": kind}
        values |= given
        async with (
            asyncio.timeout(timeout_seconds),
            await AsyncConnection.connect(autocommit=True, prepare_threshold=None, **values) as db,
        ):
            return await _findings(db, prepare=prepare)

    try:
        if secret := await asyncio.to_thread(password):
            given["password"] = secret
        try:
            return await ask("read-write")
        except psycopg.OperationalError:
            # A daemon needs a server that can be written to. There may be one that cannot.
            return await ask("any")
    except (psycopg.Error, OSError) as error:
        text = str(error).strip().partition("\n")[0] or "no answer in time"
        raise StoreUnavailable(f"PostgreSQL: {text}") from error


async def _findings(db: Connection, *, prepare: bool) -> list[Finding]:
    rows = await every(
        db, "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", (list(_SETTINGS),)
    )
    settings = {name: value or "" for name, value in rows}
    server = await one(db, "SELECT pg_is_in_recovery(), pg_backend_pid()", ())
    is_standby, backend = server or (False, 0)
    found = [*_of_server(settings, is_standby=is_standby), *_of_disk(settings)]
    found.append(_of_commits(settings))
    if not is_standby:
        standbys = await every(db, "SELECT sync_state FROM pg_stat_replication", ())
        found.append(_of_standbys(settings, [row[0] for row in standbys]))
    if await one(db, "SELECT 1 WHERE to_regclass('replicas') IS NOT NULL", ()):
        rows = await every(db, "SELECT address FROM replicas WHERE until > clock_timestamp()", ())
        found.append(_of_replicas([row[0] for row in rows]))
    if db.info.backend_pid != backend:
        found.append(
            Finding(
                "pooler",
                "prepared statements " + ("on" if prepare else "off"),
                "a pooler such as PgBouncer is in front of the server; before 1.21 PgBouncer needs"
                " store_prepares = false",
            )
        )
    return found


def _of_server(settings: Mapping[str, str], *, is_standby: bool) -> Iterator[Finding]:
    is_old = int(settings.get("server_version_num", "0")) < _MIN_VERSION
    version = settings.get("server_version", "")
    yield Finding("server_version", version, "ruvd needs PostgreSQL 12 or newer", is_old)
    encoding = settings.get("server_encoding", "")
    yield Finding("server_encoding", encoding, "ruvd needs UTF8", encoding != "UTF8")
    if is_standby:
        yield Finding(
            "role",
            "standby",
            "daemons cannot write here: name the primary, or all hosts, in the setting store",
            is_risk=True,
        )
    else:
        yield Finding("role", "primary", "daemons can write here")


def _of_disk(settings: Mapping[str, str]) -> Iterator[Finding]:
    for name, loss in (
        ("fsync", "a crash of the database's machine loses turns and may damage the database"),
        ("full_page_writes", "a crash of the database's machine may damage the database"),
    ):
        is_on = settings.get(name) == "on"
        meaning = "a crash of the database's machine damages nothing" if is_on else loss
        yield Finding(name, settings.get(name, ""), meaning, not is_on)
    checksums = settings.get("data_checksums", "")
    meaning = "damage on the disk is " + ("noticed" if checksums == "on" else "not noticed")
    yield Finding("data_checksums", checksums, meaning)


def _of_commits(settings: Mapping[str, str]) -> Finding:
    commits = settings.get("synchronous_commit", "")
    waits = bool(settings.get("synchronous_standby_names"))
    if commits in _COMMITS:
        is_risk = waits and commits == "local"
        return Finding("synchronous_commit", commits, _COMMITS[commits], is_risk)
    meaning = "a crash of the server loses the last turns, also those with a Finished"
    return Finding("synchronous_commit", commits, meaning, is_risk=True)


def _of_standbys(settings: Mapping[str, str], states: list[str | None]) -> Finding:
    names = settings.get("synchronous_standby_names", "")
    if not names:
        loss = "the loss of the database's machine loses the last turns"
        if not states:
            loss = "the loss of the database's disk loses all since its last backup"
        return Finding("synchronous_standby_names", "none", loss)
    # Users without the role pg_monitor see no states.
    if all(state is not None for state in states) and not {"sync", "quorum"} & set(states):
        meaning = "no synchronous standby is connected: commits wait for one, and time out"
        return Finding("synchronous_standby_names", names, meaning, is_risk=True)
    meaning = "a Finished survives the loss of the database's machine, if the standby is promoted"
    return Finding("synchronous_standby_names", names, meaning)


def _of_replicas(addresses: list[str]) -> Finding:
    lacking = addresses.count("")
    count = f"{len(addresses)} running"
    given = [each for each in addresses if each]
    if len(set(given)) < len(given):
        meaning = "some have the same peer_address, so calls reach the wrong one: set it for each"
        return Finding("replicas", count, meaning, is_risk=True)
    if not lacking:
        meaning = "calls reach a session's owner from every replica"
        return Finding("replicas", count, meaning if addresses else "no daemon uses the store now")
    if lacking < len(addresses):
        meaning = "calls for their sessions are not forwarded to them: set peer_listen at all"
        return Finding("replicas", f"{count}, {lacking} without peer_listen", meaning, is_risk=True)
    meaning = "calls for a session in use at another replica wait, or are refused"
    if lacking == 1:
        meaning = "one daemon alone forwards nothing"
    return Finding("replicas", f"{count}, none with peer_listen", meaning)
