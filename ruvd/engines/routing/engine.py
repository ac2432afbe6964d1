"""Several engines behind one. The table of the named ones is exchanged as a whole, at any time.

A request goes to its engine without a layer for each chunk: `for_model` finds the engine, and the
core calls that one. Without named engines it is the default engine itself.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Self

from ruvd.core.errors import EngineRejected, RuvdError
from ruvd.core.ports.engine import Engine, EngineChunk, EngineRequest, PrefixCache
from ruvd.core.ports.engine_wrapper import EngineWrapper
from ruvd.engines.routing.named_engine import NamedEngine
from ruvd.engines.routing.table import Table

# A named engine that does not list its models within this time is left out of the list.
_MODELS_SECONDS = 2.0
_MAX_LISTED = 10_000
# The names of engines that were removed, which a refusal tells of.
_MAX_REMOVED = 64


class RoutingEngine(EngineWrapper):
    """The engine `default` with named ones beside it, which a request's model chooses.

    What is no request is the default engine's: whether it is ready, its slots, its prefix cache.
    A default engine that `has_one_model` gets no request for another one.
    """

    def __init__(self, default: Engine, *, has_one_model: bool = False) -> None:
        super().__init__(default)
        self._has_one_model = has_one_model
        self._removed: dict[str, None] = {}
        self._retired: set[NamedEngine] = set()
        self._table = self.table(())

    @property
    def named(self) -> Collection[NamedEngine]:
        """The named engines, in the order of the settings."""
        return self._table.engines.values()

    def for_model(self, model: str) -> Engine:
        """Returns the engine of a model; see `Engine.for_model`."""
        if not model:
            return self._engine
        try:
            return self._table.find(model) or self._engine
        except EngineRejected as refusal:
            return _NoEngine(model, str(refusal))

    def table(
        self, engines: Sequence[tuple[NamedEngine, Sequence[str]]], removed: Collection[str] = ()
    ) -> Table:
        """Returns a table of engines with their models, to check it and to exchange it."""
        return Table(
            {engine.name: engine for engine, _ in engines},
            {engine.name: models for engine, models in engines},
            default_model=self._engine.model,
            has_one_model=self._has_one_model,
            removed=removed,
        )

    def exchange(
        self, engines: Sequence[tuple[NamedEngine, Sequence[str]]]
    ) -> Sequence[NamedEngine]:
        """Takes these engines with their models from now on, instead of those before.

        Returns the engines that are retired by that. They are to be closed when their requests
        have ended.
        """
        before = self._table.engines
        kept = {engine.name for engine, _ in engines}
        self._removed |= dict.fromkeys(name for name in before if name not in kept)
        for name in [*kept, *list(self._removed)[:-_MAX_REMOVED]]:
            self._removed.pop(name, None)
        for engine, models in engines:
            engine.models_offered = tuple(models)
        self._table = self.table(engines, self._removed)
        current = set(self._table.engines.values())
        retired = [engine for engine in before.values() if engine not in current]
        for engine in retired:
            engine.is_retired = True
        self._retired |= set(retired)
        return retired

    async def close_retired(self, engine: NamedEngine) -> None:
        """Closes an engine that has been retired."""
        await engine.close()
        self._retired.discard(engine)

    async def start(self) -> None:
        """Begins the start of all engines."""
        await super().start()
        for engine in self.named:
            await engine.start()

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.generate`."""
        return self.for_model(request.options.model).generate(request)

    async def models(self) -> Sequence[str]:
        """Returns the models of all engines that answer in time, those of the default one first.

        Raises the error of the default engine if no engine has any.
        """
        if not self.named:
            return await self._engine.models()
        lists = await asyncio.gather(_models_or_error(self._engine), *map(_models, self.named))
        names = [name for each in lists if not isinstance(each, RuvdError) for name in each]
        if isinstance(lists[0], RuvdError) and not names:
            raise lists[0]
        return list(dict.fromkeys(names))[:_MAX_LISTED]

    async def close(self) -> None:
        """Closes all engines, and those that were retired."""
        engines = [self._engine, *self.named, *self._retired]
        results = await asyncio.gather(*(each.close() for each in engines), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


async def _models_or_error(engine: Engine) -> Sequence[str] | RuvdError:
    try:
        return await engine.models()
    except RuvdError as error:
        return error


async def _models(engine: NamedEngine) -> Sequence[str]:
    try:
        async with asyncio.timeout(_MODELS_SECONDS):
            return await engine.models()
    except (RuvdError, TimeoutError):
        return [each for each in engine.models_offered if "*" not in each]


class _NoEngine:
    """The engine of a model that no engine has: every request is rejected."""

    def __init__(self, model: str, refusal: str) -> None:
        self.model = model
        self.name = ""
        self.slots: int | None = None
        self.window_tokens: int | None = None
        self.is_ready = False
        self.prefix_cache: PrefixCache | None = None
        self._refusal = refusal

    def for_model(self, model: str) -> Self:
        """See `Engine.for_model`."""
        return self

    async def start(self) -> None:
        """Does nothing."""

    async def ready(self) -> None:
        """Raises EngineRejected."""
        raise EngineRejected(self._refusal)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Raises EngineRejected."""
        await self.ready()
        chunks: Sequence[EngineChunk] = ()
        for chunk in chunks:
            yield chunk

    async def models(self) -> Sequence[str]:
        """Returns nothing."""
        return ()

    async def close(self) -> None:
        """Does nothing."""
