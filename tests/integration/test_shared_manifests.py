"""deploy/kubernetes/shared: replicas with one PostgreSQL store, rendered, checked, and tried with
daemons that are started with the arguments and environment of the rendered container.

The database is a real one that is reached over TLS with a password, and callers are on TLS with
tokens of service accounts. Paths of the pod are replaced by folders of the test, and ports by free
ones.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import password_server
import pytest
from certificates import Authority
from cluster import Cluster
from kubernetes_validate.utils import all_versions  # type: ignore[import-untyped]
from manifests import (
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
from password_server import PasswordServer
from replica_pod import WAIT_SECONDS, Replica
from ruvd_client import RuvdError

# Seconds that a daemon needs after drain_seconds, to flush streams and to end an engine's process.
LAST_SECONDS = 3

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
    for name in ("ruvd-tls", "ruvd-peers", "ruvd-store"):
        assert volumes[name]["secret"]["defaultMode"] == 0o440


def test_only_replicas_reach_the_port_for_forwarded_calls(resources: list[Resource]) -> None:
    labels = one(resources, "Deployment")["spec"]["template"]["metadata"]["labels"]
    policy = one(resources, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    opened = {
        each["port"]: rule.get("from") for rule in policy["ingress"] for each in rule["ports"]
    }
    (container,) = pod_of(resources)["containers"]
    assert opened.keys() == {each["name"] for each in container["ports"]}
    assert [name for name, who in opened.items() if who] == ["peers"]
    (allowed,) = opened["peers"]
    assert allowed == {"podSelector": policy["podSelector"]}


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


def test_the_kustomization_of_the_manual_adapts_the_replicas(tmp_path: Path) -> None:
    manual = (DEPLOY.parent / "docs" / "kubernetes.md").read_text()
    (text,) = re.findall(r"```yaml\n(resources: \[path/to/\S+/shared\]\n.*?)```", manual, re.DOTALL)
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "user"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(text.replace("path/to/deploy/kubernetes", ".."))

    adapted = build(folder)

    (container,) = pod_of(adapted)["containers"]
    assert container["image"] == "registry.mine/ruvd:0.1.0"
    environment = environment_of(container, adapted)
    assert "@db.prod.svc/ruvd" in environment["RUVD_STORE"]
    assert environment["RUVD_ENGINE"] == "openai", "other settings stay"


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
