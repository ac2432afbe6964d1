"""Summaries and pins over the wire: the Python client and the commands, against a real daemon."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from running import StartDaemon
from ruvd_client import AsyncClient, ContextWindow, Message, Role, RuvdError
from ruvd_client.v1.session_service_pb2 import COMPACTION_NONE, COMPACTION_SUMMARY

Ruvd = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]


async def test_a_summary_is_made_shown_exported_and_used_after_a_restart(
    daemon: StartDaemon, ruvd: Ruvd, tmp_path: Path
) -> None:
    flags = ("--engine", "echo", "--store", f"sqlite:{tmp_path}/s.db")
    async with daemon(*flags) as running, AsyncClient(running.address) as client:
        at = ("--address", running.address)
        window = ContextWindow(keep_exchanges=1, compaction=COMPACTION_NONE, keep_first=1)
        await client.create_session(
            session_id="s", context_window=window, compaction_instruction="Keep the colours."
        )
        pinned = Message(role=Role.ROLE_USER, content="my colour is red", pinned=True)
        for message in ("first", pinned, "third", "fourth"):
            await client.complete(message, session_id="s").text()
        tried = await ruvd("sessions", "compact", "s", "--dry-run", *at)
        assert "would summarise 3 exchanges, the last 1 stay" in tried.stdout
        assert (await client.get_session("s")).compactions == 0
        made = await ruvd("sessions", "compact", "s", *at)
        assert "summarised 3 exchanges" in made.stdout
        assert "Keep the colours." in made.stdout  # the echo engine answers with the request
        again = await ruvd("sessions", "compact", "s", "--json", *at)
        assert json.loads(again.stdout)["summarized_exchanges"] == "0"
        shown = await ruvd("sessions", "show", "s", *at)
        assert "[of the first 3 exchanges]" in shown.stdout
        assert "[pinned] my colour is red" in shown.stdout
        exported = await ruvd("sessions", "export", "s", *at)
        before = await client.get_session("s")
        assert (before.compactions, before.summary_exchange_count) == (1, 3)
        assert [session.summary async for session in client.list_sessions()] == [""]
    async with daemon(*flags) as running, AsyncClient(running.address) as client:
        after = await client.get_session("s")
        assert (after.summary, after.compactions) == (before.summary, 1)
        await client.end_session("s")
        imported = await ruvd("sessions", "import", "-", *at[:1], running.address,
                              stdin=exported.stdout)  # fmt: skip
        assert imported.returncode == 0, imported.stderr
        copy = await client.get_session("s")
        assert (copy.summary, copy.summary_exchange_count) == (before.summary, 3)
        assert copy.compaction_instruction == "Keep the colours."
        assert copy.context_window.keep_first == 1
        completion = client.complete("fifth", session_id="s")
        events = [event async for event in completion.events()]
        assert events[0].started.context_summarized
        # first, red, summary and reply, fourth, fifth
        assert events[0].started.context_messages == 2 + 2 + 2 + 2 + 1


async def test_the_fields_of_compaction_are_checked(address: str) -> None:
    async with AsyncClient(address) as client:
        wrong = ContextWindow(keep_first=33, compact_at=1.5, compaction=COMPACTION_SUMMARY)
        with pytest.raises(RuvdError) as refused:
            await client.create_session(
                context_window=wrong,
                compaction_instruction="x" * 4097,
                summary_exchange_count=1,
                messages=[Message(role=Role.ROLE_SYSTEM, content="be kind", pinned=True)],
            )
        assert {each.field for each in refused.value.violations} == {
            "context_window.keep_first",
            "context_window.compact_at",
            "compaction_instruction",
            "summary_exchange_count",
            "messages[0].pinned",
        }
        session = await client.create_session(messages="hi")
        with pytest.raises(RuvdError) as empty:
            await client.append_messages(session.id)
        assert [each.field for each in empty.value.violations] == ["messages"]
        own = await client.append_messages(session.id, summary="we said hi")
        assert (own.summary, own.compactions, own.summary_exchange_count) == ("we said hi", 1, 0)
