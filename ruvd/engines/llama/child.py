"""What runs in the engine's process: `python -m ruvd.engines.llama.child PARENT_PID`.

It serves llama.cpp by `xllamacpp` on a Unix socket, or turns itself into the user's own
llama-server. Either ends with the daemon, whatever killed that: the kernel kills this process
when the thread that started it is gone (which survives `exec`), and where there is no such thing
the end of stdin does it for the server in this process. One JSON line on stdin says what to do,
so that the key is in no command line. This module imports nothing of `ruvd`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
# How often a thread looks whether the others have come, before it sleeps. The default, 300,000,
# takes milliseconds; where the service next door has one of the cores, each of a token's hundreds
# of meetings takes that long, and a token a second (measured on 2 cores: 1 token/s instead of 23,
# for which an idle machine gives a fifth at one answer at a time and nothing at four).
_SPIN_COUNT = "1000"


def _end_with(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that went before the call above sends no signal any more.
    if os.getppid() != parent_pid:
        os._exit(1)


def _serve(settings: Mapping[str, Any]) -> NoReturn:
    # Read when the library is loaded.
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
    # On a CPU it makes an answer after a long prompt slower, measured by a third to a half.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_ram_mib = 0
    params.endpoint_slots = True
    params.slot_save_path = settings["slots_path"]
    params.ui = False
    try:
        server = xllamacpp.Server(params)  # noqa: F841  it serves as long as it is referred to
    except RuntimeError as error:
        sys.exit(f"cannot load {settings['model_path']}: {error}")
    while True:
        signal.pause()


def _become(settings: Mapping[str, Any]) -> NoReturn:
    # What older servers do not know goes by the environment, where it is ignored, not refused.
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
    """Take the settings from stdin and serve."""
    _end_with(int(sys.argv[1]))
    os.umask(0o077)  # a state that is saved is a conversation
    line = bytearray()
    # Unbuffered, so that nothing behind the line is taken from the one who reads next.
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(1)
        line += byte
    settings = json.loads(line)
    if settings["server_path"]:
        _become(settings)
    threading.Thread(target=_end_at_end_of_stdin, daemon=True).start()
    _serve(settings)


if __name__ == "__main__":
    main()
