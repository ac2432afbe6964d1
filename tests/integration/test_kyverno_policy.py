"""deploy/kubernetes/kyverno: the policy that adds the sidecar to pods makes the same pod as the
component deploy/kubernetes/sidecar.

Kyverno applies `patchStrategicMerge` with the code of kustomize, so kustomize applies it here.
Before that, the test does what Kyverno does: it writes a patch of `(name): "*"` for each
container, and takes the escapes out.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from charts import comparable
from kubernetes_validate.utils import all_versions  # type: ignore[import-untyped]
from manifests import MANIFESTS, Resource, build, needs_kustomize, one, pod_of

FILE = MANIFESTS / "kyverno" / "policy.yaml"


@pytest.fixture
def policy() -> Resource:
    found: Resource = yaml.safe_load(FILE.read_text())
    return found


def patch_of(policy: Resource) -> dict[str, Any]:
    """Returns the patch of a pod's specification as Kyverno reads it."""
    (rule,) = policy["spec"]["rules"]
    text = json.dumps(rule["mutate"]["patchStrategicMerge"]["spec"])
    assert "$(" not in text.replace("\\\\$(", ""), "Kyverno would take it for a reference"
    found: dict[str, Any] = json.loads(text.replace("\\\\$(", "$("))
    return found


def test_the_policy_changes_only_new_pods_with_the_annotation(policy: Resource) -> None:
    assert (policy["apiVersion"], policy["kind"]) == ("kyverno.io/v1", "ClusterPolicy")
    (rule,) = policy["spec"]["rules"]
    (match,) = rule["match"]["any"]
    assert match["resources"] == {
        "kinds": ["Pod"],
        "operations": ["CREATE"],
        "annotations": {"ruvd/inject": "true"},
    }
    key = "pod-policies.kyverno.io/autogen-controllers"
    assert policy["metadata"]["annotations"][key] == "none"


def test_the_policy_has_the_sidecar_of_the_component(policy: Resource) -> None:
    patch = patch_of(policy)
    (app,) = patch.pop("containers")
    pod = yaml.safe_load((MANIFESTS / "sidecar" / "pod.yaml").read_text())
    component = pod["spec"]["template"]["spec"]
    for each in (patch, component):
        (sidecar,) = each["initContainers"]
        sidecar["image"] = sidecar["image"].rpartition("/")[2]
    assert patch == component
    deployment = next(yaml.safe_load_all((MANIFESTS / "example" / "app.yaml").read_text()))
    (example,) = deployment["spec"]["template"]["spec"]["containers"]
    assert app == {
        "(name)": "*",
        "env": example["env"],
        "volumeMounts": example["volumeMounts"],
    }


@needs_kustomize
def test_an_annotated_pod_becomes_the_pod_of_the_component(
    policy: Resource, tmp_path: Path
) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "user"
    folder.mkdir()
    write(folder, {"resources": ["../example"], "components": ["../sidecar"]})
    made = build(folder)

    plain = copy.deepcopy(build(MANIFESTS / "example"))
    (app,) = pod_of(plain)["containers"]
    del app["env"], app["volumeMounts"]
    assert "ruvd.sock" not in str(plain), "the app's manifest has nothing of ruvd"
    (folder / "app.yaml").write_text(yaml.safe_dump_all(plain))
    patch = patch_of(policy)
    (every,) = patch["containers"]
    assert every.pop("(name)") == "*"
    patch["containers"] = [{"name": app["name"], **every}]
    change = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": one(plain, "Deployment")["metadata"]["name"]},
        "spec": {"template": {"spec": patch}},
    }
    (folder / "patch.yaml").write_text(yaml.safe_dump(change))
    write(folder, {"resources": ["app.yaml"], "patches": [{"path": "patch.yaml"}]})
    injected = build(folder)

    for resource in injected:
        kubernetes_validate.validate(resource, all_versions()[-1], strict=True)
    (sidecar,) = pod_of(injected)["initContainers"]
    sidecar["image"] = sidecar["image"].rpartition("/")[2]
    assert comparable(injected) == comparable(made)


def write(folder: Path, kustomization: dict[str, Any]) -> None:
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
