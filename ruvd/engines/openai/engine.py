"""Any OpenAI-compatible servers as the engine. The first server that works gets each request.

A request is retried only before its first chunk. An attempt tries every server that may work, one
after the other without a pause; only the next attempt waits.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from ruvd.core.errors import EngineTimeout, EngineUnavailable, RuvdError
from ruvd.core.model import Message, Role
from ruvd.core.ports.background import StartTask, start_unsupervised
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, PrefixCache
from ruvd.core.ports.events import Observer, PromptEvaluated
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.credentials import ApiKey
from ruvd.engines.chat.retryable import may_go_elsewhere, never_sent, refuses_credentials
from ruvd.engines.http.factory import TransportFactory, transport_factory
from ruvd.engines.openai.affinity import Affinity, Preset
from ruvd.engines.openai.circuit_breaker import CircuitBreaker
from ruvd.engines.openai.health_checks import HealthChecks
from ruvd.engines.openai.retries import RetryBudget, attempts
from ruvd.engines.openai.send_back import SendBackPreset, send_back
from ruvd.engines.openai.upstream import Call, Upstream

# The timeout of a health check, after connecting.
_CHECK_SECONDS = 5.0


class OpenAIEngine:
    """The servers at `base_urls`, in order of preference; each URL includes `/v1`, and perhaps a
    query, which every request gets.

    `connect_seconds` limits connecting, `read_seconds` each silence, and `total_seconds` the call
    with all its `retries`. A Retry-After is cut to `max_retry_after_seconds`. `breaker_failures` in
    a row open a server's circuit for `breaker_seconds`. `max_parallel` is the engine's `slots`.
    `transport` makes the transport to a URL, if not the default one. `monotonic` is the clock of
    the circuit breakers. `start_task` starts the health checks.
    """

    def __init__(
        self,
        *,
        observer: Observer,
        base_urls: Sequence[str],
        model: str,
        api_key: str = "",
        api_key_file: Path | None = None,
        api_key_setting: str = "api_key_file",
        affinity: Preset = "none",
        affinity_header: str = "",
        cache_salt: str = "",
        send_back: SendBackPreset = "auto",
        ca_file: Path | None = None,
        client_cert_file: Path | None = None,
        client_key_file: Path | None = None,
        connect_seconds: float = 5.0,
        read_seconds: float = 120.0,
        total_seconds: float = 600.0,
        max_parallel: int | None = None,
        retries: int = 2,
        max_retry_after_seconds: float = 3600.0,
        health_check_seconds: float = 10.0,
        breaker_failures: int = 5,
        breaker_seconds: float = 10.0,
        transport: TransportFactory | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        start_task: StartTask = start_unsupervised,
    ) -> None:
        self._start_task = start_task
        self._base_urls = tuple(base_urls)
        self._model = model
        self._max_parallel = max_parallel
        self.api_key = ApiKey(api_key, api_key_file, secrets=[cache_salt], setting=api_key_setting)
        self._affinity = Affinity(affinity, affinity_header, cache_salt)
        self._send_back = send_back
        self._tls_files = (ca_file, client_cert_file, client_key_file)
        self._make_transport = transport
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._total_seconds = total_seconds
        self._retries = retries
        self._max_retry_after_seconds = max_retry_after_seconds
        self._make_breaker = partial(
            CircuitBreaker,
            failures=breaker_failures,
            open_seconds=breaker_seconds,
            probe_seconds=total_seconds,
            monotonic=monotonic,
        )
        self._budget = RetryBudget()
        self._upstreams: Sequence[Upstream] = ()
        self._open_lock = asyncio.Lock()
        self._checks = HealthChecks(
            self._open,
            observer,
            model=model,
            interval_seconds=health_check_seconds,
            check_seconds=connect_seconds + min(read_seconds, _CHECK_SECONDS),
        )
        self._is_closed = False

    @property
    def model(self) -> str:
        """The model for requests that name none."""
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
        """The setting `max_parallel`."""
        return self._max_parallel

    @property
    def window_tokens(self) -> int | None:
        """None, because the size of a server's context is not known."""
        return None

    async def start(self) -> None:
        """Starts the health checks of the servers, and returns at once."""
        if not self._is_closed:
            self._checks.start(self._start_task)

    @property
    def is_ready(self) -> bool:
        """See `Engine.is_ready`."""
        return not self._is_closed and not self._checks.is_out_of_reach

    async def ready(self) -> None:
        """Waits for the first health check. Raises EngineUnavailable if all servers are down."""
        self._check_open()
        await self._checks.wait_first()
        self._check_open()
        if self._checks.is_out_of_reach:
            raise EngineUnavailable(self._checks.down_reason())

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.generate`."""
        self._affinity.check(request)
        deadline = asyncio.get_running_loop().time() + self._total_seconds
        self._budget.deposit()
        try:
            call = await self._try_servers(request, deadline)
        except RuvdError as failure:
            call = await self._retry(request, deadline, [failure])
        async with call:
            yield call.first
            async for chunk in call.chunks:
                yield chunk

    async def models(self) -> Sequence[str]:
        """Returns the models of the first server that answers."""
        error: RuvdError | None = None
        for upstream in await self._candidates():
            try:
                return await upstream.client.models(seconds=self._read_seconds)
            except RuvdError as failure:
                error = failure
        raise error or EngineUnavailable(self._checks.down_reason())

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """The engine itself. It can have a prompt evaluated; the cache is the server's."""
        return self

    async def prepare(self, request: EngineRequest) -> AsyncGenerator[PromptEvaluated, None]:
        """Evaluates the messages in one step, by an answer of one token. See `PrefixCache`."""
        # Servers answer only a prompt that ends with a user message.
        messages = (*request.messages, Message(Role.USER, "."))
        options = replace(request.options, max_tokens=1)
        evaluation = replace(request, messages=messages, options=options)
        async with aclosing(self.generate(evaluation)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, EngineDone) and chunk.usage:
                    count = chunk.usage.prompt_tokens - (chunk.usage.cached_tokens or 0)
                    seconds = chunk.prefill_seconds or 0.0
                    yield PromptEvaluated(count, seconds, request.session_key)

    def adopt(self, session_key: str, prepared_key: str) -> None:
        """Does nothing, because the cache is the server's."""

    def forget(self, session_key: str) -> None:
        """Does nothing, because the cache is the server's."""

    def remembered(self) -> Collection[str]:
        """Returns nothing, because the cache is the server's."""
        return ()

    async def save(self) -> None:
        """Does nothing, because the cache is the server's."""

    async def close(self) -> None:
        """Closes every connection. Idempotent."""
        self._is_closed = True
        await self._checks.close()
        async with self._open_lock:
            for upstream in self._upstreams:
                await upstream.client.close()

    async def _retry(
        self, request: EngineRequest, deadline: float, failed: list[RuvdError]
    ) -> Call:
        """Returns an answer that has begun, by retries of a first attempt, which has `failed`."""
        retries = attempts(retries=self._retries, deadline=deadline, budget=self._budget)
        try:
            async with asyncio.timeout_at(deadline):
                async for attempt in retries:
                    with attempt:
                        if failed:
                            raise failed.pop()
                        return await self._try_servers(request, deadline)
        except TimeoutError as error:
            text = f"the engine did not answer within {self._total_seconds:g} s"
            raise EngineTimeout(text) from error
        raise AssertionError  # the last attempt has raised

    async def _try_servers(self, request: EngineRequest, deadline: float) -> Call:
        """Returns an answer that has begun, of the first server that gives one."""
        error: RuvdError | None = None
        for upstream in await self._candidates():
            model = request.options.model or self._model
            try:
                call = await upstream.complete(request, model=model, deadline=deadline)
                if call is not None:
                    return call
            except RuvdError as failure:
                if never_sent(failure):
                    self._checks.request()
                if refuses_credentials(failure):
                    self.api_key.forget()
                if not may_go_elsewhere(failure):
                    raise
                error = failure
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame, which must not refer to it
        waits = [upstream.breaker.wait_seconds for upstream in self._upstreams]
        raise EngineUnavailable(
            self._checks.down_reason(), retry_after_seconds=max(1.0, min(waits))
        )

    async def _candidates(self) -> Sequence[Upstream]:
        """Returns the servers with no open circuit, without those that are down if any is not."""
        upstreams = [server for server in await self._open() if server.breaker.wait_seconds == 0.0]
        return [server for server in upstreams if server.up is not False] or upstreams

    async def _open(self) -> Sequence[Upstream]:
        self._check_open()
        if not self._upstreams:
            async with self._open_lock:
                if not self._upstreams:
                    make = self._make_transport
                    if make is None:
                        make = await asyncio.to_thread(transport_factory, *self._tls_files)
                    self._upstreams = [self._make_upstream(url, make) for url in self._base_urls]
                    self._checks.watch(self._upstreams)
            self._check_open()
        return self._upstreams

    def _make_upstream(self, url: str, make_transport: TransportFactory) -> Upstream:
        client = ChatCompletionsClient(
            transport=make_transport(url),
            base_url=url,
            api_key=self.api_key,
            connect_seconds=self._connect_seconds,
            read_seconds=self._read_seconds,
            max_retry_after_seconds=self._max_retry_after_seconds,
            keep_alive=self._affinity.preset != "llama-server",
            send_back=send_back(self._send_back, url),
            # OpenAI's newer models refuse the old name, other servers do not know the new one.
            max_tokens_field=(
                "max_completion_tokens" if self._affinity.preset == "openai" else "max_tokens"
            ),
        )
        name = url.partition("?")[0]  # a query may hold a secret, and the name is logged
        return Upstream(
            name, client, self._affinity, self._make_breaker(), self._checks.report_state
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineUnavailable("the engine is closed")
