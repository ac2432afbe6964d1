"""Every fenced block and every `ruvd` command of the documentation is run or checked.

| language | check |
|---|---|
| `sh` | is run by bash, in a folder for its page, beside a daemon with echo engine and SQLite |
| `python` | is run by `test_readme_examples.py` |
| `ts`, `go`, `java`, `rust` | is one of README.md's, which `test_readme_examples.py` runs, or one |
| | of a client's README, which `test_client_readmes.py` compiles |
| `toml` | is loaded as a settings file, if needed with the blocks before it on its page |
| `yaml`, `json`, `ini`, `xml` | is parsed; `yaml` with a kind is compared with Kubernetes' schema |
| `text` | is a drawing, or the output of a program |

A block that cannot be run has a row in `NOT_RUN`. All the same, the `ruvd` commands in it are
parsed by the command line's parser, their settings are loaded, and the names of variables, of
targets of the Makefile, and of files in the repository are checked. A block without a check fails.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cyclopts
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from manifests import build, needs_kustomize, pod_of
from running import clean_environment
from ruvd_client import Client
from snippets import (
    PAGES,
    ROOT,
    Block,
    all_blocks,
    blocks,
    commands,
    inline_commands,
    prose,
    python_pages,
    ruvd_words,
)

from ruvd.cli.commands import app
from ruvd.config.loader import ENV_PREFIX, Settings, SettingsInvalid, load

_START_SECONDS = 60.0
_BLOCK_SECONDS = 120.0
_KUBERNETES = "1.34"

# Why a block is not run here. A row of NOT_RUN names one of them, or the test that runs the block.
REASONS = {
    "client": "makes a project in another language, whose tools `make test-clients` uses",
    "cluster": "needs a Kubernetes cluster",
    "database": "needs a database server",
    "foreign": "belongs to a program that is not a package of the tests, such as vLLM",
    "index": "installs packages from an index, as `make release-check` does",
    "images": "builds, signs or pulls images of containers",
    "registry": "needs a registry of charts",
    "long": "takes minutes; CI runs the targets of the Makefile by themselves",
    "system": "changes the machine: users, units, files of root",
}
# The page and the beginning of the block, without its first comment lines.
NOT_RUN = {
    ("README.md", "make demo"): "long",
    ("bench/README.md", "make bench"): "long",
    ("clients/frameworks/README.md", "from langchain_core"): (
        "clients/frameworks/tests/test_frameworks_readme.py"
    ),
    ("clients/typescript/PROVIDER.md", "import { RuvllmProvider }"): (
        "tests/clients/test_ruvllm_provider.py"
    ),
    ("README.md", ".venv/bin/ruvd serve"): "tests/integration/test_run_command.py",
    ("deploy/systemd/README.md", "sudo sh deploy/install.sh"): "system",
    ("docs/benchmarks.md", "make bench"): "long",
    ("docs/contributing.md", "make setup"): "long",
    ("docs/contributing.md", ".venv/bin/pytest"): "long",
    ("deploy/helm/ruvd/README.md", "helm upgrade"): "cluster",
    ("docs/helm.md", "apiVersion: apps/v1"): "tests/integration/test_helm_charts.py",
    ("docs/helm.md", "helm package"): "registry",
    ("docs/helm.md", "helm upgrade"): "cluster",
    ("docs/helm.md", "{{- include"): "tests/integration/test_helm_charts.py",
    ("docs/how-to/llama-server.md", "cmake -B build"): "foreign",
    ("docs/how-to/llama-server.md", "llama-server --model"): "foreign",
    ("docs/how-to/ollama.md", "OLLAMA_CONTEXT_LENGTH="): "foreign",
    ("docs/how-to/pod.md", "deploy/build-image.sh"): "images",
    ("docs/how-to/pod.md", "kubectl apply"): "cluster",
    ("docs/how-to/replicas.md", "cd deploy && docker compose"): "images",
    ("docs/how-to/replicas.md", "kubectl apply"): "cluster",
    ("docs/how-to/replicas.md", "ruvd doctor"): "database",
    ("docs/how-to/replicas.md", "ruvd migrate"): "database",
    ("docs/how-to/sglang.md", "python -m sglang"): "foreign",
    ("docs/how-to/systemd.md", "sudo "): "system",
    ("docs/how-to/vllm.md", "vllm serve"): "foreign",
    ("docs/install.md", "python3 -m venv"): "index",
    ("docs/install.md", "pipx install"): "index",
    ("docs/install.md", "ruvd completion bash --install"): "tests/unit/test_completion.py",
    ("docs/install.md", "ruvd completion bash | sudo"): "system",
    ("docs/kubernetes.md", "deploy/build-image.sh"): "images",
    ("docs/kubernetes.md", "cosign verify"): "images",
    ("docs/kubernetes.md", "kubectl apply -f"): "cluster",
    ("docs/operations.md", "ruvd run"): "tests/integration/test_run_command.py",
    ("docs/replicas.md", "ruvd migrate"): "database",
    ("docs/session-manager.md", "import { RuvllmProvider }"): (
        "tests/clients/test_ruvllm_provider.py"
    ),
    ("docs/start.md", "apt-get install"): "system",
    ("docs/start.md", "make setup"): "long",
}
# Variables of the clients and the commands, beside those of the settings.
VARIABLES = {
    "RUVD_ADDRESS",
    "RUVD_ADMIN_ADDRESS",
    "RUVD_CONFIG",
    "RUVD_TLS_CA_FILE",
    "RUVD_TLS_CLIENT_CERT_FILE",
    "RUVD_TLS_CLIENT_KEY_FILE",
    "RUVD_TLS_SERVER_NAME",
    "RUVD_TOKEN",
    "RUVD_TOKEN_FILE",
} | {ENV_PREFIX + name.upper() for name in Settings.model_fields}
README_LANGUAGES = {"ts", "go", "java", "rust"}
DRAWN = {"text"}
HISTORY = {"CHANGELOG.md"}  # it names what was
SYSTEM_FOLDERS = ("/etc/ruvd", "/run/ruvd", "/var/lib/ruvd")
# The daemon of the test runs already, so `ruvd serve` does nothing; its flags are checked here.
SHIM = """#!/bin/sh
case $1 in serve) exit 0 ;; esac
exec {python} -m ruvd "$@"
"""


def beginning(block: Block) -> str:
    """Returns the block's text from its first line on that is no comment."""
    lines = block.text.splitlines()
    while len(lines) > 1 and re.match(r"\s*#", lines[0]):
        lines.pop(0)
    return "\n".join(lines)


def not_run(block: Block) -> str | None:
    """Returns the reason of a block that is not run."""
    for (page, text), reason in NOT_RUN.items():
        if page == block.page and beginning(block).startswith(text):
            return reason
    # They install a client, or run its example with a browser's view of it.
    return "client" if block.language == "sh" and block.page.startswith("clients/") else None


def ids(block: Block) -> str:
    return f"{block.page}:{block.line}"


BLOCKS = all_blocks()


@dataclass(frozen=True)
class Setup:
    """A folder with a daemon, and the environment of the commands that talk to it."""

    folder: Path
    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """The daemon of all blocks: echo engine, SQLite store, admin socket."""
    folder = tmp_path_factory.mktemp("docs")
    shims = folder / ".venv/bin"
    shims.mkdir(parents=True)
    (shims / "ruvd").write_text(SHIM.format(python=sys.executable))
    (shims / "ruvd").chmod(0o755)
    environment = {
        **{name: value for name, value in clean_environment().items() if "XDG_" not in name},
        "COLUMNS": "200",
        "HOME": str(folder),  # `ruvd completion --install` writes there
        "PATH": f"{shims}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RUVD_ADMIN_LISTEN": f"unix:{folder}/admin/a.sock",
        "RUVD_ENGINE": "echo",
        "RUVD_STORE": f"sqlite:{folder}/sessions.db",
    }
    log = folder / "daemon.log"
    with log.open("w") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "ruvd", "serve", "--listen", "127.0.0.1:0"],
            cwd=folder,
            env={**environment, "RUVD_LOG_FORMAT": "json"},
            stderr=output,
        )
    try:
        address = _address(daemon, log)
        with Client(address) as client:
            client.complete("My name is Ada.", session_id="ada").text()
        yield Setup(folder, address, {**environment, "RUVD_ADDRESS": address})
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)


def _address(daemon: subprocess.Popen[bytes], log: Path) -> str:
    """Waits until the daemon listens; returns its address."""
    deadline = time.monotonic() + _START_SECONDS
    while daemon.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "listening":
                return str(event["address"])
        time.sleep(0.05)  # a file has nothing to wait for
    raise AssertionError(log.read_text())


def check_command(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the real parser read a command; the settings in it are loaded."""
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    app.parse_args(words, exit_on_error=False, print_error=False)
    if words[:1] == ["run"]:
        words = ["serve", *words[1 : words.index("--")]]
    if words[:1] == ["serve"]:
        command, bound, _ = app.parse_args(
            ["config", *words[1:]], exit_on_error=False, print_error=False
        )
        assert command(*bound.args, **bound.kwargs) == 0, words


def check_names(text: str) -> None:
    """Checks names of variables, and in a repository's folders those of files."""
    named = set(re.findall(rf"\b{ENV_PREFIX}[A-Z0-9_]*[A-Z0-9]\b(?!\*)", text))
    assert named <= VARIABLES, f"no such setting: {sorted(named - VARIABLES)}"


def check_make(words: list[str], page: str) -> None:
    """Checks that the Makefile has the targets of a `make` command.

    It is the repository's, that of `-C`, or in a page of a client that client's.
    """
    folders = [ROOT, (ROOT / page).parent]
    if words[1:2] == ["-C"]:
        folders, words = [ROOT / words[2]], words[2:]
    targets = {
        target
        for folder in folders
        if (folder / "Makefile").exists()
        for names in re.findall(r"^([a-z -]+):", (folder / "Makefile").read_text(), re.MULTILINE)
        for target in names.split()
    }
    given = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
    assert given <= targets, f"no such target: {given - targets}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=ids)
def test_the_commands_of_a_block_are_those_of_the_command_line(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in commands(block.text):
        if words[0] == "make":
            check_make(words, block.page)
        elif (ruvd := ruvd_words(words)) is not None:
            check_command(ruvd, tmp_path, monkeypatch)
        for word in words:
            if re.match(r"(bench|deploy|docs|proto|tests)/", word):
                assert list(ROOT.glob(word)), f"no such file: {word}"


@pytest.mark.parametrize(
    "page", sorted({b.page for b in BLOCKS if b.language == "sh" and not not_run(b)})
)
def test_the_commands_of_a_page_run_one_block_after_the_other(
    page: str, setup: Setup, tmp_path: Path
) -> None:
    (tmp_path / ".venv").symlink_to(setup.folder / ".venv")
    for path in SYSTEM_FOLDERS:
        (tmp_path / path[1:]).mkdir(parents=True)
    for block in blocks(page):
        if block.language != "sh" or not_run(block):
            continue
        if "grpcurl" in block.text and not shutil.which("grpcurl"):
            continue
        done = run(block.text, setup, tmp_path)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        if "ruvd drain" in block.text:  # the daemon serves the other pages, too
            assert run("ruvd drain --undo", setup, tmp_path).returncode == 0


def run(program: str, setup: Setup, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program in a folder, which also takes the place of the machine's folders for ruvd."""
    for path in SYSTEM_FOLDERS:
        program = program.replace(path, f"{folder}{path}")
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program.replace("127.0.0.1:50051", setup.address)],
        cwd=folder,
        env=setup.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_BLOCK_SECONDS,
        check=False,
    )


def check_toml(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads the block as a settings file, together with those before it if it goes on from them."""
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    file = folder / "ruvd.toml"
    own = tomllib.loads(block.text)
    before: dict[str, object] = {}
    for each in blocks(block.page):
        if each.language == "toml" and each.line < block.line:
            before |= tomllib.loads(each.text)
    file.write_text(block.text)
    try:
        load({}, file=file)
    except SettingsInvalid:
        lines = (f"{key} = {json.dumps(value)}" for key, value in (before | own).items())
        file.write_text("\n".join(lines))
        load({}, file=file)


def check_yaml(block: Block, _: Path, __: pytest.MonkeyPatch) -> None:
    """Parses the block, and compares resources of Kubernetes with their schema."""
    documents = [each for each in yaml.safe_load_all(block.text) if each]
    assert documents
    for each in documents:
        if isinstance(each, dict) and "kind" in each and each["kind"] != "Kustomization":
            kubernetes_validate.validate(each, _KUBERNETES, strict=True)


@needs_kustomize
def test_the_page_about_a_pod_adds_the_sidecar_to_its_app(tmp_path: Path) -> None:
    kustomization, deployment = (
        b.text for b in blocks("docs/how-to/pod.md") if b.language == "yaml"
    )
    shutil.copytree(ROOT / "deploy", tmp_path / "path/to/deploy")
    (tmp_path / "kustomization.yaml").write_text(kustomization)
    (tmp_path / "your-app.yaml").write_text(deployment)
    resources = build(tmp_path)
    for resource in resources:
        kubernetes_validate.validate(resource, _KUBERNETES, strict=True)
    pod = pod_of(resources)
    (ruvd,) = pod["initContainers"]
    assert ruvd["image"] == "registry.example/ruvd:0.1.0"
    mounted = {each["name"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounted <= {volume["name"] for volume in pod["volumes"]}


def check_json(block: Block, _: Path, __: pytest.MonkeyPatch) -> None:
    """Parses the block, or each line of it."""
    try:
        json.loads(block.text)
    except json.JSONDecodeError:
        for line in block.text.splitlines():
            json.loads(line)


def check_ini(block: Block, _: Path, __: pytest.MonkeyPatch) -> None:
    """Parses the block as a unit of systemd."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(block.text)
    assert parser.sections()


def check_xml(block: Block, _: Path, __: pytest.MonkeyPatch) -> None:
    """Parses the block."""
    ElementTree.fromstring(block.text)  # noqa: S314  # our own text


def check_readme_language(block: Block, _: Path, __: pytest.MonkeyPatch) -> None:
    """Finds the block in README.md, whose blocks are compiled and run, or in a client's README."""
    if re.fullmatch(r"clients/(typescript|go|java|rust)/README\.md", block.page):
        return
    assert block.text in [each.text for each in blocks("README.md")], (
        f"{block}: only the examples of README.md and of the clients' READMEs are compiled"
    )


CHECKS: dict[str, Callable[[Block, Path, pytest.MonkeyPatch], None]] = {
    "toml": check_toml,
    "yaml": check_yaml,
    "json": check_json,
    "ini": check_ini,
    "xml": check_xml,
    **dict.fromkeys(README_LANGUAGES, check_readme_language),
}


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language in CHECKS and not not_run(b)], ids=ids
)
def test_a_block_of_data_is_valid(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CHECKS[block.language](block, tmp_path, monkeypatch)


def test_every_block_is_run_or_checked() -> None:
    unchecked = [
        str(block)
        for block in BLOCKS
        if block.language not in {"sh", *CHECKS, *DRAWN}
        and not (block.language == "python" and block.page in python_pages())
        and not not_run(block)
    ]
    assert not unchecked, (
        f"no check for {unchecked}: name a language of tests/clients/test_doc_snippets.py"
        " (`text` for drawings), or give a reason in its NOT_RUN"
    )


def test_commands_are_found_in_a_script() -> None:
    script = "ruvd health  # a comment\nA=b ruvd chat < in | tee out; sudo ruvd serve \\\n --help\n"
    found = list(commands(f"{script}kubectl exec p -- ruvd drain && ls"))
    assert found == [
        ["ruvd", "health"],
        ["A=b", "ruvd", "chat"],
        ["tee", "out"],
        ["sudo", "ruvd", "serve", "--help"],
        ["kubectl", "exec", "p", "--", "ruvd", "drain"],
        ["ls"],
    ]
    ours = [ruvd_words(words) for words in found]
    assert ours == [["health"], ["chat"], None, ["serve", "--help"], ["drain"], None]


@pytest.mark.parametrize("words", ["serve --slots 4", "serve --llama-slots 0", "backup", "chats"])
def test_a_wrong_command_or_setting_is_found(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((AssertionError, cyclopts.CycloptsError)):
        check_command(words.split(), tmp_path, monkeypatch)


def test_every_exception_has_a_reason_and_a_block() -> None:
    unused = [
        key
        for key in NOT_RUN
        if not any(b.page == key[0] and beginning(b).startswith(key[1]) for b in BLOCKS)
    ]
    assert not unused, "no block begins so"
    for reason in NOT_RUN.values():
        assert reason in REASONS or (ROOT / reason).is_file(), reason


@pytest.mark.parametrize("page", [p for p in PAGES if str(p) not in HISTORY], ids=str)
def test_the_commands_and_variables_in_sentences_exist(page: Path) -> None:
    if page != Path("clients/CONFORMANCE.md"):  # it has variables of the tests' programs
        check_names((ROOT / page).read_text())
    for words in inline_commands(str(page)):
        chain, apps, rest = app.parse_commands([word for word in words if word != "--help"])
        assert chain, f"`ruvd {' '.join(words)}`: no such command"
        if apps[-1].default_command is None:
            continue  # a group of commands
        known = {
            name for argument in apps[-1].assemble_argument_collection() for name in argument.names
        }
        before = rest[: rest.index("--")] if "--" in rest else rest
        flags = {word.partition("=")[0] for word in before if word.startswith("--")}
        assert flags <= known, f"`ruvd {' '.join(words)}`: {flags - known}"
    for target in re.findall(r"`make ([a-z-]+)`", prose(str(page))):
        check_make(["make", target], str(page))
