"""The launch of llama.cpp's server, and the client to it.

Each process gets a new key, and a Unix socket in a directory that only this user can enter. The
settings are sent over stdin, so that no command line contains the key.
"""

import asyncio
import logging
import math
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from ruvd.core.errors import EngineUnavailable, RuvdError
from ruvd.core.ports.events import EngineStateChanged, Observer
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.credentials import ApiKey
from ruvd.engines.chat.retryable import Refused
from ruvd.engines.http.http1 import Http1Transport
from ruvd.engines.http.transport import Transport
from ruvd.engines.llama.control_tokens import ControlTokens
from ruvd.engines.llama.heartbeat import Pulse
from ruvd.engines.llama.memory_limit import limit_memory, says_out_of_memory
from ruvd.engines.llama.model_file import find_model, fingerprint
from ruvd.engines.llama.supervisor import Launch
from ruvd.engines.llama.vocabulary import Vocabulary, read_vocabulary

# The URL of the server. The transport ignores the host, as it connects to a Unix socket.
ROOT = "http://engine"
# A Unix socket's path has at most 107 bytes; the rest is for the file's name.
_MAX_DIRECTORY_BYTES = 96
# The share of one processor above which a process computes. A container may have a small quota.
_COMPUTING_SHARE = 0.02

# A line of llama.cpp's log at level info or below: `0.01.707.128 I slot release: ...`.
_INFORMATION = re.compile(r"[\d.]+ [DIT] ")

_log = logging.getLogger("ruvd.engine")


class _Health(msgspec.Struct):
    status: str = ""


class _Capabilities(msgspec.Struct):
    supports_tools: bool | None = None
    supports_tool_calls: bool | None = None


class _Properties(msgspec.Struct):
    """A server's answer to /props. Older servers report no capabilities of the chat template."""

    chat_template_caps: _Capabilities | None = None


def unix_socket_transport(path: Path) -> Transport:
    """Returns a transport to the server that listens at a Unix socket."""
    return Http1Transport(path=path)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings of a server; see `LlamaEngine`."""

    model: str
    model_path: Path | None
    server_path: Path | None
    server_args: tuple[str, ...]
    context_tokens: int
    slots: int
    threads: int
    batch_tokens: int
    max_memory_bytes: int | None
    max_file_bytes: int | None = None


class LlamaServer:
    """A `supervisor.Child`: the current server process, and how to start the next one.

    `open_states` is given a private directory and the fingerprint of states, and returns the
    directory in which the server must save slots. `transport` connects to a Unix socket.
    """

    def __init__(
        self,
        settings: ServerSettings,
        open_states: Callable[[Path, str], Path],
        transport: Callable[[Path], Transport],
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._open_states = open_states
        self._transport = transport
        self._observer = observer
        self._threads = settings.threads
        self._directory: Path | None = None
        self._capabilities: _Capabilities | None = None
        self.client: ChatCompletionsClient | None = None

    async def prepare(self) -> Launch:
        """Finds the files, and makes a key and a client for a new process."""
        if self.client is not None:
            await self.client.close()
        if self._directory is None:
            self._directory = await asyncio.to_thread(_private_directory)
        await asyncio.to_thread(_delete_files, self._directory)
        model_path, states_path = await asyncio.to_thread(self._find_paths, self._directory)
        control_tokens = await asyncio.to_thread(_control_tokens, model_path)
        socket_path = self._directory / "s.sock"
        self._capabilities = None
        api_key = secrets.token_urlsafe(32)
        self.client = ChatCompletionsClient(
            transport=self._transport(socket_path),
            base_url=f"{ROOT}/v1",
            api_key=ApiKey(api_key),
            keep_alive=False,
            rewrite=control_tokens.broken_up,
        )
        settings = {
            **asdict(self._settings),
            "model_path": str(model_path),
            "server_path": str(self._settings.server_path or ""),
            "threads": self._threads,
            "socket_path": str(socket_path),
            "slots_path": f"{states_path.absolute()}/",
            "api_key": api_key,
        }
        # -P: nothing in the working directory may be imported in place of our modules.
        child = [sys.executable, "-P", "-m", "ruvd.engines.llama.child", str(os.getpid())]
        return Launch(child, msgspec.json.encode(settings) + b"\n")

    async def is_up(self, pid: int) -> bool:
        """Returns whether the process has loaded its model, after limiting its memory then."""
        if self.client is None:
            return False
        try:
            health = await self.client.call("GET", f"{ROOT}/health", _Health)
            if is_up := health.status == "ok":
                await asyncio.to_thread(self._limit_memory, pid)
        except (RuvdError, ProcessLookupError, FileNotFoundError):
            return False  # it is not up yet, or has ended
        return is_up

    async def supports_tools(self, client: ChatCompletionsClient) -> bool:
        """Returns whether the model's chat template supports tools; asks each process once.

        If it does not, the server would leave them out of the prompt without an error.
        """
        if self._capabilities is None:
            properties = await client.call("GET", f"{ROOT}/props", _Properties)
            self._capabilities = properties.chat_template_caps or _Capabilities()
        capabilities = self._capabilities
        return capabilities.supports_tools is not False or (
            capabilities.supports_tool_calls is not False
        )

    async def pulse(self, pid: int, seconds: float) -> Pulse:
        """Asks for the slots, which the server tells between two batches; see `Child.pulse`.

        /health would be answered by another thread also if the one that computes is stuck.
        """
        cpu_seconds, began = await asyncio.to_thread(_cpu_seconds, pid), time.monotonic()
        try:
            if self.client is not None:
                await self.client.call("GET", f"{ROOT}/slots", msgspec.Raw, seconds=seconds)
                return Pulse.ANSWERS
        except RuvdError as error:
            if isinstance(error.__cause__, Refused):  # an older server, without this endpoint
                return Pulse.ANSWERS
        used = await asyncio.to_thread(_cpu_seconds, pid) - cpu_seconds
        is_computing = used > _COMPUTING_SHARE * (time.monotonic() - began)
        return Pulse.COMPUTES if is_computing else Pulse.SILENT

    def may_explain_exit(self, line: str) -> bool:
        """Returns whether a line of output is above llama.cpp's log level info."""
        return _INFORMATION.match(line) is None

    def explain_exit(self, lines: Iterable[str]) -> str:
        """Returns what the last lines of output say about the memory limit, "" if nothing."""
        if not any(says_out_of_memory(line) for line in lines):
            return ""
        limit = self._settings.max_memory_bytes
        size = "" if limit is None else f" of {limit} bytes"
        return f"it reached its memory limit{size} (llama_max_memory_bytes)"

    def went_up(self, seconds: float) -> None:
        """Reports to the observer and logs that the server is up."""
        size = f"{self._settings.slots} slots of {self._settings.context_tokens} tokens"
        detail = f"{self._settings.model}: {size}, {self._threads} threads"
        _log.info("the engine is up after %.1f s with %s", seconds, detail)
        self._observer(EngineStateChanged(up=True, detail=detail))

    def went_down(self, reason: str) -> None:
        """Reports to the observer that the server is down; the supervisor logs it."""
        self._observer(EngineStateChanged(up=False, detail=reason))

    async def close(self) -> None:
        """Closes the client and deletes the private directory."""
        if self.client is not None:
            await self.client.close()
        if self._directory is not None:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    def _limit_memory(self, pid: int) -> None:
        """Limits the memory of the process, unless the system does not let us. Blocks."""
        max_bytes, own = self._settings.max_memory_bytes, self._settings.server_path is not None
        if own and max_bytes is None:
            return  # it may have caches of its own that grow
        try:
            limit_memory(pid, max_bytes)
        except (ProcessLookupError, FileNotFoundError):
            raise
        except OSError as error:
            _log.warning("the engine's memory is not limited: %s", error)

    def _find_paths(self, private: Path) -> tuple[Path, Path]:
        """Returns the paths of the model and of saved states, after checking all files. Blocks."""
        settings = self._settings
        model_path, server_path = find_model(settings.model_path), settings.server_path
        if server_path is not None and not os.access(server_path, os.X_OK):
            raise EngineUnavailable(f"there is no executable {server_path}")
        self._threads = settings.threads or _usable_cores()
        states = fingerprint(model_path, server_path, settings.server_args, settings.context_tokens)
        return model_path, self._open_states(private, states)


def _control_tokens(model_path: Path) -> ControlTokens:
    """Blocks."""
    try:
        return ControlTokens(read_vocabulary(model_path))
    except (OSError, ValueError) as error:
        _log.warning("the control tokens of %s are not known: %s", model_path, error)
        return ControlTokens(Vocabulary())


def _cpu_seconds(pid: int) -> float:
    """Returns the processor time of a process by proc(5), 0.0 if unknown. Blocks."""
    try:
        # The name of the program, in parentheses, may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _usable_cores() -> int:
    """Returns the cores that the affinity and the cgroup's quota leave to this process."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        # There is no such file, or the quota is the word `max`.
        return cores


def _delete_files(directory: Path) -> None:
    """Deletes everything in a directory except its subdirectories, which hold saved states."""
    for path in directory.iterdir():
        if not path.is_dir():
            path.unlink()


def _private_directory() -> Path:
    path = tempfile.mkdtemp(prefix="ruvd-")
    if len(os.fsencode(path)) > _MAX_DIRECTORY_BYTES:
        # The path of TMPDIR is too long for a socket in it.
        Path(path).rmdir()
        path = tempfile.mkdtemp(prefix="ruvd-", dir="/tmp")
    return Path(path)
