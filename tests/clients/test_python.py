"""The Python client and the commands that use it, against a real daemon."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable

import grpc
import pytest
from running import StartDaemon
from ruvd_client import AsyncClient, Client, Message, Role, RuvdError, SessionView
from ruvd_client.v1.session_service_pb2 import CompleteRequest

Ruvd = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]

# Too long for a test to wait for the end of its answer by mistake.
LONG_MESSAGE = " ".join(["word"] * 2_000)
NO_DAEMON = "127.0.0.1:1"
ERASURE = "Within 10 s nothing of them is in the daemon's files, except what a fork shares."


# --- AsyncClient ---------------------------------------------------------------------------


async def test_an_answer_is_streamed_and_then_has_its_usage(address: str) -> None:
    async with AsyncClient(address) as client:
        answer = client.complete("one two three", session_id="s")
        assert "".join([text async for text in answer]) == "one two three"
        assert answer.started is not None
        assert answer.started.session_created
        assert answer.finished is not None
        assert answer.finished.message.content == "one two three"
        assert answer.finished.usage.prompt_tokens > 0


async def test_a_session_keeps_the_history_and_only_the_new_message_is_sent(address: str) -> None:
    async with AsyncClient(address) as client:
        await client.complete("my name is Ada", session_id="s").text()
        second = client.complete("and yours?", session_id="s")
        assert await second.text() == "and yours?"
        assert isinstance(second.request, CompleteRequest)
        assert [message.content for message in second.request.messages] == ["and yours?"]
        assert second.started is not None
        assert second.started.context_messages == 3


async def test_a_stateless_completion_takes_the_whole_conversation(address: str) -> None:
    history = [
        Message(role=Role.ROLE_USER, content="hello"),
        Message(role=Role.ROLE_ASSISTANT, content="good day"),
        Message(role=Role.ROLE_USER, content="goodbye"),
    ]
    async with AsyncClient(address) as client:
        answer = client.complete(history, system_prompt="Be kind.", temperature=0.0, max_tokens=5)
        assert await answer.text() == "goodbye"
        assert answer.started is not None
        assert answer.started.session_id == ""
        assert answer.started.context_messages == 4
        assert [session async for session in client.list_sessions()] == []


async def test_events_are_numbered_from_one_and_end_with_finished(address: str) -> None:
    async with AsyncClient(address) as client:
        events = [event async for event in client.complete("a b c").events()]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].HasField("started")
    assert events[-1].HasField("finished")


async def test_list_sessions_reads_all_pages(address: str) -> None:
    async with AsyncClient(address) as client:
        for number in range(5):
            await client.create_session(session_id=f"s{number}", labels={"even": str(number % 2)})
        all_ids = [session.id async for session in client.list_sessions(page_size=2)]
        assert all_ids == ["s0", "s1", "s2", "s3", "s4"]
        even_ids = [
            session.id async for session in client.list_sessions({"even": "0"}, page_size=2)
        ]
        assert even_ids == ["s0", "s2", "s4"]


async def test_a_session_is_created_read_and_ended(address: str) -> None:
    async with AsyncClient(address) as client:
        created = await client.create_session(system_prompt="Be kind.", idle_timeout_seconds=60.5)
        assert created.idle_timeout.ToTimedelta().total_seconds() == 60.5
        await client.complete("hello", session_id=created.id).text()
        read = await client.get_session(created.id, SessionView.SESSION_VIEW_FULL)
        assert [message.content for message in read.messages] == ["hello", "hello"]
        assert (await client.get_session_metrics()).session_completions == 1
        await client.end_session(created.id)
        with pytest.raises(RuvdError) as caught:
            await client.get_session(created.id)
        assert (caught.value.code, caught.value.reason) == (
            grpc.StatusCode.NOT_FOUND,
            "SESSION_NOT_FOUND",
        )
        await client.end_session(created.id, allow_missing=True)


async def test_an_invalid_request_names_all_invalid_fields(address: str) -> None:
    async with AsyncClient(address) as client:
        with pytest.raises(RuvdError) as caught:
            await client.complete("hello", session_id="not an id", temperature=-1.0).text()
    assert caught.value.reason == "INVALID_REQUEST"
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"session_id", "options.temperature"}


async def test_an_error_with_hundreds_of_invalid_fields_is_received(address: str) -> None:
    invalid = [Message(content="x")] * 300
    async with AsyncClient(address) as client:
        with pytest.raises(RuvdError) as caught:
            await client.complete(invalid).text()
    assert caught.value.reason == "INVALID_REQUEST"
    assert caught.value.violations


async def test_a_missing_daemon_is_unavailable_and_has_no_reason() -> None:
    async with AsyncClient(NO_DAEMON) as client:
        with pytest.raises(RuvdError) as caught:
            await client.get_session("s")
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason == ""


async def test_a_history_above_grpcs_default_message_limit_is_received(address: str) -> None:
    large = "x" * 1_000_000
    async with AsyncClient(address) as client:
        for _ in range(3):
            await client.complete(large, session_id="s").text()
        session = await client.get_session("s", SessionView.SESSION_VIEW_FULL)
    assert sum(len(message.content) for message in session.messages) == 6_000_000


async def test_a_cancelled_answer_raises_and_leaves_the_session_unchanged(
    slow_address: str,
) -> None:
    async with AsyncClient(slow_address) as client:
        await client.complete("hello", session_id="s").text()
        answer = client.complete(LONG_MESSAGE, session_id="s")
        assert await anext(answer)
        answer.cancel()
        with pytest.raises(RuvdError) as caught:
            await answer.text()
        assert caught.value.code is grpc.StatusCode.CANCELLED
        assert answer.finished is None
        # The next turn waits for the end of the cancelled one, so it sees its effect.
        assert await client.complete("again", session_id="s").text() == "again"
        assert (await client.get_session("s")).message_count == 4


async def test_leaving_the_block_cancels_the_answer(slow_address: str) -> None:
    async with AsyncClient(slow_address) as client:
        async with client.complete(LONG_MESSAGE, session_id="s") as answer:
            assert await anext(answer)
        assert await client.complete("next", session_id="s").text() == "next"
        assert (await client.get_session("s")).message_count == 2


async def test_cancelling_the_task_is_no_error_of_the_answer(slow_address: str) -> None:
    async with AsyncClient(slow_address) as client:
        answer = client.complete(LONG_MESSAGE)
        assert await anext(answer)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await answer.text()


async def test_a_deadline_is_an_error_without_a_reason(slow_address: str) -> None:
    async with AsyncClient(slow_address) as client:
        with pytest.raises(RuvdError) as caught:
            await client.complete(LONG_MESSAGE, timeout=0.3).text()
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


# --- Client --------------------------------------------------------------------------------


async def test_the_blocking_client_has_the_same_methods(address: str) -> None:
    def use() -> None:
        with Client(address, timeout=10) as client:
            created = client.create_session(labels={"a": "b"})
            answer = client.complete("one two", session_id=created.id)
            assert "".join(answer) == "one two"
            assert answer.finished is not None
            assert client.get_session(created.id).message_count == 2
            assert [s.id for s in client.list_sessions({"a": "b"}, page_size=1)] == [created.id]
            assert client.get_session_metrics().session_completions == 1
            client.end_session(created.id)
            with pytest.raises(RuvdError, match="SESSION_NOT_FOUND"):
                client.end_session(created.id)

    await asyncio.to_thread(use)


async def test_the_blocking_client_cancels_an_answer(slow_address: str) -> None:
    def use() -> None:
        with Client(slow_address) as client:
            with client.complete(LONG_MESSAGE, session_id="s") as answer:
                assert next(answer)
            with pytest.raises(RuvdError) as caught:
                answer.text()
            assert caught.value.code is grpc.StatusCode.CANCELLED
            assert client.complete("next", session_id="s").text() == "next"
            assert client.get_session("s").message_count == 2

    await asyncio.to_thread(use)


async def test_the_address_comes_from_the_environment(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUVD_ADDRESS", address)
    async with AsyncClient() as client:
        assert await client.complete("hello").text() == "hello"


# --- commands ------------------------------------------------------------------------------


async def test_health_exits_0_when_serving(address: str, ruvd: Ruvd) -> None:
    done = await ruvd("health", "--address", address)
    assert (done.returncode, done.stdout) == (0, "readiness: SERVING\n")
    assert (await ruvd("health", "--address", address, "--service", "")).returncode == 0
    assert (await ruvd("health", "--address", address, "--service", "x")).returncode == 1


async def test_a_piped_chat_prints_one_answer_per_input_line_and_nothing_else(
    address: str, ruvd: Ruvd
) -> None:
    done = await ruvd("chat", "--session", "s", "--address", address, stdin="one two\n\nthree\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one two\nthree\n", "")
    async with AsyncClient(address) as client:
        assert (await client.get_session("s")).exchange_count == 2


async def test_a_chat_can_continue_the_session_of_another_chat(address: str, ruvd: Ruvd) -> None:
    await ruvd("chat", "--session", "s", "--address", address, stdin="one\n")
    done = await ruvd("chat", "--session", "s", "--address", address, stdin="two\n")
    assert done.stdout == "two\n"
    shown = await ruvd("sessions", "show", "s", "--address", address)
    assert "2 exchanges, 4 messages" in shown.stdout


async def test_sessions_are_listed_shown_and_ended(address: str, ruvd: Ruvd) -> None:
    async with AsyncClient(address) as client:
        await client.create_session(session_id="s1", labels={"team": "blue"})
        await client.create_session(session_id="s2")
        await client.complete("hello there", session_id="s1").text()
    at = ("--address", address)
    everything = await ruvd("sessions", "list", *at)
    assert "s1" in everything.stdout
    assert "team=blue" in everything.stdout
    found = json.loads(
        (await ruvd("sessions", "list", "--label", "team=blue", "--json", *at)).stdout
    )
    assert [session["id"] for session in found] == ["s1"]
    one = json.loads((await ruvd("sessions", "show", "s1", "--json", *at)).stdout)
    assert [message["content"] for message in one["messages"]] == ["hello there"] * 2
    ended = await ruvd("sessions", "end", "s1", *at)
    assert ended.returncode == 0
    assert ended.stdout == f"ended s1\n{ERASURE}\n"
    gone = await ruvd("sessions", "show", "s1", *at)
    assert gone.returncode == 1
    assert gone.stderr.startswith("ruvd: SESSION_NOT_FOUND: ")


async def test_all_sessions_are_ended_by_one_command(daemon: StartDaemon, ruvd: Ruvd) -> None:
    async with daemon("--engine", "echo") as d:
        at = ("--address", d.address)
        async with AsyncClient(d.address) as client:
            for name in ("s1", "s2", "s3"):
                await client.create_session(session_id=name)
        for wrong in ((), ("--all", "s1")):
            assert (await ruvd("sessions", "end", *wrong, *at)).returncode == 2
        some = await ruvd("sessions", "end", "s1", "s2", *at)
        assert some.stdout == f"ended s1\nended s2\n{ERASURE}\n"
        everything = await ruvd("sessions", "end", "--all", *at)
        assert everything.stdout == f"ended s3\n{ERASURE}\n"
        assert (await ruvd("sessions", "list", *at)).stdout == "no sessions\n"
        nothing = await ruvd("sessions", "end", "--all", *at)
        assert (nothing.returncode, nothing.stdout) == (0, "no sessions\n")


async def test_the_demo_measures_three_ways_and_finds_its_session_after_a_restart(
    ruvd: Ruvd,
) -> None:
    done = await ruvd("demo", "--engine", "echo")
    assert done.returncode == 0, done.stderr
    for column in ("ruvd session", "stateless, no cache", "stateless, engine cache"):
        assert column in done.stdout
    assert "is still there: 10 exchanges, 20 messages" in done.stdout
