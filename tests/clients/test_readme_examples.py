"""The examples in README.md, in docs/ and in the Python client's README run as they are written."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from http_door import HTTP, base_url
from running import StartDaemon
from snippets import python_pages

ROOT = Path(__file__).parents[2]
OPENAI = ROOT / "build/openai/openai"
PAGES = python_pages()

GO = """package main

import (
	"context"
	"fmt"
	"os"

	ruvd "github.com/ruvd/ruvd/clients/go"
)

func run(ctx context.Context) error {
%s
	return nil
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
"""
JAVA = """import dev.ruvd.client.RuvdClient;

class Hello {
  public static void main(String[] arguments) {
%s
  }
}
"""
RUST = """use futures_util::TryStreamExt;

#[tokio::main]
async fn main() -> Result<(), ruvd_client::Error> {
%s
    Ok(())
}
"""
CARGO = """[package]
name = "hello"
version = "0.0.0"
edition = "2024"

[dependencies]
ruvd-client = {{ path = "{client}" }}
futures-util = {{ version = "0.3", default-features = false }}
tokio = {{ version = "1.40", features = ["macros", "rt-multi-thread"] }}
"""


def examples(page: str, language: str) -> list[str]:
    """Returns the page's code blocks in one language."""
    text = (ROOT / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


async def output_of(
    command: list[str], address: str, *, folder: Path = ROOT, extra: Mapping[str, str] | None = None
) -> tuple[int | None, str, str]:
    """Runs a program against the daemon; returns its exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "RUVD_ADDRESS": address, **(extra or {})},
    )
    async with asyncio.timeout(240):
        stdout, stderr = await process.communicate()
    return process.returncode, stdout.decode(), stderr.decode()


def test_the_pages_with_python_examples_are_found() -> None:
    assert {"README.md", "clients/python/README.md", "docs/concepts.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
async def test_the_python_examples_run(daemon: StartDaemon, page: str) -> None:
    async with daemon("--engine", "echo", "--store", "memory", *HTTP) as running:
        url = await base_url(running)
        for example in examples(page, "python"):
            program = example.replace("http://127.0.0.1:8080/v1", url)
            await run_python(program.replace("127.0.0.1:50051", running.address), running.address)


async def run_python(program: str, address: str) -> None:
    """Runs an example, which must print something."""
    if "from openai" in program:
        if not OPENAI.exists():
            return  # `make openai` installs it
        # At the end, so that the packages of both are those of the tests.
        program = f"import sys; sys.path.append({str(OPENAI.parent)!r})\n{program}"
    warnings = ["-W", "error"] if "from openai" not in program else []
    code, stdout, stderr = await output_of([sys.executable, *warnings, "-c", program], address)
    assert (code, stderr) == (0, ""), program
    assert stdout.strip()
    if "tool_result" in program:
        assert stdout == "12 degrees and rain in Bern\n"


@pytest.mark.languages
@pytest.mark.timeout(300)
@pytest.mark.parametrize("language", ["ts", "go", "java", "rust"])
async def test_the_readmes_example_in_another_language_runs(
    address: str, language: str, tmp_path: Path
) -> None:
    """The client must have been built (`make test-clients`). The echo engine answers."""
    clients = ROOT / "clients"
    (example,) = examples("README.md", language)
    folder, extra = clients, {}
    if language == "ts":  # also valid JavaScript
        folder = clients / "typescript"
        command = ["node", "--input-type=module", "-e", example]
    elif language == "go":
        folder = clients / "go"
        program = tmp_path / "main.go"
        program.write_text(GO % example)
        command = ["go", "run", str(program)]
    elif language == "java":
        program = tmp_path / "Hello.java"
        program.write_text(JAVA % example)
        command = ["java", "-cp", "java/target/classes:java/target/dependency/*", str(program)]
    else:
        (tmp_path / "src").mkdir()
        (tmp_path / "src/main.rs").write_text(RUST % example)
        (tmp_path / "Cargo.toml").write_text(CARGO.format(client=clients / "rust"))
        shutil.copy(clients / "rust/Cargo.lock", tmp_path)
        extra = {"CARGO_TARGET_DIR": str(clients / "rust/target/readme")}
        folder = tmp_path
        command = ["cargo", "run", "--quiet", "--offline"]
    code, stdout, stderr = await output_of(command, address, folder=folder, extra=extra)
    assert (code, stdout) == (0, "My name is Ada."), stderr
