"""The demo's daemon: a child process on a Unix socket in a temporary directory.

It has a process group of its own, so that Ctrl-C at the terminal reaches only the demo, which then
ends the daemon by its process id.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ruvd_client.protocol import CHANNEL_OPTIONS

from ruvd.cli.console import fail, out

READY_TIMEOUT_SECONDS = 180.0
STOP_TIMEOUT_SECONDS = 20.0


@contextmanager
def running(directory: Path, *, engine: str, store: str, what: str) -> Iterator[str]:
    """Starts a daemon and yields its address once it is ready; ends it after the block."""
    socket = directory / "ruvd.sock"
    address = f"unix:{socket}"
    settings = ["--listen", address, "--store", store, "--engine", engine]
    log_path = directory / "daemon.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  # our own program, without a shell
            [sys.executable, "-m", "ruvd", "serve", *settings],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
        try:
            with out.status(f"starting {what} …"):
                _wait_until_ready(process, address, log_path)
            yield address
        finally:
            _stop(process)
            socket.unlink(missing_ok=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    with grpc.insecure_channel(address, options=options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs lack the methods
        while time.monotonic() < deadline:
            if _serving_within(stub, 1.0):
                return
            if process.poll() is not None:
                fail(f"the demo's daemon ended with code {process.returncode}: {_tail(log)}")
    fail(f"the demo's daemon was not ready within {READY_TIMEOUT_SECONDS:.0f} s: {_tail(log)}")


def _serving_within(stub: Any, timeout_seconds: float) -> bool:
    """Watches for some time only, so that a dead daemon is noticed in between."""
    request = health_pb2.HealthCheckRequest(service="readiness")
    watch = stub.Watch(request, timeout=timeout_seconds, wait_for_ready=True)
    try:
        for response in watch:
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                watch.cancel()
                return True
    except grpc.RpcError as error:
        if watch.code() not in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}:
            fail(f"the health check of the demo's daemon failed: {error}")
    return False


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-4:]) or "its log is empty"
