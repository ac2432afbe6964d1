"""Any OpenAI-compatible server as the engine, or several: the first that is well is asked.

A call is tried again only before its first chunk. Each round asks every server that may be well,
at once, and only then waits. Affinity, credentials and faults are decided in modules of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from ruvd.core.errors import EngineTimeout, EngineUnavailable, RuvdError
from ruvd.core.model import Message, Role
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, PrefixCache
from ruvd.core.ports.events import EngineStateChanged, Observer, PromptEvaluated
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.credentials import ApiKey
from ruvd.engines.chat.retryable import may_go_elsewhere, never_sent, refuses_credentials
from ruvd.engines.http.factory import TransportFactory, transport_factory
from ruvd.engines.http.transport import Transport
from ruvd.engines.openai.affinity import Affinity, Preset
from ruvd.engines.openai.circuit_breaker import CircuitBreaker
from ruvd.engines.openai.retries import RetryBudget, attempts
from ruvd.engines.openai.upstream import Call, Upstream

# How often a server that is down is asked whether it is up again.
_DOWN_SECONDS = 1.0
_PAUSE_SECONDS = 0.2
# How long a server may take to say which models it has.
_ANSWER_SECONDS = 5.0


class OpenAIEngine:
    """The servers at `base_urls`, in order of preference, each with its `/v1`.

    `connect_seconds` bounds connecting, `read_seconds` each silence, `total_seconds` the call
    with all its `retries`. `breaker_failures` in a row keep a server from being asked for
    `breaker_seconds`. `max_parallel` is the engine's `slots`.
    """

    def __init__(
        self,
        *,
        observer: Observer,
        base_urls: Sequence[str],
        model: str,
        api_key: str = "",
        api_key_file: Path | None = None,
        affinity: Preset = "none",
        affinity_header: str = "",
        cache_salt: str = "",
        ca_file: Path | None = None,
        client_cert_file: Path | None = None,
        client_key_file: Path | None = None,
        connect_seconds: float = 5.0,
        read_seconds: float = 120.0,
        total_seconds: float = 600.0,
        max_parallel: int | None = None,
        retries: int = 2,
        health_check_seconds: float = 10.0,
        breaker_failures: int = 5,
        breaker_seconds: float = 10.0,
        transport: TransportFactory | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observer = observer
        self._base_urls = tuple(base_urls)
        self._model = model
        self._max_parallel = max_parallel
        self._key = ApiKey(api_key, api_key_file, secrets=[cache_salt])
        self._affinity = Affinity(affinity, affinity_header, cache_salt)
        self._files = (ca_file, client_cert_file, client_key_file)
        self._transport = transport
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._total_seconds = total_seconds
        self._retries = retries
        self._health_check_seconds = health_check_seconds
        self._breaker_failures = breaker_failures
        self._breaker_seconds = breaker_seconds
        self._monotonic = monotonic
        self._budget = RetryBudget()
        self._upstreams: Sequence[Upstream] = ()
        self._opening = asyncio.Lock()
        self._checks: asyncio.Task[None] | None = None
        self._checked = asyncio.Event()
        self._check_now = asyncio.Event()
        self._told_up: bool | None = None
        self._cannot_open = "the engine has not been started"
        self._closed = False

    @property
    def model(self) -> str:
        """The model that is asked for if the caller names none."""
        return self._model

    @property
    def slots(self) -> int | None:
        """`max_parallel`."""
        return self._max_parallel

    @property
    def window_tokens(self) -> int | None:
        """None: it is not known what a server's context holds."""
        return None

    async def start(self) -> None:
        """Begin to ask the servers whether they are up, and return at once."""
        if self._checks is None and not self._closed:
            self._checks = asyncio.create_task(self._check_for_ever(), name="engine-health")

    @property
    def is_ready(self) -> bool:
        """See `Engine.is_ready`."""
        has_checked = self._checks is None or self._checked.is_set()
        return has_checked and not self._closed and self._told_up is not False

    async def ready(self) -> None:
        """Return at once, or after the first check of a fresh start, unless all are down."""
        self._check_open()
        if self._checks is not None:
            await self._checked.wait()
        self._check_open()
        if self._told_up is False:
            raise EngineUnavailable(self._troubles())

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Generate; see `Engine.generate`."""
        self._affinity.check(request)
        deadline = asyncio.get_running_loop().time() + self._total_seconds
        self._budget.deposit()
        try:
            call = await self._ask_each(request, deadline)
        except RuvdError as failure:
            call = await self._ask_again(request, deadline, [failure])
        async with call:
            yield call.first
            async for chunk in call.chunks:
                yield chunk

    async def models(self) -> Sequence[str]:
        """What the first server that answers offers."""
        error: RuvdError | None = None
        for upstream in await self._candidates():
            try:
                return await upstream.client.models(seconds=self._read_seconds)
            except RuvdError as failure:
                error = failure
        raise error or EngineUnavailable(self._troubles())

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """Itself: it can have a prompt evaluated; what servers keep is theirs."""
        return self

    async def prepare(self, request: EngineRequest) -> AsyncGenerator[PromptEvaluated, None]:
        """In one step, which is paid as any prompt is; see `Warm.prepare`."""
        messages = (*request.messages, Message(Role.USER, "."))  # an answer must be due
        options = replace(request.options, max_tokens=1)
        asked = replace(request, messages=messages, options=options)
        async with aclosing(self.generate(asked)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, EngineDone) and chunk.usage:
                    count = chunk.usage.prompt_tokens - (chunk.usage.cached_tokens or 0)
                    seconds = chunk.prefill_seconds or 0.0
                    yield PromptEvaluated(count, seconds, request.session_key)

    def forget(self, session_key: str) -> None:
        """Nothing is kept here."""

    def remembered(self) -> Collection[str]:
        """Nothing is kept here."""
        return ()

    async def save(self) -> None:
        """Nothing is kept here."""

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        self._closed = True
        self._checked.set()
        if self._checks is not None:
            self._checks.cancel()
            await asyncio.wait([self._checks])
        async with self._opening:
            for upstream in self._upstreams:
                await upstream.client.close()

    async def _ask_again(
        self, request: EngineRequest, deadline: float, failed: list[RuvdError]
    ) -> Call:
        """The same after the first try has `failed`, as often as it may."""
        tries = attempts(retries=self._retries, deadline=deadline, budget=self._budget)
        try:
            async with asyncio.timeout_at(deadline):
                async for attempt in tries:
                    with attempt:
                        if failed:
                            raise failed.pop()
                        return await self._ask_each(request, deadline)
        except TimeoutError as error:
            raise EngineTimeout(
                f"the engine did not answer within {self._total_seconds:g} s"
            ) from error
        raise AssertionError  # the last try has raised

    async def _ask_each(self, request: EngineRequest, deadline: float) -> Call:
        """An answer that has begun, of the first server that gives one."""
        error: RuvdError | None = None
        for upstream in await self._candidates():
            model = request.options.model or self._model
            try:
                call = await upstream.complete(request, model=model, deadline=deadline)
                if call is not None:
                    return call
            except RuvdError as failure:
                if never_sent(failure):
                    self._check_now.set()
                if refuses_credentials(failure):
                    self._key.forget()
                if not may_go_elsewhere(failure):
                    raise
                error = failure
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, which is not to hold it
        waits = [upstream.breaker.wait_seconds for upstream in self._upstreams]
        raise EngineUnavailable(self._troubles(), retry_after_seconds=max(1.0, min(waits)))

    async def _candidates(self) -> Sequence[Upstream]:
        """Those whose breakers let a call through: not known to be down first."""
        upstreams = [each for each in await self._open() if each.breaker.wait_seconds == 0.0]
        return [each for each in upstreams if each.up is not False] or upstreams

    async def _open(self) -> Sequence[Upstream]:
        self._check_open()
        if not self._upstreams:
            async with self._opening:
                if not self._upstreams:
                    make = self._transport
                    if make is None:
                        make = await asyncio.to_thread(transport_factory, *self._files)
                    self._upstreams = [
                        self._make_upstream(url, make(url)) for url in self._base_urls
                    ]
            self._check_open()
        return self._upstreams

    def _make_upstream(self, url: str, transport: Transport) -> Upstream:
        client = ChatCompletionsClient(
            transport=transport,
            base_url=url,
            api_key=self._key,
            connect_seconds=self._connect_seconds,
            read_seconds=self._read_seconds,
            keep_alive=self._affinity.preset != "llama-server",
            # OpenAI's newer models refuse the old name, other servers do not know the new one.
            max_tokens_field=(
                "max_completion_tokens" if self._affinity.preset == "openai" else "max_tokens"
            ),
        )
        breaker = CircuitBreaker(
            failures=self._breaker_failures,
            open_seconds=self._breaker_seconds,
            probe_seconds=self._total_seconds,
            monotonic=self._monotonic,
        )
        return Upstream(url, client, self._affinity, breaker, self._tell)

    async def _check_for_ever(self) -> None:
        seconds = self._connect_seconds + min(self._read_seconds, _ANSWER_SECONDS)
        while True:
            self._check_now.clear()
            try:
                upstreams = await self._open()
            except EngineUnavailable as error:
                self._cannot_open = str(error)
                self._tell()
            else:
                await asyncio.gather(*(upstream.check(seconds) for upstream in upstreams))
            self._checked.set()
            pause = self._health_check_seconds if self._told_up else _DOWN_SECONDS
            # A failed call brings the next check forward, but many do not make many.
            await asyncio.sleep(min(_PAUSE_SECONDS, pause))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._check_now.wait()

    def _tell(self) -> None:
        """Tell the observer if the engine as a whole has come up or gone down."""
        known = [upstream.up for upstream in self._upstreams]
        up = any(known)
        if up == self._told_up or (None in known and not up):
            return
        self._told_up = up
        there = [upstream for upstream in self._upstreams if upstream.up]
        detail = f"{self._model} at {there[0].url}" if there else self._troubles()
        if there and there[0].problem:
            detail = f"{detail}, but {there[0].problem}"
        self._observer(EngineStateChanged(up=up, detail=detail))

    def _troubles(self) -> str:
        """Why no server can be asked."""
        if not self._upstreams:
            return self._cannot_open
        told = [f"{each.url}: {each.problem or 'failing'}" for each in self._upstreams]
        return f"no server of the engine is up: {'; '.join(told)}"

    def _check_open(self) -> None:
        if self._closed:
            raise EngineUnavailable("the engine is closed")
