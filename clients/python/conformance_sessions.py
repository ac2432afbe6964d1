"""The calls of `PROGRAM calls` that make, read and change sessions."""

from __future__ import annotations

from typing import Any

from conformance_output import attempt, describe, out, show_messages, shown, word
from ruvd_client import Compaction, ContextWindow, Message, Rendering, Role, SessionView


def create(client: Any) -> None:
    out("# create")
    new = {
        "session_id": "alpha",
        "system_prompt": "Be brief.",
        "messages": [
            Message(role=Role.ROLE_USER, content="one", pinned=True),
            Message(role=Role.ROLE_ASSISTANT, content="uno"),
            Message(role=Role.ROLE_USER, content="two"),
            Message(role=Role.ROLE_ASSISTANT, content="dos"),
        ],
        "labels": {"user": "ada", "team": "a"},
        "context_window": window(1, 4),
        "idle_timeout_seconds": 600,
        "model": "echo",
        "request_id": "create-1",
        "compaction_instruction": "Keep numbers.",
        "summary": "uno came first",
        "summary_exchange_count": 1,
    }
    describe(client.create_session(**new))
    out(shown(client.create_session(**new)))
    attempt(lambda: client.create_session(**{**new, "labels": {}}))
    attempt(lambda: client.create_session(session_id="alpha"))
    made = client.create_session()
    out(f"made {word(bool(made.id))}")
    client.end_session(made.id)


def get(client: Any) -> None:
    out("# get")
    show_messages(client.get_session("alpha", SessionView.SESSION_VIEW_FULL))
    out(f"messages {len(client.get_session('alpha').messages)}")
    attempt(lambda: client.get_session("nobody"))


def list_pages(client: Any) -> None:
    out("# list")
    for number in range(1, 106):
        client.create_session(session_id=f"p{number}", labels={"page": "yes"})
    for labels in ({"page": "yes"}, {"team": "a", "user": "ada"}, {"team": "none"}):
        found = [session.id for session in client.list_sessions(labels)]
        out(f"listed {len(found)} {' '.join([*found[:1], *found[-1:]])}".rstrip())


def update(client: Any) -> None:
    out("# update")
    describe(
        client.update_session(
            "alpha",
            labels={"team": "b"},
            idle_timeout_seconds=300,
            context_window=window(2, 6),
            compaction_instruction="Keep names.",
        )
    )
    fields = ["idle_timeout", "compaction_instruction"]
    describe(client.update_session("alpha", update_mask=fields))
    attempt(lambda: client.update_session("nobody", labels={"a": "b"}))


def append(client: Any) -> None:
    out("# append")
    for text in ("three", "three", "other"):
        attempt(lambda: out(shown(client.append_messages("alpha", text, request_id="append-1"))))  # noqa: B023
    message = Message(role=Role.ROLE_ASSISTANT, content="tres")
    summary = {"summary": "uno, then dos", "summary_exchange_count": 2}
    describe(client.append_messages("alpha", [message], **summary))
    attempt(lambda: client.append_messages("nobody", "hi"))


def fork(client: Any) -> None:
    out("# fork")
    new = {"exchange_count": 1, "new_session_id": "alpha-fork", "request_id": "fork-1"}
    describe(client.fork_session("alpha", **new))
    out(shown(client.fork_session("alpha", **new)))
    attempt(lambda: client.fork_session("alpha", new_session_id="alpha"))
    attempt(lambda: client.fork_session("alpha", exchange_count=99))
    attempt(lambda: client.fork_session("nobody"))


def compact(client: Any) -> None:
    out("# compact")
    history = [
        Message(role=role, content=f"{word} {number}")
        for number in (1, 2, 3)
        for role, word in ((Role.ROLE_USER, "question"), (Role.ROLE_ASSISTANT, "answer"))
    ]
    small = ContextWindow(keep_exchanges=1, max_exchanges=10)
    client.create_session(session_id="beta", messages=history, context_window=small)
    for dry_run in (True, False):
        done = client.compact_session("beta", dry_run=dry_run)
        count, kept, before = done.summarized_exchanges, done.kept_exchanges, done.bytes_before
        after = word(done.HasField("bytes_after"))
        out(f"compaction exchanges={count} kept={kept} before={before} after={after}")
        summary = word(bool(done.session.summary))
        out(f"summary {summary} of={done.session.summary_exchange_count}")
        out(f"compactions {done.session.compactions} usage={word(done.HasField('usage'))}")
    out(f"again exchanges={client.compact_session('beta').summarized_exchanges}")
    attempt(lambda: client.compact_session("nobody"))


def window(keep: int, maximum: int) -> ContextWindow:
    return ContextWindow(
        keep_exchanges=keep,
        max_exchanges=maximum,
        max_tokens=100,
        rendering=Rendering.RENDERING_MESSAGES,
        compaction=Compaction.COMPACTION_NONE,
        keep_first=1,
        compact_at=0.5,
    )
