"""The manifests of deploy/kubernetes: rendered, checked against Kubernetes' schemas, and tried with
a daemon that is started with the arguments and environment of the rendered container.

They are rendered by `kustomize`, or by the one in `kubectl`; without either, these tests are
skipped. Paths of the pod are replaced by folders of the test, and ports by free ones.
"""

from __future__ import annotations

import asyncio
import copy
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from cluster import ISSUERS, Cluster
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
from running import RunningDaemon
from ruvd_client import AsyncClient, RuvdError
from upstream import serving

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# The default directory for temporary files in the container.
TEMPORARY = "/tmp"  # noqa: S108  a path of the manifests
# The sidecar needs this after drain_seconds: 1 s to flush streams, 2 s for the engine's process.
LAST_SECONDS = 3

# A user's kustomizations that include ours: name, resource, components.
INCLUDING = {
    "kept-sessions": ("../embedded", ["../persistent"]),
    "embedded-grpc": ("../embedded", ["../grpc-probes"]),
    "bare": ("../example", ["../sidecar"]),
    "open": ("../embedded", ["../without-identity"]),
}
VARIANTS = ["embedded", "remote-vllm", *INCLUDING]

pytestmark = needs_kustomize


def render(variant: str, scratch: Path) -> list[Resource]:
    if variant not in INCLUDING:
        return build(MANIFESTS / variant)
    shutil.copytree(MANIFESTS, scratch / "kubernetes")
    folder = scratch / "kubernetes" / variant
    folder.mkdir()
    resource, components = INCLUDING[variant]
    include(folder, [resource], components)
    return build(folder)


def include(folder: Path, resources: list[str], components: list[str]) -> None:
    kustomization = {"resources": resources, "components": components}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ruvd-") as path:  # short, as a socket's path must be
        yield Path(path)


@pytest.fixture(params=VARIANTS)
def rendered(request: pytest.FixtureRequest, tmp_path: Path) -> list[Resource]:
    return render(request.param, tmp_path)


def sidecar_of(pod: Resource) -> Resource:
    (sidecar,) = pod["initContainers"]
    assert sidecar["name"] == "ruvd"
    found: Resource = sidecar
    return found


class Pod:
    """The sidecar of a rendered pod, as a process of this machine."""

    def __init__(
        self,
        resources: list[Resource],
        folder: Path,
        cluster: Cluster | None = None,
        replaced: dict[str, str] | None = None,
    ) -> None:
        self.pod = pod_of(resources)
        self.sidecar = sidecar_of(self.pod)
        self.paths: dict[str, str] = {}
        for mount in self.sidecar["volumeMounts"]:
            (folder / mount["name"]).mkdir(exist_ok=True)
            self.paths[mount["mountPath"]] = str(folder / mount["name"])
        self.replaced = {"0.0.0.0:50052": "127.0.0.1:0", **(replaced or {})}
        if cluster:
            self.replaced[API_SERVER] = cluster.url
        (app,) = self.pod["containers"]
        self.app_environment = {
            name: self.here(value) for name, value in environment_of(app, resources).items()
        }
        self.address = self.app_environment["RUVD_ADDRESS"]
        self.token_file = Path(self.app_environment["RUVD_TOKEN_FILE"])
        if cluster:
            cluster.project(self.token_file.parent, folder / "ruvd-issuer")
        self.environment = {
            name: self.here(value)
            for name, value in environment_of(self.sidecar, resources).items()
        }
        self.environment["TMPDIR"] = self.paths[TEMPORARY]
        self.folder = folder
        self.daemon: RunningDaemon

    def here(self, text: str) -> str:
        """Replaces the pod's paths and addresses by those of this machine."""
        for there, replacement in self.replaced.items():
            text = text.replace(there, replacement)
        mounted = "|".join(map(re.escape, self.paths))
        return re.sub(rf"(?<![\w/])({mounted})(?=/|$)", lambda found: self.paths[found[1]], text)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RunningDaemon]:
        assert "command" not in self.sidecar, "the image's entry point starts ruvd"
        process = await asyncio.create_subprocess_exec(
            RUVD, *self.sidecar["args"],
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            cwd=self.folder,
            limit=1 << 20,
        )  # fmt: skip
        self.daemon = RunningDaemon(process, self.folder)
        try:
            yield self.daemon
        finally:
            await self.daemon.stop()

    async def execute(self, command: list[str]) -> int:
        """Runs a probe or hook as the kubelet does in the container; returns its exit code."""
        assert command[0] == "ruvd"
        process = await asyncio.create_subprocess_exec(
            RUVD, *map(self.here, command[1:]), env=self.environment,
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return await process.wait()

    async def passes(self, probe: str) -> bool:
        handler = self.sidecar[probe]
        if "exec" in handler:
            return await self.execute(handler["exec"]["command"]) == 0
        declared = [port["containerPort"] for port in self.sidecar["ports"]]
        assert handler["grpc"]["port"] in declared
        address = (await self.daemon.logged("serving health"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs lack the methods
            request = health_pb2.HealthCheckRequest(service=handler["grpc"]["service"])
            response = await stub.Check(request, timeout=handler["timeoutSeconds"])
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def probed(self, probe: str, seconds: float = 60.0) -> None:
        """Probes until it passes, as the kubelet does at the start."""
        async with asyncio.timeout(seconds):
            while not await self.passes(probe):
                assert self.daemon.process.returncode is None, self.daemon.log
                await asyncio.sleep(0.2)

    async def check_life(self) -> None:
        """Checks the sidecar's life from the startup probe to preStop and SIGTERM."""
        await self.probed("startupProbe")
        await self.probed("readinessProbe")
        assert await self.passes("livenessProbe")
        socket = Path(self.address.removeprefix("unix:"))
        assert socket.stat().st_mode & 0o777 == 0o660
        async with AsyncClient(self.address, token=self.token_file) as client:
            assert await client.complete("Hello", session_id="a", max_tokens=5).text()

            assert await self.execute(self.sidecar["lifecycle"]["preStop"]["exec"]["command"]) == 0
            assert not await self.passes("readinessProbe")
            assert await self.passes("livenessProbe"), "a drained sidecar must not be restarted"
            # The app goes on after preStop: nothing is refused.
            assert await client.complete("And?", session_id="a", max_tokens=5).text()
        assert await self.daemon.stop() == 0
        state = self.paths["/var/lib/ruvd"]
        assert Path(state, "sessions.db").is_file()


async def test_every_variant_is_valid_in_the_three_newest_kubernetes(
    rendered: list[Resource],
) -> None:
    versions = all_versions()[-3:]
    assert len(versions) == 3
    for version in versions:
        for resource in rendered:
            kubernetes_validate.validate(resource, version, strict=True)


def test_the_schemas_refuse_what_is_misspelt(tmp_path: Path) -> None:
    """Proves that the test above would find errors in the places that matter."""
    wrong = one(render("embedded", tmp_path), "Deployment")
    misspellings: list[Callable[[Resource], None]] = [
        lambda sidecar: sidecar.update(restartPolice="Always"),
        lambda sidecar: sidecar["startupProbe"].update(failureTreshold=3),
        lambda sidecar: sidecar["securityContext"].update(readOnlyRootFileSystem=True),
        lambda sidecar: sidecar["lifecycle"]["preStop"]["exec"].update(command="ruvd drain"),
    ]
    for misspell in misspellings:
        resource = copy.deepcopy(wrong)
        misspell(sidecar_of(resource["spec"]["template"]["spec"]))
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(resource, all_versions()[-1], strict=True)


def test_each_container_meets_the_restricted_pod_security_standard(
    rendered: list[Resource],
) -> None:
    """Each also has a read-only root and a memory limit, which the standard does not require."""
    pod = pod_of(rendered)
    assert not any("hostPath" in volume for volume in pod["volumes"])
    for container in [*pod["initContainers"], *pod["containers"]]:
        context = container["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


def test_the_sidecar_starts_before_the_app_and_shares_one_folder_with_it(
    rendered: list[Resource],
) -> None:
    pod = pod_of(rendered)
    sidecar = sidecar_of(pod)
    (app,) = pod["containers"]
    assert sidecar["restartPolicy"] == "Always"
    assert all(probe in sidecar for probe in PROBES)
    assert all(len({"exec", "grpc"} & sidecar[probe].keys()) == 1 for probe in PROBES)
    shared = {each["name"] for each in sidecar["volumeMounts"]} & {
        each["name"] for each in app["volumeMounts"]
    }
    assert shared == {"ruvd-socket", "ruvd-token"}
    assert "kube-api-access" not in str(pod)
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["ruvd-socket"]["emptyDir"]["medium"] == "Memory"
    for container in (sidecar, app):
        assert all(each["name"] in volumes for each in container["volumeMounts"])
    assert app["securityContext"]["runAsUser"] != sidecar["securityContext"]["runAsUser"]
    assert pod["securityContext"]["fsGroup"] == sidecar["securityContext"]["runAsGroup"]


def test_the_grace_period_has_room_for_the_app_and_then_the_sidecar(
    rendered: list[Resource],
) -> None:
    """The numbers in docs/kubernetes.md are those of the manifests."""
    pod = pod_of(rendered)
    (app,) = pod["containers"]
    stop = app["lifecycle"]["preStop"]["sleep"]["seconds"]
    (graceful,) = (
        int(each.partition("=")[2])
        for each in app["args"]
        if each.startswith("--timeout-graceful-shutdown=")
    )
    drain = int(environment_of(sidecar_of(pod), rendered)["RUVD_DRAIN_SECONDS"])
    grace = pod["terminationGracePeriodSeconds"]
    assert grace >= stop + graceful + drain + LAST_SECONDS
    manual = (DEPLOY.parent / "docs" / "kubernetes.md").read_text()
    assert f"| `{stop} + {graceful}` |" in manual
    assert f"| `{drain}` |" in manual
    assert f"| `{grace}` |" in manual


def test_a_statefulset_gets_the_sidecar_and_others_do_not(tmp_path: Path) -> None:
    """The component selects by label, whatever the workload's kind and name."""
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "user"
    folder.mkdir()
    (labelled, service) = build(MANIFESTS / "example")
    if labelled["kind"] != "Deployment":
        labelled, service = service, labelled
    plain = copy.deepcopy(labelled)
    plain["metadata"] = {"name": "plain"}
    labelled["kind"] = "StatefulSet"
    labelled["metadata"]["name"] = "kept"
    labelled["spec"]["serviceName"] = service["metadata"]["name"]
    labelled["spec"]["template"]["spec"]["initContainers"] = [{"name": "migrate", "image": "m"}]
    labelled["spec"]["volumeClaimTemplates"] = [
        {
            "metadata": {"name": "ruvd-state"},
            "spec": {
                "accessModes": ["ReadWriteOncePod"],
                "resources": {"requests": {"storage": "2Gi"}},
            },
        }
    ]
    (folder / "app.yaml").write_text(yaml.safe_dump_all([labelled, plain, service]))
    include(folder, ["app.yaml"], ["../sidecar", "../grpc-probes"])

    resources = build(folder)

    assert "initContainers" not in pod_of(resources)
    kept = one(resources, "StatefulSet")
    assert kept["metadata"]["name"] == "kept"
    names = [each["name"] for each in pod_of(resources, "StatefulSet")["initContainers"]]
    assert names == ["ruvd", "migrate"], "other init containers may use ruvd"
    kubernetes_validate.validate(kept, all_versions()[-1], strict=True)


def test_kept_sessions_have_a_claim_and_no_two_pods_at_once(tmp_path: Path) -> None:
    resources = render("kept-sessions", tmp_path)
    claim = one(resources, "PersistentVolumeClaim")
    volumes = {each["name"]: each for each in pod_of(resources)["volumes"]}
    assert volumes["ruvd-state"] == {
        "name": "ruvd-state",
        "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]},
    }
    assert one(resources, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize("variant", ["embedded", "embedded-grpc"])
async def test_the_embedded_sidecar_behaves_as_its_manifest_says(
    variant: str, tmp_path: Path, folder: Path
) -> None:
    """It is started, probed, used, drained and ended as the rendered container says."""
    cluster = Cluster()
    async with cluster.running():
        pod = Pod(render(variant, tmp_path), folder, cluster)
        assert pod.environment["RUVD_ENGINE"] == "llama"
        async with pod.running() as daemon:
            await pod.check_life()
            up = await daemon.logged("engine up")
            assert up["detail"].endswith(f"{pod.environment['RUVD_LLAMA_THREADS']} threads")


def with_echo(resources: list[Resource]) -> list[Resource]:
    """Replaces the engine, so that it needs no model."""
    one(resources, "ConfigMap")["data"] = {"RUVD_ENGINE": "echo"}
    return resources


@pytest.mark.parametrize("issuer", ISSUERS)
async def test_the_app_calls_with_its_projected_token_on_every_cluster(
    issuer: str, tmp_path: Path, folder: Path
) -> None:
    """No manifest has to be edited for the issuer of a cluster, and other tokens are refused."""
    cluster = Cluster(issuer)
    async with cluster.running():
        pod = Pod(with_echo(render("embedded", tmp_path)), folder, cluster)
        async with pod.running():
            await pod.probed("startupProbe")
            async with AsyncClient(pod.address, token=pod.token_file) as client:
                assert await client.complete("Hello", session_id="a").text() == "Hello"
                pod.token_file.write_text(cluster.token(seconds=900))  # the kubelet renews it
                assert await client.complete("And?", session_id="a").text() == "And?"
            wrong = {
                "no token": "",
                "another audience": cluster.token(audience="vault"),
                "for the API server": cluster.api_token,
                "another service account": cluster.token("other"),
                "expired": cluster.token(seconds=-600),
                "another cluster": Cluster(issuer).token(),
            }
            for name, token in wrong.items():
                async with AsyncClient(pod.address, token=token) as client:
                    with pytest.raises(RuvdError) as refused:
                        await client.complete("Hello", session_id="a").text()
                assert refused.value.reason == "UNAUTHENTICATED", name
            for probe in PROBES:
                assert await pod.passes(probe), "a probe has no token"
            assert await pod.execute(["ruvd", "sessions", "list"]) == 0, "kubectl exec -c ruvd"
    assert set(cluster.key_requests) == {f"Bearer {cluster.api_token}"}


async def test_an_api_server_that_cannot_be_reached_is_told(tmp_path: Path, folder: Path) -> None:
    cluster = Cluster()
    cluster.url = "https://127.0.0.1:9"
    pod = Pod(with_echo(render("embedded", tmp_path)), folder, cluster)
    async with pod.running() as daemon:
        await pod.probed("startupProbe")
        await daemon.logged("the keys of JWTs cannot be fetched; the last ones stay in use")
        async with AsyncClient(pod.address, token=pod.token_file) as client:
            with pytest.raises(RuvdError) as refused:
                await client.get_session("a")
        assert refused.value.reason == "IDENTITY_UNAVAILABLE"


async def test_identity_can_be_switched_off_and_keeps_the_sessions(
    tmp_path: Path, folder: Path
) -> None:
    cluster = Cluster()
    async with cluster.running():
        pod = Pod(with_echo(render("embedded", tmp_path)), folder, cluster)
        async with pod.running():
            await pod.probed("startupProbe")
            async with AsyncClient(pod.address, token=pod.token_file) as client:
                await client.complete("Hello", session_id="a").text()
    without = with_echo(render("open", tmp_path))
    assert "JWT" not in str(without)
    assert "ruvd-issuer" not in str(without)
    pod = Pod(without, folder)
    async with pod.running():
        await pod.probed("startupProbe")
        for token in ("", pod.token_file):  # an app may go on sending its token
            async with AsyncClient(pod.address, token=token) as client:
                assert (await client.get_session("a")).exchange_count == 1


def test_only_the_sidecar_has_a_token_for_the_api_server(tmp_path: Path) -> None:
    pod = pod_of(render("embedded", tmp_path))
    volumes = {each["name"]: each["projected"]["sources"] for each in pod["volumes"]
               if "projected" in each}  # fmt: skip
    audiences = {
        name: [each["serviceAccountToken"].get("audience") for each in sources
               if "serviceAccountToken" in each]
        for name, sources in volumes.items()
    }  # fmt: skip
    assert audiences == {"ruvd-token": ["ruvd"], "ruvd-issuer": [None]}
    (app,) = pod["containers"]
    assert "ruvd-issuer" not in {each["name"] for each in app["volumeMounts"]}
    for container in (app, sidecar_of(pod)):
        mounts = {each["name"]: each for each in container["volumeMounts"]}
        assert all(mounts[name]["readOnly"] for name in volumes if name in mounts)
    assert pod["automountServiceAccountToken"] is False


async def test_the_remote_sidecar_behaves_as_its_manifest_says(
    tmp_path: Path, folder: Path
) -> None:
    """Its requests to the server also carry the key, the salt and the session's header."""
    resources = render("remote-vllm", tmp_path)
    settings = one(resources, "ConfigMap")["data"]
    cluster = Cluster()
    async with serving() as upstream, cluster.running():
        replaced = {settings["RUVD_BASE_URL"]: upstream.url}
        pod = Pod(resources, folder, cluster, replaced)
        (key,) = (
            item["path"]
            for volume in pod.pod["volumes"]
            if "secret" in volume
            for item in volume["secret"]["items"]
        )
        Path(pod.paths["/etc/ruvd/secret"], key).write_text("sesame")
        async with pod.running():
            await pod.check_life()
        asked = upstream.requests[-1]
        assert asked.headers["authorization"] == "Bearer sesame"
        assert asked.headers["x-session-id"]
        assert asked.body["cache_salt"]
        assert asked.body["model"] == settings["RUVD_MODEL"]
