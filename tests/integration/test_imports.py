"""The modules that `ruvd serve` imports: what it does not need costs memory and time to start."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import cyclopts
import pytest
from pydantic import SecretStr
from running import STOP_SECONDS, clean_environment

from ruvd.cli.quick_serve import plain_flags
from ruvd.cli.serve import serve
from ruvd.config.settings import Settings

# The command line, the probe, and what only other settings need.
_UNNEEDED = {
    "cryptography", "cyclopts", "h2", "hpack", "hyperframe", "jsonschema", "jwt", "opentelemetry",
    "prometheus_client", "psycopg", "psycopg_pool", "referencing", "regex", "ruvd_client",
    "xllamacpp",
    "ruvd.cli.commands", "ruvd.cli.health_check", "ruvd.engines.echo", "ruvd.engines.llama",
    "ruvd.http", "ruvd.sealing", "ruvd.stores.postgres", "ruvd.telemetry.setup", "starlette",
    "uvicorn",
}  # fmt: skip


async def test_a_daemon_with_a_remote_engine_imports_nothing_that_it_does_not_need(
    tmp_path: Path,
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "importtime", "-m", "ruvd", "serve",
        "--engine", "openai", "--base-url", "http://127.0.0.1:9/v1", "--model", "tiny",
        "--store", f"sqlite:{tmp_path}/ruvd.db", "--listen", f"unix:{tmp_path}/r.sock",
        env=clean_environment(), cwd=tmp_path, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    imported = set()
    try:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode()
            if text.startswith("import time:"):
                imported.add(text.rpartition("|")[2].strip())
            elif '"listening"' in text:
                break
        else:
            pytest.fail("the daemon does not listen")
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), STOP_SECONDS)
    parts = {".".join(name.split(".")[:count]) for name in imported for count in (1, 2, 3)}
    assert {"grpc", "ruvd.engines.openai", "ruvd.stores.sqlite"} <= parts
    assert not parts & _UNNEEDED


def _plain_values(kind: Any) -> list[str]:
    if get_origin(kind) in (Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is Literal:
        return [get_args(kind)[-1]]
    texts = {int: ["12"], float: ["1.5"], str: ["a,b=c d"], Path: ["a/b"]}
    return texts.get(kind, ["a", "b=c,d"] if kind == list[str] else [])


def test_plain_flags_have_the_values_that_the_full_parser_gives_them() -> None:
    arguments = ["--config", "some/file.toml"]
    for number, (name, field) in enumerate(Settings.model_fields.items()):
        if field.annotation is not SecretStr:
            for text in _plain_values(field.annotation):
                flag = f"--{name.replace('_', '-')}"
                arguments += [flag, text] if number % 2 else [f"{flag}={text}"]
    app = cyclopts.App()
    app.default(serve)
    given = dict(app.parse_args(arguments)[1].arguments)
    plain = plain_flags(arguments)
    assert plain == {"config": Path("some/file.toml"), **given.pop("flags", {}), **given}


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "--engine",
        "--engine other",
        "--engine=",
        "--max-sessions x",
        "--max-sessions 1_000",
        "--max-sessions -1",
        "--max-sessions 1 --max-sessions 2",
        "--max_sessions 1",
        "--drain-seconds nan",
        "--sessions-enabled",
        "--no-sessions-enabled",
        "--api-key secret",
        "--unknown 1",
        "-h",
        "extra",
        "--listen a b",
        '--listen ["a"]',
    ],
)
def test_flags_that_are_not_plain_are_left_to_the_full_parser(arguments: str) -> None:
    assert plain_flags(arguments.split(" ")) is None
