"""What a kubelet does with a pod of ruvd and its service, without a cluster: the same processes,
probes and signals in the same order. The sidecar is a native one: it is up before the service.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import RunningDaemon

GRACE_SECONDS = 30.0
_PROBE_SECONDS = 0.4
_UP_SECONDS = 60.0
_APP = Path(__file__).with_name("pod_app.py")
_FLAGS = (
    "--engine", "echo", "--echo-nonce", "--echo-delay-seconds", "0.2", "--drain-seconds", "20",
    "--health-listen", "127.0.0.1:0", "--log-format", "json",
)  # fmt: skip


class Pod:
    """A sidecar with its store in `folder`, and a service beside it."""

    def __init__(self, folder: Path, told: Callable[[Pod, dict[str, Any]], None]) -> None:
        self.store = folder / "s.db"
        self._folder = folder
        self._address = f"unix:{folder}/r.sock"
        self._told = told
        self.sidecar: RunningDaemon
        self.app: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]

    async def start(self) -> None:
        """The sidecar until its startup probe succeeds, then the service, until it is ready."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RUVD_")}
        sidecar = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ruvd", "serve", *_FLAGS,
            "--listen", self._address, "--store", f"sqlite:{self.store}",
            stderr=asyncio.subprocess.PIPE, env=environment, cwd=self._folder, limit=1 << 20,
        )  # fmt: skip
        self.sidecar = RunningDaemon(sidecar, self._folder)
        async with asyncio.timeout(_UP_SECONDS):
            while (await self.exec("health")).returncode:
                assert sidecar.returncode is None, self.sidecar.log
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
        """Run a command of `ruvd` in the sidecar's container."""
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "ruvd", command, *arguments],
            env=os.environ | {"RUVD_ADDRESS": self._address},
            capture_output=True,
            text=True,
            timeout=_UP_SECONDS,
        )

    async def ready(self) -> bool:
        """What the readiness probe, of the kind `grpc`, finds."""
        address = (await self.sidecar.logged("serving health"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service="readiness"))
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """The sidecar's preStop hook, which runs when the pod's end begins."""
        done = await self.exec("drain")
        assert done.returncode == 0, done
        assert not await self.ready()

    def ask(self, request: dict[str, str]) -> None:
        """A request to the service; what becomes of it is told."""
        assert self.app.stdin is not None
        self.app.stdin.write(json.dumps(request).encode() + b"\n")

    async def end_app(self) -> None:
        """SIGTERM to the service, which must end by itself within the grace."""
        assert self.app.stdin is not None
        self.app.send_signal(signal.SIGTERM)
        self.app.stdin.close()
        async with asyncio.timeout(GRACE_SECONDS):
            assert await self.app.wait() == 0
        await self._reader

    async def end_sidecar(self) -> None:
        """SIGTERM to the sidecar, which must end by itself within the grace."""
        self.sidecar.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(GRACE_SECONDS):
            assert await self.sidecar.process.wait() == 0, self.sidecar.log[-20:]
        await self.sidecar.ended()

    async def kill_sidecar(self, after_seconds: float) -> None:
        """SIGTERM to the sidecar, and SIGKILL with hardly any grace."""
        self.sidecar.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(after_seconds)
        self.sidecar.kill()
        await self.sidecar.ended()

    async def remove(self) -> None:
        """End what a test that failed has left."""
        for process in (self.sidecar.process, getattr(self, "app", None)):
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
                self._told(self, event)
