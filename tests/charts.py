"""The charts of deploy/helm, rendered by `helm`, and compared with what kustomize makes.

`helm-offline` of .ci/helm, which is built of Helm's own packages, does where helm is missing.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from manifests import DEPLOY, Resource

CHARTS = DEPLOY / "helm"
NAMESPACE = "prod"
_helm = shutil.which("helm") or shutil.which("helm-offline")
needs_helm = pytest.mark.skipif(_helm is None, reason="needs helm, or .ci/helm")

# What Helm's conventions add to every object.
_HELM_LABELS = (
    "helm.sh/chart",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
)
_HELM_ANNOTATIONS = ("checksum/settings", "checksum/ruvd-settings", "helm.sh/resource-policy")
# Labels of objects that nothing selects by, except kustomize itself.
_PLAIN_LABELS = ("app.kubernetes.io/name", "ruvd-sidecar")


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs helm."""
    assert _helm is not None
    return subprocess.run([_helm, *arguments], capture_output=True, text=True, timeout=120)


def template(
    chart: Path, *values: Path, sets: tuple[str, ...] = (), release: str = "ruvd"
) -> list[Resource]:
    """Returns the objects of a chart."""
    done = _template(chart, values, sets, release)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def refusal(chart: Path, *values: Path, sets: tuple[str, ...] = (), release: str = "ruvd") -> str:
    """Returns what helm says of values that are wrong."""
    done = _template(chart, values, sets, release)
    assert done.returncode != 0, done.stdout
    return done.stderr


def _template(
    chart: Path, values: tuple[Path, ...], sets: tuple[str, ...], release: str
) -> subprocess.CompletedProcess[str]:
    files = [argument for path in values for argument in ("--values", path)]
    pairs = [argument for pair in sets for argument in ("--set-json", pair)]
    return helm("template", release, chart, "--namespace", NAMESPACE, *files, *pairs)


def comparable(resources: list[Resource]) -> dict[tuple[str, str], Resource]:
    """Returns objects by kind and name, without what kustomize and Helm do in different ways.

    These are: labels and annotations that Helm adds; the ConfigMap of settings, whose variables are
    written into the container; hashes in names; Secrets that kustomize generates; and the order of
    variables, mounts, volumes and ports.
    """
    settings = {each["metadata"]["name"]: each["data"] for each in resources
                if each["kind"] == "ConfigMap"}  # fmt: skip
    found = {}
    for each in copy.deepcopy(resources):
        if each["kind"] in ("ConfigMap", "Secret"):
            continue
        _drop(each["metadata"], "labels", _PLAIN_LABELS)
        for part in _maps(each):
            for name in ("labels", "matchLabels", "selector"):
                _drop(part, name, _HELM_LABELS)
            _drop(part, "annotations", _HELM_ANNOTATIONS)
            if "envFrom" in part or "env" in part:
                part["env"] = _environment(part, settings)
            for name, key in (
                ("volumeMounts", "mountPath"),
                ("volumes", "name"),
                ("ports", "name"),
            ):
                if isinstance(part.get(name), list) and all(key in item for item in part[name]):
                    part[name] = {item[key]: item for item in part[name]}
            for name, value in part.items():
                if name in ("name", "secretName", "claimName") and isinstance(value, str):
                    part[name] = _plain_name(value)
        found[each["kind"], each["metadata"]["name"]] = each
    return found


def _maps(value: Any) -> Iterator[dict[str, Any]]:
    """Yields every map inside a value, the inner ones first."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in list(inner):
        yield from _maps(each)
    if isinstance(value, dict):
        yield value


def _drop(part: dict[str, Any], name: str, keys: tuple[str, ...]) -> None:
    """Removes keys from a map inside a map, and that map if it is empty then."""
    inner = part.get(name)
    if isinstance(inner, dict):
        for key in keys:
            inner.pop(key, None)
        if not inner:
            del part[name]


def _environment(container: dict[str, Any], settings: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Returns the variables of a container; it loses the reference to the ConfigMap."""
    names = [each["configMapRef"]["name"] for each in container.pop("envFrom", [])]
    variables: dict[str, Any] = {}
    for name in names:
        variables |= settings.get(name, {})
    for each in container.get("env", []):
        variables[each["name"]] = each.get("value", each.get("valueFrom"))
    return variables


def _plain_name(name: str) -> str:
    """Returns a name without kustomize's hash, and without the release's name that Helm adds."""
    name = re.sub(r"^(ruvd-secret)-[a-z0-9]{10}$", r"\1", name)
    return re.sub(r"^chat-(ruvd-state)$", r"\1", name)
