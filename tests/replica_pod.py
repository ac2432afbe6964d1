"""A pod of deploy/kubernetes/shared without a cluster: its container is a local process."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from cluster import Cluster
from grpc_health.v1 import health_pb2, health_pb2_grpc
from manifests import API_SERVER, RUVD, Resource, environment_of, pod_of
from password_server import PASSWORD, PasswordServer
from running import RunningDaemon
from ruvd_client import AsyncClient
from ruvd_client.security import Tls

# The default directory for temporary files in the container.
TEMPORARY = "/tmp"  # noqa: S108  a path of the manifests
WAIT_SECONDS = 60
DATABASE = "postgres.databases.svc:5432"


class Replica:
    """The container of a rendered pod, as a process of this machine."""

    def __init__(
        self, resources: list[Resource], folder: Path, cluster: Cluster, database: PasswordServer
    ) -> None:
        folder.mkdir()
        self.folder = folder
        (self.container,) = pod_of(resources)["containers"]
        self._replaced = {
            "0.0.0.0:50051": "0.0.0.0:0",
            "0.0.0.0:50052": "127.0.0.1:0",
            "0.0.0.0:50053": "127.0.0.1:0",
            "sleep 10": "true",
            API_SERVER: cluster.url,
            DATABASE: database.address,
        }
        self._paths: dict[str, str] = {}
        for mount in self.container["volumeMounts"]:
            (folder / mount["name"]).mkdir()
            self._paths[mount["mountPath"]] = str(folder / mount["name"])
        variables = environment_of(self.container, resources)
        # An engine that needs no server.
        engine = {"RUVD_ENGINE", "RUVD_BASE_URL", "RUVD_MODEL", "RUVD_AFFINITY"}
        self.environment = {
            name: self._here(value) for name, value in variables.items() if name not in engine
        } | {"RUVD_ENGINE": "echo", "TMPDIR": self._here(TEMPORARY)}
        # The address of a pod is known when it starts; here the port is.
        assert self.environment.pop("RUVD_PEER_ADDRESS") == "10.0.0.1:50053"
        cluster.project(folder, folder / "ruvd-issuer")
        certificate, key = cluster.authority.issue("ruvd.prod.svc", "ruvd")
        peer_certificate, peer_key = cluster.authority.issue("ruvd-peers")
        for place, content in {
            "ruvd-tls/tls.crt": certificate,
            "ruvd-tls/tls.key": key,
            "ruvd-peers/tls.crt": peer_certificate,
            "ruvd-peers/tls.key": peer_key,
            "ruvd-peers/ca.crt": cluster.authority.pem,
            "ruvd-store/password": f"{PASSWORD}\n".encode(),
            "ruvd-store/ca.crt": database.ca,
        }.items():
            (folder / place).write_bytes(content)
            (folder / place).chmod(0o440)
        self.daemon: RunningDaemon
        self.address = ""

    def _here(self, text: str) -> str:
        """Replaces the pod's paths and addresses by those of this machine."""
        for there, replacement in self._replaced.items():
            text = text.replace(there, replacement)
        mounted = "|".join(map(re.escape, self._paths))
        return re.sub(rf"(?<![\w/])({mounted})(?=/|$)", lambda at: self._paths[at[1]], text)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        process = await asyncio.create_subprocess_exec(
            RUVD, *self.container["args"],
            stderr=asyncio.subprocess.PIPE, env=self.environment, cwd=self.folder, limit=1 << 20,
        )  # fmt: skip
        self.daemon = RunningDaemon(process, self.folder)
        try:
            await self.until("startupProbe", passes=True)
            await self.until("readinessProbe", passes=True)
            listening = await self.daemon.logged("listening")
            self.address = f"127.0.0.1:{listening['address'].rpartition(':')[2]}"
            yield
        finally:
            await self.daemon.stop()

    async def passes(self, probe: str) -> bool:
        """Makes a probe as the kubelet does."""
        asked = self.container[probe]["grpc"]
        ports = {each["name"]: each["containerPort"] for each in self.container["ports"]}
        assert asked["port"] == ports["health"]
        address = (await self.daemon.logged("serving health"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs lack the methods
            request = health_pb2.HealthCheckRequest(service=asked["service"])
            response = await stub.Check(request, timeout=WAIT_SECONDS)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def until(self, probe: str, *, passes: bool) -> None:
        """Waits until a probe passes, or fails."""
        async with asyncio.timeout(WAIT_SECONDS):
            while await self.passes(probe) is not passes:
                assert self.daemon.process.returncode is None, self.daemon.log
                await asyncio.sleep(0.1)

    async def prepare_stop(self) -> int:
        """Runs preStop; returns its exit code."""
        command = self.container["lifecycle"]["preStop"]["exec"]["command"]
        path = f"{RUVD.parent}{os.pathsep}{os.defpath}"
        process = await asyncio.create_subprocess_exec(
            *map(self._here, command), env={**self.environment, "PATH": path},
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return await process.wait()

    def client(self, token: str, authority: Path) -> AsyncClient:
        """A client of this replica, which has the name of the Service for it."""
        tls = Tls(ca_file=authority, server_name="ruvd.prod.svc")
        return AsyncClient(self.address, token=token, tls=tls, timeout=WAIT_SECONDS)
