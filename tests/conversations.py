"""Builders of the commits that the store tests make, like those of the core."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ruvd.core.model import (
    ContextWindow,
    Finished,
    FinishReason,
    IdempotencyRecord,
    Message,
    Rendering,
    Role,
    Session,
    Timings,
    Usage,
)
from ruvd.core.ports.store import Commit, RemovedSession, Store


def session(
    session_id: str = "s", *, now: float = 0.0, idle: float = 100.0, **fields: object
) -> Session:
    return Session(
        id=session_id,
        create_time=now,
        last_used_time=now,
        idle_timeout_seconds=idle,
        **fields,  # type: ignore[arg-type]
    )


def full_session() -> Session:
    return session(
        "full",
        now=12.25,
        system_prompt="Be brief. \N{SNOWMAN}",
        model="tiny",
        labels={"tenant": "a", "quote": "'; DROP TABLE sessions; --"},
        context_window=ContextWindow(2, 5, 700, Rendering.TRANSCRIPT),
        parent_id="before",
        usage=Usage(10, None, 3),
        window_start=4,
        context_tokens=99,
        context_bytes=400,
    )


def turn(before: Session, text: str, *, now: float | None = None) -> Commit:
    """Returns the commit of one more exchange: a user message `text` and its answer."""
    messages = (Message(Role.USER, text), Message(Role.ASSISTANT, f"re: {text}"))
    return Commit(
        replace(
            before,
            last_used_time=before.last_used_time if now is None else now,
            message_count=before.message_count + 2,
            exchange_count=before.exchange_count + 1,
            size_bytes=before.size_bytes + sum(m.size_bytes for m in messages),
        ),
        tuple((before.exchange_count, message) for message in messages),
    )


async def talk(store: Store, before: Session, *texts: str, now: float | None = None) -> Session:
    for text in texts:
        commit = turn(await again(store, before), text, now=now)
        await store.commit(commit)
        before = commit.session
    return await again(store, before)


async def again(store: Store, written: Session) -> Session:
    """Returns the session as it is read again, which the next change of it is based on."""
    found = await store.get(written.id)
    assert found == written
    return found


async def create(
    store: Store,
    session_id: str = "s",
    *texts: str,
    now: float = 0.0,
    idle: float = 100.0,
    labels: Mapping[str, str] | None = None,
    max_sessions: int | None = None,
    protected: Collection[str] = (),
) -> Session:
    made = session(session_id, now=now, idle=idle, labels=labels or {})
    await store.commit(
        Commit(made, create=True, now=now, max_sessions=max_sessions, protected=protected)
    )
    return await talk(store, made, *texts)


async def fork(
    store: Store, parent: Session, session_id: str, exchange_count: int, *, now: float = 0.0
) -> Session:
    commit = await forked(store, parent, session_id, exchange_count, now=now)
    await store.fork(commit, parent.id)
    return await again(store, commit.session)


async def forked(
    store: Store, parent: Session, session_id: str, exchange_count: int, *, now: float = 0.0
) -> Commit:
    """Returns the commit of a fork that keeps the first `exchange_count` exchanges."""
    messages, size_bytes = await store.size_at(parent.id, exchange_count)
    child = replace(
        parent,
        id=session_id,
        create_time=now,
        last_used_time=now,
        parent_id=parent.id,
        message_count=messages,
        exchange_count=exchange_count,
        size_bytes=size_bytes,
    )
    return Commit(child, create=True, now=now)


def expired(*session_ids: str) -> list[RemovedSession]:
    return [RemovedSession(session_id, expired=True) for session_id in session_ids]


def evicted(*session_ids: str) -> list[RemovedSession]:
    return [RemovedSession(session_id, expired=False) for session_id in session_ids]


def finished(message: Message, exchange_count: int = 1) -> Finished:
    return Finished(
        FinishReason.STOP,
        message,
        Usage(20, 15, 5),
        Timings(0.01, 0.2, 1.5, None),
        exchange_count,
        "end_turn",
    )


def completed(commit: Commit, request_id: str, completion_id: str) -> Commit:
    """Returns the same commit with the idempotency record of a completion."""
    answer = finished(commit.appended[-1][1], commit.session.exchange_count)
    return replace(
        commit,
        idempotency_record=IdempotencyRecord(request_id, b"\x00\xff", completion_id, 7, answer),
    )


async def texts(store: Store, session_id: str, first: int = 0) -> list[str]:
    """Returns the user messages from exchange `first` on."""
    return [exchange[0].content for exchange in await store.exchanges(session_id, first)]


async def ids(store: Store, now: float = 0.0) -> list[str]:
    sessions, _ = await store.list(after=0, limit=1_000, labels={}, now=now)
    return [found.id for found in sessions]
