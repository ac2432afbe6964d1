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
from typing import Protocol, TypeAlias

from ruvd.core.completions import shared_prefixes
from ruvd.core.completions.completion import Completion, CompletionRequest
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.errors import EngineRateLimited, Overloaded, RuvdError, forget_frames
from ruvd.core.model import Delta, Finished, Started, Usage
from ruvd.core.ports.clock import Clock

# The attempts at an item that is refused because of load.
_MAX_ATTEMPTS = 6
_MAX_WAIT_SECONDS = 30.0


class Here(Protocol):
    """Runs an item here. With `may_move` it raises SessionElsewhere if its session is elsewhere."""

    async def __call__(self, *, may_move: bool) -> "BatchOutcome":
        """Returns the outcome of an item that has succeeded, and raises the error otherwise."""


class ItemRouter(Protocol):
    """Runs the items of a batch at the replicas that have their sessions."""

    async def run(self, index: int, here: Here, on_text: Callable[[], None]) -> "BatchOutcome":
        """Returns the outcome of an item, by `here` or by another replica.

        Calls `on_text` when the other replica has begun to answer. Raises RuvdError.
        """


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

    async def start(self, request: CompletionRequest) -> Completion:
        """Begins an item of another replica's batch, as soon as its tenant may have one more."""
        return await _start(self._completions, replace(request, batch=True), self._sleep)

    async def run(
        self,
        items: Sequence[CompletionRequest | RuvdError],
        max_concurrency: int = 0,
        router: ItemRouter | None = None,
    ) -> AsyncGenerator[BatchOutcome | BatchSummary, None]:
        """Yields the outcome of every item as it ends, then the summary.

        An item that is an error has failed with that error already. Those in sessions run where
        the `router` says, if there is one. Closing the generator leaves
        the running items in the same way as the caller of a completion leaves it.
        """
        began = self._clock.monotonic()
        batch = _Batch(self._completions, items, self._sleep, router)
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
        router: ItemRouter | None,
    ) -> None:
        self._router = router
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
            try:
                outcome = await self._complete(index, request, run)
            except (EngineRateLimited, Overloaded) as error:
                forget_frames(error)  # the completion keeps the error
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
                return outcome

    async def _complete(self, index: int, request: CompletionRequest, run: _Run) -> BatchOutcome:
        if self._router is None or not request.session_id:
            return await self._complete_here(index, request, run)

        async def here(*, may_move: bool) -> BatchOutcome:
            return await self._complete_here(index, replace(request, may_move=may_move), run)

        return await self._router.run(index, here, lambda: self._release(run))

    async def _complete_here(
        self, index: int, request: CompletionRequest, run: _Run
    ) -> BatchOutcome:
        completion = await _start(self._completions, request, self._sleep)
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
        completion_id = completion.replayed or completion.id
        return BatchOutcome(index, completion_id, request.session_id, model, answer)


async def _start(
    completions: CompletionRegistry, request: CompletionRequest, sleep: Sleep
) -> Completion:
    async with completions.quotas.batch_room(request.tenant, sleep):
        return completions.start(request)


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
