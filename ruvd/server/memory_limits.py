"""The defaults of the memory limits of the daemon and of the engine's process.

In a control group both have to fit into its limit, or the kernel kills one of them. A sixth of what
is left for the daemon stays free: for what gRPC and the kernel have taken before the daemon can
refuse it (measured by `bench/hostile.py`: 60 MiB of 384).
"""

import os
from collections.abc import Iterable
from pathlib import Path

from ruvd.config.loader import Settings

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)
_DEFAULT_BYTES = 512 << 20
_ENGINE_SHARE = 0.75
_MIN_DAEMON_BYTES = 128 << 20
_DAEMON_SHARE = 5 / 6
# The share of the group's limit for an encrypted KV state that passes through memory.
_SCRATCH_SHARE = 8
_MAX_SCRATCH_BYTES = 256 << 20


def group_limit_bytes(paths: Iterable[Path] = _CGROUP_LIMITS) -> int | None:
    """Returns the memory limit of the control group, None if there is none."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in paths:
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):  # there is no such file, or it says `max`
            continue
        if limit < total:
            return limit
    return None


def scratch_limit_bytes(settings: Settings, group: int | None) -> int:
    """Returns the memory that one encrypted KV state may take on its way, 0 without encryption."""
    saves = settings.engine == "llama" and settings.kv_cache_bytes
    if settings.encryption_key_file is None or not saves:
        return 0
    if settings.kv_scratch_bytes is not None:
        return settings.kv_scratch_bytes
    share = _MAX_SCRATCH_BYTES if group is None else group // _SCRATCH_SHARE
    return min(_MAX_SCRATCH_BYTES, share)


def engine_limit_bytes(settings: Settings, group: int | None) -> int | None:
    """Returns the limit of the engine's process, None if it has none of the settings or group.

    In a control group it is three quarters of the group's limit, less if the daemon needs more.
    """
    if settings.llama_max_memory_bytes is not None or group is None:
        return settings.llama_max_memory_bytes
    group -= scratch_limit_bytes(settings, group)
    daemon = settings.max_memory_bytes or _MIN_DAEMON_BYTES
    return max(0, min(int(group * _ENGINE_SHARE), group - daemon))


def daemon_limit_bytes(settings: Settings, group: int | None) -> int:
    """Returns the limit of the daemon: most of what the engine's process leaves of the group's."""
    if settings.max_memory_bytes is not None:
        return settings.max_memory_bytes
    if group is None:
        return _DEFAULT_BYTES
    engine = engine_limit_bytes(settings, group) if settings.engine == "llama" else None
    scratch = scratch_limit_bytes(settings, group)
    left = int((group - scratch - (engine or 0)) * _DAEMON_SHARE)
    return max(min(group, _MIN_DAEMON_BYTES), left)
