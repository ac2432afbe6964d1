"""The flags of the settings on a command line, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cyclopts
import pytest

from ruvd.cli.setting_flags import command_line, with_setting_flags


def parsed(*words: str) -> tuple[Mapping[str, Any], Path | None]:
    """Returns what a command with these words on its command line gets."""
    calls: list[tuple[Mapping[str, Any], Path | None]] = []

    def command(given: Mapping[str, Any], config: Path | None) -> int:
        calls.append((given, config))
        return 0

    app = cyclopts.App(name="test", result_action="return_value")
    app.default(with_setting_flags(command))
    app(list(words), exit_on_error=False)
    (call,) = calls
    return call


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--config", "other.toml"),
        ("--engine", "echo", "--max-sessions", "7", "--echo-delay-seconds", "0.5"),
        ("--base-url", "http://a/v1", "--base-url", "http://b/v1?x=1"),
        ("--llama-server-args=-ngl", "--llama-server-args=99,1"),
        ("--no-sessions-enabled", "--echo-nonce"),
        ("--store", "sqlite:a file's name.db", "--max-inflight=-1"),
        ("--max-memory-bytes", "1000000", "--tokens-file", "tokens", "--model", ""),
    ],
)
def test_flags_that_were_parsed_are_written_and_parsed_to_the_same(words: tuple[str, ...]) -> None:
    given, config = parsed(*words)
    assert bool(given) == any(not word.startswith("--config") for word in words[:1])
    assert parsed(*command_line(given, config)) == (given, config)
