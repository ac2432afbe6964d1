"""The examples in the READMEs of the clients in other languages than Python compile.

They are parts of programs. What they leave out is around them here: imports, and in Go and Java a
function with `client`, `ctx`, `id` and `last`. The clients must be built (make test-clients).
Python's examples are run by `test_readme_examples.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import pytest
from snippets import ROOT, blocks

CLIENTS = ROOT / "clients"
_SECONDS = 480
GO_IMPORTS = {
    "context": '"context"',
    "errors": '"errors"',
    "fmt": '"fmt"',
    "log": '"log"',
    "time": '"time"',
    "ruvd": 'ruvd "github.com/ruvd/ruvd/clients/go"',
    "ruvdv1": '"github.com/ruvd/ruvd/clients/go/ruvdv1"',
}
GO_FUNCTION = """func example%d(
	ctx context.Context, client *ruvd.Client, id string, last int64, err error,
) error {
	{
%s
%s
	}
	return nil
}
"""
JAVA = """import dev.ruvd.client.*;
import dev.ruvd.v1.*;
import java.nio.file.*;
import java.time.*;
import java.util.*;
import java.util.concurrent.*;
%s
class Examples {
  static RuvdClient client;
  static String id;
  static long last;
%s
}
"""
RUST_FUNCTION = """use ruvd_client::{Client, Error};

async fn example(client: &Client) -> Result<(), Error> {
%s
Ok(())
}
"""
CARGO = """[package]
name = "readme"
version = "0.0.0"
edition = "2024"

[dependencies]
ruvd-client = {{ path = "{client}" }}
futures-util = {{ version = "0.3", default-features = false }}
tokio = {{ version = "1.40", features = ["macros", "rt-multi-thread"] }}
"""


def examples(language: str, code: str) -> list[str]:
    """Returns the examples in the README of a client."""
    return [each.text for each in blocks(f"clients/{language}/README.md") if each.language == code]


async def compiles(*command: str, folder: Path, variables: dict[str, str] | None = None) -> None:
    """Runs a compiler, which must have nothing to say."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **(variables or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


@pytest.mark.languages
@pytest.mark.timeout(_SECONDS + 30)
async def test_typescript_examples_compile(tmp_path: Path) -> None:
    client = CLIENTS / "typescript"
    modules = tmp_path / "node_modules"
    (modules / "@ruvd").mkdir(parents=True)
    (modules / "@ruvd/client").symlink_to(client)
    (modules / "@types").symlink_to(client / "node_modules/@types")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    files = []
    for number, text in enumerate(examples("typescript", "ts")):
        files.append(f"example{number}.ts")
        (tmp_path / files[-1]).write_text(text)
    compiler = client / "node_modules/typescript/bin/tsc"
    flags = "--noEmit --strict --skipLibCheck --module nodenext --target es2022 --types node"
    await compiles("node", str(compiler), *flags.split(), *files, folder=tmp_path)


@pytest.mark.languages
@pytest.mark.timeout(_SECONDS + 30)
async def test_go_examples_compile(tmp_path: Path) -> None:
    functions = []
    for number, text in enumerate(examples("go", "go")):
        declared = re.findall(r"^(\w+(?:, \w+)*) := ", text, re.MULTILINE)
        used = [f"_ = {name}" for names in declared for name in names.split(", ") if name != "_"]
        functions.append(GO_FUNCTION % (number, text, "\n".join(used)))
    code = "\n".join(functions)
    imports = [path for name, path in GO_IMPORTS.items() if f"{name}." in code]
    lines = ["package main", "import (", *imports, ")", code, "func main() {}"]
    (tmp_path / "main.go").write_text("\n".join(lines))
    await compiles("go", "vet", str(tmp_path / "main.go"), folder=CLIENTS / "go")


@pytest.mark.languages
@pytest.mark.timeout(_SECONDS + 30)
async def test_java_examples_compile(tmp_path: Path) -> None:
    imports, methods = [], []
    for number, text in enumerate(examples("java", "java")):
        imports += re.findall(r"^import .*;$", text, re.MULTILINE)
        body = re.sub(r"^import .*;$", "", text, flags=re.MULTILINE)
        methods.append(f"static void example{number}() throws Exception {{\n{body}\n}}")
    program = tmp_path / "Examples.java"
    program.write_text(JAVA % ("\n".join(imports), "\n".join(methods)))
    classes = "target/classes:target/dependency/*"
    await compiles(
        "javac", "-cp", classes, "-d", str(tmp_path), str(program), folder=CLIENTS / "java"
    )


@pytest.mark.languages
@pytest.mark.timeout(_SECONDS + 30)
async def test_rust_examples_compile(tmp_path: Path) -> None:
    client = CLIENTS / "rust"
    lines = ["#![allow(dead_code)]", "fn main() {}"]
    for number, text in enumerate(examples("rust", "rust")):
        body = (
            text if re.search(r"^(pub )?(async )?fn ", text, re.MULTILINE) else RUST_FUNCTION % text
        )
        lines += [f"mod example{number} {{", body, "}"]
    (tmp_path / "src").mkdir()
    (tmp_path / "src/main.rs").write_text("\n".join(lines))
    (tmp_path / "Cargo.toml").write_text(CARGO.format(client=client))
    shutil.copy(client / "Cargo.lock", tmp_path)
    variables = {"CARGO_TARGET_DIR": str(client / "target/readme")}
    await compiles("cargo", "build", "--quiet", "--offline", folder=tmp_path, variables=variables)
