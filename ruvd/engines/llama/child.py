"""The main module of the engine's process: `python -m ruvd.engines.llama.child PARENT_PID`.

The process serves llama.cpp by `xllamacpp` on a Unix socket, or replaces itself by the user's own
llama-server. In either case it ends with the daemon, also after SIGKILL: on Linux the kernel kills
the process when the thread that started it has ended (a setting that survives `exec`); elsewhere
the end of stdin ends the server in this process. One JSON line on stdin has the settings, so that
no command line contains the key. This module imports nothing of `ruvd`.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
# The number of times that an OpenMP thread checks a barrier before it sleeps. The default of
# 300,000 takes milliseconds. If another process uses one of the cores, each of the hundreds of
# barriers of a token takes that long (measured on 2 cores: 1 token/s instead of 23). On an idle
# machine the lower count costs a fifth with one answer at a time and nothing with four.
_SPIN_COUNT = "1000"
# In thousandths of the memory: the daemon itself takes less than half of it.
_OOM_SCORE = 500


def _end_with_parent(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that exited before the call above sends no signal.
    if os.getppid() != parent_pid:
        os._exit(1)


def _die_first() -> None:
    """Makes the kernel choose this process before the daemon when memory runs out; see proc(5)."""
    if sys.platform == "linux":
        path = Path("/proc/self/oom_score_adj")
        with contextlib.suppress(OSError, ValueError):
            path.write_text(str(min(1000, int(path.read_text()) + _OOM_SCORE)))


def _serve(settings: Mapping[str, Any]) -> NoReturn:
    # The library reads this variable when it is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    import xllamacpp  # noqa: PLC0415  only this process may load it

    params = xllamacpp.CommonParams()
    params.model.path = settings["model_path"]
    params.model_alias = {settings["model"]}
    params.hostnames = [settings["socket_path"]]
    params.api_keys = [settings["api_key"]]
    params.n_ctx = settings["context_tokens"] * settings["slots"]
    params.n_parallel = settings["slots"]
    params.kv_unified = False
    params.n_batch = params.n_ubatch = settings["batch_tokens"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    # On a CPU, flash attention makes an answer after a long prompt slower, measured by a third to a
    # half.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_ram_mib = 0
    params.endpoint_slots = True
    params.slot_save_path = settings["slots_path"]
    params.ui = False
    try:
        server = xllamacpp.Server(params)  # noqa: F841  it serves as long as a variable refers to it
    except RuntimeError as error:
        sys.exit(f"cannot load {settings['model_path']}: {error}")
    while True:
        signal.pause()


def _exec_server(settings: Mapping[str, Any]) -> NoReturn:
    # Older servers ignore a variable that they do not know, but exit because of such a flag.
    environment = {
        **os.environ,
        "LLAMA_API_KEY": settings["api_key"],
        "LLAMA_ARG_CACHE_RAM": "0",
        "LLAMA_ARG_ENDPOINT_SLOTS": "1",
        "LLAMA_ARG_KV_UNIFIED": "0",
        "LLAMA_ARG_UI": "0",
        "LLAMA_ARG_WEBUI": "0",
    }
    flags = {
        "--model": settings["model_path"],
        "--alias": settings["model"],
        "--host": settings["socket_path"],
        "--port": "8080",
        "--ctx-size": settings["context_tokens"] * settings["slots"],
        "--parallel": settings["slots"],
        "--threads": settings["threads"],
        "--threads-batch": settings["threads"],
        "--batch-size": settings["batch_tokens"],
        "--ubatch-size": settings["batch_tokens"],
        "--slot-save-path": settings["slots_path"],
    }
    path = settings["server_path"]
    argv = [path, *(str(word) for flag in flags.items() for word in flag), *settings["server_args"]]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.execve(path, argv, environment)  # noqa: S606  no shell is wanted
    except OSError as error:
        sys.exit(f"cannot run {path}: {error.strerror}")


def _end_at_end_of_stdin() -> None:
    os.read(0, 1)
    os._exit(0)


def main() -> NoReturn:
    """Reads the settings from stdin and serves."""
    _end_with_parent(int(sys.argv[1]))
    _die_first()
    os.umask(0o077)  # saved states contain conversations
    line = bytearray()
    # Unbuffered, so that nothing after the line is read here.
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(1)
        line += byte
    settings = json.loads(line)
    if settings["max_file_bytes"] is not None:
        # A state that is larger is not written; Python ignores the signal, and so does a server.
        limits = (settings["max_file_bytes"], settings["max_file_bytes"])
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if settings["server_path"]:
        _exec_server(settings)
    threading.Thread(target=_end_at_end_of_stdin, daemon=True).start()
    _serve(settings)


if __name__ == "__main__":
    main()
