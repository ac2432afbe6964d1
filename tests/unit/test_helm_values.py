"""The charts of deploy/helm name their values and their version rightly. It needs no helm."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from ruvd.config.settings import Settings

ROOT = Path(__file__).parents[2]
CHARTS = ROOT / "deploy" / "helm"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_tables_of_values_and_the_schemas_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "helm_values.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("chart", ["ruvd", "ruvd-sidecar"])
def test_a_chart_has_the_version_of_ruvd(chart: str) -> None:
    about = yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (VERSION, VERSION)


def test_the_example_includes_the_library_of_this_version() -> None:
    about = yaml.safe_load((CHARTS / "example" / "Chart.yaml").read_text())
    (dependency,) = about["dependencies"]
    assert (dependency["name"], dependency["version"]) == ("ruvd-sidecar", VERSION)
    manual = (ROOT / "docs" / "helm.md").read_text()
    assert f"  - name: ruvd-sidecar\n    version: {VERSION}\n" in manual


def test_both_charts_write_settings_in_the_same_way() -> None:
    library = (CHARTS / "ruvd-sidecar" / "templates" / "_settings.tpl").read_text()
    chart = (CHARTS / "ruvd" / "templates" / "_settings.tpl").read_text()
    assert library.replace("ruvd-sidecar.", "ruvd.") == chart


@pytest.mark.parametrize("chart", ["ruvd", "ruvd-sidecar"])
def test_the_templates_refuse_only_settings_that_exist(chart: str) -> None:
    """A setting that is renamed must be renamed where the chart sets it or refuses it."""
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())
    assert set(schema["properties"]["settings"]["properties"]) == set(Settings.model_fields)
    check = (CHARTS / chart / "templates" / "_check.tpl").read_text()
    block = check.partition("$own := dict\n")[2].partition("\n-}}")[0]
    refused = {line.split('"')[1] for line in block.splitlines()}
    assert len(refused) >= 7
    assert refused <= set(Settings.model_fields)
    for path in (CHARTS / chart / "templates").iterdir():
        for line in path.read_text().splitlines():
            _, name, variable = line.partition("name: RUVD_")
            if name and variable not in ("ADDRESS", "TOKEN_FILE"):
                assert variable.lower() in Settings.model_fields, f"{path.name}: {line}"
