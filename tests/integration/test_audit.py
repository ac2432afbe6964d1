"""The audit log of a real daemon: who did what with which outcome, and never what was said."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from audit_files import is_clean, records, verify
from collector import collecting
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from running import RunningDaemon, StartDaemon, clean_environment, start_serve
from small_disk import SmallDisk, disk
from wire import events, say, turn

from ruvd.admin.v1 import admin_service_pb2 as admin_pb
from ruvd.admin.v1 import admin_service_pb2_grpc as admin_pb_grpc
from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

__all__ = ["disk"]

ECHO = ("--engine", "echo")
ADMIN_SERVICE = admin_pb.DESCRIPTOR.services_by_name["AdminService"]
SERVICE = pb.DESCRIPTOR.services_by_name["SessionService"]
WAIT_SECONDS = 60.0
PLANTED = "Meet me at the old mill"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110  # another process writes
            await asyncio.sleep(0.05)


async def recorded(path: Path, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Waits until there are `count` records with these fields; returns them."""

    def found() -> list[dict[str, Any]]:
        lines = records(path) if path.exists() else []
        return [each for each in lines if fields.items() <= each.items()]

    await until(lambda: len(found()) >= count)
    return found()


def method(name: str) -> str:
    return f"ruvd.v1.SessionService/{name}"


class Caller:
    """A stub whose calls carry a token, or none."""

    def __init__(self, stub: Any, token: str) -> None:
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def __getattr__(self, name: str) -> Any:
        rpc = getattr(self._stub, name)
        return lambda request: rpc(request, metadata=self._metadata)


@asynccontextmanager
async def stub_with(running: RunningDaemon, token: str = "") -> AsyncIterator[Any]:
    """Yields the stub of a caller at the daemon's port."""
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield Caller(pb_grpc.SessionServiceStub(channel), token)


async def reflect(running: RunningDaemon) -> None:
    """Calls reflection without a token."""
    async with grpc.aio.insecure_channel(running.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for _ in stub.ServerReflectionInfo(iter([request])):
            pass


def write_tokens(file: Path, **roles: Role) -> dict[str, str]:
    """Writes a file with a token for each tenant; returns them."""
    made = {tenant: tokens.create(tenant, role) for tenant, role in roles.items()}
    file.write_text("".join(f"{line}\n" for _, line in made.values()))
    return {tenant: token for tenant, (token, _) in made.items()}


async def test_a_record_says_who_called_what_with_which_ids_and_outcome(
    daemon: StartDaemon, path: Path, tmp_path: Path
) -> None:
    made = write_tokens(tmp_path / "tokens", ann=Role.USER, rex=Role.READER)
    flags = ("--audit-log", str(path), "--tokens-file", str(tmp_path / "tokens"))
    async with daemon(*ECHO, *flags) as running:
        async with stub_with(running, made["ann"]) as ann, stub_with(running, made["rex"]) as rex:
            started = (await events(ann, turn("hello", "s", request_id="r-1")))[0].started
            await say(ann, "again", "s")
            fork = pb.ForkSessionRequest(session_id="s", new_session_id="f")
            await ann.ForkSession(fork)
            with pytest.raises(grpc.aio.AioRpcError):
                await ann.GetSession(pb.GetSessionRequest(session_id="missing"))
            with pytest.raises(grpc.aio.AioRpcError):
                await rex.EndSession(pb.EndSessionRequest(session_id="s"))
        await recorded(path, method=method("EndSession"))
    first, second = await recorded(path, 2, method=method("Complete"))
    assert first["tenant"] == "ann"
    assert first["role"] == "user"
    assert first["credential"] == "token"
    assert first["identity"].startswith("token ")
    assert first["address"].startswith(("ipv4:127.0.0.1:", "ipv6:[::1]:"))
    assert first["completion_id"] == started.completion_id
    assert (first["session_id"], first["request_id"]) == ("s", "r-1")
    assert (first["code"], first["session_created"]) == ("OK", True)
    assert first["duration_us"] > 0
    assert "session_created" not in second
    (forked,) = await recorded(path, method=method("ForkSession"))
    assert (forked["session_id"], forked["new_session_id"]) == ("s", "f")
    (missing,) = await recorded(path, method=method("GetSession"))
    assert (missing["code"], missing["reason"]) == ("NOT_FOUND", "SESSION_NOT_FOUND")
    (denied,) = await recorded(path, method=method("EndSession"))
    assert (denied["code"], denied["tenant"]) == ("PERMISSION_DENIED", "rex")
    assert "the role reader may not call EndSession" in denied["detail"]
    every = records(path)
    assert every[0]["event"] == "daemon_started"
    assert every[-1]["event"] == "daemon_stopped"
    assert is_clean(verify(path))


async def test_callers_without_an_identity_are_recorded_and_cannot_fill_the_disk(
    daemon: StartDaemon, path: Path, tmp_path: Path
) -> None:
    write_tokens(tmp_path / "tokens", ann=Role.USER)
    flags = ("--audit-log", str(path), "--tokens-file", str(tmp_path / "tokens"))
    async with daemon(*ECHO, *flags) as running:
        async with stub_with(running) as nobody, stub_with(running, "ruvd_wrong") as thief:
            for caller in (nobody, thief):
                for number in range(100):
                    with pytest.raises(grpc.aio.AioRpcError):
                        await caller.GetSession(pb.GetSessionRequest(session_id=f"s{number}"))
        with pytest.raises(grpc.aio.AioRpcError):
            await reflect(running)
    refused = [each for each in records(path) if each.get("code") == "UNAUTHENTICATED"]
    calls = [each for each in refused if each["event"] == "call"]
    more = [each for each in refused if each["event"] == "more_refusals"]
    assert len(calls) == 20
    assert {each["credential"] for each in calls} == {"none"}
    assert {each["reason"] for each in calls} == {"UNAUTHENTICATED"}
    assert {each["detail"] for each in calls} == {each["detail"] for each in more}
    assert any("unknown or was revoked" in each["detail"] for each in calls)
    assert sum(each["count"] for each in more) == 201 - 20
    assert is_clean(verify(path))


async def test_calls_beyond_a_quota_are_counted(daemon: StartDaemon, path: Path) -> None:
    flags = ("--audit-log", str(path), "--tenant-limits", "**;max_inflight=1")
    slow = ("--echo-delay-seconds", "0.5")
    async with daemon(*ECHO, *flags, *slow) as running, running.stub() as stub:
        long = stub.Complete(turn("one two three four five six seven eight", "s"))
        await long.read()
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError, match="max_inflight"):
                await say(stub, "hello")
        long.cancel()
    refused = [each for each in records(path) if each.get("reason") == "QUOTA_EXCEEDED"]
    calls = [each for each in refused if each["event"] == "call"]
    (more,) = [each for each in refused if each["event"] == "more_refusals"]
    assert (len(calls), more["count"]) == (10, 10)


async def test_a_refused_call_of_another_service_is_recorded(
    daemon: StartDaemon, path: Path, tmp_path: Path
) -> None:
    write_tokens(tmp_path / "tokens", ann=Role.USER)
    flags = ("--audit-log", str(path), "--tokens-file", str(tmp_path / "tokens"))
    async with daemon(*ECHO, *flags) as running:
        with pytest.raises(grpc.aio.AioRpcError):
            await reflect(running)
        (refused,) = await recorded(path, code="UNAUTHENTICATED")
    assert refused["method"] == "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def test_completions_that_outlive_their_call_and_items_of_batches_have_records(
    daemon: StartDaemon, path: Path
) -> None:
    flags = ("--audit-log", str(path), "--echo-delay-seconds", "0.05")
    async with daemon(*ECHO, *flags) as running, running.stub() as stub:
        goes_on = pb.ON_DISCONNECT_CONTINUE
        left = turn("one two three four five six", "left", on_disconnect=goes_on, request_id="r")
        call = stub.Complete(left)
        first: Any = await call.read()
        completion_id = first.event.started.completion_id
        call.cancel()
        (ended,) = await recorded(path, event="completion", session_id="left")
        assert (ended["completion_id"], ended["failed"]) == (completion_id, False)
        (cut,) = await recorded(path, event="call", session_id="left")
        assert (cut["code"], cut["completion_id"]) == ("CANCELLED", completion_id)
        assert cut["seq"] < ended["seq"]

        resume = pb.ResumeCompletionRequest(completion_id=completion_id)
        assert [each async for each in stub.ResumeCompletion(resume)]
        (resumed,) = await recorded(path, method=method("ResumeCompletion"))
        assert (resumed["code"], resumed["completion_id"]) == ("OK", completion_id)

        items = [turn("a", "b1"), turn("b", "missing", require_existing=True)]
        batch = stub.BatchComplete(pb.BatchCompleteRequest(items=items))
        assert len([each async for each in batch]) == 3
        (whole,) = await recorded(path, method=method("BatchComplete"), event="call")
        assert whole["items"] == 2
        done = await recorded(path, 2, method=method("BatchComplete"), event="completion")
        outcomes = {each["session_id"]: (each["failed"], each["reason"]) for each in done}
        assert outcomes == {"b1": (False, "STOP"), "missing": (True, "SESSION_NOT_FOUND")}
    assert is_clean(verify(path))


def fill(message: Any, text: str, depth: int = 4) -> Any:
    """Puts the text into every field of a message that can hold one, by reflection."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
                value[text] = text
        elif field.type == FieldDescriptor.TYPE_STRING:
            value.append(text) if field.is_repeated else setattr(message, field.name, text)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            data = text.encode()
            value.append(data) if field.is_repeated else setattr(message, field.name, data)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and depth:
            fill(value.add() if field.is_repeated else value, text, depth - 1)
    return message


async def outcome(stub: Any, rpc: Any, request: Any) -> grpc.StatusCode:
    call = getattr(stub, rpc.name)(request)
    try:
        if rpc.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_content_is_in_no_record_of_any_rpc(daemon: StartDaemon, path: Path) -> None:
    """Every RPC gets the text in every field, and is called as it should be, too."""
    message = pb.Message(role=pb.ROLE_USER, content=PLANTED)
    good: dict[str, Any] = {
        "CreateSession": pb.CreateSessionRequest(
            session_id="s", system_prompt=PLANTED, messages=[message], labels={"about": PLANTED}
        ),
        "UpdateSession": pb.UpdateSessionRequest(
            session_id="s", labels={"about": PLANTED}, update_mask=FieldMask(paths=["labels"])
        ),
        "AppendMessages": pb.AppendMessagesRequest(session_id="s", messages=[message]),
        "Complete": turn(PLANTED, "s", request_id=PLANTED),
        "BatchComplete": pb.BatchCompleteRequest(items=[turn(PLANTED, "t", request_id=PLANTED)]),
        "GetSession": pb.GetSessionRequest(session_id="s", view=pb.SESSION_VIEW_FULL),
        "ListSessions": pb.ListSessionsRequest(label_filter={"about": PLANTED}),
    }
    store = ("--store", f"sqlite:{path.parent}/s.db")
    async with daemon(*ECHO, *store, "--audit-log", str(path)) as running, running.stub() as stub:
        for name, request in good.items():
            code = await outcome(stub, SERVICE.methods_by_name[name], request)
            assert code == grpc.StatusCode.OK, name
        for rpc in SERVICE.methods:
            kind = message_factory.GetMessageClass(rpc.input_type)
            await outcome(stub, rpc, fill(kind(), PLANTED))
    found = records(path)
    assert {each["method"] for each in found if each["event"] == "call"} == {
        method(rpc.name) for rpc in SERVICE.methods
    }
    text = path.read_text()
    for planted in (PLANTED, *PLANTED.split()[-2:], PLANTED.replace(" ", "%20")):
        assert planted not in text
    assert "sha256:" in next(each["request_id"] for each in found if "request_id" in each)


async def test_administration_is_recorded_and_so_is_who_may_not(
    daemon: StartDaemon, path: Path
) -> None:
    async with daemon(*ECHO, "--audit-log", str(path)) as running:
        for server, code in ((running.admin_socket, None), (running.socket, "PERMISSION_DENIED")):
            async with grpc.aio.insecure_channel(server) as channel:
                stub: Any = admin_pb_grpc.AdminServiceStub(channel)
                for rpc in ADMIN_SERVICE.methods:
                    kind = message_factory.GetMessageClass(rpc.input_type)
                    await outcome(stub, rpc, fill(kind(), PLANTED))
                    (found, *_) = await recorded(
                        path,
                        method=f"ruvd.admin.v1.AdminService/{rpc.name}",
                        credential="none" if code else "socket",
                    )
                    assert found["identity" if not code else "code"] == (code or "admin socket")
    assert PLANTED not in path.read_text()
    assert is_clean(verify(path))


async def test_the_chain_goes_on_after_kill_9(daemon: StartDaemon, path: Path) -> None:
    for number in range(2):
        async with daemon(*ECHO, "--audit-log", str(path)) as running, running.stub() as stub:
            await say(stub, "hello", f"s{number}")
            await recorded(path, session_id=f"s{number}")
            running.kill()
            await running.ended()
        with path.open("ab") as file:
            file.write(b'{"address":"unix:","cod')
    async with daemon(*ECHO, "--audit-log", str(path)):
        pass
    report = verify(path)
    assert is_clean(report), report.findings
    assert report.discarded == 2
    starts = [each for each in records(path) if each["event"] == "daemon_started"]
    assert len(starts) == 3
    assert len([each for each in records(path) if each["event"] == "daemon_stopped"]) == 1


async def test_calls_go_on_while_the_audit_disk_is_full_and_nothing_is_lost_in_silence(
    daemon: StartDaemon, disk: SmallDisk
) -> None:
    flags = (*ECHO, "--audit-log", f"{disk.path}/audit.log")
    outside = disk.outside / "audit.log"
    async with daemon(*flags, under=disk.under) as running, running.stub() as stub:
        await say(stub, "before", "a")
        await recorded(outside, session_id="a")
        filler = await asyncio.to_thread(disk.fill)
        for number in range(300):  # more than fits into the page that the file has left
            await say(stub, "during", f"s{number}")
        await running.logged("the audit log cannot be written; records wait")
        assert len(await asyncio.to_thread(records, outside)) < 300
        await asyncio.to_thread(filler.unlink)
        await running.logged("the audit log is written again")
        await recorded(outside, session_id="s299")
        sessions = {each.get("session_id") for each in records(outside)}
        assert {f"s{number}" for number in range(300)} <= sessions
        report = await asyncio.to_thread(verify, outside)
        assert is_clean(report), report.findings


async def test_renewed_tokens_are_recorded_and_so_is_a_file_that_cannot_be_used(
    daemon: StartDaemon, path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    write_tokens(file, ann=Role.USER)
    flags = ("--audit-log", str(path), "--tokens-file", str(file))
    async with daemon(*ECHO, *flags):
        write_tokens(file, ann=Role.USER, bob=Role.USER)
        await recorded(path, event="files_reloaded", settings="tokens_file")
        file.write_text("nonsense\n")
        (rejected,) = await recorded(path, event="files_rejected", settings="tokens_file")
    assert "line 1" in rejected["detail"]
    assert is_clean(verify(path))


async def test_a_renamed_file_is_replaced_by_a_new_one_in_the_same_chain(
    daemon: StartDaemon, path: Path
) -> None:
    moved = path.with_name("audit.log.old")
    async with daemon(*ECHO, "--audit-log", str(path)) as running, running.stub() as stub:
        await say(stub, "hello", "a")
        await recorded(path, session_id="a")
        path.rename(moved)
        await say(stub, "hello", "b")
        await recorded(path, session_id="b")
    assert is_clean(verify(moved, path))


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_records_go_to_a_collector(
    daemon: StartDaemon, tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collecting(protocol) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", endpoint(collector, protocol))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        async with daemon(*ECHO, "--audit-log", "otlp") as running, running.stub() as stub:
            await say(stub, "hello", "a")
        await collector.until(lambda: "daemon_stopped" in "".join(collector.logs))
    exported = tmp_path / "exported"
    exported.write_text("".join(f"{line}\n" for line in collector.logs))
    assert is_clean(verify(exported))
    assert any(each.get("session_id") == "a" for each in records(exported))


async def test_a_collector_that_hangs_delays_no_call_and_no_stop(
    daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collecting() as collector:
        collector.stall()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", collector.endpoint)
        async with daemon(*ECHO, "--audit-log", "otlp") as running, running.stub() as stub:
            for number in range(20):
                assert (await say(stub, "hello", f"s{number}")).message.content == "hello"
            assert await running.stop() == 0  # within its bound of 15 s
            await running.logged("records of the audit log are lost")


def endpoint(collector: Any, protocol: str) -> str:
    url: str = collector.endpoint
    return url if protocol == "grpc" else f"{url}/v1/logs"


async def test_records_on_standard_output_are_a_chain_for_each_daemon(tmp_path: Path) -> None:
    file = tmp_path / "stdout"
    command = ("-m", "ruvd", "serve", *ECHO, "--store", "memory", "--audit-log", "stdout")
    for name in ("a", "b"):
        with file.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, "--listen", f"unix:{tmp_path}/{name}.sock",
                "--log-format", "json", stdout=output, stderr=asyncio.subprocess.PIPE,
                env=clean_environment(),
            )  # fmt: skip
        running = RunningDaemon(process, tmp_path)
        await running.listening(1)
        assert await running.stop() == 0
    assert verify(file).findings
    assert is_clean(verify(file, restarts=True))
    assert [each["event"] for each in records(file)] == ["daemon_started", "daemon_stopped"] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--audit-log", "/proc/nowhere/audit.log"), "audit_log: "),
        (("--audit-log", "otlp"), "audit_log: otlp needs OTEL_EXPORTER_OTLP_ENDPOINT"),
        (("--audit-log", "a.log", "--audit-key-file", "/missing"), "audit_key_file: "),
    ],
)
async def test_an_audit_log_that_cannot_be_opened_is_told_at_the_start(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    address = ("--listen", f"unix:{tmp_path}/r.sock", "--store", "memory")
    running = await start_serve(*ECHO, *flags, *address, folder=tmp_path)
    assert await running.ended() == 2
    assert any(message in json.dumps(line) for line in running.log), running.log
