"""The Python client's methods for sessions and for other clients' completions."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable

import grpc
import pytest
from ruvd_client import AsyncClient, Client, ContextWindow, Message, Role, RuvdError, SessionView
from ruvd_client.v1.session_service_pb2 import FINISH_REASON_CANCELLED

Ruvd = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]

LONG_MESSAGE = " ".join(["word"] * 2_000)
FULL = SessionView.SESSION_VIEW_FULL


async def contents(client: AsyncClient, session_id: str) -> list[str]:
    session = await client.get_session(session_id, FULL)
    return [message.content for message in session.messages]


async def test_an_update_changes_only_the_given_settings(address: str) -> None:
    async with AsyncClient(address) as client:
        created = await client.create_session(labels={"a": "1", "b": "2"}, idle_timeout_seconds=60)
        relabelled = await client.update_session(created.id, labels={"c": "3"})
        assert dict(relabelled.labels) == {"c": "3"}
        assert relabelled.idle_timeout == created.idle_timeout
        assert relabelled.context_window == created.context_window
        updated = await client.update_session(
            created.id,
            idle_timeout_seconds=90.5,
            context_window=ContextWindow(keep_exchanges=1, max_exchanges=2),
        )
        assert dict(updated.labels) == {"c": "3"}
        assert updated.idle_timeout.ToTimedelta().total_seconds() == 90.5
        assert updated.context_window.max_exchanges == 2
        unlabelled = await client.update_session(created.id, labels={})
        assert dict(unlabelled.labels) == {}


async def test_messages_are_appended_once_per_request_id(address: str) -> None:
    history = [
        Message(role=Role.ROLE_USER, content="hello"),
        Message(role=Role.ROLE_ASSISTANT, content="good day"),
    ]
    async with AsyncClient(address) as client:
        created = await client.create_session()
        for _ in range(2):
            appended = await client.append_messages(created.id, history, request_id="r1")
        assert (appended.message_count, appended.exchange_count) == (2, 1)
        await client.append_messages(created.id, "one more thing")
        assert await contents(client, created.id) == ["hello", "good day", "one more thing"]


async def test_a_fork_continues_from_the_given_exchange(address: str) -> None:
    async with AsyncClient(address) as client:
        for text in ("one", "two", "three"):
            await client.complete(text, session_id="s").text()
        fork = await client.fork_session("s", exchange_count=1, new_session_id="fork")
        assert (fork.id, fork.parent_id, fork.exchange_count) == ("fork", "s", 1)
        await client.complete("other", session_id="fork").text()
        assert await contents(client, "fork") == ["one", "one", "other", "other"]
        assert (await client.get_session("s")).exchange_count == 3
        empty = await client.fork_session("s", exchange_count=0)
        assert empty.message_count == 0
        forks = [await client.fork_session("s", request_id="r1") for _ in range(2)]
        assert forks[0].id == forks[1].id
        assert forks[0].exchange_count == 3


async def test_another_client_resumes_an_answer_after_the_last_event(slow_address: str) -> None:
    words = [f"word{number}" for number in range(20)]
    async with AsyncClient(slow_address) as client, AsyncClient(slow_address) as other:
        answer = client.complete(
            " ".join(words), session_id="s", request_id="r1", disconnect_grace_seconds=30
        )
        pieces = [await anext(answer) for _ in range(3)]
        assert answer.started is not None
        assert answer.last_sequence > len(pieces)
        await client.close()
        rest = other.resume_completion(
            answer.started.completion_id, after_sequence=answer.last_sequence
        )
        assert rest.last_sequence == answer.last_sequence
        pieces += [text async for text in rest]
        assert "".join(pieces) == " ".join(words)
        assert rest.started is None
        assert rest.finished is not None
        again = other.resume_completion(session_id="s", request_id="r1")
        assert await again.text() == " ".join(words)
        assert again.started is not None
        assert again.last_sequence == rest.last_sequence


async def test_another_client_can_cancel_a_completion(slow_address: str) -> None:
    async with AsyncClient(slow_address) as client, AsyncClient(slow_address) as other:
        answer = client.complete(LONG_MESSAGE, session_id="s")
        assert await anext(answer)
        assert answer.started is not None
        await other.cancel_completion(answer.started.completion_id)
        with pytest.raises(RuvdError) as caught:
            await answer.text()
        assert (caught.value.code, caught.value.reason) == (
            grpc.StatusCode.CANCELLED,
            "COMPLETION_CANCELLED",
        )
        with pytest.raises(RuvdError, match="SESSION_NOT_FOUND"):
            await client.get_session("s")


async def test_a_cancelled_completion_can_commit_its_partial_answer(slow_address: str) -> None:
    async with AsyncClient(slow_address) as client:
        answer = client.complete(LONG_MESSAGE, session_id="s", request_id="r1")
        assert await anext(answer)
        await client.cancel_completion(session_id="s", request_id="r1", keep_partial=True)
        text = await answer.text()
        assert answer.finished is not None
        assert answer.finished.finish_reason == FINISH_REASON_CANCELLED
        assert LONG_MESSAGE.startswith(text)
        assert await contents(client, "s") == [LONG_MESSAGE, text]


async def test_an_unknown_completion_is_not_found(address: str) -> None:
    async with AsyncClient(address) as client:
        with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
            await client.resume_completion("no-such-completion").text()
        with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
            await client.cancel_completion("no-such-completion")


async def test_the_blocking_client_has_these_methods_too(slow_address: str) -> None:
    def use() -> None:
        with Client(slow_address, timeout=20) as client:
            created = client.create_session(labels={"a": "b"})
            assert client.update_session(created.id, idle_timeout_seconds=5).labels == {"a": "b"}
            assert client.append_messages(created.id, "hello").message_count == 1
            assert client.fork_session(created.id, new_session_id="fork").parent_id == created.id
            answer = client.complete("one two", session_id="fork", request_id="r1")
            assert answer.text() == "one two"
            assert answer.started is not None
            resumed = client.resume_completion(answer.started.completion_id, after_sequence=1)
            assert "".join(resumed) == "one two"
            assert resumed.last_sequence == answer.last_sequence
            running = client.complete(LONG_MESSAGE, session_id="fork")
            assert next(running)
            assert running.started is not None
            client.cancel_completion(running.started.completion_id)
            with pytest.raises(RuvdError, match="COMPLETION_CANCELLED"):
                running.text()

    await asyncio.to_thread(use)


async def test_a_chat_can_start_with_a_fork(address: str, ruvd: Ruvd) -> None:
    at = ("--address", address)
    await ruvd("chat", "--session", "s", *at, stdin="one\n")
    done = await ruvd("chat", "--fork", "s", "--session", "mine", *at, stdin="two\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "two\n", "")
    async with AsyncClient(address) as client:
        assert await contents(client, "mine") == ["one", "one", "two", "two"]
        assert (await client.get_session("s")).exchange_count == 1
    missing = await ruvd("chat", "--fork", "nobody", *at, stdin="two\n")
    assert missing.returncode == 1
    assert missing.stderr.startswith("ruvd: SESSION_NOT_FOUND: ")
