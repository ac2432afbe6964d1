"""The packages of the clients say where they come from, and have their licence with them."""

from __future__ import annotations

import json
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
LANGUAGES = ("python", "typescript", "go", "java", "rust")
REPOSITORY = "https://github.com/ruvd/ruvd"
LICENCE = "Apache-2.0"
KEYWORDS = ["llm", "grpc", "sidecar", "chat", "streaming"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_client_has_the_licence_and_a_readme(language: str) -> None:
    folder = CLIENTS / language
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (folder / "README.md").read_text().startswith("# ")


def test_the_python_package_says_where_it_comes_from() -> None:
    package = tomllib.loads((CLIENTS / "python/pyproject.toml").read_text())["project"]
    assert package["urls"]["Repository"] == REPOSITORY
    assert package["urls"]["Homepage"] == f"{REPOSITORY}/tree/main/clients/python"
    assert (package["license"], package["license-files"]) == (LICENCE, ["LICENSE"])
    assert package["keywords"] == KEYWORDS
    assert "Typing :: Typed" in package["classifiers"]
    assert (CLIENTS / "python/ruvd_client/py.typed").exists()


def test_the_typescript_package_says_where_it_comes_from() -> None:
    package = json.loads((CLIENTS / "typescript/package.json").read_text())
    assert package["repository"]["url"] == f"git+{REPOSITORY}.git"
    assert package["repository"]["directory"] == "clients/typescript"
    assert package["homepage"] == f"{REPOSITORY}/tree/main/clients/typescript"
    assert (package["license"], package["keywords"]) == (LICENCE, KEYWORDS)
    assert package["files"] == ["dist/src", "PROVIDER.md"]  # npm adds LICENSE and README.md
    assert "private" not in package


def test_the_go_modules_path_is_its_folder_in_the_repository() -> None:
    module, *_ = (CLIENTS / "go/go.mod").read_text().splitlines()
    assert f"https://{module.removeprefix('module ')}" == f"{REPOSITORY}/clients/go"


def test_the_rust_package_says_where_it_comes_from() -> None:
    package = tomllib.loads((CLIENTS / "rust/Cargo.toml").read_text())["package"]
    assert package["repository"] == REPOSITORY
    assert package["homepage"] == f"{REPOSITORY}/tree/main/clients/rust"
    assert (package["license"], package["keywords"]) == (LICENCE, KEYWORDS)
    assert {"LICENSE", "README.md"} <= set(package["include"])


def test_the_java_package_says_where_it_comes_from() -> None:
    package = ET.parse(CLIENTS / "java/pom.xml").getroot()  # noqa: S314 -- a file of the repository
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    found = {
        path: package.findtext(path, namespaces=space)
        for path in ("m:url", "m:scm/m:url", "m:licenses/m:license/m:name")
    }
    assert list(found.values()) == [f"{REPOSITORY}/tree/main/clients/java", REPOSITORY, LICENCE]
