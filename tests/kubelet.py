"""A pod of ruvd and its service without a cluster: the processes, probes and signals of a kubelet,
in its order. ruvd is a native sidecar, so it is up before the service starts.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import RunningDaemon, clean_environment, start_serve

GRACE_SECONDS = 30.0
_PROBE_SECONDS = 0.4
_UP_SECONDS = 60.0
_APP = Path(__file__).with_name("pod_app.py")
_FLAGS = (
    "--engine", "echo", "--echo-nonce", "--echo-delay-seconds", "0.2", "--drain-seconds", "20",
    "--health-listen", "127.0.0.1:0",
)  # fmt: skip


class Pod:
    """A sidecar with its store in `folder`, and a service beside it."""

    def __init__(self, folder: Path, on_event: Callable[[Pod, dict[str, Any]], None]) -> None:
        self.store = folder / "s.db"
        self._folder = folder
        self._address = f"unix:{folder}/r.sock"
        self._on_event = on_event
        self.sidecar: RunningDaemon
        self.app: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]

    async def start(self) -> None:
        """Starts the sidecar, waits for its startup probe, then starts the service until ready."""
        listen, store = ("--listen", self._address), ("--store", f"sqlite:{self.store}")
        self.sidecar = await start_serve(*_FLAGS, *listen, *store, folder=self._folder)
        async with asyncio.timeout(_UP_SECONDS):
            while (await self.exec("health")).returncode:
                assert self.sidecar.process.returncode is None, self.sidecar.log
                await asyncio.sleep(_PROBE_SECONDS)
        self.app = await asyncio.create_subprocess_exec(
            sys.executable, str(_APP), self._address,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        up = asyncio.Event()
        self._reader = asyncio.create_task(self._read(up))
        async with asyncio.timeout(_UP_SECONDS):
            await up.wait()
            assert await self.ready()

    async def exec(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a `ruvd` command in the sidecar's container."""
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "ruvd", command, *arguments],
            env=clean_environment()
            | {"RUVD_ADDRESS": self._address, "RUVD_STORE": f"sqlite:{self.store}"},
            capture_output=True,
            text=True,
            timeout=_UP_SECONDS,
        )

    async def ready(self) -> bool:
        """Runs the readiness probe, which is of the kind `grpc`."""
        address = (await self.sidecar.logged("serving health"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service="readiness"))
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Runs the sidecar's preStop hook, as the kubelet does when the pod's end begins."""
        done = await self.exec("drain")
        assert done.returncode == 0, done
        assert not await self.ready()

    def ask(self, request: dict[str, str]) -> None:
        """Sends a request to the service; its outcome goes to `on_event`."""
        assert self.app.stdin is not None
        self.app.stdin.write(json.dumps(request).encode() + b"\n")

    async def end_app(self) -> None:
        """Sends SIGTERM to the service, which must end by itself within the grace period."""
        assert self.app.stdin is not None
        self.app.send_signal(signal.SIGTERM)
        self.app.stdin.close()
        async with asyncio.timeout(GRACE_SECONDS):
            assert await self.app.wait() == 0
        await self._reader

    async def end_sidecar(self) -> None:
        """Sends SIGTERM to the sidecar, which must end by itself within the grace period."""
        self.sidecar.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(GRACE_SECONDS):
            assert await self.sidecar.process.wait() == 0, self.sidecar.log[-20:]
        await self.sidecar.ended()

    async def kill_sidecar(self, after_seconds: float) -> None:
        """Sends SIGTERM to the sidecar, and SIGKILL almost at once."""
        self.sidecar.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(after_seconds)
        self.sidecar.kill()
        await self.sidecar.ended()

    async def remove(self) -> None:
        """Kills the processes that a failed test has left."""
        sidecar = getattr(self, "sidecar", None)
        for process in (sidecar.process if sidecar else None, getattr(self, "app", None)):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()

    async def _read(self, up: asyncio.Event) -> None:
        assert self.app.stdout is not None
        async for line in self.app.stdout:
            event = json.loads(line)
            if event["event"] == "up":
                up.set()
            else:
                self._on_event(self, event)
