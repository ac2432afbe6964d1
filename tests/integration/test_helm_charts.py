"""The charts of deploy/helm: linted, rendered, and compared with what kustomize makes of
deploy/kubernetes, which other tests try with real daemons.

Without `helm`, or `helm-offline` of .ci/helm, these tests are skipped.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from pathlib import Path

import httpx
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from charts import CHARTS, comparable, helm, needs_helm, refusal, template
from cluster import Cluster
from kubernetes_validate.utils import all_versions  # type: ignore[import-untyped]
from manifests import (
    API_SERVER,
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
from ruvd_client.security import Tls
from snippets import blocks

from ruvd.config.loader import load

APP = CHARTS / "ruvd"
SHARED = APP / "ci" / "shared-values.yaml"
MONITORED = APP / "ci" / "monitored-values.yaml"
LIBRARY = CHARTS / "ruvd-sidecar"
CI = CHARTS / "example" / "ci"

# Kustomizations of a user, and the values that mean the same.
SIDECARS: dict[str, tuple[str, list[str], str, tuple[str, ...]]] = {
    "embedded": ("../embedded", [], "embedded", ()),
    "remote-vllm": ("../remote-vllm", [], "remote-vllm", ()),
    "kept": ("../embedded", ["../persistent"], "embedded", ("state.persistent=true",)),
    "grpc": ("../embedded", ["../grpc-probes"], "embedded", ("grpcProbes=true",)),
    "open": ("../embedded", ["../without-identity"], "embedded", ("identity.enabled=false",)),
}

pytestmark = needs_helm


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example chart with the library in it, as `helm dependency build` does it."""
    folder = tmp_path_factory.mktemp("charts")
    shutil.copytree(CHARTS / "example", folder / "example")
    shutil.copytree(LIBRARY, folder / "example" / "charts" / LIBRARY.name)
    return folder / "example"


def for_sidecar(pairs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"ruvd-sidecar.{pair}" for pair in pairs)


def validate(resources: list[Resource]) -> None:
    versions = all_versions()[-3:]
    assert len(versions) == 3
    for version in versions:
        for resource in resources:
            if resource["kind"] != "ServiceMonitor":
                kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("values", [SHARED, MONITORED], ids=lambda path: path.stem)
def test_the_chart_of_replicas_has_nothing_to_lint(values: Path) -> None:
    done = helm("lint", "--strict", APP, "--values", values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_the_library_and_the_example_have_nothing_to_lint(example: Path) -> None:
    for chart in (LIBRARY, example):
        done = helm("lint", "--strict", chart)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "[WARNING]" not in done.stdout


@needs_kustomize
def test_the_replicas_are_those_of_kustomize() -> None:
    rendered = template(APP, SHARED)
    validate(rendered)
    assert comparable(rendered) == comparable(build(MANIFESTS / "shared"))


@needs_kustomize
@pytest.mark.parametrize("variant", SIDECARS)
def test_the_sidecar_is_that_of_kustomize(variant: str, example: Path, tmp_path: Path) -> None:
    resource, components, values, pairs = SIDECARS[variant]
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "user"
    folder.mkdir()
    kustomization = {"resources": [resource], "components": components}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))

    rendered = template(
        example, CI / f"{values}-values.yaml", sets=for_sidecar(pairs), release="chat"
    )

    validate(rendered)
    assert comparable(rendered) == comparable(build(folder))


@needs_kustomize
def test_the_comparison_finds_what_differs() -> None:
    """Proves that the two tests above would find errors in the places that matter."""
    made = comparable(build(MANIFESTS / "shared"))
    for pair in (
        "settings.max_sessions=9",
        "replicaCount=2",
        'store.secret="other"',
        'peers.tlsName="other"',
        "networkPolicy.enabled=false",
        "preStopSeconds=11",
        'resources={"limits":{"memory":"1Gi"}}',
        'extraEnv=[{"name":"A","value":"b"}]',
    ):
        assert comparable(template(APP, SHARED, sets=(pair,))) != made, pair


def test_a_variable_is_set_before_it_is_used(example: Path) -> None:
    """The kubelet expands $(NAME) only if NAME stands above, which the comparison ignores."""
    for resources, containers in (
        (template(APP, SHARED), "containers"),
        (template(example, CI / "embedded-values.yaml"), "initContainers"),
    ):
        seen: set[str] = set()
        for variable in pod_of(resources)[containers][0]["env"]:
            assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= seen
            seen.add(variable["name"])


@pytest.mark.parametrize(
    "pairs",
    [
        ("store.password=\"sesame\"", 'store.secret=""'),
        ('store.url=""', 'store.urlSecret={"name":"dsn"}'),
        ("peers.enabled=false", "replicaCount=null"),
        ("identity.serviceAccounts=false", 'settings.tokens_file="/etc/ruvd/tokens"'),
        ('engineSecret={"name":"key","apiKey":"k","cacheSalt":"s"}',),
        ("networkPolicy.enabled=false", "podDisruptionBudget.enabled=false"),
        ("http.enabled=true", "metrics.enabled=true", "service.port=443"),
        ("image.tag=null", "nodeSelector=null", "resources={}", "extraEnv=null"),
        ("serviceAccount.create=false", "topologySpreadConstraints=[]", "service.headless=false"),
        ('networkPolicy.callers=[{"podSelector":{}}]', 'nodeSelector={"a":"b"}'),
        ('tolerations=[{"operator":"Exists"}]', 'affinity={"podAntiAffinity":{}}'),
        ('podLabels={"a":"b"}', 'podAnnotations={"a":"b"}', 'priorityClassName="high"'),
        ('imagePullSecrets=[{"name":"a"}]', 'image.pullPolicy="Always"'),
        ('extraVolumes=[{"name":"m","emptyDir":{}}]',
         'extraVolumeMounts=[{"name":"m","mountPath":"/m"}]'),
        ('podDisruptionBudget.maxUnavailable="30%"', 'service.annotations={"a":"b"}'),
    ],
    ids=lambda pairs: pairs[0].partition("=")[0],
)  # fmt: skip
def test_every_value_gives_a_valid_object(pairs: tuple[str, ...]) -> None:
    rendered = template(APP, SHARED, sets=pairs)
    for resource in rendered:
        kubernetes_validate.validate(resource, all_versions()[-1], strict=True)
    pod = pod_of(rendered)
    (container,) = pod["containers"]
    volumes = {each["name"] for each in pod["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == volumes


def test_settings_reach_the_daemon_as_they_were_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Helm reads numbers as floating-point, and writes a large one as 1e+06 by itself."""
    monkeypatch.chdir(tmp_path)
    rendered = template(
        APP,
        SHARED,
        sets=(
            "settings.max_request_bytes=268435456",
            "settings.idle_timeout_seconds=0.25",
            "settings.store_prepares=false",
            'settings.base_url=["http://a/v1", "http://b/v1"]',
            'settings.tenant_limits=["a,b;max_sessions=1", "**;max_sessions=2"]',
            'settings.model="a \\"b\\": {{c}} #d"',
            "settings.jwt_algorithms=[]",
        ),
    )  # fmt: skip
    for name, value in environment_of(pod_of(rendered)["containers"][0], rendered).items():
        if name != "RUVD_JWT_ALGORITHMS":
            monkeypatch.setenv(name, value)
        else:
            assert value == "[]"
    settings, _ = load({})
    assert settings.max_request_bytes == 268435456
    assert settings.idle_timeout_seconds == 0.25
    assert settings.store_prepares is False
    assert settings.base_url == ["http://a/v1", "http://b/v1"]
    assert settings.tenant_limits == ["a,b;max_sessions=1", "**;max_sessions=2"]
    assert settings.model == 'a "b": {{c}} #d'
    assert settings.max_sessions == 10000


def test_a_monitored_replica_keeps_its_sessions_and_is_scraped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rendered = template(APP, MONITORED)
    validate(rendered)
    deployment = one(rendered, "Deployment")["spec"]
    assert deployment["strategy"] == {"type": "Recreate"}
    claim = one(rendered, "PersistentVolumeClaim")
    volumes = {each["name"]: each for each in pod_of(rendered)["volumes"]}
    state = volumes["ruvd-state"]["persistentVolumeClaim"]
    assert state == {"claimName": claim["metadata"]["name"]}
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert {"ruvd-store", "ruvd-peers"}.isdisjoint(volumes)

    (container,) = pod_of(rendered)["containers"]
    for name, value in environment_of(container, rendered).items():
        monkeypatch.setenv(name, value)
    settings, _ = load({})
    assert settings.sqlite_path == Path("/var/lib/ruvd/sessions.db")
    assert settings.metrics_listen == "0.0.0.0:9464"
    assert settings.tls_cert_file
    assert settings.has_identity, "the setting that opens the metrics does not open the API"

    monitor, service = one(rendered, "ServiceMonitor"), one(rendered, "Service")
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]].startswith("ruvd"), "the alert RuvdDown selects jobs"
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    (endpoint,) = monitor["spec"]["endpoints"]
    ports = {each["name"]: each["targetPort"] for each in service["spec"]["ports"]}
    declared = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert declared[ports[endpoint["port"]]] == 9464
    opened = {port["port"]: rule.get("from") for rule in one(rendered, "NetworkPolicy")["spec"][
        "ingress"] for port in rule["ports"]}  # fmt: skip
    assert opened.keys() == declared.keys()
    (scraper,) = opened["metrics"]
    assert scraper["namespaceSelector"]


async def test_a_monitored_replica_serves_metrics_to_all_and_calls_only_with_a_token() -> None:
    """A daemon with the arguments and the environment of the rendered container."""
    rendered = template(APP, MONITORED, sets=('settings={"engine":"echo"}', "http.enabled=true"))
    (container,) = pod_of(rendered)["containers"]
    cluster = Cluster()
    with tempfile.TemporaryDirectory(prefix="ruvd-") as path:  # short, as a socket's path must be
        folder = Path(path)
        replaced = dict.fromkeys(("0.0.0.0:50051", "0.0.0.0:8080", "0.0.0.0:9464"), "0.0.0.0:0")
        replaced["0.0.0.0:50052"] = "127.0.0.1:0"
        for mount in container["volumeMounts"]:
            (folder / mount["name"]).mkdir()
            replaced[mount["mountPath"]] = str(folder / mount["name"])
        authority = folder / "ca.crt"
        authority.write_bytes(cluster.authority.pem)
        for name, content in zip(
            ("tls.crt", "tls.key"), cluster.authority.issue("ruvd.prod.svc"), strict=True
        ):
            (folder / "ruvd-tls" / name).write_bytes(content)
        cluster.project(folder, folder / "ruvd-issuer")
        async with cluster.running():
            replaced[API_SERVER] = cluster.url
            places = re.compile("|".join(map(re.escape, replaced)))  # at once, as "/tmp" is one too
            environment = {
                name: places.sub(lambda found: replaced[found[0]], value)
                for name, value in environment_of(container, rendered).items()
            }
            process = await asyncio.create_subprocess_exec(
                RUVD, *container["args"],
                stderr=asyncio.subprocess.PIPE, env=environment, cwd=folder, limit=1 << 20,
            )  # fmt: skip
            daemon = RunningDaemon(process, folder)
            try:
                port = (await daemon.logged("listening"))["address"].rpartition(":")[2]
                tls = Tls(ca_file=authority, server_name="ruvd.prod.svc")
                for token, reason in ((cluster.token(), ""), ("", "UNAUTHENTICATED")):
                    async with AsyncClient(f"127.0.0.1:{port}", token=token, tls=tls) as client:
                        if not reason:
                            assert await client.complete("Hello", session_id="a").text() == "Hello"
                            continue
                        with pytest.raises(RuvdError) as refused:
                            await client.get_session("a")
                        assert refused.value.reason == reason
                port = (await daemon.logged("serving metrics"))["address"].rpartition(":")[2]
                async with httpx.AsyncClient() as prometheus:
                    scraped = await prometheus.get(f"http://127.0.0.1:{port}/metrics")
                assert "ruvd_sessions" in scraped.text
            finally:
                assert await daemon.stop() == 0


def test_names_fit_into_63_characters() -> None:
    """The longest release that Helm allows has 53."""
    release = "a" * 53
    for pairs in ((), (f'fullnameOverride="{"b" * 63}"',), (f'nameOverride="{"c" * 63}"',)):
        rendered = template(APP, SHARED, sets=pairs, release=release)
        validate(rendered)
        for each in rendered:
            name = each["metadata"]["name"]
            assert len(name) <= (253 if each["kind"] == "ConfigMap" else 63)
            assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
            assert all(len(value) <= 63 for value in each["metadata"]["labels"].values())


def test_two_releases_in_a_namespace_share_nothing() -> None:
    first = {(each["kind"], each["metadata"]["name"]) for each in template(APP, SHARED)}
    second = template(APP, SHARED, release="other")
    assert first.isdisjoint((each["kind"], each["metadata"]["name"]) for each in second)
    labels = one(template(APP, SHARED), "Deployment")["spec"]["template"]["metadata"]["labels"]
    selector = one(second, "Service")["spec"]["selector"]
    assert not selector.items() <= labels.items()


def test_a_change_of_settings_restarts_the_pods(example: Path) -> None:
    def annotations(resources: list[Resource]) -> dict[str, str]:
        found: dict[str, str] = one(resources, "Deployment")["spec"]["template"]["metadata"][
            "annotations"
        ]
        return found

    embedded = CI / "embedded-values.yaml"
    assert annotations(template(APP, SHARED)) != annotations(
        template(APP, SHARED, sets=("settings.max_sessions=9",))
    )
    assert annotations(template(example, embedded)) != annotations(
        template(example, embedded, sets=for_sidecar(("settings.max_sessions=9",)))
    )
    assert annotations(template(APP, SHARED)) == annotations(
        template(APP, SHARED, sets=("replicaCount=5",))
    )


# A value that is wrong, and what the refusal has to name.
WRONG: dict[str, list[str]] = {
    # refused by values.schema.json
    'replicaCount="3"': ["/replicaCount", "integer"],
    "replicaCount=-1": ["/replicaCount", "0"],
    "replicas=3": ["'replicas'", "not allowed"],
    "settings.engin=1": ["/settings", "'engin'", "not allowed"],
    'settings.engine="vllm"': ["/settings/engine", "'openai'"],
    'settings.max_sessions="many"': ["/settings/max_sessions", "integer"],
    "settings.max_sessions=0": ["/settings/max_sessions", "1"],
    "settings.retries=11": ["/settings/retries", "10"],
    "settings.idle_timeout_seconds=0": ["/settings/idle_timeout_seconds", "0"],
    "settings.model=7": ["/settings/model", "string"],
    'settings.store_prepares="no"': ["/settings/store_prepares", "boolean"],
    'settings.base_url={"a":"b"}': ["/settings/base_url"],
    'store.kind="mysql"': ["/store/kind", "'postgresql'"],
    "store.dsn=1": ["/store", "'dsn'", "not allowed"],
    'tls="ruvd-tls"': ["/tls", "object"],
    'tls.secret="Ruvd_TLS"': ["/tls/secret", "pattern"],
    'image.repository="ruvd:0.1.0"': ["/image/repository", "pattern"],
    "image.tag=0.1": ["/image/tag", "string"],
    'image.digest="0123"': ["/image/digest", "pattern"],
    'image.pullPolicy="always"': ["/image/pullPolicy", "'Always'"],
    f'fullnameOverride="{"a" * 64}"': ["/fullnameOverride", "63"],
    'fullnameOverride="1st"': ["/fullnameOverride", "pattern"],
    f'nameOverride="{"a" * 64}"': ["/nameOverride", "63"],
    'state.size="5GB"': ["/state/size", "pattern"],
    'metrics.enabled="true"': ["/metrics/enabled", "boolean"],
    "metrics.port=80": ["/metrics/port", "1,024"],
    'metrics.serviceMonitor.interval="30"': ["/metrics/serviceMonitor/interval", "pattern"],
    'podDisruptionBudget.maxUnavailable="some"': ["/podDisruptionBudget/maxUnavailable"],
    "podLabels.a=1": ["/podLabels/a", "string"],
    'extraEnv={"A":"b"}': ["/extraEnv", "array"],
    'extraEnv=[{"value":"b"}]': ["/extraEnv/0", "'name'"],
    'resources={"limits":{"memory":"1GB"}}': ["/resources/limits/memory", "pattern"],
    'resources={"limit":{}}': ["/resources", "'limit'"],
    'topologySpreadConstraints=[{"a":"b"}]': ["/topologySpreadConstraints/0", "'topologyKey'"],
    'settings={"RUVD_ENGINE":"llama"}': ["/settings", "'RUVD_ENGINE'"],
    "image=null": ["'image'"],
    "tls=null": ["'tls'"],
    "store.kind=null": ["/store", "'kind'"],
    "store.urlSecret=null": ["/store", "'urlSecret'"],
    "metrics.serviceMonitor=null": ["/metrics", "'serviceMonitor'"],
    "preStopSeconds=null": ["'preStopSeconds'"],
    # refused by the templates
    'image.repository=""': ["image.repository"],
    'tls.secret=""': ["tls.secret", "tls.crt"],
    'peers.secret=""': ["peers.secret", "peers.enabled"],
    'store.url=""': ["store.url", "store.urlSecret.name"],
    'store.url="mysql://a@b/c"': ["store.url", "postgresql://"],
    'store.url="postgresql://a:secret@b/c"': ["store.url", "password"],
    'store.url="postgresql://a@b/c?password=x"': ["store.url", "password"],
    'store.urlSecret.name="dsn"': ["store.url", "store.urlSecret.name"],
    'store.secret=""': ["store.secret", "password"],
    'store.password="x"': ["store.password", "store.secret"],
    'store={"kind":"sqlite","url":"","secret":""}': ["replicaCount", "3 replicas", "postgresql"],
    'store.kind="sqlite"': ["store.url", "store.secret"],
    "state.persistent=true": ["state.persistent", "sqlite"],
    "identity.rules=[]": ["identity.rules"],
    "identity.serviceAccounts=false": ["identity.serviceAccounts", "tokens_file"],
    'settings={"model":"m"}': ["settings.engine", "openai"],
    'settings={"engine":"openai","model":"m"}': ["settings.base_url"],
    'settings={"engine":"openai","base_url":"http://a/v1"}': ["settings.model"],
    'settings.listen="0.0.0.0:1"': ["settings.listen", "Service"],
    'settings.store="memory"': ["settings.store", "store.kind"],
    'settings.tls_key_file="/k"': ["settings.tls_key_file", "tls.secret"],
    "settings.allow_remote_insecure=true": ["settings.allow_remote_insecure"],
    'settings.jwt_issuer="https://i"': ["settings.jwt_issuer", "identity.serviceAccounts"],
    'settings.jwt_identities="**"': ["settings.jwt_identities", "identity.rules"],
    'settings.api_key="sk-1"': ["settings.api_key", "engineSecret.name"],
    'engineSecret.cacheSalt="salt"': ["engineSecret.name"],
    'extraEnv=[{"name":"RUVD_LISTEN","value":"a"}]': ["extraEnv", "RUVD_LISTEN"],
    'extraVolumes=[{"name":"ruvd-tls","emptyDir":{}}]': ["extraVolumes", "ruvd-tls"],
    'podLabels={"app.kubernetes.io/name":"a"}': ["podLabels", "app.kubernetes.io/name"],
    "metrics.serviceMonitor.enabled=true": ["metrics.enabled"],
    'metrics={"enabled":true,"port":50052}': ["metrics.port"],
    'http={"enabled":true,"port":50053}': ["http.port"],
    'http={"enabled":true,"port":50051}': ["http.port", "service.port"],
    'settings.http_listen="0.0.0.0:80"': ["settings.http_listen", "http.enabled"],
}


@pytest.mark.parametrize("pair", WRONG, ids=lambda pair: pair[:50])
def test_a_wrong_value_is_named(pair: str) -> None:
    said = refusal(APP, SHARED, sets=(pair,))
    for part in WRONG[pair]:
        assert part in said


def test_all_problems_are_named_at_once() -> None:
    said = refusal(APP)
    for name in ("image.repository", "settings.engine", "tls.secret", "store.url", "store.secret",
                 "peers.secret"):  # fmt: skip
        assert f"- {name}: " in said
    assert "sesame" not in refusal(APP, sets=('store.url="postgresql://a:sesame@b/c"',))


@pytest.mark.parametrize("release", ["1st", "a.b"])
def test_a_release_whose_name_is_no_name_of_a_service_is_refused(release: str) -> None:
    said = refusal(APP, SHARED, release=release)
    assert "fullnameOverride" in said
    assert template(APP, SHARED, sets=('fullnameOverride="ruvd"',), release=release)


WRONG_FOR_SIDECAR: dict[str, list[str]] = {
    "settings.engin=1": ["/settings", "'engin'", "not allowed"],
    'settings.llama_slots="4"': ["/settings/llama_slots", "integer"],
    'grpcProbes="yes"': ["/grpcProbes", "boolean"],
    "sidecar=true": ["'sidecar'", "not allowed"],
    "state=null": ["'state'"],
    'state.size="big"': ["/state/size", "pattern"],
    'image.repository=""': ["image.repository"],
    'settings.listen="unix:/a"': ["settings.listen", "socket"],
    'settings.cache_salt="s"': ["settings.cache_salt", "engineSecret.cacheSalt"],
    'settings.jwt_audience="a"': ["settings.jwt_audience", "identity.enabled"],
    'settings.engine="openai"': ["settings.base_url", "settings.model"],
    'extraEnv=[{"name":"RUVD_STORE","value":"memory"}]': ["extraEnv", "RUVD_STORE"],
    'state.existingClaim="kept"': ["state.persistent"],
    'metrics.enabled=true|settings.http_listen="0.0.0.0:80"': ["settings.http_listen", "loopback"],
    'engineSecret.cacheSalt="salt"': ["engineSecret.name"],
}


@pytest.mark.parametrize("pair", WRONG_FOR_SIDECAR)
def test_a_wrong_value_of_the_sidecar_is_named(pair: str, example: Path) -> None:
    said = refusal(example, sets=for_sidecar(tuple(pair.split("|"))))
    for part in WRONG_FOR_SIDECAR[pair]:
        assert part in said


def test_one_pod_at_a_time_has_a_persistent_sidecar(example: Path) -> None:
    said = refusal(example, sets=("replicaCount=2", "ruvd-sidecar.state.persistent=true"))
    assert "replicaCount" in said


def test_a_sidecar_needs_no_more_values_than_its_image(example: Path, tmp_path: Path) -> None:
    rendered = template(example, sets=("ruvd-sidecar.settings=null",), release="chat")
    validate(rendered)
    assert "ConfigMap" not in {each["kind"] for each in rendered}


@pytest.mark.parametrize(
    "pairs",
    [
        ('state={"persistent":true,"existingClaim":"kept"}',),
        ("metrics.enabled=true", "grpcProbes=true"),
        ('engineSecret={"name":"s","apiKey":"","cacheSalt":"salt"}',),
        ('settings.store="memory"', "settings.drain_seconds=7.5"),
        ('image={"repository":"a.b:5/c","digest":"sha256:' + "0" * 64 + '","pullPolicy":"Never"}',),
        ('extraVolumes=[{"name":"m","emptyDir":{}}]',
         'extraVolumeMounts=[{"name":"m","mountPath":"/m"}]',
         'extraEnv=[{"name":"A","value":"b"}]'),
    ],
    ids=lambda pairs: pairs[0].partition("=")[0],
)  # fmt: skip
def test_every_value_of_the_sidecar_gives_a_valid_object(
    pairs: tuple[str, ...], example: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rendered = template(example, sets=for_sidecar(pairs))
    for resource in rendered:
        kubernetes_validate.validate(resource, all_versions()[-1], strict=True)
    (sidecar,) = pod_of(rendered)["initContainers"]
    names = [each["name"] for each in sidecar["env"]]
    assert len(set(names)) == len(names)
    monkeypatch.chdir(tmp_path)
    for each in sidecar["env"]:
        if each["name"].startswith("RUVD_") and "value" in each:
            monkeypatch.setenv(each["name"], each["value"])
    load({})
    if "drain_seconds" in str(pairs):
        assert pod_of(rendered)["terminationGracePeriodSeconds"] == 30 + 8 + 5


NOTES: dict[str, tuple[Path, tuple[str, ...], list[str]]] = {
    "shared": (SHARED, (), ["ruvd.prod.svc:50051", "ruvd-tls", "ruvd-peers", "ruvd-store",
                            "ruvd admin status", "RUVD_TOKEN_FILE",
                            "system:serviceaccount:prod:*"]),
    "monitored": (MONITORED, (), ["NetworkPolicy decides"]),
    "lost": (MONITORED, ("state.persistent=false", "networkPolicy.scrapers=[]",
                         "metrics.serviceMonitor.enabled=false"),
             ["Sessions are deleted with the pod", "everybody", "9464"]),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTES)
def test_the_notes_say_what_is_still_missing_and_how_to_call(case: str) -> None:
    values, pairs, expected = NOTES[case]
    sets = [argument for pair in pairs for argument in ("--set-json", pair)]
    done = helm(
        "install", "ruvd", APP, "--namespace", "prod", "--dry-run=client", "--values", values, *sets
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:\n")[2]
    for part in expected:
        assert part in notes
    assert not re.search(r"\n\n\n", notes)
    assert "<no value>" not in notes


def test_the_chart_of_the_manual_has_the_sidecar(tmp_path: Path) -> None:
    """docs/helm.md: its dependency, values and templates make a chart."""
    data = {block.text.partition(":")[0]: block.text for block in blocks("docs/helm.md")
            if block.language == "yaml"}  # fmt: skip
    deployment, objects = (
        block.text for block in blocks("docs/helm.md") if block.language == "helm"
    )
    (tmp_path / "templates").mkdir()
    shutil.copytree(LIBRARY, tmp_path / "charts" / LIBRARY.name)
    (tmp_path / "Chart.yaml").write_text(
        f"apiVersion: v2\nname: app\nversion: 1.0.0\n{data['dependencies']}"
    )
    (tmp_path / "values.yaml").write_text(data["ruvd-sidecar"])
    (tmp_path / "templates" / "app.yaml").write_text(deployment)
    (tmp_path / "templates" / "ruvd.yaml").write_text(objects)
    rendered = template(tmp_path)
    validate(rendered)
    pod = pod_of(rendered)
    assert [each["name"] for each in pod["initContainers"]] == ["ruvd"]
    assert one(rendered, "ConfigMap")["data"]["RUVD_LLAMA_THREADS"] == "2"


def test_the_values_of_the_manual_make_replicas(tmp_path: Path) -> None:
    values, metrics = (
        block.text
        for block in blocks("docs/helm.md")
        if block.language == "yaml" and block.text.startswith(("image:", "metrics:"))
    )
    (tmp_path / "values.yaml").write_text(values)
    (tmp_path / "metrics.yaml").write_text(metrics)
    validate(template(APP, tmp_path / "values.yaml"))
    monitored = template(APP, tmp_path / "values.yaml", tmp_path / "metrics.yaml")
    validate(monitored)
    assert one(monitored, "ServiceMonitor")
