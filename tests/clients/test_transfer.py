"""The commands `ruvd sessions export` and `import`, between real daemons."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from running import StartDaemon
from ruvd_client import AsyncClient, ContextWindow, SessionView
from ruvd_client.v1.session_service_pb2 import RENDERING_TRANSCRIPT
from tool_conversation import CALLS, TOOL_EXCHANGE, proto_of

Ruvd = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]

ECHO = ("--engine", "echo", "--store", "memory")
TIMES = ("create_time", "last_used_time")


def without_times(export: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in export.splitlines()]
    for line in lines:
        for name in TIMES:
            assert line["metadata"].pop(name).endswith("Z")
    return lines


def line(*contents: Any, **metadata: Any) -> str:
    """Returns an export line whose messages alternate, starting with the user's."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    value: dict[str, Any] = {"messages": messages}
    if metadata:
        value["metadata"] = metadata
    return json.dumps(value)


async def session_ids(address: str) -> list[str]:
    async with AsyncClient(address) as client:
        return [session.id async for session in client.list_sessions()]


async def test_an_imported_export_is_exported_again_unchanged_except_for_times(
    address: str, daemon: StartDaemon, ruvd: Ruvd, tmp_path: Path
) -> None:
    async with AsyncClient(address) as client:
        await client.create_session(
            session_id="full",
            system_prompt="Be kind.\x85\u2028\x9b",
            labels={"team": "blue", "note": 'a "quoted" \N{SNOWMAN}'},
            context_window=ContextWindow(
                keep_exchanges=1, max_exchanges=4, max_tokens=900, rendering=RENDERING_TRANSCRIPT
            ),
            idle_timeout_seconds=3600.25,
            model="tiny",
        )
        for text in ("hello\nthere", "\N{SNOWMAN} again"):
            await client.complete(text, session_id="full").text()
        await client.create_session(session_id="empty")
        await client.fork_session("full", exchange_count=1, new_session_id="fork")
    first = await ruvd("sessions", "export", "--address", address)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.replace("\n", "").isprintable()
    file = tmp_path / "sessions.jsonl"
    written = await ruvd("sessions", "export", "--out", str(file), "--address", address)
    assert (written.returncode, written.stdout) == (0, "")
    assert file.read_text() == first.stdout
    assert file.stat().st_mode & 0o777 == 0o600
    async with daemon(*ECHO) as second:
        at = ("--address", second.address)
        done = await ruvd("sessions", "import", str(file), *at)
        assert (done.returncode, done.stderr) == (0, "3 sessions imported\n")
        again = await ruvd("sessions", "export", "--out", "-", *at)
    assert without_times(again.stdout) == without_times(first.stdout)
    exported = without_times(first.stdout)
    assert [session["metadata"]["session_id"] for session in exported] == ["full", "empty", "fork"]
    assert exported[0]["messages"][0] == {"role": "system", "content": "Be kind.\x85\u2028\x9b"}
    assert exported[0]["messages"][1] == {"role": "user", "content": "hello\nthere"}
    assert exported[0]["metadata"] == {
        "session_id": "full",
        "labels": {"team": "blue", "note": 'a "quoted" \N{SNOWMAN}'},
        "model": "tiny",
        "idle_timeout_seconds": 3600.25,
        "context_window": {
            "keep_exchanges": 1,
            "max_exchanges": 4,
            "max_tokens": 900,
            "rendering": "transcript",
        },
    }


async def test_tool_calls_results_and_reasoning_are_transferred_byte_for_byte(
    address: str, daemon: StartDaemon, ruvd: Ruvd
) -> None:
    messages = [proto_of(message) for message in TOOL_EXCHANGE]
    async with AsyncClient(address) as client:
        await client.create_session(session_id="tools", messages=messages)
    first = await ruvd("sessions", "export", "--address", address)
    assert (first.returncode, first.stderr) == (0, "")
    exported = without_times(first.stdout)[0]["messages"]
    assert exported[1]["content"] is None
    assert exported[1]["tool_calls"][0] == {
        "id": CALLS[0].id,
        "type": "function",
        "function": {"name": CALLS[0].name, "arguments": CALLS[0].arguments},
    }
    assert [message["role"] for message in exported[2:-1]] == ["tool"] * len(CALLS)
    async with daemon(*ECHO) as second:
        at = ("--address", second.address)
        done = await ruvd("sessions", "import", "-", *at, stdin=first.stdout)
        assert (done.returncode, done.stderr) == (0, "1 session imported\n")
        async with AsyncClient(second.address) as client:
            session = await client.get_session("tools", SessionView.SESSION_VIEW_FULL)
        again = await ruvd("sessions", "export", *at)
        shown = await ruvd("sessions", "show", "tools", *at)
    assert list(session.messages) == messages
    assert without_times(again.stdout) == without_times(first.stdout)
    assert [row.split() for row in shown.stdout.splitlines() if "[call 0]" in row] == [
        ["calls", "[call", "0]", 'f0({"a":', ")"],
        ["tool", "[call", "0]"],
    ]


async def test_results_are_imported_after_the_calls_of_an_earlier_request(
    address: str, ruvd: Ruvd
) -> None:
    """A history is imported in requests of 500 messages; here the second starts with results."""
    value = json.loads(line(*[f"message {number}" for number in range(499)], session_id="long"))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    value["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "", "tool_call_id": "1"},
        {"role": "assistant", "content": "so"},
    ]
    at = ("--address", address)
    done = await ruvd("sessions", "import", "-", *at, stdin=json.dumps(value))
    assert (done.returncode, done.stderr) == (0, "1 session imported\n")
    exported = await ruvd("sessions", "export", *at)
    assert without_times(exported.stdout)[0]["messages"] == value["messages"]


async def test_a_tool_result_without_a_call_is_rejected_with_its_field(
    address: str, ruvd: Ruvd
) -> None:
    value = json.loads(line("hello"))
    value["messages"].append({"role": "tool", "content": "x", "tool_call_id": "nobody"})
    at = ("--address", address)
    done = await ruvd("sessions", "import", "-", *at, stdin=json.dumps(value))
    assert done.returncode == 1
    assert done.stderr.startswith("ruvd: line 1: messages[1].tool_call_id: answers no open ")
    assert await session_ids(address) == []


async def test_only_the_named_sessions_are_exported(address: str, ruvd: Ruvd) -> None:
    async with AsyncClient(address) as client:
        for session_id in ("a", "b", "c"):
            await client.create_session(session_id=session_id)
    at = ("--address", address)
    done = await ruvd("sessions", "export", "c", "a", *at)
    ids = [json.loads(row)["metadata"]["session_id"] for row in done.stdout.splitlines()]
    assert ids == ["c", "a"]
    missing = await ruvd("sessions", "export", "a", "nobody", *at)
    assert missing.returncode == 1
    assert missing.stderr.startswith("ruvd: SESSION_NOT_FOUND: ")


async def test_a_failed_export_leaves_the_file_unchanged(
    address: str, ruvd: Ruvd, tmp_path: Path
) -> None:
    file = tmp_path / "sessions.jsonl"
    file.write_text("before")
    done = await ruvd("sessions", "export", "nobody", "--out", str(file), "--address", address)
    assert done.returncode == 1
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    nowhere = str(tmp_path / "nowhere" / "file")
    done = await ruvd("sessions", "export", "--out", nowhere, "--address", address)
    assert (done.returncode, done.stderr) == (1, f"ruvd: {nowhere}: No such file or directory\n")


async def test_lines_without_an_id_get_new_ids(address: str, ruvd: Ruvd) -> None:
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "there"}]
    lines = [line("one", "two"), "", line(parts, "hi")]
    done = await ruvd("sessions", "import", "-", "--address", address, stdin="\n".join(lines))
    assert (done.returncode, done.stderr) == (0, "2 sessions imported\n")
    ids = await session_ids(address)
    assert len(set(ids)) == 2
    async with AsyncClient(address) as client:
        session = await client.get_session(ids[1], SessionView.SESSION_VIEW_FULL)
    assert [message.content for message in session.messages] == ["hello there", "hi"]


async def test_invalid_lines_are_reported_and_the_others_are_imported(
    address: str, ruvd: Ruvd
) -> None:
    lines = [
        line("hello", session_id="a"),
        "{not json",
        line("hello", session_id="no such id!"),
        line([{"type": "image_url", "image_url": {"url": "x"}}]),
        line("hello", session_id="b"),
        line("hello", session_id="a"),
    ]
    done = await ruvd("sessions", "import", "-", "--address", address, stdin="\n".join(lines))
    assert done.returncode == 1
    complaints = done.stderr.splitlines()
    assert [each.split(":")[1].strip() for each in complaints[:-1]] == [
        "line 2",
        "line 3",
        "line 4",
        "line 4",
        "line 6",
    ]
    assert "INVALID_REQUEST: session_id" in complaints[1]
    assert "messages[0].content[0].type: must be text, not 'image_url'" in complaints[2]
    assert "SESSION_EXISTS" in complaints[4]
    assert complaints[-1] == "2 sessions imported, 4 failed"
    assert await session_ids(address) == ["a", "b"]


async def test_a_lenient_import_names_what_it_leaves_out(address: str, ruvd: Ruvd) -> None:
    value = {
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": "hello", "name": "Ada"},
            {"role": "assistant", "content": "hi", "weight": 1},
            *[{"role": "system", "content": "x"}] * 30,
        ],
        "tools": [{"type": "function"}],
    }
    at = ("--address", address)
    refused = await ruvd("sessions", "import", "-", *at, stdin=json.dumps(value))
    assert refused.returncode == 1
    expected = [
        "ruvd: line 1: tools: is not supported by ruvd",
        "ruvd: line 1: messages[1].name: is not supported by ruvd",
        "ruvd: line 1: messages[2].weight: is not supported by ruvd",
        "ruvd: line 1: messages[3].role: only the first message may be a system message",
    ]
    assert refused.stderr.splitlines()[:4] == expected
    assert refused.stderr.splitlines()[-2:] == [
        "ruvd: line 1: and 13 more parts",
        "0 sessions imported, 1 failed",
    ]
    assert await session_ids(address) == []
    done = await ruvd("sessions", "import", "-", "--lenient", *at, stdin=json.dumps(value))
    assert done.returncode == 0
    named = [each.replace("line 1: ", "line 1: left out: ") for each in expected]
    assert done.stderr.splitlines()[:4] == named
    assert done.stderr.endswith("1 session imported, 33 parts left out\n")
    exported = await ruvd("sessions", "export", *at)
    assert without_times(exported.stdout)[0]["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
    ]


@pytest.mark.parametrize(
    ("choice", "summary", "sessions"),
    [
        ("skip", "0 sessions imported, 1 skipped, as their ids exist\n", 1),
        ("new-id", "1 session imported\n", 2),
    ],
)
async def test_on_conflict_skips_or_replaces_an_existing_id(
    address: str, ruvd: Ruvd, choice: str, summary: str, sessions: int
) -> None:
    at = ("--address", address)
    existing = line("hello", session_id="a")
    await ruvd("sessions", "import", "-", *at, stdin=existing)
    done = await ruvd("sessions", "import", "-", "--on-conflict", choice, *at, stdin=existing)
    assert (done.returncode, done.stderr) == (0, summary)
    assert len(await session_ids(address)) == sessions


async def test_a_history_longer_than_a_message_of_grpc_is_imported_and_exported_completely(
    address: str, daemon: StartDaemon, ruvd: Ruvd, tmp_path: Path
) -> None:
    contents = [f"message {number}" for number in range(1_300)] + ["m" * 1_000_000] * 5
    file = tmp_path / "sessions.jsonl"
    file.write_text(line(*contents, session_id="long"))
    done = await ruvd("sessions", "import", str(file), "--address", address)
    assert (done.returncode, done.stderr) == (0, "1 session imported\n")
    async with AsyncClient(address) as client:
        session = await client.get_session("long", SessionView.SESSION_VIEW_FULL)
    assert [message.content for message in session.messages] == contents
    assert session.message_count == len(contents)
    exported = await ruvd("sessions", "export", "long", "--address", address)
    assert [message["content"] for message in json.loads(exported.stdout)["messages"]] == contents
    shown = await ruvd("sessions", "show", "long", "--json", "--address", address)
    assert [message["content"] for message in json.loads(shown.stdout)["messages"]] == contents
    async with daemon(*ECHO, "--max-session-bytes", "2000000") as small:
        done = await ruvd("sessions", "import", str(file), "--address", small.address)
        assert done.returncode == 1
        assert done.stderr.startswith("ruvd: line 1: SESSION_TOO_LARGE: ")
        assert await session_ids(small.address) == []


async def test_evicted_sessions_are_not_counted_as_imported(
    daemon: StartDaemon, ruvd: Ruvd
) -> None:
    lines = [line("hello", session_id=f"s{number}") for number in range(5)]
    async with daemon(*ECHO, "--max-sessions", "3") as small:
        at = ("--address", small.address)
        await ruvd("sessions", "import", "-", *at, stdin=line("hello", session_id="old"))
        done = await ruvd("sessions", "import", "-", *at, stdin="\n".join(lines))
        assert await session_ids(small.address) == ["s2", "s3", "s4"]
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "3 sessions imported, 2 failed"
    assert "2 sessions imported but gone" in done.stderr
    assert "1 session from before the import" in done.stderr


async def test_an_import_stops_if_the_daemon_accepts_no_line(
    daemon: StartDaemon, ruvd: Ruvd, tmp_path: Path
) -> None:
    async with daemon(*ECHO, "--no-sessions-enabled") as stateless:
        lines = "\n".join([line("hello")] * 3)
        at = ("--address", stateless.address)
        done = await ruvd("sessions", "import", "-", *at, stdin=lines)
    assert done.returncode == 1
    assert done.stderr.startswith("ruvd: SESSIONS_DISABLED: ")
    missing = await ruvd("sessions", "import", str(tmp_path / "none"))
    assert missing.returncode == 1
    assert missing.stderr.endswith("No such file or directory\n")
