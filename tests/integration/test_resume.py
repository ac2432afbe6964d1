"""Ways back for a client whose stream was cut, and what a request id promises.

The engine is echo with a delay, so that an answer of about thirty words has as many events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from running import RunningDaemon, StartDaemon
from wire import contents, details, events, say, turn

from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

GRACE = Duration(seconds=10)
WORDS = 30
TEXT = " ".join(f"w{index}" for index in range(WORDS))
LONG = " ".join(f"w{index}" for index in range(3000))
EVENTS = WORDS + 3  # Started, a Delta a word and one for the nonce, Finished
NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "COMPLETION_NOT_FOUND")
REUSED = (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


def slow(seconds: float) -> tuple[str, ...]:
    return ("--engine", "echo", "--echo-nonce", "--echo-delay-seconds", str(seconds))


@asynccontextmanager
async def another_client(running: RunningDaemon) -> AsyncIterator[Any]:
    """A client with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(running.socket, options=options) as channel:
        yield pb_grpc.SessionServiceStub(channel)


async def read(call: Any, up_to: int) -> list[pb.CompletionEvent]:
    """The events of a call up to a number, or to its end."""
    seen: list[pb.CompletionEvent] = []
    async for response in call:
        seen.append(response.event)
        if response.event.sequence == up_to:
            break
    return seen


async def resumed(
    stub: Any, ref: pb.ResumeCompletionRequest, after: int = 0, up_to: int = 0
) -> list[pb.CompletionEvent]:
    """The events after a number; cut after `up_to`."""
    request = pb.ResumeCompletionRequest(after_sequence=after)
    request.MergeFrom(ref)
    call = stub.ResumeCompletion(request)
    seen = await read(call, up_to)
    call.cancel()
    return seen


def by_id(seen: list[pb.CompletionEvent]) -> pb.ResumeCompletionRequest:
    return pb.ResumeCompletionRequest(completion_id=seen[0].started.completion_id)


def by_request(session_id: str, request_id: str) -> pb.ResumeCompletionRequest:
    return pb.ResumeCompletionRequest(session_id=session_id, request_id=request_id)


def check_whole(seen: list[pb.CompletionEvent]) -> str:
    """These are all events of one answer, each once and in order; its text."""
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert seen[0].HasField("started")
    assert all(event.HasField("delta") for event in seen[1:-1])
    text = "".join(event.delta.text for event in seen[1:-1])
    assert seen[-1].finished.message.content == text
    return text


async def refused(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), details(caught.value)[0]


# --- cut and resumed ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["call", "channel"])
async def test_who_is_cut_after_any_event_and_resumes_gets_the_whole_text_once(
    daemon: StartDaemon, how: str
) -> None:
    async with daemon(*slow(0.03)) as running, running.stub() as stub:

        async def cut_after(k: int) -> tuple[int, str]:
            request = turn(TEXT, f"s{k}", request_id="r", disconnect_grace=GRACE)
            if how == "channel":
                async with another_client(running) as client:
                    seen = await read(client.Complete(request), k)
            else:
                call = stub.Complete(request)
                seen = await read(call, k)
                call.cancel()
            ref = by_id(seen) if k % 2 else by_request(f"s{k}", "r")
            seen += await resumed(stub, ref, after=seen[-1].sequence)
            text = check_whole(seen)
            assert await contents(stub, f"s{k}") == [TEXT, text]
            return len(seen), text

        results = await asyncio.gather(*map(cut_after, range(1, EVENTS + 1)))
    assert all(text.startswith(f"{TEXT} #") for _, text in results)
    assert max(count for count, _ in results) > WORDS // 2


async def test_a_client_that_is_cut_after_every_single_event_gets_the_whole_text_once(
    daemon: StartDaemon,
) -> None:
    async with daemon(*slow(0.02)) as running, running.stub() as stub:
        call = stub.Complete(turn(TEXT, "s", disconnect_grace=GRACE))
        seen = await read(call, 1)
        call.cancel()
        ref = by_id(seen)
        cuts = 1
        while not seen[-1].HasField("finished"):
            after = seen[-1].sequence
            seen += await resumed(stub, ref, after=after, up_to=after + 1)
            cuts += 1
        assert await contents(stub, "s") == [TEXT, check_whole(seen)]
        assert cuts == len(seen)


@pytest.mark.parametrize("resumes", [False, True], ids=["first call", "resumed"])
async def test_a_deadline_ends_the_completion_though_it_has_a_grace(
    daemon: StartDaemon,
    resumes: bool,  # noqa: FBT001
) -> None:
    """A cut connection may come back, a caller whose time is over does not."""
    async with daemon(*slow(0.2)) as running, running.stub() as stub:
        await stub.CreateSession(pb.CreateSessionRequest(session_id="s"))
        request = turn(TEXT, "s", disconnect_grace=GRACE)
        call: Any = stub.Complete(request, timeout=None if resumes else 0.5)
        if resumes:
            seen = await read(call, 2)
            call.cancel()
            ref = pb.ResumeCompletionRequest(completion_id=seen[0].started.completion_id)
            call = stub.ResumeCompletion(ref, timeout=0.5)
        assert (await refused(read(call, -1)))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        line = await running.logged("completion failed")
        assert line["reason"] == "COMPLETION_CANCELLED"
        assert line["total_ms"] < 5_000  # the grace is longer
        assert await contents(stub, "s") == []


async def test_every_reader_sees_the_same_events_under_the_same_numbers(
    daemon: StartDaemon,
) -> None:
    async with daemon(*slow(0.01)) as running, running.stub() as stub:
        call = stub.Complete(turn(TEXT, "s", request_id="r"))
        seen = await read(call, 1)
        ref = by_request("s", "r")
        readers = [resumed(stub, by_id(seen)), resumed(stub, ref), resumed(stub, ref, after=1)]
        live, first, second, third = await asyncio.gather(read(call, 0), *readers)
        seen += live
        check_whole(seen)
        assert first == second == seen
        assert third == seen[1:]


async def test_what_has_ended_can_be_resumed_from_every_number(daemon: StartDaemon) -> None:
    async with daemon(*slow(0.001)) as running, running.stub() as stub:
        seen = await events(stub, turn(TEXT, "s", request_id="r"))
        for ref in (by_id(seen), by_request("s", "r")):
            for after in range(len(seen) + 1):
                assert await resumed(stub, ref, after=after) == seen[after:]


async def test_a_failed_completion_replays_its_events_and_then_its_status(
    daemon: StartDaemon,
) -> None:
    async with daemon(*slow(0.01)) as running, running.stub() as stub:
        call = stub.Complete(turn(LONG, "s"))
        seen = await read(call, 5)
        call.cancel()
        await running.logged("completion failed")
        request = pb.ResumeCompletionRequest(completion_id=by_id(seen).completion_id)
        again = stub.ResumeCompletion(request)
        replayed = await read(again, 5)
        assert replayed == seen
        assert await refused(read(again, 0)) == (
            grpc.StatusCode.CANCELLED,
            "COMPLETION_CANCELLED",
        )


async def test_past_the_retention_a_committed_one_gives_its_finished(daemon: StartDaemon) -> None:
    flags = (*slow(0.001), "--completion-retention-seconds", "0")
    async with daemon(*flags) as running, running.stub() as stub:
        seen = await events(stub, turn(TEXT, "s", request_id="r"))
        stateless = await events(stub, turn("hi", request_id="r"))
        for ref in (by_id(seen), by_request("s", "r")):
            assert await resumed(stub, ref) == seen[-1:]
            assert await resumed(stub, ref, after=len(seen) - 1) == seen[-1:]
            assert await resumed(stub, ref, after=len(seen)) == []
        await say(stub, "another")
        assert await refused(resumed(stub, by_id(stateless))) == NOT_FOUND


async def test_after_a_restart_finished_comes_under_its_stored_number(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    async with daemon(*slow(0.005), *store) as first, first.stub() as stub:
        seen = await events(stub, turn(TEXT, "s", request_id="r"))
        cut = stub.Complete(turn(LONG, "t", request_id="r"))
        lost = await read(cut, 3)
        first.kill()
        await first.ended()
    async with daemon(*slow(0.005), *store) as second, second.stub() as stub:
        for ref in (by_id(seen), by_request("s", "r")):
            assert await resumed(stub, ref, after=3) == seen[-1:]
            assert await resumed(stub, ref, after=len(seen)) == []
        for ref in (by_id(lost), by_request("t", "r")):
            assert await refused(resumed(stub, ref, after=3)) == NOT_FOUND


async def test_an_unknown_completion_is_not_found(daemon: StartDaemon) -> None:
    async with daemon(*slow(0)) as running, running.stub() as stub:
        await say(stub, "one", "s", request_id="r")
        append = pb.AppendMessagesRequest(
            session_id="s",
            messages=[pb.Message(role=pb.ROLE_USER, content="x")],
            request_id="appended",
        )
        await stub.AppendMessages(append)
        refs = [
            pb.ResumeCompletionRequest(completion_id="cmpl-none"),
            by_request("s", "none"),
            by_request("none", "r"),
            by_request("", "r"),
            by_request("s", "appended"),
        ]
        for ref in refs:
            assert await refused(resumed(stub, ref)) == NOT_FOUND
            cancel = pb.CancelCompletionRequest(
                completion_id=ref.completion_id,
                session_id=ref.session_id,
                request_id=ref.request_id,
            )
            assert await refused(stub.CancelCompletion(cancel)) == NOT_FOUND


async def test_a_reader_whose_next_events_are_no_longer_kept_gets_finished_once_it_is_there(
    daemon: StartDaemon,
) -> None:
    text = " ".join(f"w{index}" for index in range(80))
    flags = (*slow(0.02), "--max-log-bytes", "4096")
    async with daemon(*flags) as running, running.stub() as stub:
        call = stub.Complete(turn(text, "s", request_id="r"))
        seen = await read(call, 40)
        late, later, near, rest = await asyncio.gather(
            resumed(stub, by_id(seen), after=2),
            resumed(stub, by_request("s", "r")),
            resumed(stub, by_id(seen), after=seen[-1].sequence),
            read(call, 0),
        )
        assert near == rest
        assert late == later == rest[-1:]
        seen += rest
        answer = check_whole(seen)
        [finished] = await resumed(stub, by_id(seen), after=2)
        assert finished == seen[-1]
        assert finished.finished.message.content == answer
        assert await resumed(stub, by_request("s", "r")) == [finished]


# --- the client is gone ---------------------------------------------------------------------


async def test_continue_commits_after_its_client_has_gone(daemon: StartDaemon) -> None:
    async with daemon(*slow(0.005)) as running, running.stub() as stub:
        request = turn(TEXT, "s", on_disconnect=pb.ON_DISCONNECT_CONTINUE)
        async with another_client(running) as client:
            seen = await read(client.Complete(request), 2)
        await running.logged("completion", completion_id=by_id(seen).completion_id)
        seen += await resumed(stub, by_id(seen), after=2)
        assert await contents(stub, "s") == [TEXT, check_whole(seen)]


async def test_continue_commits_though_its_client_went_while_it_was_queued(
    daemon: StartDaemon,
) -> None:
    async with daemon(*slow(0.02)) as running, running.stub() as stub:
        first = stub.Complete(turn(TEXT, "s"))
        await read(first, 1)
        request = turn("two", "s", request_id="r", on_disconnect=pb.ON_DISCONNECT_CONTINUE)
        # In the queue there is no event yet: the call ends by its deadline.
        assert (await refused(events(stub, request, timeout=0.2)))[
            0
        ] is grpc.StatusCode.DEADLINE_EXCEEDED
        waiting = asyncio.create_task(resumed(stub, by_request("s", "r")))
        await read(first, 0)
        answer = check_whole(await waiting)
        assert (await contents(stub, "s"))[2:] == ["two", answer]


@pytest.mark.parametrize("grace", [None, Duration(nanos=100_000_000)])
async def test_a_client_that_stays_away_leaves_the_session_as_it_was(
    daemon: StartDaemon, grace: Duration | None
) -> None:
    async with daemon(*slow(0.02)) as running, running.stub() as stub:
        await say(stub, "one", "s")
        full = pb.GetSessionRequest(session_id="s", view=pb.SESSION_VIEW_FULL)
        before = (await stub.GetSession(full)).session
        call = stub.Complete(turn(LONG, "s", disconnect_grace=grace))
        seen = await read(call, 3)
        call.cancel()
        await running.logged("completion failed", reason="COMPLETION_CANCELLED")
        after = (await stub.GetSession(full)).session
        assert after.last_used_time.ToNanoseconds() > before.last_used_time.ToNanoseconds()
        for session in (before, after):
            session.ClearField("last_used_time")
            session.ClearField("expire_time")
        assert after == before
        assert await refused(resumed(stub, by_id(seen), after=seen[-1].sequence)) == (
            grpc.StatusCode.CANCELLED,
            "COMPLETION_CANCELLED",
        )


async def test_within_the_grace_an_answer_comes_to_its_end_and_is_committed(
    daemon: StartDaemon,
) -> None:
    async with daemon(*slow(0.005)) as running, running.stub() as stub:
        call = stub.Complete(turn(TEXT, "s", disconnect_grace=GRACE))
        seen = await read(call, 1)
        call.cancel()
        await running.logged("completion", completion_id=by_id(seen).completion_id)
        [said, answer] = await contents(stub, "s")
        assert (said, answer.startswith(f"{TEXT} #")) == (TEXT, True)


# --- cancelled by name ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["completion_id", "request_id"])
async def test_a_partial_answer_that_is_kept_is_in_the_history_and_in_the_next_prompt(
    daemon: StartDaemon, name: str
) -> None:
    async with daemon(*slow(0.01)) as running, running.stub() as stub:
        call = stub.Complete(turn(LONG, "s", request_id="r"))
        seen = await read(call, 6)
        cancel = pb.CancelCompletionRequest(keep_partial=True)
        if name == "completion_id":
            cancel.completion_id = by_id(seen).completion_id
        else:
            cancel.session_id, cancel.request_id = "s", "r"
        await stub.CancelCompletion(cancel)
        part = [LONG, (await contents(stub, "s"))[1]]
        assert await contents(stub, "s") == part
        seen += await read(call, 0)
        assert check_whole(seen) == part[1]
        finished = seen[-1].finished
        assert finished.finish_reason == pb.FINISH_REASON_CANCELLED
        assert (LONG.startswith(part[1]), finished.exchange_count) == (True, 1)
        assert (await events(stub, turn(LONG, "s", request_id="r")))[-1].finished == finished
        after = await say(stub, "next", "s", request_id="n")
        assert after.usage.prompt_tokens == 3000 + len(part[1].split()) + 1
        await stub.CancelCompletion(cancel)  # it has ended: nothing happens
        assert (await contents(stub, "s"))[:2] == part


@pytest.mark.parametrize("name", ["completion_id", "request_id"])
async def test_a_cancelled_answer_that_is_not_kept_leaves_nothing(
    daemon: StartDaemon, name: str
) -> None:
    async with daemon(*slow(0.01)) as running, running.stub() as stub:
        await say(stub, "one", "s")
        call = stub.Complete(turn(LONG, "s", request_id="r"))
        seen = await read(call, 4)
        cancel = pb.CancelCompletionRequest(completion_id=by_id(seen).completion_id)
        if name == "request_id":
            cancel = pb.CancelCompletionRequest(session_id="s", request_id="r")
        await stub.CancelCompletion(cancel)
        assert await refused(read(call, 0)) == (
            grpc.StatusCode.CANCELLED,
            "COMPLETION_CANCELLED",
        )
        assert len(await contents(stub, "s")) == 2
        again = pb.CancelCompletionRequest(completion_id=by_id(seen).completion_id)
        await stub.CancelCompletion(again)
        assert (await say(stub, "two", "s", request_id="r")).exchange_count == 2


async def test_a_queued_completion_can_be_cancelled_and_has_nothing_to_keep(
    daemon: StartDaemon,
) -> None:
    async with daemon(*slow(0.02)) as running, running.stub() as stub:
        first = stub.Complete(turn(TEXT, "s"))
        await read(first, 1)
        grace = turn("two", "s", request_id="r", on_disconnect=pb.ON_DISCONNECT_CONTINUE)
        await refused(events(stub, grace, timeout=0.1))
        waiting = asyncio.create_task(refused(resumed(stub, by_request("s", "r"))))
        cancel = pb.CancelCompletionRequest(session_id="s", request_id="r", keep_partial=True)
        await stub.CancelCompletion(cancel)
        code, why = await waiting
        assert (code, why) in (
            NOT_FOUND,  # the reader came after the end
            (grpc.StatusCode.CANCELLED, "COMPLETION_CANCELLED"),
        )
        await read(first, 0)
        assert len(await contents(stub, "s")) == 2


# --- request ids ----------------------------------------------------------------------------


async def test_the_same_request_again_attaches_while_it_runs_and_replays_when_it_has_ended(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    request = turn(TEXT, "s", request_id="r")
    async with daemon(*slow(0.01), *store) as first, first.stub() as stub:
        call = stub.Complete(request)
        seen = await read(call, 3)
        attached, rest = await asyncio.gather(events(stub, request), read(call, 0))
        seen += rest
        assert attached == seen
        request.if_busy = pb.IF_BUSY_REJECT  # no matter: the id is looked up before
        assert await events(stub, request) == seen
    async with daemon(*slow(0.01), *store) as second, second.stub() as stub:
        assert await events(stub, request) == seen[-1:]
        assert await contents(stub, "s") == [TEXT, check_whole(seen)]
        assert len([line for line in second.log if line["event"] == "completion"]) == 0


async def test_the_same_request_many_times_at_once_is_generated_once(daemon: StartDaemon) -> None:
    async with daemon(*slow(0.002)) as running, running.stub() as stub:
        for session_id in ("s", ""):
            request = turn(TEXT, session_id, request_id="r")
            answers = await asyncio.gather(*(events(stub, request) for _ in range(20)))
            assert all(seen == answers[0] for seen in answers)
            assert await events(stub, request) == answers[0]
        assert len(await contents(stub, "s")) == 2


async def test_a_stateless_request_id_is_one_generation_within_the_retention(
    daemon: StartDaemon,
) -> None:
    flags = (*slow(0.002), "--completion-retention-seconds", "0")
    async with daemon(*flags) as running, running.stub() as stub:
        request = turn("hi", request_id="r")
        one = (await events(stub, request))[-1].finished.message.content
        two = (await events(stub, request))[-1].finished.message.content
        assert one != two


@pytest.mark.parametrize("when", ["running", "ended", "restarted"])
async def test_a_request_id_with_other_content_is_refused(
    daemon: StartDaemon, tmp_path: Path, when: str
) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    others = [
        turn("else", "s", request_id="r"),
        turn(TEXT, "s", request_id="r", options=pb.CompletionOptions(max_tokens=5)),
        turn(TEXT, "s", request_id="r", system_prompt="Be brief."),
    ]
    async with daemon(*slow(0.02), *store) as first, first.stub() as stub:
        call = stub.Complete(turn(TEXT, "s", request_id="r"))
        await read(call, 2 if when == "running" else 0)
        for other in others if when != "restarted" else ():
            assert await refused(events(stub, other)) == REUSED
        await read(call, 0)
    if when == "restarted":
        async with daemon(*slow(0.02), *store) as second, second.stub() as stub:
            for other in others:
                assert await refused(events(stub, other)) == REUSED
            assert len(await contents(stub, "s")) == 2


async def test_a_request_id_makes_creating_appending_and_forking_safe_to_repeat(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    message = pb.Message(role=pb.ROLE_USER, content="x")
    create = pb.CreateSessionRequest(system_prompt="Be brief.", request_id="c")
    async with daemon(*slow(0), *store) as first, first.stub() as stub:
        session_id = (await stub.CreateSession(create)).session.id
        append = pb.AppendMessagesRequest(session_id=session_id, messages=[message], request_id="a")
        fork = pb.ForkSessionRequest(session_id=session_id, request_id="f")
        await stub.AppendMessages(append)
        fork_id = (await stub.ForkSession(fork)).session.id
    other_create = pb.CreateSessionRequest(system_prompt="Be long.", request_id="c")
    other_append = pb.AppendMessagesRequest(
        session_id=session_id, messages=[message, message], request_id="a"
    )
    other_fork = pb.ForkSessionRequest(session_id=session_id, exchange_count=0, request_id="f")
    async with daemon(*slow(0), *store) as second, second.stub() as stub:
        assert (await stub.CreateSession(create)).session.id == session_id
        assert (await stub.AppendMessages(append)).session.message_count == 1
        assert (await stub.ForkSession(fork)).session.id == fork_id
        assert await refused(stub.CreateSession(other_create)) == REUSED
        assert await refused(stub.AppendMessages(other_append)) == REUSED
        assert await refused(stub.ForkSession(other_fork)) == REUSED
        assert await refused(events(stub, turn("x", session_id, request_id="a"))) == REUSED
        page = await stub.ListSessions(pb.ListSessionsRequest())
        assert {session.id for session in page.sessions} == {session_id, fork_id}
        repeated = await asyncio.gather(*(stub.AppendMessages(append) for _ in range(10)))
        assert {reply.session.message_count for reply in repeated} == {1}


async def test_a_request_id_whose_completion_failed_is_free_again(daemon: StartDaemon) -> None:
    async with daemon(*slow(0.01)) as running, running.stub() as stub:
        call = stub.Complete(turn(LONG, "s", request_id="r"))
        await read(call, 3)
        call.cancel()
        await running.logged("completion failed")
        finished = await say(stub, "something else", "s", request_id="r")
        assert finished.exchange_count == 1


async def test_who_cancels_and_asks_again_at_once_is_answered(daemon: StartDaemon) -> None:
    """The retry overtakes the cancellation of the first call, or meets it half way."""
    async with daemon(*slow(0.001)) as running, running.stub() as stub:
        for index in range(20):
            request = turn(TEXT, "s", request_id=str(index))
            call = stub.Complete(request)
            await read(call, 2 + index % 3)
            call.cancel()
            assert (await events(stub, request))[-1].finished.exchange_count == index + 1
        assert len(await contents(stub, "s")) == 40
