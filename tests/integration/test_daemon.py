"""The daemon as a process: its sockets, signals, limits and errors. The engine is echo."""

from __future__ import annotations

import asyncio
import base64
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import StartDaemon
from wire import contents, details, events, say, turn

from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo")
SLOW = (*ECHO, "--echo-delay-seconds", "0.05")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LONG = " ".join(["word"] * 2000)


async def refused(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


async def healthy(address: str, service: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        status: int = (await stub.Check(request)).status
        return status


async def test_a_conversation_survives_a_restart(daemon: StartDaemon, tmp_path: Path) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    async with daemon(*ECHO, *store) as first, first.stub() as stub:
        assert (await say(stub, "my name is Ada", "s")).exchange_count == 1
        assert await first.stop() == 0
    async with daemon(*ECHO, *store) as second, second.stub() as stub:
        finished = await say(stub, "what is it", "s")
        assert finished.exchange_count == 2
        # The echo engine counts a word as a token: it was sent the first turn again.
        assert finished.usage.prompt_tokens == 4 + 4 + 3
        assert await contents(stub, "s") == ["my name is Ada"] * 2 + ["what is it"] * 2


async def test_a_finished_turn_survives_sigkill_and_a_cut_one_leaves_no_trace(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    async with daemon(*SLOW, *store) as first, first.stub() as stub:
        async for response in stub.Complete(turn("kept", "s")):
            if response.event.HasField("finished"):
                first.kill()
                break
        await first.ended()
    async with daemon(*SLOW, *store) as second, second.stub() as stub:
        assert await contents(stub, "s") == ["kept", "kept"]
        call = stub.Complete(turn(LONG, "s"))
        async for response in call:
            if response.event.HasField("delta"):
                second.kill()
                break
        await second.ended()
    async with daemon(*ECHO, *store) as third, third.stub() as stub:
        assert await contents(stub, "s") == ["kept", "kept"]
        assert (await say(stub, "next", "s")).exchange_count == 2


async def test_a_second_daemon_cannot_open_the_same_store(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    async with daemon(*ECHO, *store):
        second = await serve(*store, "--listen", f"unix:{tmp_path}/2.sock")
        assert second.returncode == 4
        assert f"{tmp_path}/s.db" in second.stderr
        assert "Traceback" not in second.stderr


async def test_a_socket_belongs_to_owner_and_group_and_is_gone_after_the_end(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO) as running:
        path = running.folder / "r.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        await running.stop()
        assert not path.exists()


async def test_a_stale_socket_is_replaced_and_a_live_daemons_never(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO) as first:
        first.kill()
        await first.ended()
        assert (first.folder / "r.sock").exists()
        async with daemon(*ECHO, folder=first.folder) as second, second.stub() as stub:
            second_daemon = await serve("--store", "memory", "--listen", second.socket)
            assert second_daemon.returncode == 3
            assert "another ruvd listens there" in second_daemon.stderr
            assert (await say(stub, "still here")).message.content == "still here"


async def serve(*flags: str) -> subprocess.CompletedProcess[str]:
    """Runs a daemon that is expected to end by itself."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "ruvd", "serve", *ECHO, *flags],
        capture_output=True,
        text=True,
        timeout=30,
    )


async def test_another_programs_socket_is_never_taken_over() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as other:
        path = f"{folder}/s.sock"
        other.bind(path)
        other.listen()
        result = await serve("--store", "memory", "--listen", f"unix:{path}")
        assert (result.returncode, "another process" in result.stderr) == (3, True)


@pytest.mark.parametrize("name", ["s.sock", "s.sock.lock"])
async def test_a_link_in_place_of_the_socket_or_its_lock_is_refused_and_left(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, name)
        link.symlink_to(f"{folder}/nowhere")
        result = await serve("--store", "memory", "--listen", f"unix:{folder}/s.sock")
        assert result.returncode == 3
        printed = " ".join(result.stderr.split())
        assert f"unix:{folder}/s.sock: " in printed
        assert "symbolic link" in printed
        assert "Traceback" not in result.stderr
        assert link.is_symlink()
        assert not Path(folder, "nowhere").exists()


async def test_a_directory_that_all_may_enter_is_used_and_reported_once(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    async with daemon(*ECHO, "--store", f"sqlite:{tmp_path}/new/s.db") as running:
        shared = running.folder / "shared"
        shared.mkdir()
        shared.chmod(0o777)
        flags = ("--listen", f"unix:{shared}/r.sock", "--listen", f"unix:{running.folder}/n/r.sock")
        async with daemon(*ECHO, *flags, folder=running.folder) as second:
            second.socket = f"unix:{shared}/r.sock"
            async with second.stub() as stub:
                assert (await say(stub, "hello")).message.content == "hello"
            reported = await second.logged("directory open to other users")
            remedy = f"chmod 750 {shared}"
            assert (reported["mode"], reported["remedy"]) == ("0777", remedy)
            events = [line["event"] for line in second.log]
            assert events.count("directory open to other users") == 1
        assert stat.S_IMODE(shared.stat().st_mode) == 0o777
        assert stat.S_IMODE((running.folder / "n").stat().st_mode) & 0o027 == 0
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


async def test_a_port_in_use_is_reported(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running:
        result = await serve("--store", "memory", "--listen", running.address)
        assert result.returncode == 3
        assert f"cannot listen at {running.address}" in result.stderr


async def test_invalid_settings_are_reported_with_exit_code_2() -> None:
    result = await serve("--listen", "0.0.0.0:1")
    assert (result.returncode, "allow_remote_insecure" in result.stderr) == (2, True)


async def test_sigterm_lets_a_running_turn_end_and_refuses_new_ones(daemon: StartDaemon) -> None:
    async with daemon(*SLOW) as running, running.stub() as stub:
        call = stub.Complete(turn("one two three four five six seven eight nine ten", "s"))
        stream = aiter(call)
        await anext(stream)
        running.process.send_signal(signal.SIGTERM)
        await running.logged("draining")
        error = await refused(events(stub, turn("new", "t")))
        assert details(error)[0] == "SHUTTING_DOWN"
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        last = [response.event async for response in stream][-1]
        assert last.finished.message.content.endswith("nine ten")
        assert await running.ended() == 0


async def test_a_turn_that_outlasts_drain_seconds_is_cancelled_with_a_reason(
    daemon: StartDaemon,
) -> None:
    async with daemon(*SLOW, "--drain-seconds", "0.3") as running, running.stub() as stub:
        call = stub.Complete(turn(LONG, "s"))
        stream = aiter(call)
        await anext(stream)
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stream:
                pass
        assert details(caught.value)[0] == "SHUTTING_DOWN"
        assert await running.ended() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_second_signal_stops_at_once(
    daemon: StartDaemon, number: signal.Signals, code: int
) -> None:
    async with daemon(*SLOW) as running, running.stub() as stub:
        stream = aiter(stub.Complete(turn(LONG, "s")))
        await anext(stream)
        running.process.send_signal(number)
        await running.logged("draining")
        running.process.send_signal(number)
        assert await running.ended() == code


async def test_sigusr1_turns_readiness_off_and_refuses_nothing(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        async with grpc.aio.insecure_channel(running.socket) as channel:
            request = health_pb2.HealthCheckRequest(service="readiness")
            stub_of_health: Any = health_pb2_grpc.HealthStub(channel)
            watch = aiter(stub_of_health.Watch(request))
            assert (await anext(watch)).status == SERVING
            running.process.send_signal(signal.SIGUSR1)
            assert (await anext(watch)).status == NOT_SERVING
        for service in ("", "ruvd.v1.SessionService", "liveness"):
            assert await healthy(running.socket, service) == SERVING
        await say(stub, "goes on", "s")


async def test_every_wrong_field_of_a_request_is_named(daemon: StartDaemon) -> None:
    async with daemon(*ECHO, "--max-message-bytes", "10") as running, running.stub() as stub:
        bad = pb.CompleteRequest(
            session_id="no spaces",
            messages=[
                pb.Message(role=pb.ROLE_USER, content="12345678901"),
                pb.Message(role=pb.ROLE_SYSTEM, content="x"),
                pb.Message(content=""),
            ],
            options=pb.CompletionOptions(temperature=3, top_p=0, max_tokens=0, stop=[""]),
        )
        error = await refused(events(stub, bad))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        reason, fields, _ = details(error)
        assert reason == "INVALID_REQUEST"
        assert set(fields) >= {
            "session_id",
            "messages[0].content",
            "messages[1].role",
            "messages[2].role",
            "messages[2].content",
            "options.temperature",
            "options.top_p",
            "options.max_tokens",
            "options.stop[0]",
        }


async def test_a_field_that_this_version_does_not_know_is_refused(daemon: StartDaemon) -> None:
    unknown = b"\xfa\x3f\x01x"  # field 1023, a string
    async with daemon(*ECHO) as running, grpc.aio.insecure_channel(running.socket) as channel:
        call: Any = channel.unary_stream("/ruvd.v1.SessionService/Complete")
        request = turn("hi", "s").SerializeToString() + unknown
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call(request):
                pass
        assert details(caught.value)[:2] == ("INVALID_REQUEST", ["#1023"])


async def test_a_request_that_is_too_large_is_refused_with_a_reason(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        await say(stub, "small", "s")
        error = await refused(events(stub, turn("x" * (4 << 20), "s")))
        assert details(error)[:2] == ("INVALID_REQUEST", ["request"])
        assert await contents(stub, "s") == ["small", "small"]


async def test_a_deadline_ends_a_queued_and_a_running_turn(daemon: StartDaemon) -> None:
    async with daemon(*SLOW) as running, running.stub() as stub:
        first = stub.Complete(turn(LONG, "s"))
        await anext(aiter(first))
        error = await refused(events(stub, turn("two", "s"), timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        first.cancel()
        await running.logged("completion failed", count=2, reason="COMPLETION_CANCELLED")
        error = await refused(events(stub, turn(LONG, "s"), timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await running.logged("completion failed", count=3, reason="COMPLETION_CANCELLED")
        assert (await say(stub, "three", "s")).exchange_count == 1


async def test_a_slow_reader_gets_fewer_and_larger_deltas(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        words = " ".join(f"w{index}" for index in range(20_000))
        pieces = [event.delta.text for event in await events(stub, turn(words))]
        assert "".join(pieces) == words
        assert len(pieces) < 20_000


async def test_metrics_are_those_of_the_echo_engine(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        empty = (await stub.GetSessionMetrics(pb.GetSessionMetricsRequest())).metrics
        assert not empty.HasField("cache_hit_rate")
        assert not empty.HasField("avg_latency_reduction")
        await say(stub, "a b", "s")  # 2 prompt tokens, none cached
        await say(stub, "c", "s")  # a b a b c: 5, of which the first prompt and answer, 4
        metrics = (await stub.GetSessionMetrics(pb.GetSessionMetricsRequest())).metrics
        assert metrics.total_sessions == metrics.active_sessions == 1
        assert metrics.avg_messages_per_session == 4
        assert metrics.cache_hit_rate == pytest.approx(100 * 4 / 7)
        assert (metrics.session_completions, metrics.stateless_completions) == (2, 0)
        assert not metrics.HasField("avg_latency_reduction")
        await say(stub, "c")
        metrics = (await stub.GetSessionMetrics(pb.GetSessionMetricsRequest())).metrics
        assert metrics.HasField("avg_latency_reduction")
        assert metrics.stateless_completions == 1


async def test_sessions_page_in_the_order_of_their_creation(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        for index in range(7):
            labels = {"even": "yes"} if index % 2 == 0 else {}
            await stub.CreateSession(pb.CreateSessionRequest(session_id=f"s{index}", labels=labels))
        found, token = [], ""
        while True:
            page = await stub.ListSessions(
                pb.ListSessionsRequest(page_size=2, page_token=token, label_filter={"even": "yes"})
            )
            found += [session.id for session in page.sessions]
            token = page.next_page_token
            if not token:
                break
        assert found == ["s0", "s2", "s4", "s6"]
        for token in ("!", base64.b64encode(b"9" * 30).decode(), base64.b64encode(b"-1").decode()):
            error = await refused(stub.ListSessions(pb.ListSessionsRequest(page_token=token)))
            assert details(error)[1] == ["page_token"]


async def test_values_that_would_break_a_later_response_are_refused_at_once(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        for field, request in {
            "idle_timeout": pb.CreateSessionRequest(idle_timeout=Duration(seconds=10**12 // 4)),
            "model": pb.CreateSessionRequest(model="m" * 129),
            "labels['" + "k" * 64 + "']": pb.CreateSessionRequest(labels={"k" * 64: ""}),
        }.items():
            error = await refused(stub.CreateSession(request))
            assert details(error)[:2] == ("INVALID_REQUEST", [field])
        longest = Duration(seconds=10 * 365 * 86_400)
        await stub.CreateSession(pb.CreateSessionRequest(session_id="s", idle_timeout=longest))
        await stub.GetSession(pb.GetSessionRequest(session_id="s"))
        assert len((await stub.ListSessions(pb.ListSessionsRequest())).sessions) == 1


async def test_a_page_of_sessions_with_long_system_prompts_fits(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        for index in range(20):
            await stub.CreateSession(
                pb.CreateSessionRequest(session_id=f"s{index}", system_prompt="p" * 1_000_000)
            )
        page = await stub.ListSessions(pb.ListSessionsRequest())
        assert len(page.sessions) == 20
        assert page.ByteSize() < 10_000
        got = await stub.GetSession(pb.GetSessionRequest(session_id="s0"))
        assert len(got.session.system_prompt) == 1_000_000


async def test_the_daemon_is_ready_soon_and_small(daemon: StartDaemon) -> None:
    started = time.monotonic()
    async with daemon(*ECHO, "--store", "sqlite:s.db") as running, running.stub() as stub:
        ready = time.monotonic() - started
        await say(stub, "hi", "s")
        resident = psutil.Process(running.pid).memory_info().rss / (1 << 20)
    # Generous, as the machine may be busy; bench/README.md has figures.
    assert ready < 10
    assert resident < 110


@pytest.mark.skipif(not shutil.which("grpcurl"), reason="needs grpcurl, which CI installs")
async def test_grpcurl_lists_the_service_and_completes(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running:

        async def grpcurl(*arguments: str) -> str:
            result = await asyncio.to_thread(
                subprocess.run,
                ["grpcurl", "-plaintext", *arguments],
                capture_output=True,
                text=True,
                check=True,
                timeout=30,
            )
            return result.stdout

        assert "ruvd.v1.SessionService" in await grpcurl(running.address, "list")
        body = '{"session_id": "s", "messages": [{"role": "ROLE_USER", "content": "hello"}]}'
        out = await grpcurl("-d", body, running.address, "ruvd.v1.SessionService/Complete")
        assert '"finish_reason": "FINISH_REASON_STOP"' in out.replace(
            "finishReason", "finish_reason"
        )


async def test_a_broken_store_is_reported_and_recovers_when_the_cause_is_gone(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "s.db"
    store = ("--store", f"sqlite:{path}")
    async with daemon(*ECHO, *store) as first, first.stub() as stub:
        await say(stub, "kept", "s")
    good = path.read_bytes()
    path.write_bytes(b"this is no database, and it is long enough to be read as one" * 100)
    async with daemon(*ECHO, *store) as second, second.stub() as stub:
        error = await refused(events(stub, turn("lost", "s")))
        assert (error.code(), details(error)[0]) == (
            grpc.StatusCode.UNAVAILABLE,
            "STORE_UNAVAILABLE",
        )
        assert await healthy(second.socket, "readiness") == NOT_SERVING
        assert await healthy(second.socket, "liveness") == SERVING
        assert (await say(stub, "stateless goes on")).message.content == "stateless goes on"
        path.write_bytes(good)
        await second.logged("store up")
        assert await healthy(second.socket, "readiness") == SERVING
        assert (await say(stub, "next", "s")).exchange_count == 2
