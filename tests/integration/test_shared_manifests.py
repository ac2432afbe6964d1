"""deploy/kubernetes/shared: replicas with one PostgreSQL store, rendered, checked, and tried with
daemons that are started with the arguments and environment of the rendered container.

The database is a real one that is reached over TLS with a password, and callers are on TLS with
tokens of service accounts. Paths of the pod are replaced by folders of the test, and ports by free
ones.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate  # type: ignore[import-untyped]
import password_server
import pytest
from certificates import Authority
from cluster import Cluster
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kubernetes_validate.utils import all_versions  # type: ignore[import-untyped]
from manifests import (
    API_SERVER,
    DEPLOY,
    MANIFESTS,
    RUVD,
    Resource,
    build,
    environment_of,
    needs_kustomize,
    one,
    pod_of,
)
from password_server import PASSWORD, PasswordServer
from running import RunningDaemon
from ruvd_client import AsyncClient, RuvdError
from ruvd_client.security import Tls

# Seconds that a daemon needs after drain_seconds, to flush streams and to end an engine's process.
LAST_SECONDS = 3
# The default directory for temporary files in the container.
TEMPORARY = "/tmp"  # noqa: S108  a path of the manifests
WAIT_SECONDS = 60
DATABASE = "postgres.databases.svc:5432"

pytestmark = [needs_kustomize, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def resources() -> list[Resource]:
    return build(MANIFESTS / "shared")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ruvd-", dir="/tmp") as path:
        Path(path).chmod(0o755)  # the server may run as another user
        yield Path(path)


@pytest.fixture
def database(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PasswordServer]:
    with password_server.running(folder / "pg", monkeypatch, tls=True) as server:
        yield server


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
        cluster.project(folder, folder / "ruvd-issuer")
        certificate, key = cluster.authority.issue("ruvd.prod.svc", "ruvd")
        for place, content in {
            "ruvd-tls/tls.crt": certificate,
            "ruvd-tls/tls.key": key,
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


def test_each_resource_is_valid_in_the_three_newest_kubernetes(resources: list[Resource]) -> None:
    versions = all_versions()[-3:]
    assert len(versions) == 3
    for version in versions:
        for resource in resources:
            kubernetes_validate.validate(resource, version, strict=True)


def test_the_replicas_are_selected_spread_and_disrupted_one_at_a_time(
    resources: list[Resource],
) -> None:
    deployment = one(resources, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["replicas"] == 3
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert one(resources, "Service")["spec"]["selector"].items() <= labels.items()
    assert one(resources, "Service")["spec"]["clusterIP"] == "None"
    budget = one(resources, "PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["maxUnavailable"] == 1
    spread = pod_of(resources)["topologySpreadConstraints"]
    keys = {each["topologyKey"] for each in spread}
    assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for each in spread:
        assert each["labelSelector"]["matchLabels"].items() <= labels.items()


def test_the_container_is_restricted_and_has_no_rights_in_the_cluster(
    resources: list[Resource],
) -> None:
    pod = pod_of(resources)
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert context["runAsNonRoot"]
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "memory" in container["resources"]["limits"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == one(resources, "ServiceAccount")["metadata"]["name"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == volumes.keys()
    for name in ("ruvd-tls", "ruvd-store"):
        assert volumes[name]["secret"]["defaultMode"] == 0o440


def test_no_manifest_contains_the_password(resources: list[Resource]) -> None:
    environment = environment_of(pod_of(resources)["containers"][0], resources)
    assert "PGPASSWORD" not in environment
    assert not [each for each in resources if each["kind"] == "Secret"]


def test_the_grace_period_has_room_for_pre_stop_and_the_drain(resources: list[Resource]) -> None:
    pod = pod_of(resources)
    (container,) = pod["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    (slept,) = re.findall(r"sleep (\d+)", command)
    readiness = container["readinessProbe"]
    assert int(slept) >= readiness["periodSeconds"] * readiness["failureThreshold"]
    drain = int(environment_of(container, resources)["RUVD_DRAIN_SECONDS"])
    needed = int(slept) + drain + LAST_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= needed
    manual = (DEPLOY.parent / "docs" / "kubernetes.md").read_text()
    assert f"`{slept} + {drain} + 5`" in manual


async def test_a_session_moves_from_a_replica_that_is_ended_to_another(
    resources: list[Resource], folder: Path, database: PasswordServer
) -> None:
    """The replicas are started, probed, called, drained and ended as their manifest says."""
    cluster = Cluster()
    authority = folder / "ca.crt"
    authority.write_bytes(cluster.authority.pem)
    async with cluster.running(), AsyncExitStack() as stack:
        replicas = [
            Replica(resources, folder / str(number), cluster, database) for number in range(2)
        ]
        for each in replicas:
            await stack.enter_async_context(each.running())
        first, second = replicas
        async with first.client(cluster.token(), authority) as client:
            assert await client.complete("one", session_id="s").text() == "one"
            assert await first.prepare_stop() == 0
            await first.until("readinessProbe", passes=False)
            assert await first.passes("livenessProbe"), "a drained replica must not be restarted"
            # Callers that do not know it yet are still served.
            assert await client.complete("two", session_id="s").text() == "two"
        assert await first.daemon.stop() == 0
        async with second.client(cluster.token(), authority) as client:
            assert await client.complete("three", session_id="s").text() == "three"
            assert (await client.get_session("s")).exchange_count == 3


async def test_a_replica_serves_only_service_accounts_and_each_its_own_sessions(
    resources: list[Resource], folder: Path, database: PasswordServer
) -> None:
    cluster = Cluster()
    authority, foreign = folder / "ca.crt", folder / "foreign.crt"
    authority.write_bytes(cluster.authority.pem)
    foreign.write_bytes(Authority().pem)
    async with cluster.running():
        replica = Replica(resources, folder / "r", cluster, database)
        async with replica.running():
            async with replica.client(cluster.token(), authority) as client:
                await client.complete("mine", session_id="s").text()
            async with replica.client(cluster.token("other"), authority) as client:
                with pytest.raises(RuvdError) as refused:
                    await client.get_session("s")
            assert refused.value.reason == "SESSION_NOT_FOUND"
            for token in ("", cluster.token(audience="vault"), Cluster().token()):
                async with replica.client(token, authority) as client:
                    with pytest.raises(RuvdError) as refused:
                        await client.get_session("s")
                assert refused.value.reason == "UNAUTHENTICATED"
            async with replica.client(cluster.token(), foreign) as client:
                with pytest.raises(RuvdError):
                    await client.get_session("s")


@pytest.mark.parametrize("missing", ["RUVD_TLS_", "RUVD_JWT_"])
async def test_a_replica_without_tls_or_without_identity_refuses_to_start(
    missing: str, resources: list[Resource], folder: Path
) -> None:
    """The address is a remote one, as in the pod, so the settings are needed."""
    cluster = Cluster()
    cluster.url = "https://127.0.0.1:9"
    replica = Replica(resources, folder / "r", cluster, PasswordServer("localhost:9"))
    environment = {k: v for k, v in replica.environment.items() if not k.startswith(missing)}
    process = await asyncio.create_subprocess_exec(
        RUVD, *replica.container["args"],
        stderr=asyncio.subprocess.PIPE, env=environment, cwd=replica.folder,
    )  # fmt: skip
    _, errors = await asyncio.wait_for(process.communicate(), WAIT_SECONDS)
    assert process.returncode == 2
    assert b"allow_remote_insecure" in errors or b"allow-remote-insecure" in errors
