"""Batches: many completions in one call, with a concurrency limit and an outcome per item.

Items run as completions do, in the batches' share of the engine's slots. Items of one session run
in order. Of items whose prompts begin alike the first one runs alone until the engine has
evaluated its prompt; the others then start from the cache. Whenever an item ends the next one
begins. An item beyond a quota of its tenant waits. Outcomes wait for their reader, so the
concurrency limit also bounds the memory they hold.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ruvd.core.completions import shared_prefixes
from ruvd.core.completions.completion import CompletionRequest
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.errors import EngineRateLimited, Overloaded, RuvdError, forget_frames
from ruvd.core.model import Delta, Finished, Started, Usage
from ruvd.core.ports.clock import Clock

# The attempts at an item that is refused because of load.
_MAX_ATTEMPTS = 6
_MAX_WAIT_SECONDS = 30.0

Sleep: TypeAlias = Callable[[float], Awaitable[None]]
_log = logging.getLogger("ruvd.batch")


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """The outcome of the item `index`: `finished`, or `error`."""

    index: int
    completion_id: str = ""
    session_id: str = ""
    model: str = ""
    finished: Finished | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """The outcome of all items; `latency_seconds` is the sum of the answers' own total times."""

    succeeded: int = 0
    failed: int = 0
    usage: Usage = Usage()
    wall_seconds: float = 0.0
    latency_seconds: float = 0.0

    def with_outcome(self, outcome: BatchOutcome) -> "BatchSummary":
        """Returns the summary with one more outcome."""
        finished = outcome.finished
        if finished is None:
            return replace(self, failed=self.failed + 1)
        return replace(
            self,
            succeeded=self.succeeded + 1,
            usage=self.usage + (finished.usage or Usage()),
            latency_seconds=self.latency_seconds + finished.timings.total_seconds,
        )


@dataclass(eq=False, slots=True)
class _Run:
    """Items that run one after the other: those of one session, or a single one."""

    indexes: list[int]
    prefix_key: str = ""
    followers: "list[_Run]" = field(default_factory=list)


class Batches:
    """Runs batches, by default with `default_concurrency` items at a time.

    `sleep` waits before a refused item is run again.
    """

    def __init__(
        self,
        completions: CompletionRegistry,
        clock: Clock,
        default_concurrency: int,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._completions = completions
        self._clock = clock
        self._default_concurrency = default_concurrency
        self._sleep = sleep

    async def run(
        self, items: Sequence[CompletionRequest | RuvdError], max_concurrency: int = 0
    ) -> AsyncGenerator[BatchOutcome | BatchSummary, None]:
        """Yields the outcome of every item as it ends, then the summary.

        An item that is an error has failed with that error already. Closing the generator leaves
        the running items in the same way as the caller of a completion leaves it.
        """
        began = self._clock.monotonic()
        batch = _Batch(self._completions, items, self._sleep)
        concurrency = min(max_concurrency or self._default_concurrency, max(1, len(items)))
        tenant = next((each.tenant for each in items if isinstance(each, CompletionRequest)), "")
        if most := self._completions.quotas.batch_items(tenant):
            concurrency = min(concurrency, most)
        workers = [asyncio.create_task(batch.work()) for _ in range(concurrency)]
        summary = BatchSummary()
        try:
            for _ in items:
                outcome = await batch.outcomes.get()
                if isinstance(outcome, Exception):
                    raise outcome
                summary = summary.with_outcome(outcome)
                yield outcome
            yield replace(summary, wall_seconds=self._clock.monotonic() - began)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)


class _Batch:
    """One call: the runs that may begin, and the outcomes that wait for their reader."""

    def __init__(
        self,
        completions: CompletionRegistry,
        items: Sequence[CompletionRequest | RuvdError],
        sleep: Sleep,
    ) -> None:
        self._sleep = sleep
        self._completions = completions
        self._items = items
        self._ready = deque(_plan(items))
        self._changed = asyncio.Event()
        self.outcomes: asyncio.Queue[BatchOutcome | Exception] = asyncio.Queue(maxsize=1)

    async def work(self) -> None:
        """Runs items, until it is cancelled. A bug becomes an outcome, which fails the call."""
        try:
            await self._run_items()
        except Exception as error:  # noqa: BLE001  # the call would wait for ever for an outcome
            await self.outcomes.put(error)

    async def _run_items(self) -> None:
        while True:
            while not self._ready:
                await self._changed.wait()
            run = self._ready.popleft()
            for index in run.indexes:
                await self.outcomes.put(await self._outcome(index, run))
            self._release(run)

    def _release(self, run: _Run) -> None:
        """Lets the rest of a group run: its shared prefix is evaluated, or its first run failed."""
        if run.followers:
            self._ready.extendleft(reversed(run.followers))
            run.followers = []
            self._changed.set()
            self._changed = asyncio.Event()

    async def _outcome(self, index: int, run: _Run) -> BatchOutcome:
        item = self._items[index]
        if isinstance(item, RuvdError):
            return BatchOutcome(index, error=item)
        request = replace(item, batch=True, prefix_key=run.prefix_key)
        attempt = 0
        while True:
            narrowings = self._completions.scheduler.narrowings
            try:
                outcome = await self._complete(index, request, run)
            except (EngineRateLimited, Overloaded) as error:
                forget_frames(error)  # the completion keeps the error
                if isinstance(error, EngineRateLimited):
                    self._completions.scheduler.narrow(narrowings)
                attempt += 1
                if attempt == _MAX_ATTEMPTS:
                    return BatchOutcome(index, session_id=request.session_id, error=error)
                await self._sleep(_wait_seconds(error, attempt))
            except Exception as error:  # noqa: BLE001  # even a bug fails only its own item
                if not isinstance(error, RuvdError):
                    _log.error("an item of BatchComplete failed", exc_info=error)
                forget_frames(error)
                return BatchOutcome(index, session_id=request.session_id, error=error)
            else:
                self._completions.scheduler.widen()
                return outcome

    async def _complete(self, index: int, request: CompletionRequest, run: _Run) -> BatchOutcome:
        async with self._completions.quotas.batch_room(request.tenant, self._sleep):
            completion = self._completions.start(request)
        model, answer = "", None
        async with aclosing(completion.events()) as events:
            async for event in events:
                match event.event:
                    case Started() as started:
                        model = started.model
                    case Delta():
                        self._release(run)
                    case Finished() as finished:
                        answer = finished
        return BatchOutcome(index, completion.id, request.session_id, model, answer)


def _plan(items: Sequence[CompletionRequest | RuvdError]) -> list[_Run]:
    """Returns the runs that may begin at once, in order; followers wait for their leaders."""
    runs: dict[object, _Run] = {}
    for index, item in enumerate(items):
        key = index if isinstance(item, RuvdError) else item.session_id or index
        runs.setdefault(key, _Run([])).indexes.append(index)
    first_items = {run.indexes[0]: run for run in runs.values()}
    texts = {
        index: shared_prefixes.beginning(item)
        for index in first_items
        if not isinstance(item := items[index], RuvdError)
    }
    leaders: dict[str, _Run] = {}
    ready = []
    keys = shared_prefixes.group(texts)
    for index, run in first_items.items():
        key = run.prefix_key = keys.get(index, "")
        if key in leaders:
            leaders[key].followers.append(run)
            continue
        ready.append(run)
        if key:
            leaders[key] = run
    return ready


def _wait_seconds(error: RuvdError, attempt: int) -> float:
    """Returns the error's own delay or an exponential one, whichever is longer, with jitter."""
    wait: float = max(error.retry_after_seconds or 0.0, 0.25 * 2**attempt)
    jitter = random.uniform(0.8, 1.2)  # noqa: S311  # no secret
    return min(wait, _MAX_WAIT_SECONDS) * jitter
