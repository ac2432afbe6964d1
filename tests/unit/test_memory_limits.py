"""The default memory limits of the daemon and of the engine's process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ruvd.config.settings import Settings
from ruvd.server.memory_limits import daemon_limit_bytes, engine_limit_bytes, group_limit_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "limit"),
    [("402653184\n", 384 * MIB), ("max\n", None), ("9223372036854771712", None)],
    ids=["a limit", "version 2 without one", "version 1 without one"],
)
def test_the_limit_of_the_control_group_is_found_where_there_is_one(
    tmp_path: Path, text: str, limit: int | None
) -> None:
    path = tmp_path / "memory.max"
    path.write_text(text)
    assert group_limit_bytes([tmp_path / "missing", path]) == limit


@pytest.mark.parametrize(
    ("fields", "group", "daemon", "engine"),
    [
        ({}, None, 512, None),
        ({}, 1024 + 128, 240, 864),
        ({}, 384, 128, 256),
        ({}, 160, 128, 32),
        ({}, 100, 100, 0),
        ({"max_memory_bytes": 512 * MIB}, 1024, 512, 512),
        ({"max_memory_bytes": 128 * MIB}, 1024, 128, 768),
        ({"llama_max_memory_bytes": 604 * MIB}, 1024, 350, 604),
        ({"llama_max_memory_bytes": 1000 * MIB}, 1024, 128, 1000),
        ({"llama_max_memory_bytes": 600 * MIB}, None, 512, 600),
        ({"engine": "echo"}, 384, 320, 256),
        # A saved state passes through memory, which is left free.
        ({"encryption_key_file": "k"}, 1152, 210, 756),
        ({"encryption_key_file": "k", "kv_scratch_bytes": 64 * MIB}, 1024, 200, 720),
        ({"encryption_key_file": "k", "kv_cache_bytes": 0}, 1024 + 128, 240, 864),
    ],
)
def test_the_daemon_and_its_engine_share_the_groups_limit(
    fields: dict[str, Any], group: int | None, daemon: int, engine: int | None
) -> None:
    settings = Settings(**fields)
    group_bytes = None if group is None else group * MIB
    assert daemon_limit_bytes(settings, group_bytes) == daemon * MIB
    assert engine_limit_bytes(settings, group_bytes) == (None if engine is None else engine * MIB)
