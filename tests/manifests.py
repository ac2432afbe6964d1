"""The manifests of deploy/kubernetes, rendered by `kustomize` or by the one in `kubectl`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml  # type: ignore[import-untyped]
from cluster import ACCOUNT, NAMESPACE

Resource: TypeAlias = dict[str, Any]

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFESTS = DEPLOY / "kubernetes"
RUVD = Path(sys.executable).with_name("ruvd")
API_SERVER = "https://kubernetes.default.svc"

# What the downward API would say of the pod.
FIELDS = {
    "metadata.namespace": NAMESPACE,
    "spec.serviceAccountName": ACCOUNT,
    "status.podIP": "10.0.0.1",
}

_renderer = next(
    (
        [path, *arguments]
        for name, *arguments in (("kustomize", "build"), ("kubectl", "kustomize"))
        if (path := shutil.which(name))
    ),
    None,
)
needs_kustomize = pytest.mark.skipif(_renderer is None, reason="needs kustomize, or kubectl")


def build(folder: Path) -> list[Resource]:
    """Returns the resources of a kustomization."""
    assert _renderer is not None
    done = subprocess.run([*_renderer, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def one(resources: list[Resource], kind: str) -> Resource:
    """Returns the only resource of a kind."""
    (found,) = (each for each in resources if each["kind"] == kind)
    return found


def pod_of(resources: list[Resource], kind: str = "Deployment") -> Resource:
    """Returns the specification of the pods of the only workload of a kind."""
    pod: Resource = one(resources, kind)["spec"]["template"]["spec"]
    return pod


def environment_of(container: Resource, resources: list[Resource]) -> dict[str, str]:
    """Returns the variables that the kubelet would set in the container."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        reference = source["configMapRef"]
        for each in resources:
            if (each["kind"], each["metadata"]["name"]) == ("ConfigMap", reference["name"]):
                found |= each["data"]
                break
        else:
            assert reference["optional"]
    for variable in container.get("env", []):
        if "value" in variable:
            found[variable["name"]] = re.sub(
                r"\$\((\w+)\)", lambda name: found[name[1]], variable["value"]
            )
        elif "fieldRef" in variable["valueFrom"]:
            found[variable["name"]] = FIELDS[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            secret = one(resources, "Secret")
            assert secret["metadata"]["name"] == reference["name"]
            assert reference["key"] in secret["data"]
            found[variable["name"]] = "a secret"
    return found
