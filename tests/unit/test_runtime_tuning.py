"""The process-wide tuning: what it changes, and that grpcio still is as its patch expects."""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from ruvd_client.addresses import Address
from ruvd_client.channels import channel_options
from wire import turn

from ruvd.server import runtime_tuning
from ruvd.server.runtime_tuning import skip_method_registration
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

MEND = (
    "grpcio has changed: see skip_method_registration in ruvd/server/runtime_tuning.py, "
    "and remove the patch or adapt it"
)


class Service(pb_grpc.SessionServiceServicer):
    async def GetSession(self, request: Any, context: Any) -> pb.GetSessionResponse:  # noqa: N802
        return pb.GetSessionResponse(session=pb.Session(id=request.session_id))

    async def Complete(self, request: Any, context: Any) -> Any:  # noqa: N802
        for sequence in (1, 2):
            yield pb.CompleteResponse(event=pb.CompletionEvent(sequence=sequence))


async def test_grpcio_has_the_method_that_is_patched_and_generated_code_calls_it() -> None:
    server = grpc.aio.server()
    patched = getattr(server, "add_registered_method_handlers", None)
    assert patched, MEND
    parameters = list(inspect.signature(patched).parameters)
    assert parameters == ["service_name", "method_handlers"], MEND
    calls: list[str] = []
    server.add_registered_method_handlers = (  # type: ignore[method-assign]
        lambda service_name, method_handlers: calls.append(service_name)
    )
    pb_grpc.add_SessionServiceServicer_to_server(Service(), server)  # type: ignore[abstract]
    assert calls == ["ruvd.v1.SessionService"], MEND


@pytest.mark.parametrize(
    "patch", [lambda _: None, skip_method_registration], ids=["registered", "by name"]
)
async def test_methods_are_found_with_and_without_the_patch(
    patch: Callable[[grpc.aio.Server], None],
) -> None:
    server = grpc.aio.server()
    patch(server)
    pb_grpc.add_SessionServiceServicer_to_server(Service(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = pb_grpc.SessionServiceStub(channel)
            try:
                got = await stub.GetSession(pb.GetSessionRequest(session_id="s"), timeout=10)
                events = [each.event.sequence async for each in stub.Complete(turn("hi", "s"))]
            except grpc.aio.AioRpcError as error:
                raise AssertionError(f"{MEND}: {error.code()}") from error
            assert (got.session.id, events) == ("s", [1, 2])
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await stub.EndSession(pb.EndSessionRequest(session_id="s"), timeout=10)
            assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(None)


def test_the_message_limit_is_above_ruvds_own() -> None:
    for limit in (1024, 4 << 20, 1 << 28):
        options = dict(runtime_tuning.server_options(limit))
        assert limit < options["grpc.max_receive_message_length"] < 1 << 31


def test_the_interpreter_is_tuned_where_it_is_asked_for_and_not_by_import() -> None:
    program = """
import gc, os, sys
os.environ.pop("GRPC_ENABLE_FORK_SUPPORT", None)
before = gc.get_threshold(), sys.getswitchinterval()
from ruvd.server import runtime_tuning
assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"
assert "grpc" not in sys.modules, "which reads the variable when it is imported"
assert (gc.get_threshold(), sys.getswitchinterval()) == before
runtime_tuning.tune_interpreter()
assert gc.get_freeze_count() > 10_000
assert gc.get_threshold()[0] > before[0][0]
assert sys.getswitchinterval() < before[1]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def resident_after_large_blocks(**environment: str) -> int:
    """Returns the MiB of a process that has freed 99 large blocks and keeps the last one."""
    program = """
from ruvd.server import runtime_tuning
from ruvd.server.memory_budget import resident_bytes
runtime_tuning.tune_allocator()
b"x" * (16 << 20)  # glibc's own threshold grows to this size when such a block is freed
before = resident_bytes()
blocks = [b"%d" % (number % 10) * (1 << 20) for number in range(100)]
del blocks[:-1]
print((resident_bytes() - before) >> 20)
"""
    command = [sys.executable, "-c", program]
    variables = {**os.environ, **environment}
    return int(subprocess.run(command, check=True, capture_output=True, env=variables).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the options are glibc's")
def test_large_blocks_go_back_to_the_kernel_when_they_are_freed() -> None:
    assert resident_after_large_blocks() < 20
    assert resident_after_large_blocks(MALLOC_MMAP_THRESHOLD_=str(32 << 20)) > 50


def test_a_loop_of_the_daemon_keeps_no_list_of_generators() -> None:
    async def run() -> tuple[str, object]:
        runtime_tuning.untrack_async_generators()
        return type(runner.get_loop()).__module__, sys.get_asyncgen_hooks().firstiter

    with runtime_tuning.event_loop_runner() as runner:
        assert runner.run(run()) == ("uvloop", None)


def test_the_pings_of_the_clients_are_not_too_many_for_the_daemon() -> None:
    """With gRPC's default, a silent stream of a client with several addresses broke in a minute."""
    options = channel_options(Address("127.0.0.1:1"), None, several=True)
    pings = dict(options)["grpc.keepalive_time_ms"]
    allowed = dict(runtime_tuning.server_options(1))["grpc.http2.min_ping_interval_without_data_ms"]
    assert allowed <= pings / 2
