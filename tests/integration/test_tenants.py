"""Two tenants of one daemon: neither reaches, sees, or profits from what belongs to the other.

`test_isolation.py` does the same for every RPC and every id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from running import RunningDaemon, StartDaemon
from wire import contents, details, say, turn

from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

ECHO = ("--engine", "echo")
SECRET = "what-only-ann-may-read"  # noqa: S105  # no password
NOT_FOUND = ("NOT_FOUND", "SESSION_NOT_FOUND")
NO_COMPLETION = ("NOT_FOUND", "COMPLETION_NOT_FOUND")


class Caller:
    """The stub of one tenant: every call carries its token."""

    def __init__(self, stub: Any, token: str) -> None:
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {token}"),)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)
        return lambda request, **call: method(request, metadata=self._metadata, **call)


class Callers:
    """A file with the tokens of tenants, and stubs for them at a daemon."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "tokens"
        self._tokens: dict[str, str] = {}
        for tenant in ("ann", "bob", "default"):
            self._tokens[tenant], line = tokens.create(tenant, Role.USER)
            with self.file.open("a") as lines:
                lines.write(f"{line}\n")

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--tokens-file", str(self.file))

    @asynccontextmanager
    async def at(self, running: RunningDaemon) -> AsyncIterator[tuple[Caller, Caller, Caller]]:
        """Yields the callers of the tenants ann, bob and default."""
        async with grpc.aio.insecure_channel(running.socket) as channel:
            stub = pb_grpc.SessionServiceStub(channel)
            ann, bob, default = (Caller(stub, token) for token in self._tokens.values())
            yield ann, bob, default


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    path = "memory" if request.param == "memory" else f"sqlite:{tmp_path}/s.db"
    return ("--store", path)


async def outcome(caller: Any, name: str, request: Any) -> str:
    """Calls an RPC; returns its response or its error as text."""
    call = getattr(caller, name)(request)
    try:
        if name in ("Complete", "ResumeCompletion", "BatchComplete"):
            responses = [str(response) async for response in call if "summary" not in str(response)]
            return "".join(responses).replace("\\'", "'")
        return str(await call)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {details(error)[0]} {error.details()}"


async def error_of(caller: Any, name: str, request: Any) -> tuple[str, str]:
    code, reason, *_ = (await outcome(caller, name, request)).split(" ")
    return code, reason


@pytest.mark.parametrize("own", ["bob", "default"])
async def test_ids_written_as_they_are_in_the_core_reach_nothing(
    daemon: StartDaemon, callers: Callers, own: str
) -> None:
    async with daemon(*ECHO, *callers.flags) as running, callers.at(running) as (ann, bob, default):
        caller = bob if own == "bob" else default
        done = [each.event async for each in ann.Complete(turn(SECRET, "s", request_id="r"))]
        completion = done[0].started.completion_id
        for name in ("ResumeCompletion", "CancelCompletion"):
            kind = getattr(pb, f"{name}Request")
            for request in (
                kind(completion_id=completion),
                kind(completion_id=f"ann/{completion}"),
                kind(session_id="s", request_id="r"),
                kind(session_id="ann/s", request_id="ann\nr"),
                kind(session_id="ann/s", request_id="r"),
                kind(request_id="ann\nr"),
            ):
                assert await error_of(caller, name, request) == NO_COMPLETION, request
        get = pb.GetSessionRequest(session_id="ann/s")
        assert await error_of(caller, "GetSession", get) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


async def test_ids_and_request_ids_are_a_tenants_own(
    daemon: StartDaemon, callers: Callers, store: tuple[str, str]
) -> None:
    async with (
        daemon(*ECHO, *store, *callers.flags) as running,
        callers.at(running) as (ann, bob, default),
    ):
        everybody = {"ann": ann, "bob": bob, "default": default}
        for name, caller in everybody.items():
            new = pb.CreateSessionRequest(request_id="r", labels={"of": name})
            made = [(await caller.CreateSession(new)).session.id for _ in range(2)]
            assert made[0] == made[1], "a repeated request id"
            request = turn(f"I am {name}", "s", request_id="r")
            events = [each.event async for each in caller.Complete(request)]
            assert events[0].started.session_created
            assert events[-1].finished.message.content == f"I am {name}"
            stateless = [each.event async for each in caller.Complete(turn(name, request_id="r"))]
            assert stateless[-1].finished.message.content == name
            fork = pb.ForkSessionRequest(session_id="s", new_session_id="f", request_id="fork")
            forked = (await caller.ForkSession(fork)).session
            assert (forked.id, forked.parent_id) == ("f", "s")
            items = [turn("x", "s"), turn("y")]
            batch = caller.BatchComplete(pb.BatchCompleteRequest(items=items))
            outcomes = [each.result.completion async for each in batch if each.HasField("result")]
            ids = [made[0], events[0].started.completion_id, events[0].started.session_id]
            ids += [value for each in outcomes for value in (each.completion_id, each.session_id)]
            assert not [value for value in ids if "/" in value or "\n" in value]
            resumed = pb.ResumeCompletionRequest(completion_id=events[0].started.completion_id)
            assert f"I am {name}" in await outcome(caller, "ResumeCompletion", resumed)
        for name, caller in everybody.items():
            listed = (await caller.ListSessions(pb.ListSessionsRequest())).sessions
            assert len(listed) == 3
            assert {"s", "f"} < {session.id for session in listed}
            labelled = pb.ListSessionsRequest(label_filter={"of": name})
            assert len((await caller.ListSessions(labelled)).sessions) == 1
            metrics = (await caller.GetSessionMetrics(pb.GetSessionMetricsRequest())).metrics
            assert metrics.total_sessions == metrics.active_sessions == 3
            assert (metrics.session_completions, metrics.stateless_completions) == (1, 1)
            assert await contents(caller, "f") == [f"I am {name}"] * 2


async def test_a_prompt_cached_for_one_tenant_is_not_cached_for_another(
    daemon: StartDaemon, callers: Callers
) -> None:
    async with daemon(*ECHO, *callers.flags) as running, callers.at(running) as (ann, bob, default):
        text = "a long prompt that both of them send"
        for session in ("", "s"):
            for caller in (ann, bob, default):
                first = await say(caller, f"{session} {text}", session)
                assert first.usage.cached_tokens == 0
                repeated = await say(caller, f"{session} {text}")
                assert repeated.usage.cached_tokens > 0


async def test_data_from_before_identities_belongs_to_the_tenant_default(
    daemon: StartDaemon, callers: Callers, tmp_path: Path
) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    async with daemon(*ECHO, *store) as before, before.stub() as stub:
        await say(stub, "old", "s")
    async with (
        daemon(*ECHO, *store, *callers.flags) as running,
        callers.at(running) as (ann, _, default),
    ):
        assert await contents(default, "s") == ["old"] * 2
        get = pb.GetSessionRequest(session_id="s")
        assert await error_of(ann, "GetSession", get) == NOT_FOUND
        await say(ann, "new", "s")
        await say(default, "more", "s")
    async with daemon(*ECHO, *store) as after, after.stub() as stub:
        assert await contents(stub, "s") == ["old"] * 2 + ["more"] * 2
        listed = (await stub.ListSessions(pb.ListSessionsRequest())).sessions
        assert [session.id for session in listed] == ["s"]


async def test_errors_name_a_session_as_its_tenant_does(
    daemon: StartDaemon, callers: Callers
) -> None:
    flags = (*ECHO, *callers.flags, "--echo-delay-seconds", "0.02")
    async with daemon(*flags) as running, callers.at(running) as (ann, _, _):
        stream = ann.Complete(turn(" ".join(["word"] * 2000), "s", request_id="r"))
        await anext(aiter(stream))
        reused = turn("another", "s", request_id="r")
        reject = turn("x", "s", if_busy=pb.IF_BUSY_REJECT)
        for name, request in (
            ("Complete", reused),
            ("Complete", reject),
            ("CreateSession", pb.CreateSessionRequest(session_id="s")),
            ("GetSession", pb.GetSessionRequest(session_id="none")),
            ("EndSession", pb.EndSessionRequest(session_id="none")),
        ):
            text = await outcome(ann, name, request)
            assert "'" in text, text
            assert "ann" not in text.replace("another", ""), text
        await ann.EndSession(pb.EndSessionRequest(session_id="s"))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async with asyncio.timeout(60):
                async for _ in stream:
                    pass
        assert ended.value.details() == "session 's' was ended"
